"""The graph of `dvc.yaml`, read by DVC itself: stages in order, what each waits for, which want a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aut.errors import ConfigError

STAGES = ("index", "screen", "mixture", "base", "finetune", "export", "embed", "probe", "compare", "register")


@dataclass(frozen=True)
class Stage:
    """`name` as DVC writes it ('embed@base-esc50'), `verb` without the item, names it waits for."""

    name: str
    needs: tuple[str, ...]
    gpu: bool

    @property
    def verb(self) -> str:
        return self.name.partition("@")[0]


def read_graph(root: Path) -> list[Stage]:
    """Stages of the working copy at `root`, each after all that it needs."""
    import networkx as nx
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        graph = repo.index.graph
        order = list(nx.topological_sort(graph.reverse(copy=True)))  # an edge of DVC's leads to the need
        return [
            Stage(s.name, tuple(sorted(n.name for n in graph.successors(s))), bool((s.meta or {}).get("gpu")))
            for s in order
        ]


def select(stages: list[Stage], first: str, last: str) -> list[Stage]:
    """The stages whose verb lies between two verbs, both included, in the order of the graph."""
    verbs = between(first, last)
    return [s for s in stages if s.verb in verbs]


def between(first: str, last: str) -> tuple[str, ...]:
    """The verbs from one to another, both included. ConfigError: no such stage, or the last before the first."""
    for verb in (first, last):
        if verb not in STAGES:
            raise ConfigError(f"there is no stage '{verb}'", f"choose from {', '.join(STAGES)}")
    verbs = STAGES[STAGES.index(first) : STAGES.index(last) + 1]
    if not verbs:
        raise ConfigError(f"stage '{last}' comes before '{first}'", f"the order is {', '.join(STAGES)}")
    return verbs
