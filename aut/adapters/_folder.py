"""Drop-in folders: a tower alone, or a copy of a model whose tower holds the encoder's weights.

In    tensors under Whisper's names, and for a model its folder (config.json, safetensors, one file or shards)
Out   a folder that `from_pretrained` opens, with drop_in.json: what was put in, what was kept, what was left out
Why   only shards that hold the tower are rewritten, in the target's precision; the folder is whole or absent. Other
      weight files of the target are left out: a pickle or a consolidated copy would carry the old tower along.
Price the target is copied: as many bytes again, as a shared file could be changed through either name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from aut.adapters._adapter import Adapter, account, compare, rename, size_of
from aut.errors import ConfigError, DataError, MissingInput
from aut.files import read_json, replacing, write_json

REPORT = "drop_in.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHTS = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".gguf", ".onnx"}
)
NUMBERS = {  # WhisperConfig's names, and those of the classes that follow transformers' general ones
    "d_model": "hidden_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "encoder_ffn_dim": "intermediate_size",
}
SHARED = ("num_mel_bins", "max_source_positions", "activation_function", "scale_embedding")


def free(into: Path, target: Path | None) -> None:
    """ConfigError where writing `into` would take away something that was not written here."""
    if target and (into.resolve() == target.resolve() or target.resolve() in into.resolve().parents):
        raise ConfigError(f"{into} lies in the target itself", "name another folder: the target stays as it is")
    if into.exists() and not (into / REPORT).is_file() and (not into.is_dir() or any(into.iterdir())):
        raise ConfigError(f"{into} is there already, and is no drop-in (no {REPORT})", "name another folder")


def write_alone(adapter: Adapter, source: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], into: Path,
                facts: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """The tower's own folder. ConfigError where the tower needs tensors that only a target has."""
    from safetensors.torch import save_file

    if not adapter.alone:
        own = ", ".join(prefix.rstrip(".") for prefix in adapter.kept)
        raise ConfigError(f"{adapter.title}'s tower has tensors of its own ({own})", "give its folder with --target")
    extractor = source / "preprocessor_config.json"
    if not extractor.is_file():
        raise MissingInput(f"{extractor} is missing", "export the encoder again")
    given = rename(adapter, weights)
    report = {**facts, "loaded": len(given), "kept": [], "left_out": []}
    with replacing(into) as draft:
        write_json(draft / "config.json", tower_config(adapter, config))
        shutil.copyfile(extractor, draft / extractor.name)
        save_file(given, draft / SINGLE, metadata={"format": "pt"})
        write_json(draft / REPORT, report)
    return report


def tower_config(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the tower's class. Whisper's own is taken as it is: its decoder's numbers do no harm."""
    head = {"architectures": ["WhisperEncoder" if adapter.alone == "whisper" else adapter.tower]}
    if adapter.alone == "whisper":
        return {**config, **head}
    numbers = {(plain if adapter.plain else name): config[name] for name, plain in NUMBERS.items()}
    shared = {name: config[name] for name in SHARED if name in config}
    return {**head, "model_type": adapter.alone, **numbers, **shared}


def write_model(adapter: Adapter, heads: int, weights: Mapping[str, Tensor], target: Path, into: Path,
                facts: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """A copy of the target with the encoder in its tower."""
    config = read_json(target / "config.json")
    if config.get("model_type") not in adapter.models:
        named = " or ".join(adapter.models)
        raise ConfigError(f"{target} is a '{config.get('model_type')}', not {named}", "name the tower that it has")
    files = weight_files(target)
    shapes = {key: shape for file in files for key, shape in shapes_of(target / file).items()}
    prefix = tower_prefix(adapter, shapes, target)
    theirs = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
    ours = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    compare(adapter, size_of(ours, heads), size_of(theirs, target_heads(adapter, config)))
    given = rename(adapter, weights)
    kept = account(adapter, given, theirs)
    carried, left_out = other_files(target, files)
    report = {**facts, "loaded": len(given), "kept": [prefix + key for key in kept], "left_out": left_out}
    with replacing(into) as draft:
        for name in (*carried, *files):
            copy_or_replace(target / name, draft / name, {prefix + key: tensor for key, tensor in given.items()})
        write_json(draft / REPORT, report)
    return report


def weight_files(target: Path) -> list[str]:
    """Names of the target's safetensors. MissingInput where it has none: pickles are never opened."""
    index = target / INDEX
    names = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else [SINGLE]
    for name in names:
        if not (target / name).is_file():
            raise MissingInput(
                f"{target}/{name} is missing", "give a model saved as safetensors; pickles are not opened"
            )
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


def target_heads(adapter: Adapter, config: Mapping[str, Any]) -> int:
    """Heads of the audio tower: at the top of a Whisper's config, below `audio_config` elsewhere."""
    if config.get("model_type") == adapter.alone:
        audio = config
    else:
        audio = config.get("audio_config") or (config.get("thinker_config") or config).get("audio_config") or config
    name = "encoder_attention_heads"
    return int(audio.get(name) or audio.get(NUMBERS[name]) or adapter.heads)


def other_files(target: Path, files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Files to carry over, and weight files of another format, left out."""
    names = sorted(p.name for p in target.iterdir() if p.is_file() and not p.name.startswith("."))
    rest = [name for name in names if name not in files and name != REPORT]
    left_out = [name for name in rest if Path(name).suffix in WEIGHTS]
    return [name for name in rest if name not in left_out], left_out


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
