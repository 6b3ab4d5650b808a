"""What a request may cost: limits, keys, deadlines, fullness, clients that go away; and how batches are taken."""

import asyncio
import base64
import io
import json
import struct
import threading
import time
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from aut.errors import DataError
from aut.serving.batcher import RATIO, Batcher, Job, Turn, bucket
from aut.serving.engine import Ask
from aut.serving.limits import BUDGET_S, PATIENCE, Limits, Refused, Slots
from tests.unit.serving_fixture import Shelf, direct, file_of, serving, sound, write_version


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return write_version(tmp_path_factory.mktemp("versions") / "1")


def slow(seconds, calls=None):
    """A model that takes its time and gives zeros."""

    def run(served, ask, clips):
        time.sleep(seconds)
        if calls is not None:
            calls.append([len(c) for c in clips])
        return [{"valid": np.zeros(served.encoder.width, np.float32)} for _ in clips]

    return run


def post(version, *bodies, limits=None, path="/v1/embeddings", headers=None, **options):
    """The answers to several bodies, one after the other."""

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, **options) as (client, _):
            return [await client.post(path, content=b, headers=headers or {}) for b in bodies]

    return asyncio.run(ask())


def two_hours():
    """A WAV header that counts two hours, and a second of samples behind it; a FLAC that says the same."""
    wav = bytearray(file_of(sound(1.0), subtype="PCM_16"))
    wav[40:44] = struct.pack("<I", 2 * 3600 * 32_000)
    flac = bytearray(file_of(sound(1.0), kind="FLAC", subtype="PCM_16"))
    flac[21:26] = struct.pack(">Q", (flac[21] & 0xF0) << 32 | 2 * 3600 * 16_000)[3:]
    return bytes(wav), bytes(flac)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"RIFF....WAVE", "corrupt"),
        (b"\x80\x04\x95 a pickle", "not_audio"),
        (file_of(sound(0.5))[:9000], "truncated"),
        (two_hours()[0], "truncated"),
        (two_hours()[1], "too_long"),
        (file_of(np.full(1000, np.nan, np.float32)), "not_finite"),
    ],
)
def test_broken_audio_is_a_422_with_its_reason(version, body, reason):
    (answer,) = post(version, body)
    assert answer.status_code == 422
    assert answer.json()["error"]["reason"] == reason
    assert answer.headers["x-model-version"] == "models:/whisper-aut/1"


def test_each_limit_refuses_before_the_work(version):
    calls = []
    limits = Limits(request_bytes=100_000, clips=2, clip_s=1.0, audio_s=1.5)
    clip = file_of(sound(0.9), subtype="PCM_16")
    text = base64.b64encode(clip).decode()

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, run=slow(0, calls)) as (client, service):
            out = [
                await client.post("/v1/embeddings", content=bytes(100_001)),
                await client.post("/v1/embeddings", content=file_of(sound(1.2), subtype="PCM_16")),
                await client.post("/v1/embeddings", json={"input": [text[:40]] * 3}),
                await client.post("/v1/embeddings", json={"input": [text, text]}),
                await client.post("/v1/embeddings", content=_chunks()),
            ]
            return out, service.slots.bytes, service.slots.clips

    async def _chunks():
        for _ in range(11):
            yield bytes(10_000)

    answers, held, clips = asyncio.run(ask())
    told = [(a.status_code, a.json()["error"]["reason"]) for a in answers]
    assert told == [
        (413, "too_large"), (422, "too_long"), (413, "too_many"), (413, "too_long"), (413, "too_large"),
    ]  # fmt: skip
    assert calls == []
    assert (held, clips) == (0, 0)


