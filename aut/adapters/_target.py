"""A model's folder as its makers left it: what it is, which files hold its tensors, what else lies there.

In    a folder as `hf download` or `save_pretrained` writes it: config.json, safetensors, one file or shards
Out   its config, names and shapes of tensors, files to carry over and files to leave; nothing is written
Why   another's folder may lack anything: a gap is named with the way to mend it. Headers are read, no pickle opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from aut.adapters._adapter import Adapter
from aut.errors import ConfigError, DataError, MissingInput

REPORT = "drop_in.json"
"""What a drop-in folder says of itself; a copy of such a folder gets its own."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INSTEAD = ("pytorch_model*", "consolidated*", "tf_model*", "flax_model*", "*.safetensors", "*.safetensors.index.json")
"""At the top of a folder: what a loader may take instead of the files rewritten here."""
FORMATS = ("*.gguf", "*.onnx", "*.onnx_data*")
"""Anywhere: the whole model again, for other programs."""
NUMBERS = {  # WhisperConfig's names, and those of the classes that follow transformers' general ones
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}


def model_config(target: Path) -> dict[str, Any]:
    """config.json of a model's folder. ConfigError: there is none, as where the name of a model was given."""
    if not (target / "config.json").is_file():
        named = not target.exists() and not target.is_absolute() and len(target.parts) == 2
        fetch = f"`hf download {target if named else 'ORGANISATION/MODEL'} --local-dir FOLDER`"
        raise ConfigError(f"{target} is no model's folder (no config.json)", f"{fetch} makes one, for --target FOLDER")
    return read_object(target / "config.json", "fetch it again")


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object that was not written by a stage. DataError: something else is there."""
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", remedy) from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object, but {type(value).__name__}", remedy)
    return value


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a config with that name; the whole where there is none: a tower's own folder, Whisper's."""
    part = config.get(name)
    return part if isinstance(part, dict) else config


def heads_of(adapter: Adapter, audio: Mapping[str, Any]) -> int:
    """Heads of the tower by its config, or its class's default. DataError: no number."""
    name = "encoder_attention_heads"
    heads = audio.get(name) or audio.get(NUMBERS[name]) or adapter.heads
    if not isinstance(heads, int):
        raise DataError(f"the target's config.json says {name} {heads!r}", "fetch it again")
    return heads


def weight_files(target: Path) -> list[str]:
    """Names of the target's safetensors, chosen as transformers does: one file before shards.

    MissingInput where it has none: pickles are never opened. DataError: an index that names none, or another folder's.
    """
    if (target / SINGLE).is_file() or not (target / INDEX).is_file():
        names, remedy = [SINGLE], "give a model saved as safetensors; pickles are not opened"
    else:
        places = read_object(target / INDEX, "fetch it again").get("weight_map")
        names = sorted(set(places.values())) if isinstance(places, dict) else []
        remedy = "fetch the model again, in full"
        if not names or any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise DataError(f"{target / INDEX} names no files of its folder", remedy)
    for name in names:
        if not (target / name).is_file():
            raise MissingInput(f"{target}/{name} is missing", remedy)
    return names


def shapes_of(file: Path) -> dict[str, tuple[int, ...]]:
    """From the header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(f"{file} cannot be read: {error}", "fetch it again") from None


def tower_prefix(adapter: Adapter, shapes: Iterable[str], target: Path) -> str:
    """What stands before 'conv1.weight' of the tower. DataError where there is no Whisper-shaped tower, or more."""
    keys = set(shapes)
    stems = [key.removesuffix("conv1.weight") for key in keys if key.endswith("conv1.weight")]
    found = [stem for stem in stems if f"{stem}layers.0.self_attn.q_proj.weight" in keys]
    if len(found) != 1:
        what = f"{len(found)} towers like Whisper's" if found else f"no tower of {adapter.title}"
        raise DataError(
            f"the weights of {target} hold {what}", "write the tower alone, without --target, and name it in the model"
        )
    return found[0]


def other_files(target: Path, files: Iterable[str]) -> tuple[list[str], list[str]]:
    """What to carry over, subfolders too, and what is left out: other copies of the weights, hidden files, links to
    folders. Names relative to the target, sorted."""
    carried: list[str] = []
    left_out: list[str] = []
    for name in sorted(_walk(target, target)):
        if name in files or name == REPORT:
            continue
        path = target / name
        used = name == INDEX and SINGLE not in files
        patterns = FORMATS if "/" in name or used else (*FORMATS, *INSTEAD)
        copy = any(fnmatch(path.name, pattern) for pattern in patterns)
        (left_out if copy or path.name.startswith(".") or not path.is_file() else carried).append(name)
    return carried, left_out


def _walk(folder: Path, root: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _walk(path, root)
        else:
            yield path.relative_to(root).as_posix()
