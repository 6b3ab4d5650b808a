"""Spool, shipper and parent runs against a real SQLite store; a real server that goes away and comes back."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aut.edges import shipper, store, tracking
from aut.edges.parent import find_runs
from aut.edges.spool import Spool, flat, new_folder, stage_tracker
from aut.errors import TrackingError
from aut.files import read_json
from aut.layout import Layout
from tests.unit.mlflow_server import Server, environment

STAGE = """
import sys
from pathlib import Path
from aut.edges.spool import stage_tracker
from aut.layout import Layout
with stage_tracker("probe", sys.argv[1], Layout(Path.cwd())) as track:
    for step in range(int(sys.argv[2])):
        track.metrics({"loss": 1 / (step + 1)}, step)
    print(track.record()["run_id"])
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """An empty working copy with params, its own work folder, and no address from outside."""
    for name in ("MLFLOW_TRACKING_URI", "AUT_SPOOL", "AUT_PARENT_RUN", "AUT_FLOW_RUN", "AUT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    root = tmp_path / "copy"
    root.mkdir()
    (root / "params.yaml").write_text("profile: toy\nseed: 7\n")
    monkeypatch.chdir(root)
    return Layout(root)


@pytest.fixture
def uri(layout: Layout) -> str:
    address = tracking.embedded_uri(layout)
    tracking.ready(address, layout)
    return address


def start_stage(item: str, points: int, cwd: Path, **extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAGE, item, str(points)]
    return subprocess.Popen(command, cwd=cwd, env=environment(**extra), stdout=subprocess.PIPE, text=True)


def points(uri: str, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in store.client(uri).get_metric_history(run_id, key))


def test_a_flows_shipper_sends_everything_once_and_the_record_names_the_run(
    layout: Layout, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tracking.open_parent(uri, {"profile": "toy", "a": {"b": [1]}}, layout, {"aut.flow_run": "f1"})
    monkeypatch.setenv("AUT_SPOOL", str(layout.work / "spool/f1"))
    monkeypatch.setenv("AUT_PARENT_RUN", parent)
    monkeypatch.setenv("AUT_FLOW_RUN", "f1")
    with (
        tracking.Shipper(uri, parent, layout.work / "spool/f1") as sent,
        stage_tracker("index", "esc", layout) as track,
    ):
        track.params({"min_s": 0.5, "nested": {"k": "v"}})
        for step in range(1500):  # more than one call to MLflow takes
            track.metrics({"loss": float(step)}, step)
        track.metrics({"nan": math.nan})
        track.dataset("clips", "ab" * 16, 3, layout.params)
        track.artifact(layout.params, "cfg")
        record = track.record()
    tracking.close_parent(uri, parent, "FINISHED")
    assert sent.left == 0
    assert (record["seed"], record["parent_run_id"], record["datasets"]) == (7, parent, {"clips": "ab" * 16})
    run = store.client(uri).get_run(record["run_id"])
    assert run.info.run_name == "index@esc"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"min_s": "0.5", "nested.k": "v"}
    assert points(uri, record["run_id"]) == [(step, float(step)) for step in range(1500)]
    assert math.isnan(run.data.metrics["nan"])
    expected = {"aut.stage": "index", "aut.item": "esc", "aut.flow_run": "f1", "mlflow.parentRunId": parent}
    assert expected.items() <= run.data.tags.items()
    assert [d.dataset.digest for d in run.inputs.dataset_inputs] == ["ab" * 16]
    assert [a.path for a in store.client(uri).list_artifacts(record["run_id"], "cfg")] == ["cfg/params.yaml"]
    assert store.client(uri).get_run(parent).data.params == {"profile": "toy", "a.b": "[1]"}
    assert tracking.latest_runs(uri)[0]["flow_run"] == "f1"


def test_two_stages_alone_on_a_fresh_store_share_a_parent_and_ruin_nothing(layout: Layout) -> None:
    running = [start_stage(item, 200, layout.root) for item in ("a", "b")]
    runs = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [p.returncode for p in running] == [0, 0]
    uri = tracking.embedded_uri(layout)
    found = [store.client(uri).get_run(run_id) for run_id in runs]
    assert {len(points(uri, run_id)) for run_id in runs} == {200}
    assert len({r.data.tags["mlflow.parentRunId"] for r in found}) == 1
    assert len(find_runs(uri, {"aut.stage": "run"}, 10)) == 1
    assert sorted(p.name for p in layout.root.iterdir()) == ["params.yaml"]  # no mlflow.db beside the work


def test_a_stage_goes_on_while_the_server_is_away(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nobody listens
    with stage_tracker("screen", "", layout) as track:
        track.metrics({"flagged": 3.0})
        assert track.record()["run_id"] is None
    assert capsys.readouterr().err.count("does not answer") == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    uri = tracking.embedded_uri(layout)
    assert tracking.send_leftovers(uri, layout) == 0
    (run,) = find_runs(uri, {"aut.stage": "screen"}, 10)
    assert (run.data.metrics, run.info.status) == ({"flagged": 3.0}, "FINISHED")
    assert tracking.send_leftovers(uri, layout) == 0
    assert not list((layout.work / "spool").rglob("events.jsonl"))
    assert len(find_runs(uri, {"aut.stage": "screen"}, 10)) == 1


def test_a_table_is_an_artifact_that_mlflow_shows_and_the_newest_counts(
    layout: Layout, uri: str, tmp_path: Path
) -> None:
    with stage_tracker("finetune", "a", layout) as track:
        track.table("captions", ("step", "output"), [[1, "rain"]])
        track.table("captions", ("step", "output"), [[1, "rain"], [2, "rain on a roof"]])
        run_id = track.record()["run_id"]
    run = store.client(uri).get_run(run_id)
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "captions.json", "type": "table"}]
    file = store.client(uri).download_artifacts(run_id, "captions.json", str(tmp_path))
    assert read_json(Path(file)) == {"columns": ["step", "output"], "data": [[1, "rain"], [2, "rain on a roof"]]}