def test_a_file_that_fails_drops_the_others_and_those_that_run_keep_their_slots(version, tmp_path):
    async def ask():
        async with serving(Shelf({"1": version}, "1"), Limits(queue=20), run=slow(0)) as (client, service):
            begun = direct(service, tmp_path)
            files = [base64.b64encode(word).decode() for word in (b"fail", *[b"wait"] * 11)]
            answer = await client.post("/v1/embeddings", json={"input": files})
            held = service.slots.clips
            await asyncio.sleep(0.1)
            still = service.slots.clips
            (tmp_path / "go").touch()
            async with asyncio.timeout(5):
                while service.slots.clips:
                    await asyncio.sleep(0.01)
            return answer, held, still, len(service.decoders._crew.workers), begun()

    answer, held, still, decoders, begun = asyncio.run(ask())
    assert answer.status_code == 422
    assert begun <= decoders + 1
    assert 1 <= held <= decoders
    assert still == held


def test_audio_is_summed_while_it_is_decoded(version, tmp_path):
    async def ask():
        async with serving(Shelf({"1": version}, "1"), Limits(audio_s=1.0)) as (client, service):
            begun = direct(service, tmp_path)
            word = base64.b64encode(b"soon").decode()
            return await client.post("/v1/embeddings", json={"input": [word] * 60}), begun()

    answer, begun = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "too_long")
    assert begun < 20


