"""Serving against its peer: throughput, latency, overhead, overload, and an alias that moves under load.

In    a version made here (d_model 128, 4 layers, random weights), registered in a SQLite store; clips of 1 to 10 s,
      cut from the recordings below AUT_TEST_AUDIO where it is set, else tones in noise (the work is the same)
Peer  `mlflow models serve` of the same version in three settings, the fastest of them: as it starts (one process, all
      cores in each pass), one OpenMP thread a pass, and so with a process a core (--workers); of an identity pyfunc as
      it starts, one process as ours has one for HTTP; the bare model on the same clips, in one process with all cores
      and in two with half each, these in its own passes and in passes as long as the server's, in twelve short turns
      of one length with our server and the peer, as machines drift by a quarter within seconds: means, of the way with
      the best one. Servers' clips/s are those of the time in which all 32 clients ask
Figures  ratio_mlflow        clips/s at 32 clients, ours over the peer's best
         ratio_overhead      the same with an encoder that does nothing, on both sides: neither decodes, ours computes
                             in the server's own process; what HTTP, queue and answers cost
         ratio_overhead_whole  the same where ours decodes the clips and asks the engine's processes, as `aut serve`
                             does, and leaves out the encoder's pass alone; the peer's still decodes nothing
         p99_ms, p99_mlflow_ms  of the same loads; p99_mlflow_least_ms: the least of the peer's settings
         ratio_mlflow_plain  the same over the peer as it starts
         ratio_overhead_workers  over the identity pyfunc with a process a core
         refused_p99_ms      until a request over the capacity is told 429
         share_of_model      ours over the model's own batched clips/s with nothing else running
         client_ms           processor that asking took, a clip: on the server's cores, so share_of_model bears it
         loop_share          the model called clip by clip, over the same
         failed_on_swap      requests not answered 200, or by no known version, while the alias moves 20 times
         overload_p99_ratio  p99 of accepted requests at 10 x capacity over p99 of one client alone. Some twenty that
                             come before an overload can be told from a crowd are over 1 % of 2 s (--quick), not of 60
         overload_settled_ratio  without those asked in the first second
         ready_s             start to ready, warm cache, nothing else running (not --quick)
With  `aut serve` as it starts for its users, in every load; the alias is looked at every 0.05 s
Run   python -m benchmarks.serve --quick     1 s a load of 12, 2 turns of 12, 2 s of overload of 60, a peer each
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from aut.serving.limits import Limits
from benchmarks._common import arguments, finish, machine, say
from benchmarks._serving import Peer, Process, Server, free_port, identity_model, publish, write_version

CLIENTS = 32
LEAD_S = 0.5  # of a load: its clients, all sent off at once, are not spread over the server's passes yet
CALM_S = 1.1  # between loads: what was refused is forgotten
RATE = 16_000
MOVES = 20


@dataclass
class Load:
    """What clients saw."""

    statuses: list[int] = field(default_factory=list)
    accepted_s: list[float] = field(default_factory=list)
    accepted_at: list[float] = field(default_factory=list)  # when each was asked, of the monotonic clock
    refused_s: list[float] = field(default_factory=list)
    weights: set[bytes] = field(default_factory=set)
    steady: int = 0  # answers while all clients asked
    steady_s: float = 0.0
    client_s: float = 0.0  # of processor that asking took: ours, not the server's

    @property
    def per_s(self) -> float:
        return self.steady / self.steady_s

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.accepted_s, 0.99)) if self.accepted_s else float("nan")

    def settled_p99_s(self, after_s: float) -> float:
        """p99 of those asked `after_s` and more after the first."""
        first = min(self.accepted_at, default=0.0)
        late = [s for at, s in zip(self.accepted_at, self.accepted_s, strict=True) if at >= first + after_s]
        return float(np.quantile(late, 0.99)) if late else float("nan")

    @property
    def failed(self) -> int:
        return sum(status != 200 for status in self.statuses)


def joined(loads: Sequence[Load]) -> Load:
    """Of the same server, one after the other."""
    whole = Load(weights=set().union(*(load.weights for load in loads)))
    whole.steady, whole.steady_s = sum(load.steady for load in loads), sum(load.steady_s for load in loads)
    whole.client_s = sum(load.client_s for load in loads)
    for load in loads:
        whole.statuses += load.statuses
        whole.accepted_s += load.accepted_s
    return whole


@dataclass(frozen=True)
class Overload:
    """p99 of accepted requests over that of one client alone, also without those asked in the first second; how soon
    others were told; how many of each status."""

    ratio: float
    settled_ratio: float
    refused_p99_s: float
    statuses: dict[int, int]


class Connection:
    """One kept-alive connection; as little client as HTTP allows, for the client shares the server's cores.

    As any client does, it looks whether the server has closed an idle one before it asks again.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and headers; 0 where the connection was lost."""
        try:
            if self.reader is not None and self.reader.at_eof():
                self.close()
            if self.writer is None or self.writer.is_closing():
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            assert self.reader
            self.writer.write(request)
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await self.reader.readexactly(length)
            if b"connection: close" in head:
                self.close()
            return int(head[9:12]), head
        except (OSError, asyncio.IncompleteReadError, IndexError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.writer = None


async def closed(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Each client asks again as soon as it is answered. Steady: from `LEAD_S` on, until the first does not ask again.

    Else an eighth of a short turn would be its beginning, and an end in which a core waits for the other's last pass.
    """
    load, start, processor = Load(), time.perf_counter(), time.process_time()

    async def client(n: int) -> None:
        connection = Connection(port)
        while time.perf_counter() - start < seconds:
            await timed(connection, requests[n % len(requests)], load)
            n += clients
        connection.close()

    await asyncio.gather(*(client(n) for n in range(clients)))
    load.client_s = time.process_time() - processor
    lead_s = min(LEAD_S, seconds / 4)
    ends = [at + s - start for at, s in zip(load.accepted_at, load.accepted_s, strict=True)]
    load.steady, load.steady_s = sum(lead_s < end <= seconds for end in ends), seconds - lead_s
    return load


