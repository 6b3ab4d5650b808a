"""Rows: a clip as an adapter lists it becomes an index row, with its fingerprint, or a quarantined one.

In    a block of Clips with their sounds, the corpus' root, a Policy (limits and text rules, from params), what is known
Out   Parquet bytes: INDEX_SCHEMA, fingerprint, reason, detail (reason is null for a row that can be used), and what
      _heard.py keeps: sound, within_s (both are null for a row that can not)
Why   everything that needs the samples happens in this one pass. A plain function of picklable arguments, so that any
      Executor runs it; bytes, not a path, come back, because a cluster's worker may see another disk.
Run   through `aut index`
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aut.audio.decode import Unreadable, content_hash, decode, read_source
from aut.audio.fingerprint import fingerprint
from aut.config import Index, Source
from aut.contracts import INDEX_SCHEMA, Clip
from aut.datasets._captions import DEFAULT_KIND, describe
from aut.datasets._heard import Heard
from aut.datasets._tokens import body_of, fitting
from aut.units import Domain

EXTRA = ("freesound_id", "youtube_id")


@dataclass(frozen=True)
class Policy:
    """What decides, besides the samples, whether and with which text a clip becomes a row."""

    source: str
    domain: Domain
    is_probe: bool
    min_s: float
    max_s: float
    max_text_tokens: int
    tokenizer: str
    captions_per_label: int

    @classmethod
    def of(cls, name: str, source: Source, index: Index) -> Policy:
        limits = (index.min_s, index.max_s, index.max_text_tokens, index.tokenizer, index.captions_per_label)
        return cls(name, source.domain, source.role == "probe", *limits)

    def identity(self) -> dict[str, Any]:
        return asdict(self)


def read_block(
    root: str, clips: Sequence[Clip], sounds: Sequence[bytes | None], policy: Policy, known: Mapping[bytes, Heard]
) -> bytes:
    """The clips as rows, in their order, as Parquet. Those whose sounds are `known` are not decoded."""
    import polars as pl

    rows = [_row(Path(root), clip, sound, policy, known) for clip, sound in zip(clips, sounds, strict=True)]
    kinds = {"str": pl.String, "i32": pl.Int32, "i64": pl.Int64, "f64": pl.Float64}
    schema: dict[str, Any] = {name: kinds[kind] for name, kind in INDEX_SCHEMA.items()}
    schema |= {"fingerprint": pl.Binary, "reason": pl.String, "detail": pl.String}
    schema |= {"sound": pl.Binary, "within_s": pl.Float64}
    out = io.BytesIO()
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(out, compression="zstd", compression_level=1)
    return out.getvalue()


def _row(root: Path, clip: Clip, sound: bytes | None, policy: Policy, known: Mapping[bytes, Heard]) -> dict[str, Any]:
    row = _listed(clip, policy)
    try:
        row["text"], row["text_origin"] = told(clip, policy)
        heard = known.get(sound) if sound is not None else None
        if heard is None or not heard.keeps(policy.max_s):
            heard = _hear(root, clip, policy.max_s)
        if heard.duration_s < policy.min_s:
            raise Unreadable("too_short", f"{heard.duration_s:.4f} s, the limit is {policy.min_s:g} s")
        row |= asdict(heard) | {"sound": sound, "within_s": min(heard.within_s, policy.max_s)}
    except Unreadable as error:
        row |= {"reason": error.reason, "detail": error.detail}
    return row


def _listed(clip: Clip, policy: Policy) -> dict[str, Any]:
    """Columns that need no look at the file."""
    row: dict[str, Any] = dict.fromkeys([*INDEX_SCHEMA, "fingerprint", "reason", "detail", "sound", "within_s"])
    for name in ("uri", "offset_b", "size_b", "start_s", "text", "text_origin", "label", "licence", "split"):
        row[name] = getattr(clip, name)
    row |= {name: clip.extra.get(name) for name in EXTRA}
    # A clip that says no recording is a recording of its own: splits and statistics then keep clips apart.
    return row | {
        "id": f"{policy.source}/{clip.key}",
        "domain": policy.domain,
        "source": policy.source,
        "source_id": clip.source_id or clip.key,
    }


def told(clip: Clip, policy: Policy) -> tuple[str | None, str]:
    """(text, its origin) of a clip that may be read. Raises Unreadable for what shows without a look at its file."""
    _check_listed(clip)
    return _text(clip, policy)


def _check_listed(clip: Clip) -> None:
    if "refused" in clip.extra:
        raise Unreadable(clip.extra["refused"], clip.extra.get("detail", ""))
    path = PurePosixPath(clip.uri)
    if not clip.uri or path.is_absolute() or ".." in path.parts:
        raise Unreadable("unsafe_path", "the path leaves the corpus' folder")


def _text(clip: Clip, policy: Policy) -> tuple[str | None, str]:
    """(text, its origin). A probe clip needs a label, a clip of the pool a text that the decoder can hold."""
    if policy.is_probe:
        if not clip.label:
            raise Unreadable("label_missing", "a probe clip needs a label")
        return clip.text, clip.text_origin
    text, origin = clip.text, clip.text_origin
    if text is None and clip.label:
        kind = clip.extra.get("label_kind") or DEFAULT_KIND[policy.domain]
        text = describe(clip.label, kind, f"{policy.source}/{clip.key}", policy.captions_per_label)
        origin = "template"
    if not (text or "").strip():
        raise Unreadable("text_empty", "no caption, no transcript and no label")
    assert text is not None
    fitting(body_of(text, policy.tokenizer), policy.max_text_tokens)
    return text, origin


def _hear(root: Path, clip: Clip, max_s: float) -> Heard:
    """What one decoding gives."""
    audio = decode(read_source(root, clip.uri, clip.offset_b, clip.size_b), clip.start_s, clip.length_s, max_s)
    words = fingerprint(audio.pcm_T).astype("<u4").tobytes()
    return Heard(audio.duration_s, audio.rate_hz, content_hash(audio.pcm_T), words, max_s)
