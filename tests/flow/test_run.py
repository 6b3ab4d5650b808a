"""`aut run` for real, on profile tiny: the whole graph, nothing twice, only what a change touches, everything back.

In this order: each test begins where the one before left the copy, for a run that changes nothing takes ten seconds.
The last one stops a run, then kills another in the middle of a fine-tune, everything at once: the same again resumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import yaml

from aut.files import digest_tree
from flows.graph import STAGES
from tests.flow.conftest import Place, make_place, stages
from tests.waiting import wait_for

pytestmark = pytest.mark.flow
LONG = (
    "finetune.arms=[adapted]",
    "compare.against=[base]",
    "finetune.schedule.steps=60",
    "finetune.training.eval_every=60",
    "--to=finetune",
)


def test_the_graph_runs_to_a_registered_version(finished):
    place, output = finished
    assert stages(output, "ran") == set(STAGES)
    assert "registered: models:/whisper-aut/1" in output
    assert "aut ui" in output
    assert "aut report" in output
    evidence = json.loads((place.copy / "reports/compare/evidence.json").read_text())
    assert {(d["a"], d["b"]) for d in evidence["differences"]} == {("adapted", "base"), ("adapted", "control")}
    assert not list(place.checkout.glob("mlflow.db")) + list(place.checkout.glob("mlruns"))


def test_the_report_as_json_has_the_promised_keys(finished):
    place, _ = finished
    rows = json.loads(place.command("aut", "report", "--json", "--profile", "tiny").splitlines()[-1])
    keys = {"set", "domain", "a", "b", "diff", "low", "high", "p", "p_holm", "mdd", "clips", "recordings", "seeds"}
    assert rows
    assert all(keys <= set(r) and r["low"] <= r["diff"] <= r["high"] for r in rows)


def test_every_stage_has_a_nested_run(finished):
    place, _ = finished
    from aut.edges.store import client

    store = client(f"sqlite:///{place.work / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("aut")
    runs = store.search_runs([experiment.experiment_id], max_results=500)
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    nested = {r.info.run_name for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id}
    lock = yaml.safe_load((place.copy / "dvc.lock").read_text())["stages"]
    assert nested == set(lock)
    assert all(r.info.status == "FINISHED" for r in runs)
    losses = store.get_metric_history(
        next(r.info.run_id for r in runs if r.info.run_name == "finetune@adapted-0"), "loss"
    )
    assert losses


def test_a_second_run_does_nothing(finished):
    place, _ = finished
    output = place.run()
    assert stages(output, "ran") == set()
    repro = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=place.copy, env=place.env, capture_output=True, text=True
    )
    assert "Data and pipelines are up to date" in repro.stdout + repro.stderr


def test_dvc_shows_metrics_and_plots(finished):
    place, _ = finished
    for args in (["metrics", "show"], ["plots", "show", "--json"]):
        shown = subprocess.run(
            [sys.executable, "-m", "dvc", *args], cwd=place.copy, env=place.env, capture_output=True, text=True
        )
        assert shown.returncode == 0, shown.stderr
        assert "finetune" in shown.stdout


def test_the_encoder_loads_in_one_line(finished):
    place, _ = finished
    place.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{place.work / 'mlflow.db'}"
    code = (
        "import aut, numpy as np\n"
        "encoder = aut.load_encoder('models:/whisper-aut@candidate')\n"
        "h, n = encoder.encode(np.zeros((2, 16_000), np.float32), rate_hz=16_000)\n"
        "print(h.shape, n.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=place.env, cwd=place.work, capture_output=True, text=True)
    del place.env["MLFLOW_TRACKING_URI"]
    assert done.stdout.strip() == "(2, 50, 32) [50, 50]", done.stderr[-2000:]


def test_a_second_clone_restores_without_computing(finished, tmp_path):
    place, _ = finished
    other = make_place(
        tmp_path,
        AUT_DVC_REMOTE=place.env["AUT_DVC_REMOTE"],
        MLFLOW_TRACKING_URI=f"sqlite:///{place.work / 'mlflow.db'}",
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=place.checkout, capture_output=True, text=True).stdout
    subprocess.run(["git", "fetch", "-q", str(place.checkout), commit.strip()], cwd=other.checkout, check=True)
    output = other.command("aut", "restore", "1")
    restored = other.work / "copies/tiny-v1"
    assert "version 1 is back" in output
    assert not (other.work / "corpora").exists()
    for folder in ("data/mixture", "models/adapted-0", "models/encoders/adapted-0", "data/embeddings", "data/probe"):
        assert digest_tree(restored / folder) == digest_tree(place.copy / folder)


def test_a_comment_reruns_its_stage_and_a_probe_param_what_follows_the_probes(finished):
    """Both in one run: the output of `mixture` stays as it was, so nothing between it and `probe` moves."""
    place, _ = finished
    code = place.checkout / "aut/stages/mixture.py"
    before = code.read_text()
    code.write_text(before + "\n# a remark\n")
    output = place.run("probe.knn=3")
    code.write_text(before)
    assert {"mixture", "probe"} <= stages(output, "ran") <= {"mixture", "probe", "compare", "register"}


def test_one_source_is_indexed_alone(finished):
    place, _ = finished
    output = place.run("sources.toy_tunes.options.clips=41", "--to", "index")
    ran = {line.split()[1] for line in output.splitlines() if line.strip().startswith("+ ")}
    assert ran == {"index@toy_tunes"}


def test_a_wrong_override_is_one_sentence(finished):
    place, _ = finished
    output = place.command("aut", "run", "--profile", "tiny", "mixture.quota.speech=0.5", code=2)
    assert "quota sums to 0.7" in output
    assert "Traceback" not in output


def test_a_registered_version_is_probed_again(finished):
    place, _ = finished
    output = place.run("probe.knn=4", "--version", "1", "--from", "embed", "--to", "compare")
    assert {"probe", "compare"} <= stages(output, "ran") <= {"embed", "probe", "compare"}
    assert (place.work / "copies/tiny-v1/reports/compare/report.html").exists()


def trainers(place: Place) -> list[psutil.Process]:
    """Live stage processes `python -m aut finetune` of this place."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if words[1:4] == ["-m", "aut", "finetune"] and str(process.info["cwd"] or "").startswith(str(place.work)):
            found.append(process)
    return found


def checkpoints(place: Place) -> set[str]:
    return {p.name for p in (place.work / "finetune").glob("**/step-*") if p.is_dir()}


def start(place: Place) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "aut", "run", "--profile", "tiny", *LONG]
    return subprocess.Popen(
        command, cwd=place.checkout, env=place.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    top = psutil.Process(process.pid)
    return [top, *top.children(recursive=True)]


def test_stopped_and_killed_in_the_middle_it_resumes(finished):
    place, _ = finished
    first = start(place)
    wait_for(lambda: trainers(place), 400)
    wait_for(lambda: checkpoints(place), 400)
    started = family(first)
    first.terminate()
    first.wait(60)
    wait_for(lambda: not [p for p in started if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 60)

    second = start(place)
    wait_for(lambda: trainers(place), 400)
    for process in family(second):  # everything at once, no chance to say goodbye
        with suppress(psutil.NoSuchProcess):
            process.kill()
    second.wait()
    wait_for(lambda: not trainers(place), 30)

    output = place.run(*LONG)
    assert "finetune@adapted-0  ran" in output
    log = (place.work / "logs/tiny/finetune@adapted-0.log").read_text()
    assert "resum" in log, log[-2000:]
    facts = yaml.safe_load((place.copy / "models/adapted-0/training.json").read_text())
    assert facts["steps"] == 60
