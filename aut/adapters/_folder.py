"""Drop-in folders: a tower alone, or a copy of a model whose tower holds the encoder's weights.

In    tensors under Whisper's names, and for a model its folder (_target.py)
Out   a folder that `from_pretrained` opens, with drop_in.json: what was put in, kept, left out, and each file's digest
Why   only shards that hold the tower are rewritten, in the target's precision; the folder is whole or absent. Other
      copies of the weights are left out: they would carry the old tower along. The rest is copied byte for byte; that
      opens no pickle. A folder is replaced only as long as it holds what was written, and nothing else.
Price the target is copied: as many bytes again, as a shared file could be changed through either name; and each byte
      of an old drop-in is read again before it is replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter, Size, account, compare, rename, size_of
from aut.adapters._target import (
    NUMBERS,
    REPORT,
    SINGLE,
    heads_of,
    model_config,
    other_files,
    read_object,
    section,
    shapes_of,
    tower_prefix,
    weight_files,
)
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import digest_file, replacing, write_json

SHARED = ("num_mel_bins", "max_source_positions", "activation_function", "scale_embedding")


def free(into: Path, target: Path | None) -> None:
    """ConfigError where writing `into` would take away something that was not written here, naming it."""
    if target:
        here, there = into.resolve(), target.resolve()
        if here == there or there in here.parents:
            raise ConfigError(f"{into} lies in the target itself", "name another folder: the target stays as it is")
        if here in there.parents:
            raise ConfigError(f"the target {target} lies in {into}", "name another folder: the target stays as it is")
    if not into.exists():
        return
    if not (into / REPORT).is_file():
        if not into.is_dir() or any(into.iterdir()):
            raise ConfigError(f"{into} is there already, and is no drop-in (no {REPORT})", "name another folder")
    elif found := list(strangers(into)):
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise ConfigError(
            f"{into} holds what was not written here, or was changed since: {named}",
            "move that away, or name another folder",
        )


def strangers(folder: Path) -> Iterator[str]:
    """Names in a drop-in folder that its report does not list, or lists with another digest."""
    written = read_object(folder / REPORT, "name another folder").get("files")
    files: dict[str, str] = written if isinstance(written, dict) else {}
    folders = {str(parent) for file in files for parent in PurePosixPath(file).parents}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield name
        elif path.is_dir():
            if name not in folders:
                yield name
        elif name != REPORT and (name not in files or digest_file(path) != files[name]):
            yield name


def seal(draft: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the report, with the digest of every file beside it, and returns it."""
    files = {p.relative_to(draft).as_posix(): digest_file(p) for p in sorted(draft.rglob("*")) if p.is_file()}
    sealed = {**report, "files": files}
    write_json(draft / REPORT, sealed)
    return sealed


def write_alone(adapter: Adapter, source: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], into: Path,
                facts: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """The tower's own folder. ConfigError where the tower needs what only a target has."""
    from safetensors.torch import save_file

    if not adapter.alone:
        raise ConfigError(
            f"{adapter.title} written alone would lack {adapter.lacks}: that is the target's",
            "give the folder of the whole model with --target",
        )
    extractor = source / "preprocessor_config.json"
    if not extractor.is_file():
        raise MissingInput(f"{extractor} is missing", "export the encoder again")
    given = rename(adapter, weights)
    with replacing(into) as draft:
        write_json(draft / "config.json", tower_config(adapter, config))
        shutil.copyfile(extractor, draft / extractor.name)
        save_file(given, draft / SINGLE, metadata={"format": "pt"})
        return seal(draft, {**facts, "loaded": len(given), "kept": [], "left_out": []})


def tower_config(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the tower's class. Ultravox's is Whisper's own, as it is: its decoder's numbers do no harm."""
    head = {"architectures": ["WhisperEncoder" if adapter.alone == "whisper" else adapter.tower]}
    if adapter.alone == "whisper":
        return {**config, **head}
    numbers = {(plain if adapter.plain else name): config[name] for name, plain in NUMBERS.items()}
    shared = {name: config[name] for name in SHARED if name in config}
    return {**head, "model_type": adapter.alone, **numbers, **shared}


def write_model(adapter: Adapter, ours: Size, weights: Mapping[str, Tensor], target: Path, into: Path,
                facts: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """A copy of the target with the encoder in its tower."""
    config = model_config(target)
    if config.get("model_type") not in adapter.models:
        named = " or ".join(adapter.models)
        raise ConfigError(f"{target} is a '{config.get('model_type')}', not {named}", "name the tower that it has")
    files = weight_files(target)
    shapes = {key: shape for file in files for key, shape in shapes_of(target / file).items()}
    prefix = tower_prefix(adapter, shapes, target)
    theirs = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    audio = section(section(config, "thinker_config"), "audio_config")
    compare(adapter, ours, size_of(theirs, heads_of(adapter, audio), audio), audio)
    given = rename(adapter, weights)
    kept = account(adapter, given, theirs)
    carried, left_out = other_files(target, files)
    with replacing(into) as draft:
        for name in (*carried, *files):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            copy_or_replace(target / name, draft / name, {prefix + key: tensor for key, tensor in given.items()})
        report = {**facts, "loaded": len(given), "kept": [prefix + key for key in kept], "left_out": left_out}
        return seal(draft, report)


def copy_or_replace(old: Path, new: Path, given: Mapping[str, Tensor]) -> None:
    """Copies a file; where it holds tensors that are given, writes those instead, in the precision they had."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    if old.suffix != ".safetensors" or not (given.keys() & shapes_of(old).keys()):
        shutil.copyfile(old, new)
        return
    with safe_open(old, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for key in tensors.keys() & given.keys():
        if not tensors[key].is_floating_point():
            raise DataError(f"{key} of {old} is {tensors[key].dtype}: quantised", "give the model before quantisation")
        tensors[key] = given[key].to(tensors[key].dtype).contiguous()
    save_file(tensors, new, metadata=metadata)
