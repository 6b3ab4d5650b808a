"""Lines: how a worker's process and its owner talk. Heads go through a socket, parts through memory they share.

In    a head (JSON) with parts (raw bytes), one message at a time: the other end answers before the next is sent
Out   the same at the other end
Why   a clip through a socket is cut into pieces of 200 KB, and a thread must wait for the interpreter at each: half a
      millisecond a clip. Nothing is pickled or unpickled. Price: `SHARED` bytes a worker; larger parts take the socket.
Run   ours, theirs = pair(context); theirs crosses to the process, where `Line(theirs)` opens it
"""

from __future__ import annotations

import json
import mmap
import os
import select
from collections.abc import Sequence
from itertools import accumulate, pairwise
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Head = dict[str, Any]
SHARED = 4 << 20  # 30 s of samples, or a whole batch of a CPU; pages that no message has touched cost nothing


class Line:
    """One end. OSError, EOFError: the other end is gone."""

    def __init__(self, conn: Connection, handle: int | None = None) -> None:
        held = recv_handle(conn) if handle is None else handle
        self._conn, self._memory = conn, mmap.mmap(held, SHARED)
        os.close(held)
        self._arrival = select.poll()  # kept: a Connection's own poll makes a selector each time
        self._arrival.register(conn.fileno(), select.POLLIN)

    def send(self, head: Head, parts: Sequence[Any] = ()) -> None:
        """`parts` are anything contiguous in memory."""
        views = [memoryview(part).cast("B") for part in parts]
        ends = _ends([len(view) for view in views])
        shared = ends[-1] <= SHARED
        if shared:
            for view, (start, end) in zip(views, pairwise(ends), strict=True):
                self._memory[start:end] = view
        self._conn.send_bytes(json.dumps({**head, "ends": ends}).encode())
        for view in () if shared else views:
            self._conn.send_bytes(view)

    def receive(self) -> tuple[Head, list[memoryview]]:
        """Parts are good until the next message is sent or received."""
        head = json.loads(self._conn.recv_bytes())
        ends = head.pop("ends")
        if ends[-1] <= SHARED:
            memory = memoryview(self._memory)
            return head, [memory[start:end] for start, end in pairwise(ends)]
        return head, [memoryview(self._conn.recv_bytes()) for _ in ends[1:]]

    def poll(self, timeout_s: float) -> bool:
        """Whether a message, or the other end's death, came within the time."""
        return bool(self._arrival.poll(1000 * timeout_s))

    def close(self) -> None:
        self._conn.close()


def pair(context: Any) -> tuple[Line, Connection]:
    """Our end, and the other end as it crosses to a process."""
    ours, theirs = context.Pipe()
    memory = os.memfd_create("aut-line")
    os.ftruncate(memory, SHARED)
    send_handle(ours, memory, None)  # it waits in the socket until the process asks for it
    return Line(ours, memory), theirs


def _ends(sizes: Sequence[int]) -> list[int]:
    return [0, *accumulate(sizes)]
