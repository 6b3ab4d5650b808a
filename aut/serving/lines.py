"""Lines: how a worker's process and its owner talk. Heads go through a socket, parts through memory they share.

In    a head (JSON) with parts (raw bytes), one message at a time: the other end answers before the next is sent
Out   the same at the other end
Why   a clip through a socket is cut into pieces of 200 KB, and a thread must wait for the interpreter at each: half a
      millisecond a clip. Nothing is pickled or unpickled. An event loop may ask for what has come (`arrived`) and is
      never held up by an end that stops in the middle. Price: `SHARED` bytes a worker; larger parts take the socket.
Run   ours, theirs = pair(); theirs crosses to the process, where `Line(theirs)` opens it
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
from collections.abc import Generator, Sequence
from itertools import accumulate, pairwise
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, cast

import orjson

Head = dict[str, Any]
Message = tuple[Head, list[memoryview]]
SHARED = 4 << 20  # 30 s of samples, or a whole batch of a CPU; pages that no message has touched cost nothing
SIZE = struct.Struct("!I")  # of a head, before it


class _End(socket.socket):
    """Closed with its last user: a version that another took over from goes with its processes, unasked."""

    def __del__(self) -> None:
        self.close()


class Line:
    """One end. OSError, EOFError: the other end is gone."""

    def __init__(self, end: socket.socket, handle: int | None = None) -> None:
        held = recv_handle(cast(Any, end)) if handle is None else handle
        self._socket, self._memory = _End(fileno=end.detach()), mmap.mmap(held, SHARED)
        os.close(held)
        self._coming: Generator[None, None, Message] | None = None
        self._arrival = select.poll()  # kept, it need not be made for each message
        self._arrival.register(self._socket, select.POLLIN)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, head: Head, parts: Sequence[Any] = ()) -> None:
        """`parts` are anything contiguous in memory. Waits where they do not fit into `SHARED`."""
        views = [memoryview(part).cast("B") for part in parts]
        ends = _ends([len(view) for view in views])
        shared = ends[-1] <= SHARED
        if shared:
            for view, (start, end) in zip(views, pairwise(ends), strict=True):
                self._memory[start:end] = view
        told = orjson.dumps({**head, "ends": ends})
        self._socket.sendall(SIZE.pack(len(told)) + told)
        for view in () if shared else views:
            self._socket.sendall(view)

    def receive(self) -> Message:
        """Parts are good until the next message is sent or received."""
        while (message := self.arrived()) is None:
            self._arrival.poll()
        return message

    def arrived(self) -> Message | None:
        """As `receive`; None while some of the message has not come."""
        self._coming, coming = None, self._coming or self._message()
        try:
            next(coming)
        except StopIteration as done:
            return cast(Message, done.value)
        self._coming = coming
        return None

    def poll(self, timeout_s: float) -> bool:
        """Whether a message, or the other end's death, came within the time."""
        return bool(self._arrival.poll(1000 * timeout_s))

    def close(self) -> None:
        self._socket.close()

    def _message(self) -> Generator[None, None, Message]:
        (size,) = SIZE.unpack((yield from self._whole(SIZE.size)))
        head = orjson.loads((yield from self._whole(size)))
        ends = head.pop("ends")
        if ends[-1] <= SHARED:
            memory = memoryview(self._memory)
            return head, [memory[start:end] for start, end in pairwise(ends)]
        parts = []
        for start, end in pairwise(ends):
            parts.append(memoryview((yield from self._whole(end - start))))
        return head, parts

    def _whole(self, size: int) -> Generator[None, None, bytearray]:
        """So many bytes of the socket; yields where none are there."""
        held = bytearray(size)
        missing = memoryview(held)
        while missing:
            try:
                count = self._socket.recv_into(missing, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                yield
                continue
            if not count:
                raise EOFError
            missing = missing[count:]
        return held


def pair() -> tuple[Line, socket.socket]:
    """Our end, and the other end as it crosses to a process."""
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("aut-line")
    os.ftruncate(memory, SHARED)
    send_handle(cast(Any, ours), memory, cast(Any, None))  # it waits in the socket until the process asks for it
    return Line(ours, memory), theirs


def fits(parts: Sequence[Any]) -> bool:
    """Whether sending them waits for nobody."""
    return sum(memoryview(part).nbytes for part in parts) <= SHARED


def _ends(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]
