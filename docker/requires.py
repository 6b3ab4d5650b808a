"""Prints what an extra of pyproject.toml needs besides `aut` itself, one requirement a line.

In    the extra's name; pyproject.toml in the current folder
Why   the serving image installs packages before code, so that a change of code installs nothing
Run   python docker/requires.py serve
"""

import re
import sys
import tomllib

with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)["project"]


def needed(extra: str) -> list[str]:
    """Requirements of an extra; where it names extras of ours, theirs."""
    found: list[str] = []
    for requirement in project["optional-dependencies"][extra]:
        ours = re.fullmatch(r"aut\[(.+)]", requirement)
        found += [r for name in ours[1].split(",") for r in needed(name)] if ours else [requirement]
    return found


sys.stdout.write("\n".join([*project["dependencies"], *needed(sys.argv[1])]) + "\n")
