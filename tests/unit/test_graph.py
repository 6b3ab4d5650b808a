"""The graph of dvc.yaml as the flow sees it, and the groups it hands to a GPU pool."""

from pathlib import Path

import pytest
import yaml

from aut.errors import ConfigError
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


@pytest.mark.parametrize(
    ("first", "last", "said"), [("embd", "probe", "no stage 'embd'"), ("probe", "embed", "before")]
)
def test_a_selection_of_nothing_is_refused(first, last, said):
    with pytest.raises(ConfigError, match=said):
        select(read_graph(ROOT), first, last)


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


def test_one_more_item_of_a_matrix_leaves_the_others_as_they_are():
    """A stage made once an item depends on no list of items: `finetune.seeds=[0,1]` must not train seed 0 again."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    several = {name: s for name, s in stages.items() if "matrix" in s or "foreach" in s}
    assert {"base", "finetune", "export", "embed", "probe"} <= several.keys()
    for name, stage in several.items():
        lists = stage["matrix"].values() if "matrix" in stage else [stage["foreach"]]
        taken = stage.get("do", stage).get("params", [])
        for keys in (text.strip("${}") for text in lists):
            assert not [p for p in taken if keys == p or keys.startswith(f"{p}.")], name