def test_many_channels_at_a_high_rate_are_refused_by_the_header(version):
    """20 s of silence, 8 channels at 655 kHz: 105M samples in a small FLAC."""
    import soundfile

    held = io.BytesIO()
    with soundfile.SoundFile(held, "w", 655_350, 8, format="FLAC", subtype="PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros((655_350, 8), np.int16))
    wide = file_of(np.zeros((192_000, 8), np.float32), 192_000, "FLAC", "PCM_16")
    refused, fine = post(version, held.getvalue(), wide)
    assert refused.status_code == 422
    assert refused.json()["error"]["reason"] == "too_large"
    assert "104,856,000 samples" in refused.json()["error"]["message"]
    assert fine.status_code == 200


@pytest.mark.parametrize(
    ("form", "seconds", "status", "remedy"),
    [
        ("npy", [20.0, *[0.1] * 9], 413, "format=base64"),
        ("safetensors", [20.0, *[0.1] * 9], 413, "format=base64"),
        ("base64", [20.0, *[0.1] * 9], 200, ""),
        ("npy", [20.0] * 2, 200, ""),
        ("json", [20.0], 413, "format=npy"),
        ("json", [5.0], 200, ""),
    ],
)
def test_frames_that_would_fill_memory_are_refused_before_they_are_computed(version, form, seconds, status, remedy):
    calls = []

    def run(served, ask, clips):
        calls.append(clips)
        return [{"frames": np.zeros((len(c) // 320, served.encoder.width), np.float32)} for c in clips]

    text = [base64.b64encode(file_of(np.zeros(round(s * 16_000)), subtype="PCM_16")).decode() for s in seconds]
    body = json.dumps({"input": text, "pool": "none", "format": form}).encode()
    headers = {"Content-Type": "application/json"}
    (answer,) = post(version, body, limits=Limits(answer_bytes=400_000), headers=headers, run=run)
    assert answer.status_code == status
    assert bool(calls) == (status == 200)
    if remedy:
        assert answer.json()["error"]["reason"] == "answer_too_large"
        assert remedy in answer.json()["error"]["message"]


def frames_of(seconds, slow_s=0.0):
    """A model that gives as many frames as its clips last."""

    def run(served, ask, clips):
        time.sleep(slow_s)
        width = served.encoder.width
        return [{"frames": np.zeros((round(seconds * 50), width), np.float32)} for _ in clips]

    return run


class Reader:
    """One request without a socket; it reads nothing more of the answer until it may."""

    def __init__(self, service, path, query, body):
        self.may, self.begun, self.taken, self._body = asyncio.Event(), asyncio.Event(), b"", [body]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "headers": [], "root_path": ""}
        self.done = asyncio.ensure_future(service.gate(scope, self.receive, self.send))

    async def receive(self):
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        return await asyncio.Event().wait()

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.begun.set()
        self.taken += message.get("body", b"")
        await self.may.wait()


def test_answers_that_nobody_reads_are_counted_and_others_are_told(version):
    """Two answers of 320 kB where 500 kB are set aside: the second is told; short ones go on; read, all is free."""
    limits, clip = Limits(held_answers=500_000), file_of(np.zeros(50 * 16_000), subtype="PCM_16")
    big = ("/v1/embeddings", b"pool=none&format=npy", clip)

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, run=frames_of(50.0)) as (_, service):
            first = Reader(service, *big)
            await first.begun.wait()
            held, second = service.slots.answers, Reader(service, *big)
            short = Reader(service, "/v1/embeddings", b"pool=none", file_of(sound(0.1), subtype="PCM_16"))
            for other in (second, short):
                other.may.set()
                await other.done
            told = second.status, second.taken, service.slots.answers
            first.may.set()
            await first.done
            third = Reader(service, *big)
            third.may.set()
            await third.done
            return held, told, first, third, service.slots.answers

    held, (status, body, held_still), first, third, free = asyncio.run(ask())
    assert 320_000 <= held == held_still < 330_000
    assert status == 429
    assert b"have not read" in body
    assert (first.status, third.status, free) == (200, 200, 0)
    assert np.load(io.BytesIO(first.taken)).shape == (1, 2_500, 32)


def test_an_answer_is_counted_before_it_is_computed(version):
    limits, clip = Limits(held_answers=500_000), file_of(np.zeros(50 * 16_000), subtype="PCM_16")

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, run=frames_of(50.0, 1.0)) as (_, service):
            both = [Reader(service, "/v1/embeddings", b"pool=none&format=npy", clip) for _ in range(2)]
            for reader in both:
                reader.may.set()
            ended, _ = await asyncio.wait([r.done for r in both], return_when=asyncio.FIRST_COMPLETED)
            early = [r.status for r in both if r.done in ended]
            await asyncio.gather(*(r.done for r in both))
            return early, sorted(r.status for r in both), service.slots.answers

    assert asyncio.run(ask()) == ([429], [200, 429], 0)


def test_files_are_counted_until_they_are_decoded_and_then_let_go(version):
    """A form's files are not its body: they are counted when the body no longer is."""
    go_on, begun = threading.Event(), threading.Event()
    limits = Limits(held_bytes=300_000)
    clip = file_of(np.zeros(100_000), subtype="PCM_16")  # 200 kB

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, run=slow(0)) as (client, service):

            async def decode(data, position, rate_hz):
                begun.set()
                assert await asyncio.to_thread(go_on.wait, 20)
                return position, np.zeros(1_600, np.float32), 0.1

            service._decode = decode
            first = asyncio.ensure_future(client.post("/v1/embeddings", files={"file": clip}))
            await asyncio.to_thread(begun.wait, 20)
            held = service.slots.bytes
            second = await client.post("/v1/embeddings", content=clip)
            go_on.set()
            return held, second.status_code, (await first).status_code, service.slots.bytes

    assert asyncio.run(ask()) == (len(clip), 429, 200, 0)


def test_decoded_files_are_no_longer_held():
    slots, files = Slots(Limits()), [b"a", b"bc"]
    with slots.keep(files):
        assert slots.bytes == 3
    assert (slots.bytes, files) == (0, [])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/invocations"])
@pytest.mark.parametrize("unit", [b"[],", b"{},", b"1,", b'{"a":'])
def test_json_of_many_values_is_refused_before_it_is_parsed(version, path, unit):
    body = b'{"input":[' + unit * 3_000_000 + b"no JSON"
    (answer,) = post(version, body, path=path, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "commas" in answer.json()["error"]["message"]


def test_long_base64_is_read_aside_and_its_line_breaks_are_dropped(version):
    """A table as wide as any has, with as many clips as may come."""
    clip = file_of(sound(0.1), subtype="PCM_16")
    text = base64.encodebytes(clip).decode()
    row = [text, *range(20)]
    table = {"columns": ["audio", *map(str, range(20))], "index": list(range(64)), "data": [row] * 64}
    body = json.dumps({"dataframe_split": table}).encode()
    (answer,) = post(version, body, path="/invocations", headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 64


@pytest.mark.parametrize("address", ["http://localhost/a.wav", "https://a.example/x", "file:///etc/passwd", "s3://b/k"])
def test_no_address_is_fetched(version, address):
    async def ask():
        async with serving(Shelf({"1": version}, "1")) as (client, _):
            return await client.post("/v1/embeddings", json={"input": address})

    answer = asyncio.run(ask())
    assert answer.status_code == 400
    assert answer.json()["error"]["reason"] == "address"


def test_without_the_key_nothing_but_health_and_page(version):
    async def ask():
        async with serving(Shelf({"1": version}, "1"), key="sesame") as (client, _):
            clip = file_of(sound(0.2))
            given = ({}, {"Authorization": "Bearer open"}, {"X-API-Key": "sesam"}, {"Authorization": "Bearer sesamé"})
            raw = [{k: v.encode("latin-1") for k, v in h.items()} for h in given]
            refused = [await client.post("/v1/embeddings", content=clip, headers=h) for h in raw]
            refused += [await client.get(p) for p in ("/v1/models", "/metrics", "/report", "/v1/evidence")]
            refused += [await client.post("/invocations", content=b"{}")]
            right = ({"Authorization": "Bearer sesame"}, {"X-API-Key": "sesame"})
            passed = [await client.post("/v1/embeddings", content=clip, headers=h) for h in right]
            passed += [await client.get(p) for p in ("/", "/app.js", "/health/ready", "/ping")]
            return refused, passed

    refused, passed = asyncio.run(ask())
    assert {a.status_code for a in refused} == {401}
    assert {a.status_code for a in passed} == {200}


def test_a_full_server_says_429_at_once_and_recovers(version):
    limits = Limits(queue=4, batch_clips=1, workers=1)

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, run=slow(0.1)) as (client, service):
            clip = file_of(sound(0.2))
            answers = await asyncio.gather(*(client.post("/v1/embeddings", content=clip) for _ in range(20)))
            later = await client.post("/v1/embeddings", content=clip)
            return answers, later, service.slots.clips

    answers, later, held = asyncio.run(ask())
    refused = [a for a in answers if a.status_code == 429]
    assert len(answers) - len(refused) == 4
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
    assert later.status_code == 200
    assert held == 0


def test_who_would_wait_over_the_budget_is_refused(version):
    slots = Slots(Limits(budget_s=0.5, free=2))
    slots.computed(1.0, 0.2)
    with slots.lasting([1.0]):
        pass
    with slots.hold(2), slots.hold(1):
        with pytest.raises(Refused) as caught:
            slots.check()
        assert caught.value.status == 429
    slots.check()


def test_a_measured_budget_follows_what_a_request_takes_alone():
    slots = Slots(Limits(budget_s=0, free=1))
    for _ in range(3):
        with slots.hold(1):
            time.sleep(0.02)
    assert 0.01 <= slots.budget_s < 0.5
    measured = slots.budget_s
    with slots.hold(1), slots.hold(1):  # neither was alone
        time.sleep(0.05)
    assert slots.budget_s == measured
    slots.computed(1.0, 10 * measured)
    with slots.hold(1), slots.lasting([1.0]), pytest.raises(Refused):
        slots.check()


def crowded(slots, clips, usual_s=5.0):
    """Clips admitted one by one as long as they are, their lengths known."""
    with ExitStack() as stack:
        for _ in range(clips):
            stack.enter_context(slots.hold(1))
            stack.enter_context(slots.lasting([usual_s]))


@pytest.mark.parametrize("pace", [0.001, 0.02, 0.08])
def test_a_crowd_is_let_in_whatever_the_model_costs(pace):
    """32 clients that ask again when they are answered: of 5 ms a clip, or 400."""
    slots = Slots(Limits())
    slots.computed(5.0, 5.0 * pace)
    crowded(slots, 32)
    assert not slots.pressed
    for _ in range(100):
        with pytest.raises(Refused):
            crowded(slots, 200)
    assert slots.pressed


def test_under_overload_a_newcomer_waits_no_longer_than_beside_nobody(monkeypatch):
    """Until no more are refused than a crowd that comes again."""
    clock = [100.0]
    monkeypatch.setattr("aut.serving.pressure.time", SimpleNamespace(monotonic=lambda: clock[0]))
    slots = Slots(Limits(queue=10))
    slots.computed(5.0, 0.01)
    crowded(slots, 10)
    assert slots.budget_s == BUDGET_S
    with slots.hold(10):
        for second in range(20):
            for _ in range(100):
                with pytest.raises(Refused):
                    slots.check()
                clock[0] += 0.01
            assert slots.budget_s == (PATIENCE * slots.alone_s), second
        for _ in range(100):  # as many as come again
            with pytest.raises(Refused):
                slots.check()
            clock[0] += 1 / 32
    assert slots.budget_s == BUDGET_S


def test_a_given_budget_holds_under_overload_too():
    slots = Slots(Limits(budget_s=3.0, queue=2))
    with slots.hold(2), pytest.raises(Refused):
        slots.check()
    assert not slots.pressed
    assert slots.budget_s == 3.0


def test_under_overload_those_who_waited_long_are_told_and_those_begun_are_finished():
    async def ask():
        limits = Limits(batch_clips=1, budget_s=0)
        batcher = Batcher(limits, Slots(limits))
        loop = asyncio.get_running_loop()
        jobs(loop, batcher, [1.0, 1.0, 1.0, 1.0], packed=True)
        begun, late, recent = Turn(0.0, begun=True), Turn(0.0), Turn(9.9)
        for job, turn in zip(batcher.waiting, (begun, late, recent, Turn()), strict=True):
            job.turn = turn
        dropped = batcher.waiting[1]
        taken = [batcher.take(10.0)[0].turn for _ in range(2)]
        return taken == [begun, recent], dropped.future.exception(), recent.begun

    in_turn, refused, begun = asyncio.run(ask())
    assert in_turn
    assert begun
    assert refused.status == 429


def test_a_flood_larger_than_any_crowd_is_told_at_once_and_those_dropped_count_as_refused():
    limits = Limits(queue=128)
    slots = Slots(limits)
    slots.computed(5.0, 0.01)
    with ExitStack() as stack:
        for _ in range(128):
            stack.enter_context(slots.hold(1))
        assert not slots.pressed
        with pytest.raises(Refused):
            slots.check()
        assert slots.pressed
        slots.dropped(100)
    assert slots.pressed


@pytest.mark.parametrize(("waited_s", "clips"), [(0.0, 2), (0.5, 5), (9.0, 6)])
def test_a_pass_takes_no_longer_than_its_first_clip_has_waited_or_a_request_alone(waited_s, clips):
    async def ask():
        limits = Limits(workers=2)
        batcher = Batcher(limits, slots := Slots(limits))
        slots.pace, slots.alone_s = 0.01, 0.2  # a pass of 5 s: 0.1 s
        jobs(asyncio.get_running_loop(), batcher, [5.0] * 20, packed=True)
        for job in batcher.waiting:
            job.turn = Turn(100.0)
        return len(batcher.take(100.0 + waited_s))

    assert asyncio.run(ask()) == clips


def test_what_never_fits_is_413_and_what_fits_only_now_and_then_is_not(version):
    text = base64.b64encode(file_of(sound(0.2), subtype="PCM_16")).decode()
    bodies = [json.dumps({"input": [text] * n}).encode() for n in (5, 4)]
    headers = {"Content-Type": "application/json"}
    five, four = post(version, *bodies, limits=Limits(queue=4), headers=headers)
    (long,) = post(version, file_of(sound(1.0)), limits=Limits(queue_s=0.5))
    assert (five.status_code, four.status_code, long.status_code) == (413, 200, 413)


def test_a_newcomer_is_refused_who_would_wait_for_long_clips():
    slots = Slots(Limits(budget_s=0.5, free=1))
    for _ in range(20):
        slots.computed(5.0, 0.05)
        with slots.hold(4), slots.lasting([5.0] * 4):
            slots.check()
    with slots.hold(2):
        with slots.lasting([300.0, 5.0]):
            assert slots.wait_s() == pytest.approx(3.05)
            with pytest.raises(Refused):
                slots.check()
        assert slots.wait_s() < 0.5  # one long clip does not make all that come look long
        slots.check()


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("gpu1:5000", 200),
        ("evil.example.org", 403),
        ("localhost.evil.example.org:8080", 403),
        ("", 403),
    ],
)
def test_a_server_without_a_key_answers_to_its_own_names(version, monkeypatch, name, status):
    """A page elsewhere may let its name point at the loopback address."""
    from aut.cli.serve import own_names

    monkeypatch.setenv("AUT_HOSTS", "gpu1:5000, aut.example.org")
    assert own_names("0.0.0.0") is None

    async def ask():
        source = Shelf({"1": version}, "1")
        async with serving(source, hosts=own_names("127.0.0.1")) as (client, _):
            return await client.get("/v1/models", headers={"host": name})

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["reason"] == "host"


