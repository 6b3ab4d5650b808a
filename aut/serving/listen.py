"""Listen: the gate on a socket, as `aut serve` and its benchmarks run it.

In    a Gate, an address; port 0 is any free one
Out   runs until it is told to stop; `bound` is told the port once it is listened on
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from aut.serving.connections import named
from aut.serving.gate import Gate


class Server(uvicorn.Server):
    """uvicorn's, which says when it listens."""

    def __init__(self, config: uvicorn.Config, bound: Callable[[int], None]) -> None:
        super().__init__(config)
        self._bound = bound

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._bound(self.servers[0].sockets[0].getsockname()[1])


def listen(gate: Gate, host: str, port: int, bound: Callable[[int], None] = lambda port: None) -> None:
    """Exits with status 3 where it cannot listen."""
    config = uvicorn.Config(
        gate,
        host=host,
        port=port,
        http=named(gate.headers),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # nobody asks who the client is, or by which scheme it came
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
    server = Server(config, bound)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(3)
