"""The graph of dvc.yaml as the flow sees it, and the groups it hands to a GPU pool."""

from pathlib import Path

from flows.graph import STAGES, read_graph, select
from flows.pipeline import _groups

ROOT = Path(__file__).parents[2]


def test_every_stage_comes_after_what_it_needs():
    seen = set()
    stages = read_graph(ROOT)
    for stage in stages:
        assert set(stage.needs) <= seen
        seen.add(stage.name)
    assert {s.verb for s in stages} == set(STAGES)


def test_selection_keeps_whole_verbs():
    chosen = select(read_graph(ROOT), "embed", "compare")
    assert {s.verb for s in chosen} == {"embed", "probe", "compare"}


def test_gpu_stages_travel_together_and_only_elsewhere():
    stages = read_graph(ROOT)
    assert all(len(g) == 1 for g in _groups(stages, elsewhere=False))
    groups = _groups(stages, elsewhere=True)
    assert [g[0].verb for g in groups if len(g) > 1] == ["base", "finetune", "embed"]
    assert all(s.gpu for g in groups if len(g) > 1 for s in g)
    done = set()
    for group in groups:  # a group may start once all groups before it have ended
        assert {n for s in group for n in s.needs} <= done
        done |= {s.name for s in group}