def test_the_deadline_is_kept_and_late_work_is_dropped(version):
    calls = []
    limits = Limits(request_s=0.3, batch_clips=1, linger_s=0, workers=1)

    async def ask():
        async with serving(Shelf({"1": version}, "1"), limits, run=slow(0.2, calls)) as (client, _):
            clip = file_of(sound(0.2))
            answers = await asyncio.gather(*(client.post("/v1/embeddings", content=clip) for _ in range(5)))
            await asyncio.sleep(0.4)
            return answers

    statuses = sorted(a.status_code for a in asyncio.run(ask()))
    assert statuses[0] == 200
    assert statuses[-1] == 504
    assert len(calls) < 5, "what is past its deadline is not computed"


def test_a_client_that_goes_away_costs_nothing(version):
    """ASGI by hand: the disconnect comes while the clip waits behind another."""
    from aut.serving.app import create
    from aut.serving.service import Service

    calls, left = [], threading.Event()
    computes = slow(0.0, calls)

    def run(*job):
        answer = computes(*job)
        left.wait(30)
        return answer

    async def ask():
        limits = Limits(batch_clips=1, linger_s=0, workers=1)
        service = Service(Shelf({"1": version}, "1"), limits, run=run)
        service.watcher.look()
        service.batcher.start()
        gate = create(service)
        body = file_of(sound(0.2))

        def request(leaves_after):
            sent, messages = [], [{"type": "http.request", "body": body, "more_body": False}]

            async def receive():
                if messages:
                    return messages.pop()
                await asyncio.sleep(leaves_after)
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "raw_path": b"", "query_string": b""}
            scope |= {"headers": [], "http_version": "1.1", "scheme": "http", "server": ("a", 1), "client": ("b", 2)}
            return gate(scope, receive, send)

        stays = asyncio.create_task(request(60))
        while not calls:
            await asyncio.sleep(0.01)
        await asyncio.gather(request(0.05), request(0.05))
        left.set()
        await stays
        await asyncio.sleep(0.3)
        await service.stop()
        return service.slots.clips, service.slots.bytes

    assert asyncio.run(ask()) == (0, 0)
    assert len(calls) == 1


