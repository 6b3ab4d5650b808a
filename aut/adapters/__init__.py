"""Drop-in: the encoder's weights in the audio towers that share Whisper's keys. One file a tower, found by name.

In    an encoder (folder, `models:/` or `runs:/` address), and a live model, a model's folder, or nothing
Out   the model with our encoder in its tower; a folder that `from_pretrained` opens; the frames such a tower gives
Why   equal keys do not make equal features: towers differ in pooling, norm, mask and length. A module declares all
      of it (`ADAPTER`, `features`); tests hold both contracts against transformers' own classes.
Price only plain towers: load before LoRA, quantisation or ZeRO-3 wrap the model
Run   `aut.adapters.load_into(model, "models:/whisper-aut@champion")`, `aut export NAME --for qwen2_audio --into DIR`
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aut.adapters._adapter import Adapter, Size, Tower, account, agree, compare, rename, size_of
from aut.adapters._refused import REFUSED
from aut.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from aut.encoders import AudioEncoder

__all__ = ["REFUSED", "Adapter", "Loaded", "convert", "features", "load_into", "names", "open_adapter"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did. `module`: where the tower lies in the model; `kept`: its tensors that stayed as they were."""

    adapter: str
    module: str
    loaded: int
    kept: tuple[str, ...]
    digest: str
    version: str | None


def names() -> list[str]:
    """Towers that take the weights, sorted; nothing is imported."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def open_adapter(name: str) -> Tower:
    """The module of that name. ConfigError: no such tower, or one that cannot take the weights, with the reason."""
    if name in REFUSED:
        raise ConfigError(f"{REFUSED[name].title} cannot take the weights: {REFUSED[name].reason}", _choose())
    if name not in names():
        raise ConfigError(f"no adapter '{name}'", _choose())
    return cast(Tower, import_module(f"{__name__}.{name}"))


def load_into(model: Any, source: str | Path) -> Loaded:
    """Puts an encoder into a live model, in place, in the model's precision and on its device.

    `model` is a tower or any torch module that holds one. Nothing changes unless everything fits. ConfigError: the
    model has no tower, or several, or one that cannot take the weights. DataError: numbers or tensors that differ.
    """
    import torch

    name, path, tower = find(model)
    adapter = open_adapter(name).ADAPTER
    encoder, config, weights = _read(source)
    own: dict[str, Tensor] = tower.state_dict()
    theirs = {key: tuple(tensor.shape) for key, tensor in own.items()}
    settings = tower.config.to_dict()
    heads = int(tower.config.encoder_attention_heads)
    compare(adapter, _size(config, weights), size_of(theirs, heads, settings), settings)
    given = rename(adapter, weights)
    kept = account(adapter, given, theirs)
    for key in given:
        if own[key].is_meta or not own[key].is_floating_point():
            state = "not loaded yet" if own[key].is_meta else "quantised"
            raise DataError(f"{key} of the model's {adapter.tower} is {state}", "load the model in full first")
    with torch.no_grad():
        for key, tensor in given.items():
            own[key].copy_(tensor)
    return Loaded(name, path, len(given), tuple(kept), encoder.digest, encoder.version)


def find(model: Any) -> tuple[str, str, Any]:
    """Adapter's name, path in the model ('' for itself), and the tower."""
    known = {open_adapter(name).ADAPTER.tower: name for name in names()}
    refused = {tower: name for name, facts in REFUSED.items() for tower in facts.towers}
    found = []
    for path, module in model.named_modules():
        lineage = [cls.__name__ for cls in type(module).__mro__]  # Ultravox's class is a kind of WhisperEncoder
        if (cls := next((c for c in lineage if c in known), None)) is not None:
            found.append((known[cls], path, module))
        elif (cls := next((c for c in lineage if c in refused), None)) is not None:
            open_adapter(refused[cls])  # raises, with the reason
    if len(found) != 1:
        paths = ", ".join(path or "itself" for _, path, _ in found)
        what = f"{type(model).__name__} holds {len(found)} audio towers ({paths})" if found else ""
        raise ConfigError(
            what or f"{type(model).__name__} holds no tower that takes Whisper's weights",
            "pass the tower itself" if found else f"known are {', '.join(sorted(known))}",
        )
    return found[0]


