"""`python -m aut`: in a fork of the flow's warm process where there is one (aut/warm.py), else here."""

import os
import sys

from aut import warm

others = {name: value for name, value in os.environ.items() if name != warm.ADDRESS}
code = warm.run("aut", sys.argv[1:], others)
if code is not None:
    sys.exit(code)

from aut.cli import main  # noqa: E402  the libraries of the command line, only where it runs

main()
