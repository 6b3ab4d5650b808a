"""Versions: a registered version's folder, opened, proved on its own example, ready to answer.

In    a folder: encoder/, heads/<set>/head.{safetensors,json}, neighbours/<set>.{safetensors,json}, evidence.json,
      report.html, example (a file that sounds); only encoder/ is needed
Out   `Served`: encoder, heads, neighbours, evidence, and what names them in every response
Why   a version is whole before a request can see it: what does not open, or does not answer its own example, is refused
Price nothing is unpickled: JSON and safetensors only

`B` clips, `C` classes, `D` width, `N` probe clips.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aut.errors import DataError
from aut.files import read_json
from aut.serving.engine import Engine
from aut.serving.limits import raw

EXAMPLE = "example.audio"
POOLINGS = ("valid", "padded")  # of aut/encoders/clipwise.py
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Pointer:
    """Which version is meant: what a registry says of an alias."""

    model: str
    number: str
    run_id: str = ""
    alias: str = ""

    @property
    def address(self) -> str:
        return f"models:/{self.model}/{self.number}"


@dataclass(frozen=True)
class Head:
    """A probe's linear classifier on pooled embeddings."""

    labels: list[str]
    pooling: str
    weight_CD: Array
    bias_C: Array
    mean_D: Array
    scale_D: Array

    def probabilities(self, x_BD: Array) -> Array:
        """Softmax over the classes [B, C]."""
        logits = ((x_BD - self.mean_D) / self.scale_D) @ self.weight_CD.T + self.bias_C
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True), np.float32)


@dataclass(frozen=True)
class Neighbours:
    """Embeddings of a probe set's clips, each of length one."""

    ids: list[str]
    labels: list[str]
    unit_ND: Array

    def nearest(self, x_D: Array, count: int) -> list[dict[str, Any]]:
        """The clips with the largest cosine."""
        cosine_N = self.unit_ND @ (x_D / max(float(np.linalg.norm(x_D)), 1e-12))
        order = np.argsort(-cosine_N, kind="stable")[:count]
        return [{"id": self.ids[i], "label": self.labels[i], "cosine": round(float(cosine_N[i]), 4)} for i in order]


@dataclass(frozen=True, eq=False)
class Served:
    """A version that answers."""

    pointer: Pointer
    encoder: Engine
    heads: dict[str, Head] = field(default_factory=dict)
    neighbours: dict[str, Neighbours] = field(default_factory=dict)
    evidence: dict[str, Any] | None = None
    report: bytes | None = None

    @cached_property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """On every response, as ASGI has them."""
        run = {"X-Model-Run-Id": self.pointer.run_id} if self.pointer.run_id else {}
        return raw({"X-Model-Version": self.pointer.address, "X-Model-Weights": self.encoder.digest, **run})

    def goes_by(self, name: str) -> bool:
        """Whether a client that asks for a model of this name means this version: its address, alias or model."""
        pointer = self.pointer
        own = {
            pointer.model,
            f"{pointer.model}/{pointer.number}",
            f"{pointer.model}@{pointer.alias}",
            self.encoder.name,
        }
        return name.removeprefix("models:/") in own

    def described(self) -> dict[str, Any]:
        """Row of /v1/models."""
        return {
            "id": self.pointer.address,
            "object": "model",
            "owned_by": "aut",
            "alias": self.pointer.alias,
            "version": self.pointer.number,
            "run_id": self.pointer.run_id,
            "weights": self.encoder.digest,
            "kind": self.encoder.kind,
            "name": self.encoder.name,
            "width": self.encoder.width,
            "hop_s": self.encoder.hop_s,
            "rate_hz": self.encoder.rate_hz,
            "layers": self.encoder.layers,
            "heads": {name: {"labels": head.labels, "pooling": head.pooling} for name, head in self.heads.items()},
            "neighbours": {name: len(n.ids) for name, n in self.neighbours.items()},
            "evidence": _summary(self.evidence),
            "report": self.report is not None,
        }


