"""`aut adapters` and `aut export NAME --for TOWER --into DIR`: the encoder in an audio-LLM's tower."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from aut.errors import ConfigError, MissingInput

LENGTHS = {"padded": "30 s always", "longest": "as long as the batch, up to 30 s", "chunks": "chunks of 2 s"}


def drop_in(encoder: str, name: str, into: str, target: str) -> None:
    """Writes the folder and says what it holds. `encoder`: an exported one's name, a folder, or an address."""
    from aut.adapters import convert, open_adapter

    adapter = open_adapter(name).ADAPTER
    if not into:
        raise ConfigError("--for needs --into", "name the folder to write")
    report = convert(name, _found(encoder), Path(into), Path(target) if target else None)
    typer.echo(f"{into}: {report['loaded']} tensors of {report['encoder']['name']} in {adapter.tower}")
    typer.echo(f"kept from the target: {', '.join(report['kept']) or 'nothing of the tower'}")
    if report["left_out"]:
        typer.echo(f"left out (other copies of the weights, hidden files): {', '.join(report['left_out'])}")


def _found(encoder: str) -> str | Path:
    """A folder or an address as it is, an address from the checkout's own store where no other is known; a name in this
    checkout, else in the working copy that wrote it last. MissingInput: nowhere."""
    if Path(encoder).is_dir():
        return Path(encoder)
    from aut.edges import tracking
    from aut.layout import Layout
    from aut.workcopy import checkout_root

    if ":" in encoder:
        try:
            store = tracking.embedded_uri(Layout(checkout_root()))
        except ConfigError:  # outside a checkout
            return encoder
        os.environ["MLFLOW_TRACKING_URI"] = tracking.resolve_uri(store)
        return encoder
    checkout = Layout(checkout_root())
    places = [checkout, *map(Layout, sorted((checkout.work / "copies").glob("*")))]
    found = [p.encoder(encoder) for p in places if (p.encoder(encoder) / "encoder.json").is_file()]
    if not found:
        raise MissingInput(f"no run of this checkout has exported '{encoder}'", "give a folder, or models:/NAME@ALIAS")
    return found[0] if found[0] == places[0].encoder(encoder) else max(found, key=lambda f: f.stat().st_mtime)


def adapters() -> None:
    """List the towers that take the encoder's weights, and those that cannot, with the reason."""
    from aut.adapters import REFUSED, names, open_adapter

    width = max(map(len, names())) + 2
    for name in names():
        a = open_adapter(name).ADAPTER
        masked = "padding masked" if a.masked else "padding attended to"
        typer.echo(f"{name:{width}}{a.title} ({a.tower})")
        typer.echo(f"{'':{width}}{LENGTHS[a.length]}, {masked}; then {a.order}: {a.frame_hz:g} frames/s")
    typer.echo("\nThese cannot take the weights:")
    for refused in REFUSED.values():
        typer.echo(f"  {refused.title}: {refused.reason}")


def add_to(app: typer.Typer) -> None:
    app.command("adapters")(adapters)
