"""Worker processes: answers, errors, deaths; and a server whose decoders and engines die under it."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from aut.audio.decode import Unreadable
from aut.errors import DataError
from aut.serving.desk import Desk
from aut.serving.lines import SHARED
from aut.serving.workers import Crew, Failed, Lost
from tests.unit.serving_fixture import Shelf, file_of, serving, sound, write_version


def echo(name):
    """Runs in the child."""
    if name == "unopened":
        raise DataError("it does not open", "look")

    def handler(head, parts):
        if head["do"] == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if head["do"] == "hang":
            time.sleep(60)
        if head["do"] == "refuse":
            raise Unreadable("too_long", "two hours")
        if head["do"] == "fail":
            raise ZeroDivisionError("by zero")
        return {"pid": os.getpid(), "name": name}, [np.frombuffer(parts[0], np.float32) * 2]

    return handler, {"name": name}


@pytest.fixture
def crew():
    made = Crew(echo, ("one",), 2)
    yield made
    made.close()


def test_parts_come_back_and_errors_are_raised_as_they_were(crew):
    assert [g["name"] for g in crew.greetings()] == ["one", "one"]
    head, parts = crew.call({"do": "double"}, [np.arange(3, dtype=np.float32)])
    assert head["name"] == "one"
    assert np.frombuffer(parts[0], np.float32).tolist() == [0, 2, 4]
    with pytest.raises(Unreadable) as caught:
        crew.call({"do": "refuse"})
    assert (caught.value.reason, caught.value.detail) == ("too_long", "two hours")
    with pytest.raises(Failed, match="ZeroDivisionError: by zero"):
        crew.call({"do": "fail"})
    assert crew.lost == 0


def test_who_dies_or_hangs_is_replaced_and_costs_one_call(crew):
    crew.greetings()
    for head, limit in (({"do": "die"}, 30), ({"do": "hang"}, 0.2)):
        with pytest.raises(Lost):
            crew.call(head, timeout_s=limit)
    one = np.ones(1, np.float32)
    assert all(crew.call({"do": "double"}, [one])[1] for _ in range(3))
    pid = crew.call({"do": "double"}, [one])[0]["pid"]
    (process,) = (w._process for w in crew.workers if w._process.pid == pid)
    os.kill(pid, signal.SIGKILL)
    process.join(30)
    assert crew.call({"do": "double"}, [one])[0]["pid"] != pid, "who died idle is replaced before it is asked"
    assert crew.lost == 2


def test_two_calls_run_at_once_and_a_third_waits(crew):
    crew.greetings()
    pids, one = [], np.ones(1 << 18, np.float32)
    threads = [threading.Thread(target=lambda: pids.append(crew.call({"do": "x"}, [one])[0]["pid"])) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 9
    assert len(set(pids)) <= 2


def test_what_does_not_open_says_why():
    crew = Crew(echo, ("unopened",), 1)
    with pytest.raises(DataError, match=r"it does not open\. look"):
        crew.greetings()
    crew.close()


@contextmanager
def desk_of(count=2):
    with ThreadPoolExecutor(2) as threads:
        desk = Desk(Crew(echo, ("one",), count), threads)
        try:
            yield desk
        finally:
            desk.close()


def test_a_loop_is_answered_as_a_thread_is():
    """Of every size: parts that do not fit into the shared memory pass through the socket, both ways."""

    async def ask():
        with desk_of() as desk:
            sizes = (1, 0, 1 << 18, SHARED // 4 + 1, 3 * SHARED, 7)
            asked = [np.arange(size, dtype=np.float32) for size in sizes]
            answers = await asyncio.gather(*(desk.ask({"do": "double"}, [a], 60.0) for a in asked))
            assert all(
                np.array_equal(np.frombuffer(b[0], np.float32), 2 * a) for (_, b), a in zip(answers, asked, strict=True)
            )
            assert len({head["pid"] for head, _ in answers}) <= 2
            for do, error in (("refuse", Unreadable), ("fail", Failed)):
                with pytest.raises(error):
                    await desk.ask({"do": do}, [], 60.0)
            assert desk._crew.lost == 0

    asyncio.run(ask())


def test_a_loop_loses_one_call_to_a_worker_that_dies_or_hangs():
    async def ask():
        one = np.ones(1, np.float32)
        with desk_of(1) as desk:
            for head, limit in (({"do": "die"}, 30.0), ({"do": "hang"}, 0.2)):
                lost, after = await asyncio.gather(
                    desk.ask(head, [], limit), desk.ask({"do": "double"}, [one], 60.0), return_exceptions=True
                )
                assert isinstance(lost, Lost)
                assert after[0]["name"] == "one", "who waited is answered by the next"
            (worker,) = desk._crew.workers
            os.kill(after[0]["pid"], signal.SIGKILL)
            await asyncio.to_thread(worker._process.join, 30)
            for seen in (False, True):  # before the loop has seen that it is gone, and after
                pid = (await desk.ask({"do": "double"}, [one], 60.0))[0]["pid"]
                assert pid != after[0]["pid"]
                os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(worker._process.join, 30)
                await asyncio.sleep(0.1 * seen)
            assert desk._crew.lost == 2

    asyncio.run(ask())


def test_a_worker_that_does_not_read_is_ended_at_its_limit():
    """What is asked does not fit into the shared memory, and the socket is full."""

    async def ask():
        with desk_of(1) as desk:
            pid = (await desk.ask({"do": "double"}, [np.ones(1, np.float32)], 60.0))[0]["pid"]
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(Lost):
                await desk.ask({"do": "double"}, [np.ones(SHARED, np.float32)], 0.2)
            assert (await desk.ask({"do": "double"}, [np.ones(1, np.float32)], 60.0))[0]["pid"] != pid

    asyncio.run(ask())


def test_who_goes_away_is_dropped_before_its_turn_and_told_of_after():
    async def ask():
        told = []
        with desk_of(1) as desk:
            desk.left = lambda: told.append("left") or (lambda: told.append("ended"))
            await desk.ask({"do": "double"}, [np.ones(1, np.float32)], 60.0)
            calls = [asyncio.ensure_future(desk.ask({"do": "hang"}, [], 0.5)) for _ in range(3)]
            await asyncio.sleep(0.1)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert (told, len(desk._waiting)) == (["left"], 0)
            started = time.monotonic()
            await desk.ask({"do": "double"}, [np.ones(1, np.float32)], 60.0)
            assert told == ["left", "ended"]
            assert time.monotonic() - started < 5
            assert desk._crew.lost == 1

    asyncio.run(ask())


def test_a_desk_that_closes_tells_those_who_wait():
    async def ask():
        with desk_of(1) as desk:
            await desk.ask({"do": "double"}, [np.ones(1, np.float32)], 60.0)
            calls = [asyncio.ensure_future(desk.ask({"do": "hang"}, [], 60.0)) for _ in range(2)]
            await asyncio.sleep(0.1)
            desk.close()
            return [type(e) for e in await asyncio.gather(*calls, return_exceptions=True)]

    assert asyncio.run(ask()) == [Lost, Lost]


def test_a_server_outlives_its_decoders_and_engines(tmp_path):
    """Each process is killed while it works; what it worked on is refused, and the next request is answered."""
    version = write_version(tmp_path / "1")
    clip = file_of(sound(0.4))

    async def ask():
        seen = []
        async with serving(Shelf({"1": version}, "1")) as (client, service):
            first = await client.post("/v1/embeddings", content=clip)
            for crew in (service.decoders._crew, service.watcher.served.encoder._crew):
                for worker in crew.workers:
                    pid = worker._process.pid
                    os.kill(pid, signal.SIGSTOP)
                    asyncio.get_running_loop().call_later(0.3, os.kill, pid, signal.SIGKILL)
                during = await asyncio.gather(*(client.post("/v1/embeddings", content=clip) for _ in range(2)))
                after = await client.post("/v1/embeddings", content=clip)
                seen.append(([a.status_code for a in during], after.status_code, after.content == first.content))
            return seen

    (decoding, after, same), (computing, then, equal) = asyncio.run(ask())
    assert set(decoding) <= {200, 422}
    assert set(computing) <= {200, 503}
    assert (after, then, same, equal) == (200, 200, True, True)


def test_children_end_with_their_parent():
    import subprocess
    import sys

    code = (
        "import os, signal; from aut.serving.workers import Crew; from tests.unit.test_serving_workers import echo\n"
        "crew = Crew(echo, ('x',), 1); crew.greetings(); print(crew.workers[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid = int(told.stdout)
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.1)
    lives = os.path.exists(f"/proc/{pid}")
    if lives:
        os.kill(pid, signal.SIGKILL)
    assert not lives
