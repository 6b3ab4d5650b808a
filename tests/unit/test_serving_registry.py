"""Following an alias: swaps without loss, refusals, a registry that goes away; against a real SQLite store too."""

import asyncio
import shutil
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import aut
from aut.edges.versions import Registry
from aut.errors import TrackingError
from aut.files import digest_tree, read_json, write_json
from aut.serving.engine import Passing
from aut.serving.versions import EXAMPLE, Pointer, open_version
from aut.serving.watcher import Watcher
from tests.unit.serving_fixture import Shelf, file_of, publish_version, serving, sound, write_version


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    return {str(n): write_version(folder / str(n), seed=n) for n in (1, 2, 3)}


async def settled(service, number):
    async with asyncio.timeout(20):
        while service.watcher.answering is None or service.watcher.answering.pointer.number != number:
            await asyncio.sleep(0.01)


def test_an_alias_that_moves_under_load_fails_nothing_and_mixes_nothing(shelf):
    """Every answer's vector is that of the version its headers name."""
    clip = file_of(sound(0.5))
    encoders = [aut.load_encoder(folder) for folder in shelf.values()]
    vectors = {e.digest: e.embed(sound(0.5), 16_000)[0] for e in encoders}

    async def ask():
        source = Shelf(shelf, "1")
        answers, done = [], asyncio.Event()
        async with serving(source, poll_s=0.02) as (client, service):

            async def load():
                while not done.is_set():
                    answers.append(await client.post("/v1/embeddings", content=clip))

            callers = [asyncio.create_task(load()) for _ in range(4)]
            for number in "2312":
                source.number = number
                await settled(service, number)
            done.set()
            await asyncio.gather(*callers)
            return answers, service.watcher.swaps

    answers, swaps = asyncio.run(ask())
    assert swaps == 4
    assert {a.status_code for a in answers} == {200}
    assert len({a.headers["x-model-version"] for a in answers}) == 3
    for answer in answers:
        vector = answer.json()["data"][0]["embedding"]
        np.testing.assert_allclose(vector, vectors[answer.headers["x-model-weights"]], atol=1e-5)


def test_the_processes_of_the_version_before_end_without_another_request(shelf):
    async def ask():
        source = Shelf(shelf, "1")
        async with serving(source, poll_s=0.02) as (client, service):
            for _ in range(2):
                assert (await client.post("/v1/embeddings", content=file_of(sound(0.3)))).status_code == 200
            before = [worker._process for worker in service.watcher.served.encoder._crew.workers]
            source.number = "2"
            await settled(service, "2")
            async with asyncio.timeout(10):
                while any(process.is_alive() for process in before):
                    await asyncio.sleep(0.05)

    asyncio.run(ask())


def refuse():
    raise TrackingError("down")


def damage(folder, what):
    if what == "weights":
        (folder / "encoder/model.safetensors").write_bytes(b"not weights")
    elif what == "nan":
        path = folder / "encoder/model.safetensors"
        tensors = load_file(path)
        save_file({k: np.full_like(v, np.nan) for k, v in tensors.items()}, path)
        from aut.encoders.clipwise import identity

        facts = read_json(folder / "encoder/encoder.json")
        write_json(folder / "encoder/encoder.json", facts | {"digest": identity(folder / "encoder", "whisper", 80)})
    elif what == "head":
        save_file({"weight": np.zeros((2, 3), np.float32)}, folder / "heads/words/head.safetensors")
    elif what == "pooling":
        path = folder / "heads/words/head.json"
        write_json(path, read_json(path) | {"pooling": "median"})
    elif what == "pickle":
        (folder / "heads/words/head.safetensors").write_bytes(b"\x80\x04\x95\x10")
    elif what == "example":
        (folder / EXAMPLE).write_bytes(b"no sound")
    elif what == "neighbours":
        write_json(folder / "neighbours/words.json", {"ids": ["one"], "labels": ["a"]})


