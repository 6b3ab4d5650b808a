"""Errors a user can act on: one sentence that names the file, row or key, and the remedy.

AutError                  anything below; the command line prints it without a traceback, exit code `code`
|- ConfigError            params, overrides, environment                     exit 2
|- DataError              a corpus, a manifest, an index, a clip             exit 3
|- MissingInput           a file another stage should have written           exit 4
|- Busy                   another process holds the same work                exit 5
|- TrackingError          MLflow: address, store, registry                   exit 6
`- GateError              a limit in params stopped the run                  exit 7
"""


class AutError(Exception):
    """Base of every error shown as one sentence. `remedy` is appended when given."""

    code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what.rstrip('.')}. {remedy}".strip() if remedy else what)
        self.what, self.remedy = what, remedy


class ConfigError(AutError):
    """A parameter, an override or an environment variable is wrong."""

    code = 2


class DataError(AutError):
    """A corpus, manifest, index or clip does not hold what it should."""

    code = 3


class MissingInput(AutError):
    """A file that an earlier stage writes is not there."""

    code = 4


class Busy(AutError):
    """Another live process holds this work; the message names its pid."""

    code = 5


class TrackingError(AutError):
    """The tracking server, its store or its registry cannot do what was asked."""

    code = 6


class GateError(AutError):
    """A limit in params stopped the run."""

    code = 7
