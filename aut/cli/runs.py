"""Runs as a person sees them: start one, see where things stand, read the evidence, bring a version back."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from aut.layout import Layout

Overrides = Annotated[list[str] | None, typer.Argument(help="Hydra overrides, like finetune.seeds=[0,1,2].")]
Profile = Annotated[str, typer.Option("--profile", "-p", help="A profile of conf/profile.")]


def run(
    overrides: Overrides = None,
    profile: Profile = "demo",
    audio: Annotated[Path | None, typer.Option("--audio", help="Root of the corpora; sets AUT_DATA.")] = None,
    first: Annotated[str, typer.Option("--from", help="First stage to run.")] = "index",
    last: Annotated[str, typer.Option("--to", help="Last stage to run.")] = "register",
    version: Annotated[
        str | None,
        typer.Option("--version", help="Start from a registered version: with --from embed, probe it again."),
    ] = None,
) -> None:
    """Run the graph for a profile, in this process: index to register, resuming what was cut short."""
    from aut.cli.summary import print_summary
    from aut.errors import ConfigError
    from aut.workcopy import checkout_root

    if audio is not None:
        if not audio.is_dir():
            raise ConfigError(f"--audio {audio} is no folder", "give the folder that holds the corpora")
        os.environ["AUT_DATA"] = str(audio.resolve())
    checkout = Layout(checkout_root())
    from flows.graph import between

    between(first, last)  # what is wrong is told now, not when the services are up
    if version is None:
        _draft(checkout.root, profile, overrides)
    from flows.embedded import embedded

    with embedded(checkout) as flow:
        from flows.pipeline import INTERRUPTED, copy_of

        try:
            flow(profile=profile, overrides=overrides or [], first=first, last=last, version=version)
        except BaseException as error:
            if INTERRUPTED.is_set():
                raise KeyboardInterrupt from error
            raise
    if last in ("compare", "register"):
        print_summary(Layout(checkout.work / "copies" / copy_of(profile, version)))


def params(
    overrides: Overrides = None,
    profile: Profile = "demo",
    check: Annotated[bool, typer.Option("--check", help="Only say whether params.yaml is what conf/ gives.")] = False,
) -> None:
    """Write params.yaml from conf/ (for a plain `dvc repro`)."""
    from aut.config import compose
    from aut.errors import ConfigError
    from aut.workcopy import checkout_root

    root = checkout_root()
    target = root / "params.yaml"
    if not check:
        compose(profile, overrides or [], root / "conf", target)
    elif _draft(root, profile, overrides) != target.read_bytes():
        raise ConfigError(f"{target} is not what conf/ gives for profile {profile}", "run `aut params` and commit it")


def _draft(root: Path, profile: str, overrides: list[str] | None) -> bytes:
    """What params.yaml would be. ConfigError: unknown profile, a wrong key or value."""
    from aut.config import compose

    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "params.yaml"
        compose(profile, overrides or [], root / "conf", draft)
        return draft.read_bytes()


def evidence_copy(profile: str | None) -> Layout:
    """The working copy whose evidence is meant: of the profile, else the newest, this checkout's own included."""
    from aut.errors import MissingInput
    from aut.workcopy import checkout_root

    checkout = Layout(checkout_root())
    if profile:
        candidates = [Layout(checkout.work / "copies" / profile)]
    else:
        copies = checkout.work / "copies"
        candidates = [checkout, *(Layout(p) for p in (copies.iterdir() if copies.is_dir() else ()) if p.is_dir())]
    found = [c for c in candidates if (c.evidence / "evidence.json").exists()]
    if not found:
        which = f" of profile {profile}" if profile else ""
        raise MissingInput(f"there is no evidence{which} yet", f"aut run --profile {profile or 'demo'}")
    return max(found, key=lambda c: (c.evidence / "evidence.json").stat().st_mtime)


def report(
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Default: the newest evidence.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The differences as JSON, and nothing else.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open report.html in a browser.")] = False,
) -> None:
    """Show the evidence: differences with intervals, verdicts, and where the page is."""
    from aut.cli.summary import print_summary
    from aut.files import read_json

    copy = evidence_copy(profile)
    if as_json:
        typer.echo(json.dumps(read_json(copy.evidence / "evidence.json")["differences"]))
        return
    print_summary(copy)
    if open_page:
        import webbrowser

        webbrowser.open((copy.evidence / "report.html").resolve().as_uri())


def status(profile: Profile = "demo") -> None:
    """What is up to date, the last runs, which version is candidate and champion."""
    from aut.cli.summary import print_status
    from aut.workcopy import checkout_root

    print_status(Layout(checkout_root()), profile)


def restore(
    version: Annotated[str, typer.Argument(help="A registered version's number, or 'champion', 'candidate'.")],
    into: Annotated[Path | None, typer.Option("--into", help="Folder; default: a working copy under AUT_WORK.")] = None,
) -> None:
    """Bring a version's data, models and evidence back from the DVC remote; nothing is computed."""
    from aut.restore import restore_version
    from aut.workcopy import checkout_root

    root = restore_version(version, checkout_root(), into)
    typer.echo(f"version {version} is back in {root}")


def ui(
    port: Annotated[int, typer.Option("--port", help="Of the MLflow page, on 127.0.0.1.")] = 5000,
) -> None:
    """Browse runs and versions: MLflow on this machine's embedded store (or the address `aut use` set)."""
    from aut.edges import artifacts, tracking
    from aut.workcopy import checkout_root

    layout = Layout(checkout_root())
    uri = tracking.resolve_uri(tracking.embedded_uri(layout))
    if uri.startswith("http"):
        typer.echo(f"runs and versions are at {uri}")
        return
    tracking.ready(uri, layout)
    typer.echo(f"MLflow on http://127.0.0.1:{port} (stop with Ctrl-C)")
    artifacts.serve_embedded(uri, layout, port)


def use(
    address: Annotated[
        str | None, typer.Argument(help="http(s)://... or sqlite:///...; none: say which is used.")
    ] = None,
) -> None:
    """Say or set which tracking server this user's commands and `aut.load_encoder` use."""
    from aut.edges import tracking

    if address:
        tracking.use(address)
    typer.echo(tracking.saved_uri() or "none: the embedded store of the checkout is used")


def deploy(
    gpu: Annotated[bool, typer.Option(help="Whether workers with a GPU serve the pool h200.")] = False,
    gpu_sets: Annotated[int, typer.Option("--gpu-sets", min=1, help="Runs at once on the pool h200.")] = 1,
) -> None:
    """Make the work pools, deployments and automations on the Prefect server that PREFECT_API_URL names."""
    from aut.errors import ConfigError

    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError("PREFECT_API_URL is not set", "give the server's address, like http://127.0.0.1:4200/api")
    from flows.deploy import deploy as make

    make(gpu, gpu_sets)
    typer.echo("deployed aut/finetune, aut/probe, aut-stage/gpu: prefect deployment run aut/finetune -p profile=demo")


def add_to(app: typer.Typer) -> None:
    for verb in (run, status, report, restore, ui, use, params, deploy):
        app.command(verb.__name__, rich_help_panel="Runs")(verb)