def jobs(loop, batcher, seconds, ask=None, deadline=1e9, packed=False):
    for s in seconds:
        key = (0, ask or Ask(), None if packed else bucket(s))
        future = loop.create_future()
        batcher.waiting.append(Job(np.zeros(1, np.float32), s, key, None, ask or Ask(), deadline, future))
        batcher.waiting_s += s


def test_batches_hold_the_oldest_and_its_like_within_the_limits():
    async def ask():
        limits = Limits(batch_clips=4, batch_s=20.0)
        batcher = Batcher(limits, Slots(limits))
        loop = asyncio.get_running_loop()
        rng = np.random.default_rng([3])
        jobs(loop, batcher, rng.uniform(0.2, 12.0, 60))
        jobs(loop, batcher, rng.uniform(0.2, 12.0, 60), Ask(frames=True))
        jobs(loop, batcher, [1.0, 1.0], deadline=0.0)
        order = [job for job in batcher.waiting if job.deadline > 1]
        dead = [job for job in batcher.waiting if job.deadline <= 1]
        order[5].future.cancel()
        seen = [order[5]]
        while batcher.waiting:
            oldest = next((job for job in batcher.waiting if job not in dead and not job.future.done()), None)
            batch = batcher.take(1.0)
            if not batch:
                break
            assert batch[0] is oldest
            assert len({job.key for job in batch}) == 1
            longest, shortest = max(j.seconds for j in batch), min(j.seconds for j in batch)
            assert longest <= RATIO * shortest * 1.0001
            assert len(batch) <= 4
            assert len(batch) == 1 or longest * len(batch) <= 20.0
            seen += batch
        assert {id(j) for j in seen} == {id(j) for j in order}
        assert len(seen) == len(order)
        for job in dead:
            assert isinstance(job.future.exception(), Refused)
        assert batcher.waiting_s == 0.0

    asyncio.run(ask())