async def paced(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Requests arrive at `rate`, whether or not earlier ones were answered."""
    load, start, sent = Load(), time.perf_counter(), 0
    free: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def one(request: bytes) -> None:
        connection = free.pop() if free else Connection(port)
        await timed(connection, request, load)
        free.append(connection)

    while (now := time.perf_counter() - start) < seconds:
        for _ in range(int(now * rate) - sent):
            task = asyncio.create_task(one(requests[sent % len(requests)]))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*running)
    load.steady, load.steady_s = len(load.accepted_s), time.perf_counter() - start
    return load


async def timed(connection: Connection, request: bytes, load: Load) -> None:
    begun = time.perf_counter()
    status, head = await connection.ask(request)
    load.statuses.append(status)
    (load.accepted_s if status == 200 else load.refused_s).append(time.perf_counter() - begun)
    if status == 200:
        load.accepted_at.append(begun)
    if status == 200 and b"x-model-weights: " in head:
        load.weights.add(head.split(b"x-model-weights: ")[1].split(b"\r\n")[0])


def recordings() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Some minutes of real sound at 16 kHz where AUT_TEST_AUDIO names any, else tones in noise."""
    root = os.environ.get("AUT_TEST_AUDIO")
    if not root:
        rng = np.random.default_rng([1])
        t = np.arange(60 * RATE) / RATE
        return (0.2 * np.sin(2 * np.pi * 220 * t) + 0.05 * rng.standard_normal(len(t))).astype(np.float32)
    from aut.audio.decode import decode

    paths = sorted(p for p in Path(root).rglob("*") if p.suffix in (".wav", ".flac", ".ogg"))[::40][:40]
    return np.concatenate([decode(p, max_s=600.0, length_s=10.0).pcm_T for p in paths])


def make_clips(count: int = 64) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng, sound = np.random.default_rng([2]), recordings()
    spans = [(int(rng.integers(0, len(sound) - 10 * RATE)), int(rng.uniform(1, 10) * RATE)) for _ in range(count)]
    return [sound[start : start + samples] for start, samples in spans]


def files(clips: Sequence[np.ndarray[Any, Any]]) -> list[bytes]:
    out = []
    for clip in clips:
        held = io.BytesIO()
        soundfile.write(held, clip, RATE, format="WAV", subtype="PCM_16")
        out.append(held.getvalue())
    return out


def ours(bodies: Sequence[bytes]) -> list[bytes]:
    return [http("/v1/embeddings", "audio/wav", b) for b in bodies]


def mlflows(bodies: Sequence[bytes]) -> list[bytes]:
    tables = ({"dataframe_split": {"columns": ["audio"], "data": [[base64.b64encode(b).decode()]]}} for b in bodies)
    return [http("/invocations", "application/json", json.dumps(t).encode()) for t in tables]


def http(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Bare:
    """The model itself in processes of their own, which stand ready and cost nothing until they are asked."""

    def __init__(self, folder: Path, quick: bool) -> None:
        cores, short_s = os.cpu_count() or 1, Limits().batch_s
        halves = max(1, min(2, cores))
        context = multiprocessing.get_context("forkserver")  # torch is imported once for both
        context.set_forkserver_preload(["aut.encoders.tower", "aut.encoders.clipwise"])
        self._pools = [ProcessPoolExecutor(1, context, opened, (folder,)) for _ in range(halves)]
        self.ready = [pool.submit(passes, 0.0, 1, 0.0) for pool in self._pools]
        each = max(1, cores // halves)
        self.ways: dict[str, tuple[int, int, float]] = {}
        if not quick:
            self.ways |= {f"with {cores} threads": (1, cores, math.inf)}
            self.ways |= {f"in {halves} processes": (halves, each, math.inf)}
        self.ways |= {f"in passes of {short_s:g} s": (halves, each, short_s), "one by one": (1, cores, 0.0)}
        self.rates: dict[str, list[float]] = {way: [] for way in self.ways}

    def turn(self, seconds: float) -> None:
        """Clips/s of each way, added to `rates`."""
        for way, (processes, threads, most_s) in self.ways.items():
            begin = 5 * len(self.rates[way])
            asked = [pool.submit(passes, seconds, threads, most_s, begin) for pool in self._pools[:processes]]
            self.rates[way].append(sum(future.result() for future in asked))

    def told(self) -> tuple[float, float]:
        """(in batches, one by one): means over the turns, of the way whose mean is the best. The best of each turn
        would be the best of the machine's moods, too."""
        means = {way: float(np.mean(rates)) for way, rates in self.rates.items()}
        say("bare model: " + ", ".join(f"{rate:.1f} clips/s {way}" for way, rate in means.items()))
        loop = means.pop("one by one")
        return max(means.values()), loop

    def __enter__(self) -> Bare:
        for future in self.ready:
            future.result()
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown()


def opened(folder: Path) -> None:
    """In a process that computes: the encoder and the clips."""
    from aut.encoders import open_encoder

    globals().update(ENCODER=open_encoder(folder / "encoder"), BARE_CLIPS=make_clips())


def passes(seconds: float, threads: int, most_s: float, begin: int = 0) -> float:
    """Clips/s of one process that does nothing else, given clips of at most `most_s` seconds in all at once; each turn
    begins with other clips."""
    import torch

    torch.set_num_threads(threads)
    encoder = globals()["ENCODER"]
    groups: list[list[Any]] = [[]]
    for clip in globals()["BARE_CLIPS"]:
        if groups[-1] and sum(map(len, groups[-1])) + len(clip) > most_s * RATE:
            groups.append([])
        groups[-1].append(clip)
    encoder.pooled(groups[0][:4], ["valid"])
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        group = groups[begin % len(groups)]
        begin += 1
        encoder.pooled(group, ["valid"])
        done += len(group)
    return done / (time.perf_counter() - start)


def identity_server(scratch: Path, *whole: str) -> Process:
    """Ours with an encoder that does nothing."""
    port = free_port()
    args = [sys.executable, "-m", "benchmarks._serving", str(port), *whole]
    return Process(args, port, scratch / f"identity-{port}.log")


def against(server: Process, requests: Sequence[bytes], seconds: float, name: str) -> Load:
    warm(server, requests, seconds)
    return told(asyncio.run(closed(server.port, requests, CLIENTS, seconds)), name)


def warm(server: Process, requests: Sequence[bytes], seconds: float) -> None:
    asyncio.run(closed(server.port, requests, CLIENTS, min(1.0, seconds / 4)))


def told(load: Load, name: str) -> Load:
    say(f"{name}: {load.per_s:.1f} clips/s, p99 {1000 * load.p99_s:.0f} ms, {load.failed} failed")
    return load


Group = tuple[dict[str, Process], Sequence[bytes]]
"""Servers by name, and what they are asked."""


def rivals(ours_empty: Process, model: Path, scratch: Path, bodies: Sequence[bytes], quick: bool) -> list[Group]:
    """`mlflow models serve` in each of its settings; ours with an identity encoder; the peer's identity.

    Quick: the peer in the fastest setting, as the full run found, its identity as it starts, ours without decoding.
    """
    cores, one = os.cpu_count() or 1, {"OMP_NUM_THREADS": "1"}
    settings: list[tuple[dict[str, str], int]] = [({}, 1), (one, 1), (one, cores)]
    hollow = identity_model(scratch / "identity")
    peers: dict[str, Process] = {
        f"mlflow models serve, {workers} workers, {'one thread' if env else 'all threads'} a pass": Peer(
            model, scratch, env, workers
        )
        for env, workers in (settings[-1:] if quick else settings)
    }
    hollows: dict[str, Process] = {
        f"mlflow, identity, {workers} workers": Peer(hollow, scratch, workers=workers)
        for workers in ((1,) if quick else (1, cores))
    }
    empty: dict[str, Process] = {"aut, identity": ours_empty}
    if not quick:
        empty |= {"aut, identity, decoding and processes": identity_server(scratch, "whole")}
    return [(peers, mlflows(bodies)), (empty, ours(bodies)), (hollows, mlflows(bodies))]


@contextmanager
def standing(servers: Iterable[Process]) -> Iterator[None]:
    """All start at once and are asked one after the other: those that wait cost nothing."""
    servers = list(servers)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        list(pool.map(stack.enter_context, servers))
        yield
        for server in servers:  # all at once, too
            server.process.terminate()


def moved(address: str, scratch: Path, uri: str) -> Server:
    """The server whose alias moves: it looks often."""
    return Server(address, scratch, "--poll-s", "0.05", env={"MLFLOW_TRACKING_URI": uri})


def swap(server: Server, uri: str, requests: Sequence[bytes], seconds: float) -> int:
    """Requests that failed while the alias moved, or that no registered version answered."""
    from aut.edges.store import client

    store = client(uri)
    known = {v.tags["aut.digest.weights"].encode() for v in store.search_model_versions("name = 'whisper-aut'")}

    def move() -> None:
        for n in range(MOVES):
            time.sleep(seconds / (MOVES + 2))
            store.set_registered_model_alias("whisper-aut", "champion", str(2 - n % 2))

    mover = threading.Thread(target=move)
    mover.start()
    load = asyncio.run(closed(server.port, requests, 8, seconds))
    mover.join()
    say(f"alias moved {MOVES} times: {len(load.statuses)} requests, {load.failed} failed, by {load.weights}")
    strangers = len(load.weights - known)
    return load.failed + strangers


def overload(server: Process, requests: Sequence[bytes], capacity: float, seconds: float) -> Overload:
    """One client alone, then ten times the capacity."""
    time.sleep(CALM_S)
    asyncio.run(closed(server.port, requests, 1, 0.2))
    alone = asyncio.run(closed(server.port, requests, 1, max(1.0, seconds / 4)))
    load = asyncio.run(paced(server.port, requests, 10 * capacity, seconds))
    other = {s: load.statuses.count(s) for s in set(load.statuses)}
    ratio, settled = (p99_s / alone.p99_s for p99_s in (load.p99_s, load.settled_p99_s(1.0)))
    told = Overload(ratio, settled, float(np.quantile(load.refused_s, 0.99)), other)
    say(f"alone p99 {1000 * alone.p99_s:.0f} ms; at 10 x {capacity:.0f}/s p99 {1000 * load.p99_s:.0f} ms, {other}")
    say(f"429 after p99 {1000 * told.refused_p99_s:.0f} ms, {load.per_s:.0f} accepted a second")
    return told


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    seconds, turn_s = (2.0, 1.0) if options.quick else (12.0, 3.0)
    load_s = turn_s if options.quick else seconds
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.pop(name, None)  # each side starts as it does for its users
    with tempfile.TemporaryDirectory() as name, ExitStack() as early:
        scratch = Path(name)
        os.environ |= {"AUT_WORK": str(scratch / "work"), "XDG_CACHE_HOME": str(scratch / "cache")}
        uri, address = f"sqlite:///{scratch / 'mlflow.db'}", "models:/whisper-aut@champion"
        folder = write_version(scratch / "one/1")
        bare = Bare(folder, options.quick)
        ours_empty = identity_server(scratch)
        ours_empty.start()  # while MLflow is imported here
        early.push(ours_empty)
        model = publish(uri, scratch, folder)
        publish(uri, scratch, write_version(scratch / "two/2", seed=1))
        bodies = files(make_clips())
        groups = rivals(ours_empty, model, scratch, bodies, options.quick)
        server = Server(address, scratch, env={"MLFLOW_TRACKING_URI": uri})
        looking = moved(address, scratch, uri)
        paused = [looking] if options.quick else []  # started in company, its time to be ready says nothing
        with standing([server, *paused, *(s for servers, _ in groups for s in servers.values())]):
            for waiting in paused:
                waiting.pause()
            (peers, tables), *others = groups
            asked = {"aut serve": (server, ours(bodies)), **{name: (s, tables) for name, s in peers.items()}}
            turns: dict[str, list[Load]] = {name: [] for name in asked}
            with bare:
                for one, requests in asked.values():
                    warm(one, requests, load_s)
                for _ in range(2 if options.quick else 12):
                    bare.turn(turn_s)
                    for name, (one, requests) in asked.items():
                        turns[name].append(asyncio.run(closed(one.port, requests, CLIENTS, turn_s)))
            batched, loop = bare.told()
            mine, *loads = (told(joined(parts), name) for name, parts in turns.items())
            flood = overload(server, ours(bodies), mine.per_s, 2.0 if options.quick else 60.0)
            (empty, *whole), hollow = (
                [against(s, requests, load_s, name) for name, s in servers.items()] for servers, requests in others
            )
            if options.quick:
                looking.go_on()
                failed = swap(looking, uri, ours(bodies), seconds)
        if not options.quick:
            with looking:
                failed = swap(looking, uri, ours(bodies), seconds)
    theirs = max(loads, key=lambda load: load.per_s)
    figures = {
        "ratio_mlflow": mine.per_s / theirs.per_s,
        "ratio_overhead": empty.per_s / hollow[0].per_s,
        "p99_ms": 1000 * mine.p99_s,
        "p99_mlflow_ms": 1000 * theirs.p99_s,
        "share_of_model": mine.per_s / batched,
        "loop_share": loop / batched,
        "failed_on_swap": failed + mine.failed,
        "overload_p99_ratio": flood.ratio,
        "overload_settled_ratio": flood.settled_ratio,
        "refused_p99_ms": 1000 * flood.refused_p99_s,
        "clips_per_s": mine.per_s,
        "client_ms": 1000 * mine.client_s / len(mine.statuses),
    }
    if not options.quick:
        figures |= {"ready_s": looking.ready_s}
        figures |= {"ratio_overhead_whole": whole[0].per_s / hollow[0].per_s}
        figures |= {"ratio_mlflow_plain": mine.per_s / loads[0].per_s}
        figures |= {"p99_mlflow_least_ms": 1000 * min(load.p99_s for load in loads)}
        figures |= {"ratio_overhead_workers": empty.per_s / hollow[-1].per_s}
    facts = {"machine": machine("fastapi", "httptools", "mlflow", "torch", "uvicorn"), "clients": CLIENTS}
    facts |= {"peer": "mlflow models serve, clips/s of its settings", "peer_clips_per_s": [x.per_s for x in loads]}
    facts |= {
        "bare_clips_per_s": bare.rates,
        "turns_clips_per_s": {name: [t.per_s for t in parts] for name, parts in turns.items()},
        "overload_statuses": flood.statuses,
    }
    facts |= {"identity_clips_per_s": [x.per_s for x in (empty, *whole, *hollow)]}
    finish("serve", figures, options.keep, facts | {"real_audio": "AUT_TEST_AUDIO" in os.environ})


if __name__ == "__main__":
    main()
