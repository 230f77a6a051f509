"""How long the least of answers takes on this machine, now."""

import asyncio
import threading
import time
from collections.abc import Iterable

from support.http_client import Client, NoAnswer


class Pulse:
    """Asks servers for next to nothing, over and over, while a `with` statement lasts.

    A test that says how long something may take adds how long this took at most meanwhile: what delays everything, a
    machine that does much else, delays that as well.

    Args:
        urls: the servers; one that is down is left out meanwhile.

    Attributes:
        longest_s: how long the slowest answer took. It is known when the `with` statement is over.
    """

    PAUSE_S = 0.05

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = list(urls)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask_all()))
        self.longest_s = 0.0

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    async def _ask_all(self) -> None:
        await asyncio.gather(*map(self._ask, self._urls))

    async def _ask(self, url: str) -> None:
        async with Client(url) as client:
            while not self._ends.is_set():
                sent_s = time.monotonic()
                try:
                    await client.ask("GET", "/health")
                except NoAnswer:
                    pass
                else:
                    self.longest_s = max(self.longest_s, time.monotonic() - sent_s)
                await asyncio.sleep(self.PAUSE_S)