def test_packed_batches_keep_the_order_they_came_in():
    async def ask():
        limits = Limits(batch_clips=4, batch_s=20.0)
        batcher = Batcher(limits, Slots(limits))
        jobs(asyncio.get_running_loop(), batcher, [9.0, 0.5, 8.0, 1.0, 7.0, 30.0, 1.0, 1.0, 1.0, 1.0, 1.0], packed=True)
        return [[job.seconds for job in batcher.take(0.0)] for _ in range(4)]

    assert asyncio.run(ask()) == [[9.0, 0.5, 8.0, 1.0], [7.0, 1.0, 1.0, 1.0], [30.0], [1.0, 1.0]]


@pytest.mark.parametrize(("packed", "taken"), [(True, [2, 1]), (False, [3, 0])])
def test_idle_workers_share_packed_clips_and_a_padded_batch_stays_whole(packed, taken):
    async def ask():
        batcher = Batcher(Limits(), Slots(Limits()))
        jobs(asyncio.get_running_loop(), batcher, [1.0, 1.0, 1.0], packed=packed)
        return [len(batcher.take(0.0, idle)) for idle in (2, 1)]

    assert asyncio.run(ask()) == taken


def test_two_clips_that_come_together_are_computed_by_two_workers(version):
    """A worker that has one waits for the other, which only a second worker can have."""
    met = threading.Barrier(2, timeout=20)

    def run(served, ask, clips):
        assert len(clips) == 1
        met.wait()
        return slow(0)(served, ask, clips)

    both = json.dumps({"input": 2 * [base64.b64encode(file_of(sound(0.2))).decode()]}).encode()
    (answer,) = post(version, both, run=run, headers={"content-type": "application/json"})
    assert answer.status_code == 200


