"""What a drop-in declares, and the accounts every load must settle before the first tensor moves.

In    tensors named as in transformers' WhisperEncoder, and what the tower expects
Out   the same tensors under the tower's names; one DataError that names what does not fit
Why   a tower of equal shapes takes any weights in silence: another number of heads, a tensor that stayed random, or a
      key nobody read would only show as a worse model. Price: a partly wrapped tower (LoRA, ZeRO-3) is refused.
Run   `rename(open_adapter("qwen2_audio").ADAPTER, weights)`
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from aut.errors import DataError

HALF = 2.0**-8
"""Rounding of values up to 1 when stored in bfloat16, the coarsest format in use."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A tower that takes Whisper's weights, and what it makes of its input.

    title      the model, as its makers write it
    tower      class of the tower, in transformers or in the model's own code
    models     `model_type` of folders that hold it
    frame_hz   frames a second that leave the tower
    token_hz   frames a second that the language model reads, once the projector has stacked them
    length     what goes in: 'padded' to 30 s, the 'longest' of the batch, or the clip alone in 'chunks'
    masked     whether frames beyond a clip's end are kept from attention
    order      what follows the last block
    alone      `model_type` of a folder with the tower only; '' where the tower cannot stand alone
    lacks      what such a folder would be without, where it cannot
    plain      the tower's config says hidden_size where Whisper's says d_model
    heads      the config class's default, for a saved config that leaves defaults out
    settings   what else the tower's config must say, or leave at the class's default, for `features` to be its
    renamed    prefix here -> prefix there
    constant   tensors the tower computes: a function of the shape, which ours must equal
    kept       prefixes of the tower's own tensors, which stay as the target has them
    """

    title: str
    tower: str
    models: tuple[str, ...]
    frame_hz: float
    token_hz: float
    length: str
    masked: bool
    order: str
    alone: str = ""
    lacks: str = ""
    plain: bool = False
    heads: int = 20
    settings: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, Callable[[tuple[int, ...]], Tensor]] = field(default_factory=dict)
    kept: tuple[str, ...] = ()


class Tower(Protocol):
    """A module of this folder. `encoder` is any module tree with Whisper's attribute names."""

    ADAPTER: Adapter

    def features(self, encoder: Any, mel_BMT: Tensor, m_B: Tensor) -> tuple[Tensor, Tensor]:
        """What leaves the tower for this log-mel: (h_BFD, f_B), f_B being the frames that the model goes on with."""


@dataclass(frozen=True, slots=True)
class Size:
    """In what two Whisper-shaped towers can differ."""

    width: int
    mels: int
    layers: int
    heads: int
    inner: int
    positions: int | None  # None where the tower computes them
    activation: str


def size_of(shapes: Mapping[str, tuple[int, ...]], heads: int, config: Mapping[str, Any]) -> Size:
    """Measured on tensors named as in WhisperEncoder; what no shape tells is from the tower's config.

    DataError where the tensors are sharded or packed.
    """
    stem, inner = shapes.get("conv1.weight", ()), shapes.get("layers.0.fc1.weight", ())
    if len(stem) != 3 or len(inner) != 2:
        raise DataError(
            f"the tower's conv1.weight has shape {stem}, layers.0.fc1.weight {inner}: not plain tensors",
            "load before LoRA, quantisation or ZeRO-3 wrap the model",
        )
    positions = shapes.get("embed_positions.weight")
    layers = {key.split(".")[1] for key in shapes if key.startswith("layers.")}
    activation = config.get("activation_function", "gelu")  # the default of every class here
    return Size(stem[0], stem[1], len(layers), heads, inner[0], positions[0] if positions else None, activation)


def compare(adapter: Adapter, ours: Size, theirs: Size, config: Mapping[str, Any]) -> None:
    """DataError naming everything that differs, ours first; `config` is the tower's."""
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in Size.__dataclass_fields__]
    pairs += [(name, value, config.get(name)) for name, value in adapter.settings.items()]
    wrong = [f"{name} {a} against {b}" for name, a, b in pairs if a != b and b is not None]
    if wrong:
        raise DataError(
            f"{adapter.title} does not take this encoder: {', '.join(wrong)}",
            "choose a target of the same size, or adapt the Whisper that it was made from",
        )


def rename(adapter: Adapter, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the tower's names. DataError where one that the tower computes itself is not equal to it."""
    agree(adapter, weights)
    return {renamed(key, adapter.renamed): weights[key] for key in weights if key not in adapter.constant}


def agree(adapter: Adapter, weights: Mapping[str, Tensor]) -> None:
    """DataError where the encoder's differs, by more than storage rounds, from what the tower computes itself."""
    for key, computed in adapter.constant.items():
        ours = weights[key].float().cpu()
        error = float((ours - computed(tuple(ours.shape))).abs().max())
        if not error <= HALF:
            raise DataError(
                f"{adapter.title} computes {key} itself, and the encoder's differs by {error:.2g}",
                "only an encoder whose positions stayed as Whisper has them can go there",
            )


def renamed(key: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def account(adapter: Adapter, given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the tensors kept from the target. DataError: a tensor without a place, a place without a tensor."""
    kept = sorted(key for key in expected if key.startswith(adapter.kept)) if adapter.kept else []
    _none(adapter, "has no place for", set(given) - set(expected))
    _none(adapter, "would keep old values in", set(expected) - set(given) - set(kept))
    _none(adapter, "has another shape in", {k for k in given if tuple(given[k].shape) != expected[k]})
    return kept


def _none(adapter: Adapter, problem: str, keys: Collection[str]) -> None:
    if keys:
        named = ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        raise DataError(
            f"{adapter.title}'s tower {problem} {named}", "load before LoRA, quantisation or ZeRO-3 wrap the model"
        )
