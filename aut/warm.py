"""Processes that start warm: forks of one process that has torch, transformers and DVC imported already.

In    a module and its arguments; AUT_WARM, the socket of a server that a flow run started
Out   what `python -m MODULE ARGS` would have done, with this process's streams, folder and environment; its exit code
Why   a small stage spends four of its five seconds on imports, DVC's own included; a fork costs a few hundredths.
      The server's own thread is its only one when it forks. On a GPU host nothing starts warm: a driver that was
      asked for its devices before a fork is of no use after it, and there stages take minutes anyway.
      Price: 0.4 GB that all forks share, and a process between DVC and its stage that passes signals on.
Run   `with serving(root) as env:` in a flow; python -m aut.warm MODULE ARGS
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import cast

from aut.guard import end_with_parent, grace_s

ADDRESS = "AUT_WARM"
LIBRARIES = (
    "dvc.cli",
    "dvc.commands.repro",
    "dvc.repo",
    "dvc_data.index",
    "numpy",
    "psutil",
    "pydantic",
    "scipy.signal",
    "soundfile",
    "torch",
    "transformers.models.whisper.modeling_whisper",
    "transformers.models.whisper.tokenization_whisper",
    "typer",
)
"""Imported once a run. None of ours: what a stage's code is must not depend on when the server started.
None that starts a thread (polars, pyarrow): a fork has only the thread that forked."""
FORK = multiprocessing.get_context("fork")
LISTEN = "--listen"
PR_SET_PDEATHSIG = 1
UNKNOWN = 70  # exit code where the server died before it could tell one


@contextmanager
def serving(root: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A server, started in the checkout `root`; yields the variable that makes its processes start warm.

    At once: what starts before the libraries are imported starts cold.
    """
    with tempfile.TemporaryDirectory(prefix="aut-warm-") as folder:
        path = str(Path(folder) / "socket")
        args = [sys.executable, "-m", "aut.warm", LISTEN, path]
        with subprocess.Popen(args, cwd=root, env=dict(env), stdin=subprocess.PIPE) as server:  # lives by that pipe
            try:
                yield {ADDRESS: path}
            finally:
                server.terminate()


def run(module: str, args: Sequence[str], env: Mapping[str, str]) -> int | None:
    """Runs the module in a fork of the server and waits for it; its exit code, None where no server answers."""
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(os.environ[ADDRESS])
        except (KeyError, OSError):
            return None
        if "DVC_STAGE" in env:  # DVC leaves its child alive when it is killed itself
            end_with_parent()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: server.sendall(bytes([number])) if asked else sys.exit(130))
        asked = False
        job = {"module": module, "args": list(args), "cwd": os.getcwd(), "env": dict(env)}
        socket.send_fds(server, [b"-"], [0, 1, 2])
        server.sendall(json.dumps(job).encode() + b"\n")
        asked = True
        told = server.recv(1)
    return told[0] if told else UNKNOWN


@dataclass(frozen=True)
class Job:
    """What a fork has to run, and the streams of who asked."""

    module: str
    args: list[str]
    cwd: str
    env: dict[str, str]
    streams: Sequence[int]


@dataclass(frozen=True)
class Child:
    """A fork and the connection of who waits for it."""

    process: ForkProcess
    connection: socket.socket

    def tell(self, number: int) -> None:
        os.kill(cast("int", self.process.pid), number)  # not collected before `_bury`: the number is still its own


class Server:
    """Forks on request. A connection is one process: bytes that come in are signals for it, one goes out, its code."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.live: dict[int, Child] = {}  # by the descriptors of their end and of their connection
        self.doomed: dict[ForkProcess, float] = {}  # whose client was killed, and when they are killed too
        self.poll = select.poll()
        for descriptor in (listener.fileno(), sys.stdin.fileno()):
            self.poll.register(descriptor, select.POLLIN)

    def serve(self) -> None:
        """Until the flow closes our standard input; then what still runs is told to end."""
        while True:
            for descriptor, _ in self.poll.poll(1000 if self.doomed else None)[:1]:
                if descriptor == sys.stdin.fileno():
                    return self._stop()
                if descriptor == self.listener.fileno():
                    self._accept()
                else:
                    self._attend(descriptor)
            for process in [p for p, deadline in self.doomed.items() if time.monotonic() > deadline]:
                process.kill()

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as lines:
            line = lines.readline()
        if line.endswith(b"\n"):  # else gone before it had said what it wants
            job = Job(**json.loads(line), streams=streams)
            child = Child(FORK.Process(target=self._become, args=(job, connection)), connection)
            child.process.start()
            for descriptor in (child.process.sentinel, connection.fileno()):
                self.live[descriptor] = child
                self.poll.register(descriptor, select.POLLIN)
        else:
            connection.close()
        for stream in streams:
            os.close(stream)

    def _become(self, job: Job, connection: socket.socket) -> None:
        """In a fork: nothing of the server's stays open."""
        for other in (connection, self.listener, *{c.connection for c in self.live.values()}):
            other.close()
        become(job)

    def _attend(self, descriptor: int) -> None:
        child = self.live[descriptor]
        if descriptor == child.process.sentinel:
            return self._bury(child)
        try:
            numbers = child.connection.recv(16)
        except ConnectionError:
            numbers = b""
        for number in numbers or [signal.SIGTERM]:
            child.tell(number)
        if not numbers:  # its client was killed: it may write its checkpoint, no more
            self.poll.unregister(descriptor)
            self.doomed[child.process] = time.monotonic() + grace_s()
        return None

    def _bury(self, child: Child) -> None:
        child.process.join()
        code = child.process.exitcode or 0
        with suppress(OSError):
            child.connection.send(bytes([code if code >= 0 else 128 - code]))
        for descriptor in (child.process.sentinel, child.connection.fileno()):
            with suppress(KeyError):  # a killed client's connection is out already
                self.poll.unregister(descriptor)
            del self.live[descriptor]
        self.doomed.pop(child.process, None)
        child.connection.close()
        child.process.close()

    def _stop(self) -> None:
        for child in set(self.live.values()):
            child.process.terminate()


def become(job: Job) -> None:
    """Turns this fork into `python -m MODULE ARGS` of who asked; raises what the module raises, SystemExit mostly."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for number, stream in enumerate(job.streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing gives a fork an empty one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job.cwd)
    os.environ.clear()
    os.environ.update(job.env)
    sys.path[0] = job.cwd
    for name in [n for n in sys.modules if n.partition(".")[0] == "aut"]:
        del sys.modules[name]
    sys.argv[1:] = job.args  # runpy sets the first
    try:
        runpy.run_module(job.module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # as an interpreter's end would; multiprocessing leaves it out


def listen(path: str) -> None:
    """The server's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the flow's to answer
    for name in LIBRARIES:
        with suppress(ImportError):  # an install without the extra that has it
            import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page it looks at
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        Server(listener).serve()


def main(args: Sequence[str]) -> None:
    """`--listen PATH` is a server's own; anything else is a module and its arguments."""
    if args[0] == LISTEN:
        return listen(args[1])
    code = run(args[0], args[1:], os.environ)
    if code is not None:
        sys.exit(code)
    sys.argv[1:] = args[1:]
    runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