def test_a_model_that_fails_is_a_500_without_details_and_the_next_request_is_answered(version):
    fail = [True]

    def run(served, ask, clips):
        if fail.pop() if fail else False:
            raise RuntimeError("secret path /srv/weights")
        return slow(0)(served, ask, clips)

    clip = file_of(sound(0.2))
    first, second = post(version, clip, clip, run=run)
    assert (first.status_code, second.status_code) == (500, 200)
    assert first.json()["error"]["reason"] == "internal"
    assert first.headers["content-type"] == "application/json"
    assert "secret" not in first.text


@pytest.mark.parametrize(("samples", "rate_hz"), [(1, 192_000), (5, 192_000), (1, 44_100), (20, 768_000)])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/classify", "/v1/features"])
def test_a_clip_of_which_no_sample_is_left_is_no_audio(version, path, samples, rate_hz):
    (answer,) = post(version, file_of(np.full(samples, 0.1, np.float32), rate_hz), path=path)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (422, "zero_length")


def test_a_clip_that_the_encoder_cannot_take_fails_alone(version):
    """Others are in its pass, and answered; a model that trips over it, too, costs nobody else anything."""
    sizes, started, go_on = [], threading.Event(), threading.Event()

    def run(served, ask, clips):
        started.set()
        assert go_on.wait(20)
        sizes.append(len(clips))
        for clip in clips:
            if len(clip) == 1_600:
                raise DataError("too quiet")
            if len(clip) == 3_200:
                raise RuntimeError("a bug")
        return slow(0)(served, ask, clips)

    async def ask():
        async with serving(Shelf({"1": version}, "1"), Limits(workers=1), run=run) as (client, service):
            first = asyncio.ensure_future(client.post("/v1/embeddings", content=file_of(sound(0.5))))
            await asyncio.to_thread(started.wait, 20)
            calls = [client.post("/v1/embeddings", content=file_of(sound(s))) for s in (0.1, 0.2, 0.3, 0.4)]
            others = [asyncio.ensure_future(call) for call in calls]
            async with asyncio.timeout(20):
                while len(service.batcher.waiting) < 4:
                    await asyncio.sleep(0.01)
            go_on.set()
            return [(await answer).status_code for answer in (first, *others)]

    assert asyncio.run(ask()) == [200, 422, 500, 200, 200]
    assert sizes == [1, 4, 1, 1, 1, 1]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/features"])
