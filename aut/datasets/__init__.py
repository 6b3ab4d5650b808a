"""Corpora: one file a layout, found by name; a module is imported only when it is asked for.

A module holds `CARD` and `clips(root, **options) -> Iterator[Clip]` in an order that depends on the corpus only;
`prepare(root, **options)` where the corpus is generated; `matches(root) -> bool` where a folder can be recognised.
Files whose names start with an underscore help others. An adapter that meets a row which must not be read lists it
all the same, as `refused(...)`: it then lands in the quarantine with its reason. Rows of metadata go through `each`
(_checked.py), which does so for rows of the wrong shape.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_type_hints

from aut.contracts import Clip, Dataset
from aut.datasets._checked import checked, plain
from aut.datasets._checked import refused as refused
from aut.errors import ConfigError, DataError, MissingInput

WANTED = {
    "string": "text", "bool": "true or false", "int": "a whole number", "float": "a number", "dict": "a mapping",
    "list": "a list", "is_instance": "a list", "sequence": "a list",
}  # fmt: skip
"""What pydantic's kinds of error miss, in our words."""


def names() -> list[str]:
    """Layouts that can be read, sorted; nothing is imported."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def open_dataset(name: str) -> Dataset:
    """The module of that name. ConfigError lists the names where there is none."""
    if name not in names():
        raise ConfigError(f"no dataset '{name}'", f"choose one of {', '.join(names())}")
    return cast(Dataset, import_module(f"{__name__}.{name}"))


def list_clips(name: str, root: Path, options: Mapping[str, Any]) -> Iterator[Clip]:
    """Clips of a corpus, its options checked. ConfigError for the options, MissingInput for the root."""
    dataset = open_dataset(name)
    check_options(name, options)
    if not root.is_dir():
        raise MissingInput(f"the corpus folder {root} is missing", "set AUT_DATA, or mend the source's path in params")
    return map(checked, dataset.clips(root, **options))


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """ConfigError where the adapter takes no such option, needs one that is not given, or one is of another type than
    its signature says."""
    adapter = open_dataset(name).clips
    known = list(inspect.signature(adapter).parameters.values())[1:]
    takes = ", ".join(p.name for p in known) or "none"
    if not isinstance(options, Mapping):
        raise ConfigError(f"the options of dataset {name} are {options!r}", f"give an object; it takes: {takes}")
    if unknown := sorted(set(options) - {p.name for p in known}):
        raise ConfigError(f"dataset {name} has no option '{unknown[0]}'", f"it takes: {takes}")
    if missing := [p.name for p in known if p.default is p.empty and p.name not in options]:
        raise ConfigError(f"dataset {name} needs the option '{missing[0]}'", f"it takes: {takes}")
    kinds = get_type_hints(adapter)
    for option, value in options.items():
        _check_type(name, option, value, kinds[option])


def _check_type(name: str, option: str, value: Any, kind: Any) -> None:
    """ConfigError for a value that is not of the annotated type as it stands: 5 is no text, though it could be one."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join([option, *map(str, first["loc"])])
        wanted = next((word for kind, word in WANTED.items() if first["type"].startswith(kind)), first["msg"])
        raise ConfigError(f"dataset {name}: option {at} is {first['input']!r}", f"give {wanted}") from None


def prepare(name: str, root: Path, options: Mapping[str, Any]) -> None:
    """Writes what is missing of a generated corpus; nothing for the others."""
    check_options(name, options)
    if is_generated(name):
        cast(Any, open_dataset(name)).prepare(root, **options)


def is_generated(name: str) -> bool:
    return hasattr(open_dataset(name), "prepare")


def needs(path: Path, what: str) -> Path:
    """`path`, or DataError that names the file which makes the folder a corpus of this layout."""
    if not path.exists():
        raise DataError(f"{path} is missing, so this is no {what}", "give the folder that the download unpacks to")
    return path


def columns_of(table: Path, header: Sequence[str] | None, wanted: Iterable[str]) -> None:
    """DataError naming the table and the column that it lacks."""
    if missing := [c for c in wanted if c not in (header or ())]:
        names = plain(", ".join(header or ()))
        raise DataError(f"{table} has no column '{missing[0]}'", f"its columns are {names or 'none'}")


def choice(option: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ConfigError(f"option {option} is '{value}'", f"choose one of {', '.join(map(str, known))}")


AUDIO = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")


def audio_files(folder: Path) -> Iterator[Path]:
    """Audio files below, by extension, sorted folder by folder; hidden names are left out."""
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if path.is_dir():
            yield from audio_files(path)
        elif path.suffix.lower() in AUDIO:
            yield path
