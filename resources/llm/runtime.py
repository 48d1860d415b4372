"""The one event loop on which a process makes its LLM calls.

Clients, connection pools, rate limits and the memo's single flight belong to it, so that threads and roles share
them. It runs in a daemon thread and starts with the first call.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
GRACE_S = 10.0  # after an interrupt, for calls that are under way and will be paid for

_lock = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop] | None = None


def call_loop() -> asyncio.AbstractEventLoop:
    """This process's loop for LLM calls."""
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="llm-calls", daemon=True)
            thread.start()
            atexit.register(_end, os.getpid(), loop, thread)
            _running = (os.getpid(), loop)
        return _running[1]


def _end(pid: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Ends the loop with its process, so that nothing of it is left when the interpreter takes itself apart."""
    if pid != os.getpid():
        return
    loop.call_soon_threadsafe(loop.stop)
    thread.join(1.0)
    if not thread.is_alive():
        loop.close()


def run_calls(work: Coroutine[Any, Any, T], stop: Callable[[], None]) -> T:
    """Runs a coroutine on the loop and waits for it.

    When the waiting thread is interrupted (Ctrl-C, an ended run), `stop` is called so that nothing new is sent; calls
    under way have GRACE_S to be answered and kept, then the interrupt is raised.
    """
    loop = call_loop()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        if not future.done():
            loop.call_soon_threadsafe(stop)
            done = threading.Event()
            future.add_done_callback(lambda _: done.set())
            done.wait(GRACE_S)
            future.cancel()
        raise
