"""Which way the arrows point, and that dvc.yaml sees what a stage imports."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = ("index", "screen", "mixture", "base", "finetune", "export", "embed", "probe", "compare", "register")
PLUMBING = {"contracts", "config", "errors", "files", "layout", "progress", "units", "guard"}
"""Modules that carry no result: paths, errors, locks, the params model (whose values are deps by themselves)."""


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "aut").rglob("*.py"):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[dotted.removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """Names imported anywhere in a module, inside functions too; type-checking blocks left out."""
    tree = ast.parse(MODULES[module].read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name in MODULES and name not in ("aut", "aut.__main__")}


def closure(module: str) -> set[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += ours(current)
    return seen


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_edges_import_mlflow_and_only_flows_import_prefect(module):
    roots = {name.partition(".")[0] for name in imports(module)}
    assert "prefect" not in roots
    if not module.startswith("aut.edges"):
        assert "mlflow" not in roots


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if m.count(".") >= 1 and m != "aut.__main__"])
def test_arrows_point_one_way(module):
    layer = {
        "cli": 5, "restore": 5, "workcopy": 4, "edges": 4, "stages": 3,
        "training": 2, "encoders": 2, "datasets": 2, "probes": 2, "report": 2, "screening": 2, "sources": 3,
        "mixing": 2, "serving": 2, "adapters": 2, "suites": 3,
        "order": 1, "audio": 1, "stats": 1, "gates": 1,
    }  # fmt: skip
    here = layer.get(module.split(".")[1], 0)
    for name in ours(module):
        part = name.split(".")[1]
        if part != module.split(".")[1]:
            assert layer.get(part, 0) <= here, f"{module} imports {name}, which may use it"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_sees_every_module_a_stage_can_reach(stage):
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps = [d for d in (body.get("do") or body)["deps"] if isinstance(d, str)]
    for module in closure(f"aut.stages.{stage}"):
        if module.split(".")[1] in PLUMBING or module in ("aut.stages", "aut.edges"):
            continue
        path = MODULES[module].relative_to(ROOT).as_posix()
        assert any(path == d or path.startswith(f"{d}/") for d in deps), f"{stage} reaches {path}, no dep covers it"


def layouts() -> list[str]:
    names = [m.removeprefix("aut.datasets.") for m in MODULES if m.startswith("aut.datasets.")]
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("layout", layouts())
def test_dvc_sees_what_the_layout_of_a_source_can_reach_and_no_other(layout):
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["index"]["do"]
    deps = {d.replace("${item.dataset}", layout) for d in body["deps"]}
    reached = closure(f"aut.datasets.{layout}")
    if layout == "toy":  # imports by name
        reached |= {m for m in MODULES if m.startswith("aut.audio.synth")}
    for module in reached:
        path = MODULES[module].relative_to(ROOT).as_posix()
        assert module.split(".")[1] in PLUMBING or path in deps, f"{layout} reaches {path}, no dep of index is it"
    code = {m for m in MODULES if MODULES[m].relative_to(ROOT).as_posix() in deps}
    known = closure("aut.stages.index").union(*(closure(f"aut.datasets.{n}") for n in layouts()))
    assert {m for m in code if m.split(".")[-1] in layouts()} == {f"aut.datasets.{layout}"}
    assert {m for m in code - known if not m.startswith("aut.audio.synth")} == set()


def test_a_block_of_the_index_is_named_by_all_code_that_makes_its_rows():
    from aut.stages.index import CODE, DECODER, LISTENER

    paths = {MODULES[m].relative_to(ROOT / "aut").as_posix() for m in closure("aut.datasets._rows")}
    heard = {*DECODER, *LISTENER}  # these are in the name of the blocks' folder
    assert {p for p in paths - heard if p.removesuffix(".py") not in PLUMBING} <= {*CODE}


PLACED = ("extensions", "groups", "launch", "memory", "placement", "recall", "sizes", "trial", "upload", "writer")
NO_WEIGHT = {
    **dict.fromkeys(("captions", "flops", "greedy", "wer"), "reports"),
    **dict.fromkeys(PLACED, "placement"),
}
"""Modules of aut/training in which a change leaves a training what it is: its checkpoints are gone on from."""


def test_a_training_is_known_by_the_modules_that_its_weights_depend_on():
    from aut.training.job import CODE

    reached = closure("aut.stages.base") | closure("aut.stages.finetune")
    baselines = {"aut.encoders.api", "aut.encoders.clipwise"}  # a registered encoder is copied by their names
    plumbing = {m for m in reached if m.split(".")[1] in PLUMBING - {"units"}}  # whose values are in its facts
    others = {f"aut.training.{name}" for name in NO_WEIGHT} | baselines | plumbing | {"aut.training"}
    assert others <= reached
    assert {MODULES[m].relative_to(ROOT / "aut").as_posix() for m in reached - others} == set(CODE)


PARAMS = {
    "pool": ("sources",),
    "champion_encoder": ("compare.a", "finetune.seeds"),
    "register_": ("register",),
    "profile": ("profile",),
    **{name: (name,) for name in ("sources", "seed", *STAGES)},
}
"""What of `aut.config.Params` a module may read, and the keys of params.yaml that lie behind it."""

NO_DEP = {
    ("base", "sources"): "names of the pool: data/screen/report.json lists them; a path is placement",
    ("base", "finetune"): "launch reads the section of the stage that it starts",
    ("finetune", "base"): "launch reads the section of the stage that it starts",
    ("finetune", "sources"): "roots only: placement",
    ("embed", "sources"): "roots only: placement",
    ("register", "sources"): "the card's table of the pool: reports/compare holds the counts of each source",
    ("register", "mixture"): "the card's line on quotas: reports/compare holds the mixture's counts",
    ("register", "profile"): "reports/compare names it",
}
"""(stage, section): why a change there need not run the stage again by itself."""


def sections(module: str) -> set[str]:
    """Attributes of a name `params` that Params has; a section passed under that name has none called the same."""
    reads = (n for n in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(n, ast.Attribute))
    return {n.attr for n in reads if isinstance(n.value, ast.Name) and n.value.id == "params"} & PARAMS.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_sees_every_section_of_params_that_a_stage_reads(stage):
    body = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    known = (body.get("do") or body)["params"]
    reached = (m for m in closure(f"aut.stages.{stage}") if m.split(".")[1] not in {*PLUMBING, "edges", "sources"})
    for attribute in {a for m in reached for a in sections(m)}:
        for key in PARAMS[attribute]:
            if (stage, key) not in NO_DEP:
                seen = [k for k in known if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}.")]
                assert seen, f"{stage} reads params.{attribute}, dvc.yaml names no {key} among its params"


def test_every_stage_has_its_verb_module_and_params():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert tuple(stages) == STAGES
    for stage in STAGES:
        assert stage in params
        assert f"aut.stages.{stage}" in MODULES
        cmd = (stages[stage].get("do") or stages[stage])["cmd"]
        assert cmd.startswith(f"python -m aut {stage}")


def test_the_mlflow_folder_cannot_shadow_the_library():
    assert not list((ROOT / "mlflow").rglob("*.py"))
