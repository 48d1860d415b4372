"""An HTTP client for many requests at a time."""

from __future__ import annotations

from typing import Any

import httpx2

# For every request, a connection pool asks the system about each of its idle connections. With hundreds of them that
# takes longer than all the rest.
LANE = 16


class PooledClient(httpx2.AsyncClient):
    """As many connections as there are requests at a time, in pools of a few. For one event loop.

    The client has no timeouts, for its timeouts are per read and let a slow drip go on for ever; the caller limits
    the whole. It follows no redirects, which would carry the key to another server.
    """

    def __init__(self) -> None:
        self._options: dict[str, Any] = {
            "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            "timeout": None,
            "follow_redirects": False,
            "verify": httpx2.create_ssl_context(),  # one for all: it takes long to make
        }
        super().__init__(**self._options)  # builds the requests; its own pool stays empty
        self._lanes: list[httpx2.AsyncClient] = []
        self._busy: list[int] = []

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Sends the request through the first pool with room, and reads the whole answer."""
        lane = next((i for i, busy in enumerate(self._busy) if busy < LANE), len(self._lanes))
        if lane == len(self._lanes):
            self._lanes.append(httpx2.AsyncClient(**self._options))
            self._busy.append(0)
        self._busy[lane] += 1
        try:
            return await self._lanes[lane].send(request, **options)
        finally:
            self._busy[lane] -= 1

    async def aclose(self) -> None:
        """Closes every connection."""
        for lane in self._lanes:
            await lane.aclose()
        await super().aclose()
