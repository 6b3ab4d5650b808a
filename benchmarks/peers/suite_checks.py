"""X-ARES's own `check_audio_encoder` and HEAR 2021's own `hear-validator`, run on an encoder folder that `aut export` wrote.

In    an encoder folder; the packages xares and hearvalidator (suites.txt), and this checkout on PYTHONPATH
Out   one line of JSON: {"xares": true, "hear": true}; what a checker objects to goes to stderr
Why   tests/unit/test_suites.py repeats these checks where the packages cannot be installed; this runs the real ones.
Run   PYTHONPATH=. benchmarks/peers/.suites/bin/python benchmarks/peers/suite_checks.py models/encoders/adapted-0
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout


def xares(folder: str) -> bool:
    from xares.audio_encoder_checker import check_audio_encoder  # type: ignore[import-not-found]

    from aut.suites.xares import AutEncoder

    return bool(check_audio_encoder(AutEncoder(folder)))


def hear(folder: str) -> bool:
    from hearvalidator.validate import ModelError, ValidateModel  # type: ignore[import-not-found]

    try:
        ValidateModel("aut.suites.hear", folder)()
    except ModelError as error:
        sys.stderr.write(f"hear-validator: {error}\n")
        return False
    return True


def main() -> None:
    folder = sys.argv[1]
    with redirect_stdout(sys.stderr):
        found = {"xares": xares(folder), "hear": hear(folder)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
