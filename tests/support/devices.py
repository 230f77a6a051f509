"""Devices that send each request to any of several processes, and what they see."""

import asyncio
import itertools
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from support.http_client import Client, NoAnswer

# What Synapse's connection to Redis takes for a number, for text, or for neither.
ODD = [b"", b"0123", b"1e5", b"1_000", b"-1", b"+1", b".5", b"9" * 40, b"inf", b"None", b"h\xc3\xa9", b"\xff\xfe\0"]


class Record:
    """What all clients saw together.

    Attributes:
        phase: the name of what is going on.
        statuses: how many answers had which status, by phase; 0 stands for a broken connection.
        longest_s: how long the slowest answer took, by phase.
        memory_lost_s: when Redis last lost what it held.
        outcomes: how many rendezvous were completed, and how many lost with Redis' memory.
    """

    def __init__(self) -> None:
        self.phase = "calm"
        self.statuses: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self.longest_s: defaultdict[str, float] = defaultdict(float)
        self.memory_lost_s = -math.inf
        self.outcomes: Counter[str] = Counter()

    def add(self, status: int, took_s: float) -> None:
        self.statuses[self.phase][status] += 1
        self.longest_s[self.phase] = max(self.longest_s[self.phase], took_s)

    def __str__(self) -> str:
        phases = [
            f"\n  {phase}: {sorted(statuses.items())}, at most {self.longest_s[phase]:.3f} s"
            for phase, statuses in self.statuses.items()
        ]
        return f"{dict(self.outcomes)}{''.join(phases)}"


class Reply(NamedTuple):
    """An answer, as far as devices look at it; `repeated` says whether the request may have had its effect before."""

    status: int
    content: bytes
    etag: str
    repeated: bool


class LostWithRedis(Exception):
    """The session is gone, and was created before Redis lost its memory."""


class Pair:
    """Two devices that send each request to a random process, on connections that they keep.

    To be used in an `async with` statement.

    Args:
        record: where answers are counted.
        urls: the processes.
        patient: whether they try again, at another process, after a 503 or a broken connection; else that is an error.
    """

    def __init__(self, record: Record, urls: Sequence[str], *, seed: int = 0, patient: bool = False) -> None:
        self._record = record
        self._urls = urls
        self._random = random.Random(seed)
        self._patient = patient
        self._created_s = math.inf
        self._client = Client()

    async def __aenter__(self) -> "Pair":
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    def payload(self) -> bytes:
        """Return anything that a payload may be."""
        return self._random.choice([*ODD, self._random.randbytes(self._random.choice([20, 200, 4096, 10240]))])

    async def ask(self, method: str, path: str, content: bytes = b"", *, at: str = "", **fields: str) -> Reply:
        """Send a request, at first to the process `at` if that is named.

        Raises:
            LostWithRedis: see there.
        """
        created_s = self._created_s
        urls = self._random.sample(self._urls, len(self._urls))
        repeated = False
        for url in itertools.cycle([at, *urls] if at else urls):
            sent_s = time.monotonic()
            reply, retry_after_s = await self._send(method, url + path, content, fields)
            self._record.add(reply.status, time.monotonic() - sent_s)
            if reply.status not in (0, 503):
                break
            assert self._patient, f"{reply.status} from {url}"
            repeated = True
            await asyncio.sleep(retry_after_s)
        if reply.status == 404 and created_s <= self._record.memory_lost_s:
            raise LostWithRedis
        if method == "POST":
            self._created_s = sent_s
        return reply._replace(repeated=repeated)

    async def poll(self, path: str, etag: str, writing: "asyncio.Future[Reply]") -> Reply:
        """Ask until there is another payload, which must be so once the write is acknowledged."""
        while True:
            acknowledged = writing.done()
            answer = await self.ask("GET", path, If_None_Match=etag)
            if answer.status != 304:
                return answer
            assert not acknowledged
            await asyncio.sleep(0.01)

    async def _send(self, method: str, url: str, content: bytes, fields: Mapping[str, str]) -> tuple[Reply, float]:
        """Return the answer, of status 0 if the connection broke, and after how many seconds to try again."""
        try:
            answer = await self._client.ask(method, url, content, **fields)
        except NoAnswer:
            return Reply(0, b"", "", False), 0.1
        assert "*" == answer.headers["Access-Control-Allow-Origin"]
        if answer.status >= 400:
            assert "application/json" == answer.headers["Content-Type"]
            assert {"errcode", "error"} <= set(answer.json())
        retry_after_s = int(answer.headers["Retry-After"]) if answer.status == 503 else 0
        assert (retry_after_s > 0) == (answer.status == 503)
        return Reply(answer.status, answer.content, answer.etag, False), retry_after_s