def open_version(folder: Path, pointer: Pointer, device: str | None = None, workers: int = 2) -> Served:
    """Opens, checks and warms a version, on the first GPU where there is one and no device is named.

    DataError or MissingInput says what is wrong with it.
    """
    place = folder / "encoder" if (folder / "encoder/encoder.json").is_file() else folder
    encoder = Engine(place, folder / EXAMPLE, device, workers)
    try:
        return _furnished(folder, pointer, encoder)
    except BaseException:
        encoder.close()
        raise


def _furnished(folder: Path, pointer: Pointer, encoder: Engine) -> Served:
    heads = {p.parent.name: read_head(p.parent, encoder.width) for p in sorted(folder.glob("heads/*/head.json"))}
    prove(encoder, heads)
    sets = sorted(folder.glob("neighbours/*.json"))
    evidence, report = folder / "evidence.json", folder / "report.html"
    return Served(
        pointer=pointer,
        encoder=encoder,
        heads=heads,
        neighbours={p.stem: read_neighbours(p, encoder.width) for p in sets},
        evidence=read_json(evidence) if evidence.is_file() else None,
        report=report.read_bytes() if report.is_file() else None,
    )


def prove(encoder: Engine, heads: dict[str, Head]) -> None:
    """DataError where the version's own example gives vectors that are not finite or of another width than declared,
    or a head gives no probabilities on them."""
    x_BD = encoder.example_BD
    if x_BD.shape[1] != encoder.width or not np.isfinite(x_BD).all():
        raise DataError(f"its own example gives vectors {x_BD.shape[1]} wide, finite: {np.isfinite(x_BD).all()}")
    for name, head in heads.items():
        if not np.allclose(head.probabilities(x_BD).sum(axis=1), 1.0, atol=1e-3):
            raise DataError(f"head {name} gives no probabilities on the version's own example")


def read_head(folder: Path, width: int) -> Head:
    """heads/<set>/. DataError where its arrays do not fit its labels or the encoder's width, or no encoder pools as
    it was trained."""
    from safetensors.numpy import load_file

    facts = read_json(folder / "head.json")
    arrays = _arrays(load_file, folder / "head.safetensors")
    labels = [str(label) for label in facts["labels"]]
    if (pooling := str(facts["pooling"])) not in POOLINGS:
        raise DataError(f"{folder}/head.json pools '{pooling}', known are {', '.join(POOLINGS)}", "register it again")
    expected = {"weight": (len(labels), width), "bias": (len(labels),), "mean": (width,), "scale": (width,)}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        raise DataError(f"{folder}/head.safetensors has {found}, expected {expected}", "register the version again")
    tensors = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return Head(labels, pooling, tensors["weight"], tensors["bias"], tensors["mean"], tensors["scale"])


def read_neighbours(facts: Path, width: int) -> Neighbours:
    """neighbours/<set>.json and its vectors. DataError where they do not fit."""
    from safetensors.numpy import load_file

    named = read_json(facts)
    x_ND = np.asarray(_arrays(load_file, facts.with_suffix(".safetensors"))["valid"], np.float32)
    if x_ND.shape != (len(named["ids"]), width) or len(named["labels"]) != len(named["ids"]):
        raise DataError(f"{facts} names {len(named['ids'])} clips, its vectors are {x_ND.shape}", "register it again")
    return Neighbours(named["ids"], named["labels"], x_ND / np.maximum(np.linalg.norm(x_ND, axis=1), 1e-12)[:, None])


def _arrays(load: Any, path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError

    try:
        arrays: dict[str, NDArray[Any]] = load(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}", "register the version again") from None
    return arrays


def _summary(evidence: dict[str, Any] | None) -> dict[str, Any] | None:
    """Verdicts and differences, as the page shows them."""
    if not evidence:
        return None
    keys = ("set", "domain", "a", "b", "diff", "low", "high", "p_holm", "clips")
    rows = [{k: row.get(k) for k in keys} for row in evidence.get("differences", [])]
    return {"verdicts": evidence.get("verdicts", []), "differences": rows, "profile": evidence.get("profile")}