@pytest.mark.parametrize("what", ["weights", "nan", "head", "pooling", "pickle", "example", "neighbours"])
def test_a_version_that_is_not_whole_is_refused_and_the_old_one_stays(shelf, tmp_path, what):
    broken = write_version(tmp_path / "broken", seed=9)
    damage(broken, what)
    source = Shelf({**shelf, "9": broken}, "1")
    watcher = Watcher(source)
    watcher.look()
    before = watcher.served
    source.number = "9"
    watcher.look()
    watcher.look()
    assert watcher.served is before
    status = watcher.status()
    assert status["ready"] is True
    assert list(status["refused"]) == ["9"]
    source.number = "2"
    watcher.look()
    assert watcher.served.pointer.number == "2"


def test_without_any_version_it_says_what_makes_one(shelf):
    async def ask():
        source = Shelf(shelf)
        async with serving(source) as (client, service):
            first = [await client.post("/v1/embeddings", content=file_of(sound(0.2)))]
            first += [await client.get("/health/ready"), await client.get("/health/live"), await client.get("/ping")]
            source.number = "1"
            await settled(service, "1")
            return first, await client.post("/v1/embeddings", content=file_of(sound(0.2)))

    (refused, ready, live, ping), then = asyncio.run(ask())
    assert refused.status_code == ready.status_code == 503
    assert refused.json()["error"]["reason"] == "no_version"
    assert "aut run --profile demo" in refused.json()["error"]["message"]
    assert "retry-after" in refused.headers
    assert (live.status_code, ping.status_code, then.status_code) == (200, 404, 200)


def test_a_registry_that_goes_away_is_told_and_changes_nothing(shelf):
    async def ask():
        source = Shelf(shelf, "1")
        async with serving(source) as (client, service):
            source.away = True
            async with asyncio.timeout(10):
                while not service.watcher.away:
                    await asyncio.sleep(0.01)
            ready = await client.get("/health/ready")
            answer = await client.post("/v1/embeddings", content=file_of(sound(0.2)))
            source.away, source.number = False, "2"
            await settled(service, "2")
            async with asyncio.timeout(10):
                while service.watcher.away:  # told once the look has ended
                    await asyncio.sleep(0.01)
            return ready, answer, await client.get("/health/ready")

    ready, answer, after = asyncio.run(ask())
    assert ready.status_code == answer.status_code == 200
    assert ready.json()["from"] == "local copy"
    assert "does not answer" in ready.json()["registry"]
    assert after.json()["registry"] == "answers"
    assert after.json()["version"] == "models:/whisper-aut/2"


def test_away_at_the_start_the_local_copy_answers(shelf):
    source = Shelf(shelf)
    source.away = True
    source.kept = Pointer("whisper-aut", "3", "run3", "champion"), shelf["3"]
    watcher = Watcher(source)
    watcher.look()
    assert watcher.served.pointer.number == "3"
    assert watcher.status()["from"] == "local copy"


@pytest.mark.parametrize("kept", [True, False])
def test_a_registry_that_accepts_and_never_answers_holds_up_neither_start_nor_stop(shelf, kept):
    answers = threading.Event()

    class Mute(Shelf):
        def current(self):
            answers.wait(60)
            return super().current()

    source = Mute(shelf, "2")
    if kept:
        source.kept = Pointer("whisper-aut", "3", "run3", "champion"), shelf["3"]
    watcher = Watcher(source, poll_s=0.05)
    watcher.patience_s = 0.2
    watcher.start()
    until = time.monotonic() + 20
    while not watcher.looked and time.monotonic() < until:
        time.sleep(0.01)
    status = watcher.status()
    assert "has not answered for 0.2 s" in status["registry"]
    assert status["ready"] is kept
    if kept:
        assert (status["from"], watcher.served.pointer.number) == ("local copy", "3")
        answers.set()
        while watcher.served.pointer.number != "2" and time.monotonic() < until:
            time.sleep(0.01)
        assert watcher.served.pointer.number == "2"
    started = time.monotonic()
    watcher.stop()
    assert time.monotonic() - started < 5
    answers.set()


def test_a_process_that_is_ended_as_it_opens_is_tried_again(shelf, monkeypatch):
    from aut.serving import engine, watcher
    from aut.serving.workers import Lost

    fail = [True]

    class Killed(engine.Crew):
        def greetings(self):
            if fail:
                raise Lost("EOFError")
            return super().greetings()

    monkeypatch.setattr(engine, "Crew", Killed)
    monkeypatch.setattr(watcher, "RETRY_S", 0.0)
    watch = Watcher(Shelf(shelf, "1"))
    watch.look()
    assert "ended" in watch.status()["refused"]["1"]
    fail.clear()
    watch.look()
    assert watch.served.pointer.number == "1"
    assert "refused" not in watch.status()
    watch.stop()


