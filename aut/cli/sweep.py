"""`aut sweep`: the graph under several sets of overrides, one working copy each, compared in one report."""

from __future__ import annotations

from typing import Annotated

import typer

from aut.layout import Layout

Sets = Annotated[
    list[str], typer.Argument(help="One set of Hydra overrides each, like 'mixture.quota={speech: 0.6, ...}'.")
]


def sweep(
    sets: Sets,
    profile: Annotated[str, typer.Option("--profile", "-p", help="A profile of conf/profile.")] = "demo",
    shared: Annotated[list[str] | None, typer.Option("--with", help="An override that all of them have.")] = None,
) -> None:
    """Run the graph for the profile and for each set of overrides, and compare them on the same clips.

    Several overrides of one set are separated by ' & '. Nothing is registered.
    """
    from aut.config import read_params
    from aut.files import digest_json, replacing
    from aut.report.sweep import Variant, compare_variants, write_sweep
    from aut.workcopy import checkout_root
    from flows.embedded import embedded

    checkout = Layout(checkout_root())
    variants = []
    with embedded(checkout) as flow:
        for name in dict.fromkeys(["as the profile", *sets]):
            own = [o.strip() for o in name.split(" & ")] if name in sets else []
            overrides = [*(shared or []), *own]
            copy = f"{profile}-sweep-{digest_json(overrides)[:8]}"
            flow(profile=profile, overrides=overrides, last="compare", copy_name=copy)
            layout = Layout(checkout.work / "copies" / copy)
            variants.append(Variant(name, read_params(layout.params), layout))
    folder = checkout.work / "sweeps" / f"{profile}-{digest_json([*(shared or []), *sets])[:8]}"
    found = compare_variants(variants)
    with replacing(folder) as draft:
        write_sweep(found, draft)
    for r in found["differences"]:
        typer.echo(f"{r['set']}: {r['a']}  {r['diff']:+.1f} ({r['low']:+.1f}, {r['high']:+.1f}), p {r['p_holm']:.2g}")
    typer.echo(f"report: {folder / 'report.html'}")


def add_to(app: typer.Typer) -> None:
    app.command("sweep", rich_help_panel="Runs")(sweep)