def convert(name: str, source: str | Path, into: Path, target: Path | None = None) -> dict[str, Any]:
    """Writes a drop-in folder, whole or not at all, and returns its drop_in.json.

    Without a target the tower alone; with one, a copy of that model's folder with the encoder in its tower.
    ConfigError: a folder that is not ours to replace, no target where the tower cannot stand alone, or one that is no
    model's folder. DataError, MissingInput: a target whose numbers, tensors or files do not fit.
    """
    from aut.adapters import _folder

    adapter = open_adapter(name).ADAPTER
    into = into.resolve()  # a link is written through, not replaced
    _folder.free(into, target)
    encoder, config, weights = _read(source)
    facts = {
        "adapter": name,
        "tower": adapter.tower,
        "encoder": {"name": encoder.name, "digest": encoder.digest, "version": encoder.version},
        "features": describe(adapter),
    }
    if target is None:
        return _folder.write_alone(adapter, encoder.encoder.folder, config, weights, into, facts)
    return _folder.write_model(adapter, _size(config, weights), weights, target, into, facts)


def features(name: str, encoder: AudioEncoder, waveforms: Any, rate_hz: int) -> tuple[Tensor, Tensor]:
    """What leaves the tower for these clips: (h_BFD, f_B), before the projector; f_B frames reach the model.

    Clips are of any rate, up to 30 s. The tower is given what its model's processor would give it. DataError: no clip,
    one over 30 s, or an encoder that the tower does not take.
    """
    import torch

    from aut.audio.mel import log_mel
    from aut.encoders.api import stack
    from aut.units import MEL_HOP, WINDOW_S

    tower = open_adapter(name)
    inner = cast(Any, _whisper(encoder))
    agree(tower.ADAPTER, inner.tower.state_dict())
    clips = encoder.prepare(waveforms, rate_hz)
    if not clips:
        raise DataError("no clip was given", "give one array, or a list of at least one")
    x_BT, n_B = (torch.from_numpy(array) for array in stack(clips))
    if x_BT.shape[1] > WINDOW_S * encoder.rate_hz:
        raise DataError(f"a clip has {x_BT.shape[1] / encoder.rate_hz:.1f} s", "cut it into windows of 30 s")
    m_B = (n_B + MEL_HOP - 1) // MEL_HOP
    mel_BMT, _ = log_mel(x_BT.to(inner.device), n_B, inner.mels, padded=tower.ADAPTER.length != "chunks")
    if tower.ADAPTER.length == "longest":
        mel_BMT = mel_BMT[:, :, : int(m_B.max())]
    with torch.no_grad():  # not inference mode: a projector may be trained on these
        return tower.features(inner.tower, mel_BMT, m_B)


def describe(adapter: Adapter) -> dict[str, Any]:
    """The feature contract as plain values."""
    kept = ("frame_hz", "token_hz", "length", "masked", "order")
    return {name: getattr(adapter, name) for name in kept}


def _read(source: str | Path) -> tuple[AudioEncoder, Mapping[str, Any], dict[str, Tensor]]:
    """The encoder (its digest checked), its config, its tensors as stored."""
    from safetensors.torch import load_file

    import aut
    from aut.files import read_json

    encoder: AudioEncoder = aut.load_encoder(source)
    folder = _whisper(encoder).folder
    return encoder, read_json(folder / "config.json"), load_file(folder / "model.safetensors")


def _whisper(encoder: AudioEncoder) -> Any:
    if encoder.kind != "whisper":
        raise DataError(f"{encoder.name} is of kind '{encoder.kind}'", "only a Whisper fits into these towers")
    return encoder.encoder


def _size(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Size:
    return size_of({k: tuple(t.shape) for k, t in weights.items()}, int(config["encoder_attention_heads"]), config)


def _choose() -> str:
    return f"choose one of {', '.join(names())}; `aut adapters` says more"
