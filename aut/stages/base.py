"""Base: the starting points: the base model, and the baselines it is compared with.

In    params; for kinds train and random the pools' indexes (texts for the tokenizer, speech to train on), the
      blocklist, data/exclude.txt
Out   models/<encoder>/: transformers' Whisper format, or encoder.json with what its kind needs
Why   real profiles start from a published Whisper. Where no hub can be reached a small one is trained here on speech
      only, which repeats the situation the paper starts from. Its tokenizer knows the words of all pools, so that the
      fine-tune need not spell captions letter by letter; no sound but speech is ever shown to it.
      Price: a pretrained model is kept in float32, twice the bytes of a float16 hub file.
Run   aut base base
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aut.config import BaseEncoder, Params
from aut.contracts import Tracker
from aut.errors import ConfigError, DataError, MissingInput
from aut.exclude import excluded_ids
from aut.files import digest_file, replacing, write_json
from aut.layout import REGISTERED, Layout
from aut.training.job import Job, empty_draft, execute, finished, source_roots, summary, workplace, write_model
from aut.training.plan import plan
from aut.units import DOMAINS, Domain

Report = dict[str, float | int | str]


def base(params: Params, layout: Layout, track: Tracker, encoder: str) -> Report:
    """Makes one entry of `base.encoders`; returns what it is, and for a trained one its totals and losses."""
    try:
        wanted = params.base.encoders[encoder]
    except KeyError:
        known = ", ".join(params.base.encoders)
        raise ConfigError(f"base.encoders has no '{encoder}'", f"choose one of {known}") from None
    track.params({"kind": wanted.kind, "model": str(wanted.model), "revision": str(wanted.revision)})
    if wanted.kind == "train":
        return _train(params, layout, track, encoder)
    with replacing(layout.model(encoder)) as draft:
        report = _made(draft, params, layout, wanted)
    if "commit" in report:
        track.params({"commit": report["commit"]})
    return report


def _made(draft: Path, params: Params, layout: Layout, wanted: BaseEncoder) -> Report:
    if wanted.kind == "logmel":
        return _describe(draft, {"kind": "logmel", "mels": params.base.shape.mels})
    if wanted.kind == "hub":
        return _hub(draft, wanted)
    if wanted.kind == "registered":
        return _registered(draft, wanted)
    if wanted.kind == "pretrained":
        return _pretrained(draft, wanted)
    return _random(draft, params, layout)


def _train(params: Params, layout: Layout, track: Tracker, name: str) -> Report:
    """A small Whisper, on the speech pool less what the screen blocked and what a person leaves out."""
    from aut.order import Order
    from aut.training.kept import Kept, held_out
    from aut.training.model import new_whisper

    section = params.base
    blocklist = layout.screen / "blocklist.parquet"
    order = Order.of_index(
        _parts(params, layout, "speech"),
        blocklist if blocklist.exists() else None,
        params.seed,
        excluded_ids(layout.exclude),
        params.mixture.licences_excluded,
    )
    held = held_out(order, section.training.eval_clips)
    job = Job(
        stage="base",
        name=name,
        seed=params.seed,
        schedule=section.schedule,
        training=section.training,
        order=Kept(order, held),
        plan=plan(section.schedule, order.length),
        held_out=order.rows(np.arange(len(held), dtype=np.int64)),
        inputs={"shape": section.shape.model_dump(), "texts": [digest_file(p) for p in _pools(params, layout)]},
        place=str(layout.root),
    )
    track.dataset("speech", order.digest, order.length, layout.root / "data/index/speech")
    with workplace(job, layout) as work:
        draft = empty_draft(work)
        _tokenizer(draft, params, layout)
        whisper = new_whisper(section.shape, draft, section.training.language, params.seed)
        state = execute(job, whisper, draft, source_roots(params, layout), work, track)
        facts: Report = {"kind": "train", "seed": params.seed, "rows_digest": order.digest, **summary(state)}
        if int(os.environ.get("RANK", "0")) == 0:
            with replacing(layout.model(name), draft):
                write_model(whisper, draft, facts)
            finished(job, work)
    return facts


def _random(draft: Path, params: Params, layout: Layout) -> Report:
    """What base is before it is trained: its shape, weights drawn from the seed."""
    from aut.training.model import new_whisper, random_whisper

    start = params.base.encoders["base"]
    if start.kind == "pretrained":
        from transformers import AutoConfig

        with _reaching(start):
            config = AutoConfig.from_pretrained(start.model, revision=start.revision)
            _processor(start).save_pretrained(draft)
        whisper = random_whisper(config, params.seed)
    else:
        _tokenizer(draft, params, layout)
        whisper = new_whisper(params.base.shape, draft, params.base.training.language, params.seed)
    facts: Report = {"kind": "random", "seed": params.seed}
    write_model(whisper, draft, facts)
    return facts


def _pretrained(draft: Path, wanted: BaseEncoder) -> Report:
    """A published Whisper, decoder included, every weight of it there and finite."""
    from aut.training.model import load_whisper, refuse_not_finite

    model, remedy = str(wanted.model), "download it again, or name another in base.encoders.<name>.model"
    with _reaching(wanted):
        whisper = load_whisper(model, remedy, revision=wanted.revision)
        _processor(wanted).save_pretrained(draft)
    refuse_not_finite(whisper, model, remedy)
    facts: Report = {"kind": "pretrained", **_origin(wanted), **_commit(whisper.config)}
    write_model(whisper, draft, facts)
    return facts


def _hub(draft: Path, wanted: BaseEncoder) -> Report:
    """Any audio encoder with a feature extractor, saved whole so that later stages need no hub."""
    from transformers import AutoFeatureExtractor, AutoModel

    with _reaching(wanted):
        model = AutoModel.from_pretrained(wanted.model, revision=wanted.revision, use_safetensors=True)
        model.save_pretrained(draft)
        AutoFeatureExtractor.from_pretrained(wanted.model, revision=wanted.revision).save_pretrained(draft)
    return _describe(draft, {"kind": "hub", **_origin(wanted), **_commit(model.config)})


def _registered(draft: Path, wanted: BaseEncoder) -> Report:
    """An exported encoder as it is: from a folder, or from where the verb put the version that was asked for."""
    from aut.encoders.clipwise import WEIGHING
    from aut.files import read_json

    folder = Path(os.environ.get(REGISTERED) or str(wanted.model)).expanduser()
    if not (folder / "encoder.json").is_file():
        raise MissingInput(f"{folder} holds no encoder (no encoder.json)", "name a version, or what `aut export` wrote")
    given = read_json(folder / "encoder.json")
    for name in WEIGHING:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, draft / name)
    return _describe(draft, {"kind": given["kind"], "mels": given["mels"], **_origin(wanted)})


def _describe(draft: Path, facts: Report) -> Report:
    write_json(draft / "encoder.json", facts)
    return facts


def _origin(wanted: BaseEncoder) -> Report:
    """Name and revision; of a folder only its name, for its place is not part of what it is."""
    model = str(wanted.model)
    return {"model": Path(model).name if Path(model).is_dir() else model, "revision": wanted.revision or ""}


def _commit(config: Any) -> Report:
    """What the hub's revision was when it was read; of a folder nothing is known."""
    commit = getattr(config, "_commit_hash", None)
    return {"commit": str(commit)} if commit else {}


