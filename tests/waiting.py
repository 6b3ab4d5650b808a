"""Waiting for what another process does, never longer than is said."""

import time
import urllib.request


def wait_for(condition, seconds=60.0):
    """What the condition gives as soon as it is true. AssertionError after `seconds`."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"waited {seconds:g} s in vain"
        time.sleep(0.05)
    return found


def answers(url):
    """Whether a server answers there with success."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
