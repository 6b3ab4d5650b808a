"""Registering and loading against a real SQLite store: identity, aliases, forced promotion, the cache, pyfunc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import aut
from aut.config import Params, read_params
from aut.contracts import Silent
from aut.edges import loading, registry, store, tracking
from aut.edges.spool import stage_tracker
from aut.encoders.clipwise import identity
from aut.errors import ConfigError, DataError, MissingInput, TrackingError
from aut.files import digest_tree, read_json, write_json
from aut.gates import evaluate
from aut.layout import Layout
from aut.stages.register import pack
from tests.unit.mlflow_server import Server

ROOT = Path(aut.__file__).parents[1]
CHAMPION = "adapted-0"


@dataclass
class Untracked(Silent):
    """A tracker without a run, that keeps its tags."""

    kept: dict[str, str] = field(default_factory=dict)

    def run_id(self) -> None:
        return None

    def tags(self, values: Any) -> None:
        self.kept |= values


@pytest.fixture
def params() -> Params:
    return read_params(ROOT / "params.yaml")


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: Params) -> Layout:
    """A working copy whose evidence passes, with its own work, cache and config folders."""
    for name in ("MLFLOW_TRACKING_URI", "AUT_SPOOL", "AUT_PARENT_RUN", "AUT_FLOW_RUN", "AUT_TRACK", "AUT_FORCE_REASON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AUT_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    layout = Layout(tmp_path / "copy")
    layout.root.mkdir()
    shutil.copy2(ROOT / "params.yaml", layout.params)
    write_encoder(layout, b"weights")
    for probe_set in params.embed.sets:
        folder = layout.probe(CHAMPION, probe_set)
        folder.mkdir(parents=True)
        (folder / "head.safetensors").write_bytes(b"head")
        write_json(folder / "head.json", {"labels": ["a", "b"], "set": probe_set, "pooling": "valid"})
    write_evidence(layout, params)
    monkeypatch.chdir(layout.root)
    return layout


def write_encoder(layout: Layout, weights: bytes) -> None:
    folder = layout.encoder(CHAMPION)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    facts = {"kind": "whisper", "name": CHAMPION, "rate_hz": 16000, "width": 8, "hop_s": 0.02, "mels": 80}
    write_json(folder / "encoder.json", {**facts, "length": "native", "digest": weights.hex()})


def write_evidence(layout: Layout, params: Params, gain: float = 3.0) -> None:
    base = {"a": "adapted", "p": 0.01, "p_holm": 0.02, "mdd": 1.0, "clips": 100, "recordings": 50, "seeds": 5}
    pairs = [("words", "speech", 0.0), ("scenes", "environment", gain), ("genres", "music", gain)]
    rows = [
        {**base, "set": s, "domain": d, "b": b, "diff": low + 1, "low": low, "high": low + 2}
        for s, d, low in pairs
        for b in params.compare.against
    ]
    accuracy = {"encoder": CHAMPION, "set": "words", "domain": "speech", "accuracy": 90.0, "low": 88.0, "high": 92.0}
    evidence: dict[str, Any] = {
        "differences": rows,
        "table": [{**accuracy, "protocol": "split", "pooling": "valid", "variant": "linear"}],
        "leakage": {"domains": {"speech": {"pool": 100, "flagged": 0, "fraction": 0.0}}},
        "parity": {CHAMPION: {"max_error": 1e-6, "atol": 1e-4, "passed": True, "drop_in": True}},
    }
    verdicts = evaluate(evidence, params.register_.gates, params.compare)
    write_json(layout.evidence / "evidence.json", {**evidence, "verdicts": [v.as_json() for v in verdicts]})
    (layout.evidence / "report.html").write_text("<html>the report</html>")


def registered(params: Params, layout: Layout) -> dict[str, Any]:
    registry.register(params, layout, Untracked())
    found: dict[str, Any] = read_json(layout.registered / "registered.json")
    return found


def uri_of(layout: Layout) -> str:
    return tracking.embedded_uri(layout)


def version(layout: Layout, number: str) -> Any:
    return store.client(uri_of(layout)).get_model_version(registry.MODEL, number)


def test_a_version_carries_its_evidence_and_leads_back(params: Params, layout: Layout) -> None:
    write_json(layout.run_record("finetune", CHAMPION), {"run_id": "f" * 32, "revision": "abc", "seed": 0})
    (layout.root / "dvc.lock").write_text(
        f"stages: {{e: {{outs: [{{path: models/encoders/{CHAMPION}, md5: d1}}]}}, c: {{outs: []}}}}"
    )
    with stage_tracker("register", "", layout) as track:
        report = registry.register(params, layout, track)
        run_id = track.run_id()
    assert report == {"version": 1, "champion": 1}
    found = version(layout, "1")
    assert found.run_id == run_id
    expected = {"gate.leakage": "pass", "gate.gain.music": "pass", "finding.beats.logmel": "no"}
    expected |= {"aut.run.finetune": "f" * 32, "aut.weights.revision": "abc", "aut.dvc.encoder": "d1"}
    expected |= {"aut.digest.weights": b"weights".hex(), "aut.profile": params.profile, "aut.encoder": CHAMPION}
    assert expected.items() <= found.tags.items()
    facts = registry.version_facts(uri_of(layout), "champion")
    run = store.client(uri_of(layout)).get_run(run_id)
    assert (facts.version, facts.parent_run) == ("1", run.data.tags["mlflow.parentRunId"])
    assert run.data.tags["aut.model_version"] == "models:/whisper-aut/1"
    assert found.description.startswith("# whisper-aut: adapted-0")
    source, _, _ = loading.locate(uri_of(layout), "models:/whisper-aut/1")
    folder = store.mlflow_module().artifacts.download_artifacts(source, dst_path=str(layout.work / "got"))
    names = {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}
    heads = {f"artifacts/heads/{s}/head.safetensors" for s in params.embed.sets}
    wanted = {"artifacts/report.html", "artifacts/README.md", "artifacts/evidence.json", "artifacts/lineage/dvc.lock"}
    assert wanted | heads | {"artifacts/encoder/model.safetensors", "code/aut/__init__.py", "MLmodel"} <= names
    assert not [n for n in names if n.endswith((".pkl", ".pyc"))]
    assert "torch==" in (Path(folder) / "requirements.txt").read_text()


def test_the_same_weights_and_evidence_are_the_same_version(params: Params, layout: Layout) -> None:
    assert registered(params, layout)["created"]
    again = registered(params, layout)
    assert (again["version"], again["created"], again["aliases"]) == ("1", False, ["candidate", "champion"])
    write_encoder(layout, b"other")
    assert registered(params, layout)["version"] == "2"
    assert registry.alias_version(uri_of(layout), registry.MODEL, "candidate") == "2"


def test_evidence_of_other_weights_is_refused(params: Params, layout: Layout) -> None:
    path = layout.evidence / "evidence.json"
    write_json(path, {**read_json(path), "encoders": {"words": {CHAMPION: "other", "base": "b"}}})
    with pytest.raises(DataError, match=r"adapted-0 has the digest .*, the evidence on words is of other"):
        registered(params, layout)


def test_champion_moves_only_on_a_pass(params: Params, layout: Layout) -> None:
    registered(params, layout)
    write_encoder(layout, b"worse")
    write_evidence(layout, params, gain=-0.5)
    second = registered(params, layout)
    assert (second["version"], second["aliases"], second["forced"]) == ("2", ["candidate"], None)
    assert version(layout, "2").tags["gate.gain.environment"] == "fail"
    assert registry.alias_version(uri_of(layout), registry.MODEL, "champion") == "1"


def test_force_without_a_reason_is_refused_before_anything_is_registered() -> None:
    from aut.cli.stages import _register

    with pytest.raises(ConfigError, match="needs a reason"):
        _register(force=True, reason=" ")


def test_a_forced_promotion_keeps_every_reason(params: Params, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    write_evidence(layout, params, gain=-0.5)
    assert registered(params, layout)["aliases"] == ["candidate"]
    for reason in ("a demo", "a demo", "another"):
        monkeypatch.setenv("AUT_FORCE_REASON", reason)
        result = registered(params, layout)
    assert result["aliases"] == ["candidate", "champion"]
    kept = {k: v for k, v in version(layout, "1").tags.items() if k.startswith("aut.forced.")}
    assert list(kept) == ["aut.forced.1", "aut.forced.2"]
    assert "against: gain.environment, gain.music" in kept["aut.forced.1"]


def test_a_reason_that_was_not_needed_is_not_recorded(
    params: Params, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUT_FORCE_REASON", "to be sure")
    assert registered(params, layout)["forced"] is None
    assert not [k for k in version(layout, "1").tags if k.startswith("aut.forced.")]


def test_an_upload_that_fails_leaves_no_version(
    params: Params, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as m, pytest.raises(OSError, match="no space"):
        m.setattr(store.mlflow_module().MlflowClient, "log_model_artifacts", refuse)
        registered(params, layout)
    assert registry._versions(uri_of(layout), registry.MODEL) == {}
    assert not (layout.work / "register" / CHAMPION).exists()
    assert registered(params, layout)["version"] == "1"


def test_an_absent_artefact_is_named(params: Params, layout: Layout) -> None:
    (layout.evidence / "report.html").unlink()
    with pytest.raises(MissingInput, match=r"report\.html"):
        registered(params, layout)


def test_an_unknown_version_is_one_sentence(params: Params, layout: Layout) -> None:
    registered(params, layout)
    for number in ("9", "nobody"):
        with pytest.raises(TrackingError, match=f"no version '{number}'"):
            registry.version_facts(uri_of(layout), number)
    with pytest.raises(TrackingError, match="has no models:/whisper-aut@nobody"):
        loading.fetch(uri_of(layout), "models:/whisper-aut@nobody")
    with pytest.raises(TrackingError, match="names no version"):
        loading.fetch(uri_of(layout), "models:/whisper-aut")


def test_the_package_and_its_card_are_the_same_bytes_each_time(params: Params, layout: Layout) -> None:
    one, two = (pack(params, layout, layout.work / name) for name in ("one", "two"))
    assert digest_tree(one.folder) == digest_tree(two.folder)
    assert "| gain.music | pass | genres: adapted - base +4.0 (+3.0, +5.0)" in one.card
    assert "| words | speech | adapted - base | +1.0 | +0.0 to +2.0 | 0.02 | 1.0 | 100 | 50 |" in one.card
    assert str(layout.root) not in one.card


def test_fetch_caches_by_digest_and_mends_what_was_damaged(params: Params, layout: Layout) -> None:
    number = registered(params, layout)["version"]
    folder, found, _ = loading.fetch(uri_of(layout), "models:/whisper-aut@champion")
    assert found == number
    assert digest_tree(folder) == digest_tree(layout.encoder(CHAMPION)) == folder.name
    (folder / "model.safetensors").write_bytes(b"damaged")
    folder, _, _ = loading.fetch(uri_of(layout), f"models:/whisper-aut/{number}")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_run_leads_to_the_model_it_made(params: Params, layout: Layout) -> None:
    with stage_tracker("register", "", layout) as track:
        registry.register(params, layout, track)
        run_id = track.run_id()
    folder, number, found = loading.fetch(uri_of(layout), f"runs:/{run_id}/{CHAMPION}")
    assert (folder.name, number, found) == (digest_tree(layout.encoder(CHAMPION)), None, run_id)
    with pytest.raises(TrackingError, match="cannot be fetched"):
        loading.fetch(uri_of(layout), f"runs:/{run_id}/nothing")
    assert not (layout.root / "mlflow.db").exists()


def test_artifacts_changed_after_registration_are_refused(params: Params, layout: Layout) -> None:
    registered(params, layout)
    (stored,) = (layout.work / "mlartifacts").rglob("artifacts/encoder/model.safetensors")
    stored.write_bytes(b"changed")
    with pytest.raises(DataError, match="digest"):
        loading.fetch(uri_of(layout), "models:/whisper-aut@champion")
    assert not list(loading.cache_folder().iterdir())


def test_load_encoder_without_an_address_says_one_sentence_and_writes_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    before = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(TrackingError) as told:
        aut.load_encoder("models:/whisper-aut@champion")
    assert str(told.value) == "no MLflow address is known. set MLFLOW_TRACKING_URI or run `aut use ADDRESS`"
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_load_encoder_of_an_empty_folder_names_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no encoder\.json"):
        aut.load_encoder(tmp_path)


TONE = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000, dtype=np.float32)


def write_logmel(layout: Layout) -> None:
    """A real encoder folder that needs no weights."""
    folder = layout.encoder(CHAMPION)
    shutil.rmtree(folder)
    folder.mkdir()
    facts = {"kind": "logmel", "name": CHAMPION, "rate_hz": 16000, "width": 160, "hop_s": 0.01, "mels": 80}
    write_json(folder / "encoder.json", {**facts, "length": "native", "digest": identity(folder, "logmel", 80)})


@pytest.mark.slow
def test_a_registered_encoder_answers_like_the_one_on_disk(params: Params, layout: Layout) -> None:
    write_logmel(layout)
    registered(params, layout)
    tracking.use(uri_of(layout))
    here = aut.load_encoder(layout.encoder(CHAMPION))
    there = aut.load_encoder("models:/whisper-aut@champion")
    assert (here.version, there.version, there.digest) == (None, "1", here.digest)
    ours, frames = here.encode([TONE, TONE[:4000]], rate_hz=16_000)
    theirs, _ = there.encode([TONE, TONE[:4000]], rate_hz=16_000)
    np.testing.assert_array_equal(ours, theirs)
    assert frames.tolist() == [100, 25]


LOADED_BY_MLFLOW = """
import json, sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/whisper-aut@candidate")
files = pd.DataFrame({"audio": [open(f, "rb").read() for f in sys.argv[1:]]})
print(json.dumps(model.predict(files)["embedding"].tolist()))
"""


@pytest.mark.slow
def test_mlflow_alone_loads_the_model_and_gives_the_probes_vectors(
    params: Params, layout: Layout, tmp_path: Path
) -> None:
    write_logmel(layout)
    registered(params, layout)
    empty = tmp_path / "empty"
    empty.mkdir()
    clips = [TONE, TONE[:4000]]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip, 16_000, subtype="FLOAT")
    settings = {**store.SETTINGS, "MLFLOW_TRACKING_URI": uri_of(layout)}
    command = [sys.executable, "-c", LOADED_BY_MLFLOW, str(tmp_path / "0.wav"), str(tmp_path / "1.wav")]
    done = subprocess.run(command, cwd=empty, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = aut.load_encoder(layout.encoder(CHAMPION)).embed(clips, rate_hz=16_000)
    # the wav file keeps float32, so nothing but the JSON lies between
    np.testing.assert_allclose(json.loads(done.stdout.splitlines()[-1]), expected, atol=1e-6)
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_a_server_that_proxies_artifacts_serves_the_same(
    params: Params, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    server.start()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        write_logmel(layout)
        with stage_tracker("register", "", layout) as track:
            registry.register(params, layout, track)
        result = read_json(layout.registered / "registered.json")
        assert (result["version"], result["aliases"]) == ("1", ["candidate", "champion"])
        assert not registered(params, layout)["created"]
        encoder = aut.load_encoder("models:/whisper-aut@champion")
        assert (encoder.version, encoder.run_id) == ("1", result["run_id"])
        assert loading.fetch(server.uri, f"runs:/{result['run_id']}/{CHAMPION}")[0] == encoder.encoder.folder
        assert not list((tmp_path / "work").rglob("mlartifacts"))
    finally:
        server.stop()
