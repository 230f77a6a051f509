"""Honest clients, whom nobody may disturb."""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from support.http_client import Answer, Client
from synapse_rendezvous.paths import MSC3886


class Honest:
    """Pairs of devices that pair, one after the other, each from an address of its own.

    Args:
        url: the homeserver, or a proxy before it.
        addresses: where they are; each address in turn.
        shared: where all are once their sessions are created, if they share an address with somebody.

    Attributes:
        phase: what goes on meanwhile.
        took_s: how long the answers took, by phase.
        completed: how many pairings were completed, by the phase in which they ended.
    """

    AT_A_TIME = 6
    WRITES = 8
    POLL_S = 0.1

    def __init__(self, url: str, addresses: Iterator[str] | None = None, shared: str | None = None) -> None:
        self.phase = "quiet"
        self.took_s: defaultdict[str, list[float]] = defaultdict(list)
        self.completed: Counter[str] = Counter()
        self._url = url
        numbers = itertools.count()
        self._addresses = addresses or (f"198.18.{number // 250}.{number % 250 + 1}" for number in numbers)
        self._shared = shared
        self._ends = False

    @asynccontextmanager
    async def pairing(self) -> AsyncIterator[None]:
        """Let them pair while a `with` statement lasts. Whatever is wrong with an answer ends it."""
        pairs = asyncio.gather(*(self._pair_on() for _ in range(self.AT_A_TIME)))
        meanwhile = asyncio.current_task()
        assert meanwhile is not None
        pairs.add_done_callback(lambda _: None if self._ends else meanwhile.cancel())
        try:
            yield
        finally:
            self._ends = True
            await pairs

    async def complete_all_begun(self) -> None:
        """Return when all who are pairing now must have got to the end of it."""
        enough = sum(self.completed.values()) + self.AT_A_TIME
        while sum(self.completed.values()) < enough:
            await asyncio.sleep(self.POLL_S)

    def __str__(self) -> str:
        phases = [
            f"{phase} p99 {self.p99_ms(phase):.1f} ms of {len(took_s)}, {self.completed[phase]} pairings"
            for phase, took_s in self.took_s.items()
        ]
        return "; ".join(phases)

    def p99_ms(self, phase: str) -> float:
        """Return how long all but the slowest hundredth of answers took at most; 0 if there are too few to say.

        Not among them is what two stalls delayed: Synapse's garbage collection stops everything now and then, for up to
        half a second.
        """
        took_s = sorted(self.took_s[phase])
        slowest = max(len(took_s) // 100, 2 * self.AT_A_TIME)
        return 1000 * took_s[-slowest - 1] if slowest < len(took_s) else 0.0

    async def pair(self) -> None:
        """Pair once: nothing may be refused, and no answer wrong."""
        address = next(self._addresses)
        fields = {"X-Forwarded-Proto": "https", "X-Forwarded-For": self._shared or address}
        async with Client(self._url, fields) as first, Client(self._url, fields) as second:
            await self._pair((first, second), address)
        self.completed[self.phase] += 1

    async def _pair(self, devices: tuple[Client, Client], address: str) -> None:
        async def ask(device: int, method: str, path: str, content: bytes = b"", **more: str) -> Answer:
            sent_s, phase = time.monotonic(), self.phase
            answer = await devices[device].ask(method, path, content, **more)
            if phase == self.phase:  # else it waited for a flood that has just begun or ended
                self.took_s[phase].append(time.monotonic() - sent_s)
            return answer

        async def poll(device: int, known: str) -> Answer:
            """Ask until there is something else than what is known."""
            while (answer := await ask(device, "GET", path, If_None_Match=known)).status == 304:
                await asyncio.sleep(self.POLL_S)
            return answer

        created = await ask(0, "POST", MSC3886, b"hello", X_Forwarded_For=address)
        assert 200 == created.status
        path, etag = f"{MSC3886}/{created.json()['id']}", created.etag
        assert (200, b"hello", etag) == (await ask(1, "GET", path)).seen()
        for number in range(self.WRITES):
            writer, reader = number % 2, 1 - number % 2
            payload = random.randbytes(200)
            polling = asyncio.ensure_future(poll(reader, etag))
            await asyncio.sleep(self.POLL_S * random.random())
            written = await ask(writer, "PUT", path, payload, If_Match=etag)
            assert 202 == written.status
            assert (200, payload, written.etag) == (await polling).seen()
            etag = written.etag
            assert (304, b"", etag) == (await ask(writer, "GET", path, If_None_Match=etag)).seen()
        assert 204 == (await ask(0, "DELETE", path)).status
        assert 404 == (await ask(1, "GET", path, X_Forwarded_For=address)).status

    async def _pair_on(self) -> None:
        while not self._ends:
            await self.pair()
