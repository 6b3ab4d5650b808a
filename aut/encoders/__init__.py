"""Encoders: one folder format, one file a kind.

In    models/encoders/<name>/: encoder.json says the kind; weights and configuration beside it
Out   `open_encoder` gives an encoder on prepared clips, `AudioEncoder` one on anything that sounds
Why   probes, serving and users open the same folder by the same door; a kind is a module with `load`
Run   `AudioEncoder(open_encoder(Path("models/encoders/base"))).encode(waveforms, rate_hz=44_100)`
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aut.encoders.api import AudioEncoder
from aut.errors import DataError, MissingInput

if TYPE_CHECKING:
    from aut.encoders.clipwise import ClipEncoder

__all__ = ["KINDS", "AudioEncoder", "open_encoder"]

KINDS = {"whisper": "tower", "logmel": "logmel", "hub": "hub"}
"""Kind -> module here. Torch and transformers are imported when a kind is opened."""


def open_encoder(folder: Path, device: str = "cpu") -> ClipEncoder:
    """The encoder in a folder that `aut export` wrote; its files are checked against the digest they were given.

    MissingInput: no encoder there. DataError: an unknown kind, or files that differ from the digest.
    """
    from aut.encoders.clipwise import identity
    from aut.files import read_json

    if not (folder / "encoder.json").is_file():
        raise MissingInput(f"{folder} holds no encoder (no encoder.json)", "run `aut export`, or give its folder")
    facts: dict[str, Any] = read_json(folder / "encoder.json")
    kind = facts.get("kind")
    if kind not in KINDS:
        raise DataError(f"{folder}/encoder.json has kind '{kind}', known are {', '.join(KINDS)}", "export it again")
    if "digest" not in facts:
        raise DataError(f"{folder} is a checkpoint, not an exported encoder", "run `aut export` on it")
    found = identity(folder, kind, facts.get("mels"))
    if found != facts["digest"]:
        raise DataError(f"the files of {folder} have digest {found}, exported was {facts['digest']}", "export it again")
    encoder: ClipEncoder = import_module(f"aut.encoders.{KINDS[kind]}").load(folder, facts, device)
    return encoder
