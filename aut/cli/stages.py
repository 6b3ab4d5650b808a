"""A verb a stage. Each reads params.yaml here, runs one stage function, and records what it returned.

`dvc.yaml` calls these; a person may too, with the same result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aut.config import Params
    from aut.layout import Layout

STAGE_PANEL = "Stages (dvc.yaml calls these)"


EDGES = {"register": "aut.edges.registry"}
"""Stages whose last step belongs to an edge; all others are `aut.stages.<stage>`."""


TRAINED = ("base", "finetune")
"""Stages that may take several processes."""


def _launched(stage: str, params: Params, name: str) -> bool:
    """Whether other processes did the work; leaves with their exit code where they failed."""
    from aut.training.launch import launch

    code = launch(stage, params, name)
    if code:
        raise SystemExit(code)
    return code == 0


def run_stage(stage: str, **item: str | int) -> None:
    """Runs the stage's function of the same name, writes its metrics and its run record."""
    from aut.config import read_params
    from aut.errors import DataError
    from aut.guard import end_with_parent
    from aut.layout import RESTORING, here

    name = "-".join(str(v) for v in item.values())
    if os.environ.get(RESTORING):
        raise DataError(
            f"{stage} {name} would have to be computed".replace("  ", " "), "its outputs are not in the remote"
        )
    rank = os.environ.get("RANK")  # of the processes that a training starts
    if "DVC_STAGE" in os.environ or rank:  # DVC leaves its child alive when it is killed itself
        end_with_parent()
    layout = here()
    try:
        _compute(stage, name, item, layout, read_params(layout.params), rank)
    except BaseException:
        if "DVC_STAGE" in os.environ and not rank:  # DVC has removed what an earlier run had made
            from aut.outs import put_back_or_say

            put_back_or_say(layout.root, os.environ["DVC_STAGE"])
        raise


def _compute(
    stage: str, name: str, item: Mapping[str, str | int], layout: Layout, params: Params, rank: str | None
) -> None:
    from aut.contracts import Silent
    from aut.edges.spool import stage_tracker
    from aut.files import write_json

    if stage in TRAINED and _launched(stage, params, name):
        return
    function: Callable[..., Mapping[str, Any]] = getattr(import_module(EDGES.get(stage, f"aut.stages.{stage}")), stage)
    if rank not in (None, "0"):  # the first process speaks for all
        function(params, layout, Silent(), *item.values())
        return
    with stage_tracker(stage, name, layout) as track:
        report = dict(function(params, layout, track, *item.values()))
        track.metrics({k: float(v) for k, v in report.items() if isinstance(v, int | float)})
        write_json(layout.metrics(stage, name), report)
        write_json(layout.run_record(stage, name), track.record())


def _index(source: Annotated[str, typer.Argument(help="A source named in params.")]) -> None:
    """Read a corpus: one row a clip, unreadable ones to the quarantine with a reason."""
    run_stage("index", source=source)


def _screen() -> None:
    """Find training clips that overlap a probe set: by id, by content, by sound."""
    run_stage("screen")


def _mixture() -> None:
    """Select the rows of the training mixture, by keyed hash, to the quotas."""
    run_stage("mixture")


def _base(encoder: Annotated[str, typer.Argument(help="A key of base.encoders.")] = "base") -> None:
    """Fetch or train a starting point: the base model, or a baseline."""
    _fetch_registered(encoder)
    run_stage("base", encoder=encoder)


def _fetch_registered(encoder: str) -> None:
    """A version that params name, where the stage finds it: stages know no registry."""
    from aut.config import read_params
    from aut.layout import REGISTERED, here

    layout = here()
    wanted = read_params(layout.params).base.encoders.get(encoder)
    if wanted and wanted.kind == "registered" and str(wanted.model).startswith("models:/"):
        from aut.edges.loading import fetch
        from aut.edges.store import embedded_uri, resolve_uri

        os.environ[REGISTERED] = str(fetch(resolve_uri(embedded_uri(layout)), str(wanted.model))[0])


def _finetune(
    arm: Annotated[str, typer.Argument(help="adapted (the mixture) or control (speech only).")],
    seed: Annotated[int, typer.Argument(help="One of finetune.seeds.")],
) -> None:
    """Fine-tune the base end to end; resumes from its last checkpoint."""
    run_stage("finetune", arm=arm, seed=seed)


def _export(
    encoder: Annotated[str, typer.Argument(help="base, random ..., or <arm>-<seed>; with --for also models:/...")],
    tower: Annotated[str, typer.Option("--for", help="Not the stage: write a drop-in for this tower.")] = "",
    into: Annotated[str, typer.Option("--into", help="With --for: the folder to write.")] = "",
    target: Annotated[str, typer.Option("--target", help="With --for: a model's folder to copy the rest from.")] = "",
) -> None:
    """Drop the decoder, write the encoder folder, prove parity with transformers.

    With --for, put an exported encoder into an audio-LLM's tower instead; `aut adapters` lists them.
    """
    if tower:
        from aut.cli.adapters import drop_in

        drop_in(encoder, tower, into, target)
    elif into or target:
        from aut.errors import ConfigError

        raise ConfigError("--into and --target go with --for", "add --for NAME; `aut adapters` lists them")
    else:
        run_stage("export", encoder=encoder)


def _embed(
    encoder: Annotated[str, typer.Argument(help="An exported encoder.")],
    probe_set: Annotated[str, typer.Argument(help="A probe set named in params.")],
) -> None:
    """Embed a probe set; cached by weights, preprocessing and clips."""
    run_stage("embed", encoder=encoder, set=probe_set)


def _probe(
    encoder: Annotated[str, typer.Argument(help="An embedded encoder.")],
    probe_set: Annotated[str, typer.Argument(help="A probe set named in params.")],
) -> None:
    """Fit linear probes over all folds and seeds; keep every prediction."""
    run_stage("probe", encoder=encoder, set=probe_set)


def _compare(
    published: Annotated[bool, typer.Option("--published", help="Not the stage: test the paper's table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --published: one JSON array.")] = False,
) -> None:
    """Test the differences, with intervals and correction; write evidence and report.

    With --published, put the counts of arXiv 2604.10438, section 4.3, through the same corrections instead.
    """
    if published:
        from aut.cli.summary import print_published

        print_published(as_json)
    elif as_json:
        from aut.errors import ConfigError

        raise ConfigError("--json goes with --published", "`aut report --json` prints this profile's evidence")
    else:
        run_stage("compare")


def _register(
    force: Annotated[bool, typer.Option("--force", help="Move `champion` although a gate failed.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept on the version for ever.")] = "",
) -> None:
    """Register the encoder with its evidence; `champion` moves only when the gates pass."""
    from aut.errors import ConfigError

    if force and not reason.strip():
        raise ConfigError("--force needs a reason", 'add --reason "..."; it is kept on the version')
    if force:
        os.environ["AUT_FORCE_REASON"] = reason.strip()
    run_stage("register")


def add_to(app: typer.Typer) -> None:
    for verb in (_index, _screen, _mixture, _base, _finetune, _export, _embed, _probe, _compare, _register):
        app.command(verb.__name__.removeprefix("_"), rich_help_panel=STAGE_PANEL)(verb)
