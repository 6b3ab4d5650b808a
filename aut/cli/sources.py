"""`aut sources`: which corpus layouts can be read, what a folder holds, and the inventory that `index` depends on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aut.config import Params
    from aut.contracts import Card
    from aut.layout import Layout
    from aut.sources import Check

commands = typer.Typer(no_args_is_help=False, invoke_without_command=True)


@commands.callback()
def sources(context: typer.Context) -> None:
    """List the corpus layouts that can be read; `check` a folder, `scan` the sources of params."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from aut.sources import cards

    table = Table("layout", "corpus", "domain", "size", "text", "licence")
    for card in cards():
        table.add_row(card.name, card.title, card.domain or "any", _size(card), card.text_origin, card.licence)
    Console(width=None if Console().is_terminal else 140).print(table)


@commands.command()
def check(
    source: Annotated[
        str, typer.Argument(help="A source of params, or the folder of a corpus.", metavar="SOURCE|PATH")
    ],
    dataset: Annotated[str | None, typer.Option(help="A folder's layout; default: recognised by its files.")] = None,
    options: Annotated[str | None, typer.Option(help="Options of a folder's layout, as JSON.")] = None,
) -> None:
    """Say which rows of a source would be read, and which not and why. Decodes nothing.

    A source has its options, role and limits from params; a folder is read as a training pool. ./NAME is a folder.
    """
    found = _looked_at(source, dataset, options)
    typer.echo(f"{source}: layout {found.dataset}, {found.rows:,} rows would be read, {found.with_text:,} with text")
    if found.twice:
        typer.echo(
            f"  index stops: {found.twice:,} rows have the id of an earlier one: {', '.join(found.twice_examples)}"
        )
    for what, counts in (("labels", found.labels), ("splits", found.splits), ("licences", found.licences)):
        if counts:
            typer.echo(f"  {what}: {_few(counts)}")
    for clip in found.examples:
        typer.echo(f"  {clip.key}: {clip.text or clip.label or ''}")
    for reason, count in found.refused.most_common():
        typer.echo(f"  not read, {reason}: {count:,}")
    for key, reason, detail in found.refused_examples:
        typer.echo(f"    {key}: {reason}, {detail}")


def _looked_at(source: str, dataset: str | None, options: str | None) -> Check:
    from aut.errors import ConfigError
    from aut.sources import check, check_source

    named = dataset is None and options is None and "/" not in source
    if named and (known := _params_of(source)):
        return check_source(*known, source)
    try:
        values = json.loads(options or "{}")
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"--options is not JSON: {error}", """write it like '{"columns": {"uri": "file"}}'"""
        ) from None
    return check(Path(source), dataset, values)


def _params_of(source: str) -> tuple[Params, Layout] | None:
    """The params that name a source; None where none do, or where there are none."""
    from aut.config import read_params
    from aut.errors import ConfigError
    from aut.layout import here

    try:
        layout = here()
    except ConfigError:
        return None
    params = read_params(layout.params)
    return (params, layout) if source in params.sources else None


@commands.command()
def scan(
    source: Annotated[list[str] | None, typer.Argument(help="Sources of params; default: all.")] = None,
    accept_changed: Annotated[
        bool, typer.Option("--accept-changed", help="Files were replaced under their old names, and were meant to be.")
    ] = False,
) -> None:
    """Write data/corpora/SOURCE.json: names and sizes digested, so that a changed corpus is indexed again."""
    from aut.config import read_params
    from aut.layout import here
    from aut.sources import scan as look

    layout = here()
    params = read_params(layout.params)
    for name in source or list(params.sources):
        inventory = look(params, layout, name, accept_changed)
        typer.echo(f"{name}: {inventory['digest']}")


def _size(card: Card) -> str:
    """Clips, else hours (a set's number of segments depends on the subset), else a dash."""
    if card.clips:
        return f"{card.clips:,} clips"
    return f"{card.hours:,.0f} h" if card.hours else "-"


def _few(counts: Counter[str], most: int = 8) -> str:
    shown = ", ".join(f"{name or '(none)'} {n:,}" for name, n in counts.most_common(most))
    return f"{shown}, {len(counts) - most} more" if len(counts) > most else shown


def add_to(app: typer.Typer) -> None:
    app.add_typer(commands, name="sources", rich_help_panel="Runs")