def test_a_run_that_goes_on_names_the_one_before(layout: Layout, uri: str, tmp_path: Path) -> None:
    work = tmp_path / "job"
    work.mkdir()
    ids = []
    for name in ("first", "second"):
        with stage_tracker("finetune", "a", layout) as track:
            track.tags({"attempt": name})
            track.goes_on(work / "run.json")
            ids.append(track.record()["run_id"])
    tags = [store.client(uri).get_run(i).data.tags for i in ids]
    assert "aut.resumes" not in tags[0]
    assert tags[1]["aut.resumes"] == ids[0]
    assert read_json(work / "run.json") == {"run_id": ids[1]}
    (work / "run.json").unlink()
    work.rmdir()
    with stage_tracker("finetune", "a", layout) as track:  # finished before it was shipped: nothing to name
        track.goes_on(work / "run.json")
        assert "aut.resumes" not in store.client(uri).get_run(track.record()["run_id"]).data.tags


def test_a_run_that_ends_while_the_server_is_away_waits_for_it_and_one_that_failed_does_not(
    layout: Layout, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, away = tracking.Shipper.send, threading.Event()
    away.set()

    def sometimes(sender: tracking.Shipper) -> None:
        if away.is_set():
            raise TrackingError("it does not answer")
        send(sender)

    monkeypatch.setattr(tracking.Shipper, "send", sometimes)
    parent, folder = tracking.open_parent(uri, {}, layout, {}), layout.work / "spool/ends"
    monkeypatch.setenv("AUT_SPOOL", str(folder))
    monkeypatch.setenv("AUT_PARENT_RUN", parent)

    def failing(sent: tracking.Shipper) -> None:
        with sent, stage_tracker("base", "", layout) as track:
            track.metrics({"loss": 1.0}, 1)
            raise ValueError("of the stage")

    failed = tracking.Shipper(uri, parent, folder, limit_s=600.0, failed_s=0.0)
    with pytest.raises(ValueError, match="of the stage"):
        failing(failed)
    assert failed.left
    threading.Timer(1.0, away.clear).start()
    with tracking.Shipper(uri, parent, folder, limit_s=600.0) as ended:
        pass
    assert not ended.left
    assert points(uri, find_runs(uri, {"aut.stage": "base"}, 5)[0].info.run_id) == [(1, 1.0)]


def test_a_crash_between_sending_and_remembering_doubles_nothing(layout: Layout, uri: str) -> None:
    folder = new_folder(layout.work / "spool/x", "probe")
    with Spool(folder) as track:
        write_start(track)
        track.metrics({"loss": 1.0}, 1)
        track.metrics({"loss": 2.0}, 2)
        track.dataset("d", "0" * 32, 1, layout.params)
    one = shipper.Folder(uri, folder, lambda _: "0" * 32)
    assert one.left() == 4
    one.send()
    (folder / "run.json").unlink()  # as if it had died right after creating the run ...
    state = read_json(folder / "shipped.json")
    (folder / "shipped.json").write_text(json.dumps({"offset": 0, "key": state["key"], "ended": False, "done": False}))
    shipper.Folder(uri, folder, lambda _: "0" * 32).send()  # ... and after each call
    (run,) = find_runs(uri, {"aut.stage": "probe"}, 10)
    assert points(uri, run.info.run_id) == [(1, 1.0), (2, 2.0)]
    assert len(run.inputs.dataset_inputs) == 1
    assert run.info.status == "KILLED"  # the stage is gone and has written no end


def test_what_mlflow_refuses_is_set_aside_and_the_rest_arrives(
    layout: Layout, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new_folder(layout.work / "spool/x", "probe")
    with Spool(folder) as track:
        write_start(track)
        track.params({"lr": 1})
        track.metrics({"bad#name": 1.0, "good": 2.0})
    shipper.Folder(uri, folder, lambda _: "0" * 32).send()
    (run,) = find_runs(uri, {"aut.stage": "probe"}, 10)
    assert run.data.metrics == {"good": 2.0}
    assert json.loads((folder / "rejected.jsonl").read_text())["what"]["key"] == "bad#name"
    assert "bad#name" in capsys.readouterr().err


def write_start(track: Spool) -> None:
    track.write("start", name="probe", tags={"aut.stage": "probe"}, revision="r", params_digest="p", parent_run_id=None)


def test_a_killed_stage_leaves_its_points_and_ends_killed(layout: Layout, uri: str) -> None:
    parent = tracking.open_parent(uri, {}, layout, {})
    folder = layout.work / "spool/f"
    code = STAGE.replace("    print(track", "    import time; time.sleep(60)\n    print(track")
    with tracking.Shipper(uri, parent, folder):
        env = environment(AUT_SPOOL=str(folder), AUT_PARENT_RUN=parent)
        process = subprocess.Popen([sys.executable, "-c", code, "a", "50"], cwd=layout.root, env=env)
        events = folder / "probe@a.1/events.jsonl"
        until = time.monotonic() + 30
        while time.monotonic() < until and not (events.exists() and events.read_text().count("\n") == 51):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (run,) = find_runs(uri, {"aut.stage": "probe"}, 10)
    assert run.info.status == "KILLED"
    assert len(points(uri, run.info.run_id)) == 50


def test_a_failed_stage_says_why(layout: Layout, uri: str) -> None:
    with pytest.raises(ValueError, match="no clips"), stage_tracker("index", "esc", layout):
        raise ValueError("no clips")
    (run,) = find_runs(uri, {"aut.stage": "index"}, 1)
    assert (run.info.status, run.data.tags["aut.error"]) == ("FAILED", "ValueError: no clips")


def test_threads_and_reopened_spools_write_whole_lines(tmp_path: Path) -> None:
    with Spool(tmp_path / "s") as one, Spool(tmp_path / "s") as two:
        threads = [
            threading.Thread(target=lambda t=t: [t.metrics({"k": 1.0}, i) for i in range(300)]) for t in (one, two) * 2
        ]
        [t.start() for t in threads]
        [t.join() for t in threads]
    lines = (tmp_path / "s/events.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 1200


def test_tracking_off_keeps_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUT_TRACK", "off")
    with stage_tracker("index", "esc", layout) as track:
        track.metrics({"clips": 3.0})
        assert track.record()["run_id"] is None
    assert not layout.work.exists()


def test_dvcs_digests_become_tags(layout: Layout, uri: str) -> None:
    with stage_tracker("screen", "", layout) as track:
        run_id = track.run_id()
    layout.run_record("screen").parent.mkdir(parents=True)
    layout.run_record("screen").write_text(json.dumps({"run_id": run_id}))
    outs = "[{path: data/screen, md5: d1}, {path: data/runs/screen.json, md5: d2}]"
    (layout.root / "dvc.lock").write_text(f"stages: {{screen: {{cmd: x, outs: {outs}}}, other: {{cmd: y}}}}")
    assert tracking.tag_outs(uri, layout) == 1
    tag = store.client(uri).get_run(run_id).data.tags["aut.dvc"]
    assert json.loads(tag) == {"data/screen": "d1", "data/runs/screen.json": "d2"}


def test_the_address_comes_from_the_environment_then_the_user_then_the_default(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrackingError, match="aut use"):
        tracking.resolve_uri(None)
    assert tracking.resolve_uri("http://default:1") == "http://default:1"
    tracking.use("http://saved:1/")
    assert tracking.resolve_uri("http://default:1") == tracking.saved_uri() == "http://saved:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://given:1")
    assert tracking.resolve_uri(None) == "http://given:1"
    with pytest.raises(TrackingError, match="no MLflow address"):
        tracking.use("./mlruns")


def test_an_unreachable_or_broken_store_is_one_sentence(layout: Layout) -> None:
    with pytest.raises(TrackingError, match="does not answer"):
        tracking.ready("http://127.0.0.1:9", layout)
    bad = layout.work / "bad.db"
    bad.parent.mkdir(parents=True)
    bad.write_text("this is no database")
    with pytest.raises(TrackingError, match="cannot be used") as told:
        tracking.ready(f"sqlite:///{bad}", layout)
    assert "\n" not in str(told.value)


def test_passwords_are_not_told() -> None:
    assert store.plain("postgresql://u:secret@host/db") == "postgresql://host/db"


def test_params_are_flat_text() -> None:
    assert flat({"a": {"b": 1, "c": [True, None]}, "d": "x"}) == {"a.b": "1", "a.c": "[true, null]", "d": "x"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    held = Server(tmp_path / "server")
    yield held
    held.stop()


@pytest.mark.slow
def test_a_server_that_goes_away_and_comes_back_has_every_point_once(
    layout: Layout, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    tracking.ready(server.uri, layout)
    parent = tracking.open_parent(server.uri, {"profile": "toy"}, layout, {})
    folder = layout.work / "spool/f"
    monkeypatch.setenv("AUT_SPOOL", str(folder))
    monkeypatch.setenv("AUT_PARENT_RUN", parent)
    with tracking.Shipper(server.uri, parent, folder, limit_s=1.0) as sent, stage_tracker("base", "", layout) as track:
        track.metrics({"loss": 0.0}, 0)
        run_id = track.run_id()
        assert run_id
        server.stop()
        for step in range(1, 2000):
            track.metrics({"loss": float(step)}, step)
        track.artifact(layout.params)
    assert sent.left > 0
    server.start()
    assert tracking.send_leftovers(server.uri, layout) == 0
    assert points(server.uri, run_id) == [(step, float(step)) for step in range(2000)]
    run = store.client(server.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [a.path for a in store.client(server.uri).list_artifacts(run_id)] == ["params.yaml"]