class _reaching:  # noqa: N801 - reads as a statement
    """Turns what transformers and the hub raise into one sentence with the remedy."""

    def __init__(self, wanted: BaseEncoder) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        folder = Path(str(self._wanted.model)).expanduser()
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            raise MissingInput(
                f"the folder {folder} holds no *.safetensors",
                "download the weights as safetensors; pickled ones are not loaded",
            )

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError):
            what = " ".join(str(error).split())[:300]
            raise MissingInput(
                f"{self._wanted.model} cannot be loaded ({what})",
                "name a local folder in base.encoders.<name>.model, set HF_HOME to a cache that holds it, "
                "or take kind 'train', which needs no hub",
            ) from error


def _processor(wanted: BaseEncoder) -> Any:
    from transformers import WhisperProcessor

    return WhisperProcessor.from_pretrained(wanted.model, revision=wanted.revision)


def _tokenizer(folder: Path, params: Params, layout: Layout) -> None:
    from aut.training.tokenizer import train_tokenizer

    texts = _texts(_pools(params, layout))
    train_tokenizer(texts, params.base.shape.vocabulary, params.base.training.language, folder)


def _pools(params: Params, layout: Layout) -> list[Path]:
    return [path for domain in DOMAINS if params.pool(domain) for path in _parts(params, layout, domain)]


def _parts(params: Params, layout: Layout, domain: Domain) -> list[Path]:
    """Index parts of a domain's pool, in a fixed order."""
    parts = []
    for source in params.pool(domain):
        found = sorted(layout.index(domain, source).glob("part-*.parquet"))
        if not found:
            raise MissingInput(f"{layout.index(domain, source)} holds no part-*.parquet", f"run `aut index {source}`")
        parts += found
    if not parts:
        raise DataError(f"no source has role '{domain}'", "add one to params.sources")
    return parts


def _texts(parts: list[Path]) -> Iterator[str]:
    import pyarrow.parquet as pq

    for part in parts:
        yield from (text for text in pq.read_table(part, columns=["text"])["text"].to_pylist() if text)