def test_a_folder_says_that_it_is_one(shelf):
    from aut.serving.watcher import Folder

    watcher = Watcher(Folder(shelf["1"]))
    watcher.look()
    assert watcher.status() | {"from": "folder", "registry": "none"} == watcher.status()
    watcher.stop()


def test_away_at_the_start_without_a_copy_says_so(shelf):
    from aut.serving.limits import Refused

    source = Shelf(shelf)
    source.away = True
    watcher = Watcher(source)
    watcher.look()
    with pytest.raises(Refused, match="no version lies on this machine") as caught:
        _ = watcher.served
    assert caught.value.reason == "registry_away"


def test_the_watch_outlives_a_source_that_raises(shelf):
    class Odd(Shelf):
        asked = 0

        def current(self):
            self.asked += 1
            if self.asked < 3:
                raise RuntimeError("a bug")
            return super().current()

    watcher = Watcher(Odd(shelf, "1"), poll_s=0.01)
    watcher.start()
    until = time.monotonic() + 20
    while watcher.answering is None and time.monotonic() < until:
        time.sleep(0.01)
    watcher.stop()
    assert watcher.served.pointer.number == "1"
    assert "aut-watch" not in {t.name for t in threading.enumerate()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A SQLite store with one version, champion and candidate at once."""
    root = tmp_path_factory.mktemp("store")
    patch = pytest.MonkeyPatch()
    patch.setenv("AUT_WORK", str(root / "work"))
    patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    uri = f"sqlite:///{root / 'mlflow.db'}"
    package = write_version(root / "package/1", seed=1)
    assert publish_version(uri, root, package) == "1"
    yield uri, root, package
    patch.undo()


def test_the_registered_version_is_fetched_whole_and_answers(store):
    uri, _root, package = store
    registry = Registry(uri, "models:/whisper-aut@champion")
    pointer = registry.current()
    assert pointer == Pointer("whisper-aut", "1", "", "champion")
    folder = registry.fetch(pointer)
    assert digest_tree(folder / "encoder") == digest_tree(package / "encoder")
    for part in ("heads", "neighbours", "evidence.json", "report.html"):
        assert digest_tree(folder / part) == digest_tree(package / part)
    assert (folder / EXAMPLE).read_bytes()[:4] == b"RIFF"
    served = open_version(folder, pointer)
    assert set(served.heads) == {"words", "scenes"}
    assert registry.fetch(pointer) == folder
    assert Registry(uri, "models:/whisper-aut/1").current().number == "1"


def test_what_the_alias_does_not_name_is_none_and_a_dead_server_is_away(store):
    uri, _, _ = store
    assert Registry(uri, "models:/whisper-aut@nobody").current() is None
    assert Registry(uri, "models:/no-such-model@champion").current() is None
    assert Registry(uri, "models:/whisper-aut/77").current() is None
    with pytest.raises(TrackingError, match="names no version"):
        Registry(uri, "models:/whisper-aut")


def test_a_server_that_is_not_there_is_told_in_few_words(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        Registry("http://127.0.0.1:9", "models:/whisper-aut@champion").current()
    assert "does not answer" in str(caught.value)
    assert len(caught.value.what) < 120


def test_a_damaged_copy_is_fetched_anew_and_changed_artifacts_are_refused(store):
    uri, root, _ = store
    registry = Registry(uri, "models:/whisper-aut@champion")
    pointer = registry.current()
    folder = registry.fetch(pointer)
    weights = folder / "encoder/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"rot")
    assert (registry.fetch(pointer) / "encoder/model.safetensors").read_bytes() == whole
    (original,) = (root / "work/mlartifacts").rglob("artifacts/encoder/model.safetensors")
    try:
        original.write_bytes(whole[:-4] + b"evil")
        weights.write_bytes(b"rot")
        with pytest.raises(Passing, match="registered was"):
            registry.fetch(pointer)
    finally:
        original.write_bytes(whole)
    assert (registry.fetch(pointer) / "encoder/model.safetensors").read_bytes() == whole


def test_the_copy_is_found_again_when_the_server_is_down(store):
    uri, _root, _ = store
    registry = Registry(uri, "models:/whisper-aut@champion")
    folder = registry.fetch(registry.current())
    later = Registry(uri, "models:/whisper-aut@champion", prepare=lambda: (_ for _ in ()).throw(TrackingError("down")))
    assert later.local() == (Pointer("whisper-aut", "1", "", "champion"), folder)
    watcher = Watcher(later)
    watcher.look()
    assert watcher.served.pointer.number == "1"
    assert watcher.status() | {"registry": "down", "from": "local copy"} == watcher.status()


def test_a_damaged_copy_at_a_start_without_registry_is_no_verdict_on_the_version(store, monkeypatch):
    """The registry comes back, and the version is fetched."""
    uri, _root, _ = store
    registry = Registry(uri, "models:/whisper-aut@champion")
    folder = registry.fetch(registry.current())
    (folder / "encoder/model.safetensors").write_bytes(b"rot")
    away, current = [True], registry.current
    monkeypatch.setattr(registry, "current", lambda: refuse() if away else current())
    watcher = Watcher(registry)
    watcher.look()
    assert watcher.answering is None
    assert registry.local() is None
    away.clear()
    watcher.look()
    assert watcher.served.pointer.number == "1"
    assert "refused" not in watcher.status()
    watcher.stop()


def test_a_copy_that_does_not_open_says_nothing_of_what_the_registry_has(shelf, tmp_path):
    source = Shelf(shelf, "1")
    broken = write_version(tmp_path / "broken")
    damage(broken, "head")
    source.away, source.kept = True, (Pointer("whisper-aut", "1", "run1", "champion"), broken)
    watcher = Watcher(source)
    for _ in range(2):
        watcher.look()
    assert list(watcher.status()["refused"]) == ["1 (local copy)"]
    source.away = False
    watcher.look()
    assert watcher.served.pointer.number == "1"
    assert "refused" not in watcher.status()
    watcher.stop()


def test_a_record_that_cannot_be_read_is_none(store):
    uri, _root, _ = store
    registry = Registry(uri, "models:/whisper-aut@champion")
    for rubbish in (b"{", b"[1]", b"{}", b"\xff"):
        registry._record.write_bytes(rubbish)
        assert registry.local() is None
        registry.fetch(registry.current())
        assert registry.local() is not None


@pytest.mark.parametrize("part", ["heads/words/head.safetensors", "neighbours/words.json", "evidence.json"])
def test_heads_neighbours_and_evidence_are_those_that_were_registered(store, part):
    """Both digests are told, and it is tried again: a download may have been at fault."""
    uri, root, _ = store
    registry = Registry(uri, "models:/whisper-aut@champion")
    pointer = registry.current()
    (registry.fetch(pointer) / part).write_bytes(b"rot")
    (original,) = (root / "work/mlartifacts").rglob(f"artifacts/{part}")
    whole = original.read_bytes()
    try:
        original.write_bytes(whole + b" ")
        with pytest.raises(Passing, match=r"package of .* has digest \w+, registered was \w+"):
            registry.fetch(pointer)
    finally:
        original.write_bytes(whole)
    assert (registry.fetch(pointer) / part).read_bytes() == whole


def test_a_version_registered_without_the_digest_of_its_package_is_served(store):
    from aut.edges.registry import PACKAGE_DIGEST
    from aut.edges.store import client

    uri, _root, _ = store
    registered = client(uri).get_model_version("whisper-aut", "1").tags[PACKAGE_DIGEST]
    client(uri).delete_model_version_tag("whisper-aut", "1", PACKAGE_DIGEST)
    try:
        registry = Registry(uri, "models:/whisper-aut@champion")
        shutil.rmtree(registry.fetch(registry.current()))
        assert registry.fetch(registry.current()).is_dir()
    finally:
        client(uri).set_model_version_tag("whisper-aut", "1", PACKAGE_DIGEST, registered)


def test_the_registrys_time_begins_after_the_imports(shelf):
    class Heavy(Shelf):
        def warm(self):
            time.sleep(0.4)

    watcher = Watcher(Heavy(shelf, "1"))
    watcher.patience_s, told = 0.3, []
    watcher._went_away = told.append
    watcher.look()
    assert told == []
    watcher.stop()
