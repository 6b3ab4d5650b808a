"""DVC's command line, quicker where stages wait for each other.

Why   DVC looks only twice a second whether the repository's lock is free, and it is held for half a second at a time.
      After every stage it rewrites dvc.lock, read with the parser that keeps comments, a quarter of that half second.
      A lock file has none: through the plain parser it stays as it was, byte for byte (a test).
      Price: two names inside DVC, whose version is locked.
Run   python -m flows.quick_dvc repro ...
"""

from __future__ import annotations

import sys
from typing import Any

import dvc.lock
from dvc.utils.serialize import _yaml


def parse_for_update(text: str, path: str) -> Any:
    """What `dvc.utils.serialize` modifies and writes back: plain dicts for a lock file."""
    return _yaml.parse_yaml(text, path) if str(path).endswith("dvc.lock") else _keep_comments(text, path)


_keep_comments = _yaml.parse_yaml_for_update
_yaml.parse_yaml_for_update = parse_for_update

dvc.lock.DEFAULT_TIMEOUT = 0.3  # seconds; a sixth of it lies between two looks

if __name__ == "__main__":
    from dvc.cli import main

    sys.exit(main(sys.argv[1:]))
