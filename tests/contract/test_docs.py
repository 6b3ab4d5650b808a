"""The docs name every param, every verb, every folder; the changelog names the version."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import aut

ROOT = Path(__file__).parents[2]
NAMED = {"sources", "encoders", "sets", "protocols"}
"""Mappings whose keys are a user's own names."""
WHOLE = {"quota", "adam", "options", "sets"}
"""Keys documented as one, with their contents in prose."""


def keys(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield key
        if isinstance(value, dict) and key not in WHOLE:
            inner = value.values() if key in NAMED else [value]
            for section in inner:
                if isinstance(section, dict):
                    yield from keys(section)


def test_every_param_is_documented():
    page = (ROOT / "docs/params.md").read_text()
    words = set(re.findall(r"[a-z_A-Z]+", " ".join(re.findall(r"`[^`]+`|^## .*", page, flags=re.M))))
    missing = sorted(set(keys(yaml.safe_load((ROOT / "params.yaml").read_text()))) - words)
    assert not missing, f"docs/params.md says nothing of {missing}"


def test_every_verb_has_help_and_the_readme_names_the_main_ones():
    from aut.cli import adapters, app, doctor, runs, serve, services, sources, stages, sweep

    if not app.registered_commands[1:]:
        for module in (runs, sweep, stages, sources, adapters, serve, services, doctor):
            module.add_to(app)
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert {"run", "status", "report", "restore", "ui", "use", "doctor", "sources", "finetune"} <= set(verbs)
    for name, verb in verbs.items():
        assert (verb.help or "").strip(), f"aut {name} has no help"
    for path in re.findall(
        r"^    (aut/\S+|flows/|conf/|tests/|benchmarks/|docs/)", (ROOT / "README.md").read_text(), re.M
    ):
        assert (ROOT / path).exists(), f"README.md names {path}"


@pytest.mark.parametrize("page", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_the_changelog_names_the_version():
    assert f"## {aut.__version__}" in (ROOT / "CHANGELOG.md").read_text()