def test_one_deadline_holds_for_body_and_answer_of_every_route(version, path, tmp_path):
    """A body that takes half of the time leaves half of it for the answer."""

    async def body():
        await asyncio.sleep(0.4)
        yield b"wait"

    async def ask():
        async with serving(Shelf({"1": version}, "1"), Limits(request_s=0.8), run=slow(0)) as (client, service):
            direct(service, tmp_path)
            started = time.monotonic()
            answer = await client.post(path, content=body())
            took = time.monotonic() - started
            held = service.slots.clips
            (tmp_path / "go").touch()
            async with asyncio.timeout(5):
                while service.slots.clips:
                    await asyncio.sleep(0.01)
            return answer, took, held

    answer, took, held = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["reason"]) == (504, "deadline")
    assert took < 1.15
    assert held == 1, "its decode goes on"


def test_an_answer_is_started_once(version):
    """Whatever fails, and wherever."""
    from aut.serving.app import create
    from aut.serving.service import Service

    gate = create(Service(Shelf({"1": version}, "1")))
    gate.service.metrics.text = lambda: 1 / 0
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/metrics", "raw_path": b"", "query_string": b"", "headers": []}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("a", 1), "client": ("b", 2)}
    asyncio.run(gate(scope, receive, send))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["error"]["reason"] == "internal"


def test_bodies_are_never_logged(version, caplog):
    marker = b"my private voice"
    with caplog.at_level("DEBUG"):
        post(version, marker * 10, b"RIFF" + marker)
    assert "private voice" not in caplog.text


def test_the_key_comes_from_a_variable_or_a_file(monkeypatch, tmp_path):
    from aut.cli.serve import api_key
    from aut.errors import ConfigError

    monkeypatch.delenv("AUT_SERVE_KEY", raising=False)
    monkeypatch.delenv("AUT_SERVE_KEY_FILE", raising=False)
    assert api_key() is None
    (tmp_path / "key").write_text("sesame\n")
    monkeypatch.setenv("AUT_SERVE_KEY_FILE", str(tmp_path / "key"))
    assert api_key() == "sesame"
    monkeypatch.setenv("AUT_SERVE_KEY", "other")
    assert api_key() == "other"
    monkeypatch.setenv("AUT_SERVE_KEY", "")
    with pytest.raises(ConfigError, match="empty"):
        api_key()
    monkeypatch.delenv("AUT_SERVE_KEY")
    monkeypatch.setenv("AUT_SERVE_KEY_FILE", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="cannot be read"):
        api_key()
