"""Requests that wait, with real processes: whatever the timing, no news is missed and nobody is forgotten."""

import asyncio
import contextlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from support.devices import Pair, Record, Reply
from support.homeservers import errors, new_homeserver, running
from support.http_client import ask
from support.programs import needs
from support.pulse import Pulse
from support.servers import ENDLESS, UNLIMITED, Worker, WorkerStack
from support.until import wait_until
from synapse_rendezvous.demo.throwaway_homeserver import ThrowawayHomeserver
from synapse_rendezvous.session import LINGER_MS

PATH = "/_synapse/client/rendezvous"
WAITS = int(os.environ.get("WAITS", "500"))
AT_A_TIME = 64
EXPIRING = 16
TTL_S = 8.0
LINGER_S = LINGER_MS / 1000
MAX_WAITING = 128
LONGEST_MS = 4000  # so that news that came only with the time-out would be too late
CONFIG = {
    "ttl": f"{TTL_S:g}s",
    "long_poll": {"default_wait": LONGEST_MS},
    "max_sessions": 1_000_000,  # or a fast machine would be refused for those that have not expired yet
    "per_client": {**UNLIMITED, "max_waiting": MAX_WAITING},
    **ENDLESS,
}

# To each is added how long any answer takes meanwhile; see Pulse.
RECOVERY_S = 5.0
LATE_S = 2.5  # how long news may take; usually it is milliseconds
EARLY_S = 0.25  # by how much a wait may be too short: a process knows Redis' time only by when its answers arrive

CHANNEL = "synapse_rendezvous:2:{rendezvous.localhost}:changes"

pytestmark = pytest.mark.timing
needs_redis = needs("redis-server", "redis-server")


class Processes(NamedTuple):
    """Those that serve the same sessions."""

    urls: Sequence[str]
    logs: Sequence[pathlib.Path]
    first: ThrowawayHomeserver | Worker


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    with running(new_homeserver(tmp_path_factory.mktemp("memory"), CONFIG)) as homeserver:
        yield homeserver


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerStack]:
    with WorkerStack(tmp_path_factory.mktemp("stack"), config=CONFIG) as stack:
        yield stack
    for log in stack.logs:
        assert [] == errors(log)


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
def processes(request: pytest.FixtureRequest) -> Processes:
    if request.param == "memory":
        homeserver: ThrowawayHomeserver = request.getfixturevalue("memory")
        return Processes([homeserver.url], [homeserver.log], homeserver)
    stack: WorkerStack = request.getfixturevalue("stack")
    return Processes(stack.urls, stack.logs, stack.workers[0])


@contextlib.contextmanager
def quiet(logs: Sequence[pathlib.Path]) -> Iterator[None]:
    """Let nothing be logged above INFO meanwhile, and every request be logged once, in its own log context."""
    sizes = [log.stat().st_size for log in logs]
    yield
    for log, size in zip(logs, sizes, strict=True):
        text = log.read_bytes()[size:].decode(errors="replace")
        assert [] == re.findall(r"^.* - (?:WARNING|ERROR|CRITICAL) - .*|^Traceback", text, re.MULTILINE)
        answered = re.findall(r' - synapse\.access\.\S+ - \d+ - INFO - (\S+) - .*? "(\w+) /', text)
        assert answered
        assert [] == [(context, method) for context, method in answered if not context.startswith(f"{method}-")]
        assert len(answered) == len({context for context, _ in answered})


class Told(NamedTuple):
    """An answer to a device that had a revision and wanted to wait.

    Attributes:
        reply: the answer.
        known: the number of the revision.
        sent_s: when the device asked.
        timeout_s: how long it wanted to wait.
        now_s: when the answer came.
    """

    reply: Reply
    known: int
    sent_s: float
    timeout_s: float
    now_s: float


class Revisions:
    """When each revision of a session came to be, as far as can be told from outside, and when the session ended.

    Attributes:
        asked_s: when the write of each was sent.
        known_s: when it was acknowledged; a device that reads from then on finds it, or a later one.
        may_end_s: when the session may end at the earliest.
        has_ended_s: when it has ended for certain.
        told: what the devices were answered.
    """

    def __init__(self, asked_s: float, known_s: float) -> None:
        self.asked_s = [asked_s]
        self.known_s = [known_s]
        self.may_end_s = asked_s + TTL_S + LINGER_S
        self.has_ended_s = known_s + TTL_S + LINGER_S
        self.told: list[Told] = []

    def check(self, slack_s: float) -> list[float]:
        """Fail unless each answer was right, and came in time.

        Args:
            slack_s: how much later anything may come.

        Returns:
            How late the answers to requests that were held were, where something was new.
        """
        late_s = [self._check(told, slack_s) for told in self.told]
        return [late for late in late_s if late is not None]

    def _check(self, told: Told, slack_s: float) -> float | None:
        answer, known, sent_s, timeout_s, now_s = told
        until_s = sent_s + timeout_s - EARLY_S - slack_s
        next_s = self.known_s[known + 1] if known + 1 < len(self.known_s) else math.inf
        news_s = min(next_s, self.has_ended_s)
        if answer.status == 304:
            assert until_s <= now_s, "not held"
            assert news_s > max(until_s, sent_s), "missed"
            return None
        if answer.status == 404:
            assert self.may_end_s - EARLY_S - slack_s <= now_s
        else:
            assert 200 == answer.status
            assert sent_s < self.has_ended_s
            number = int(answer.content)
            assert known < number
            assert self.asked_s[number] <= now_s
            assert number >= sum(known_s <= sent_s for known_s in self.known_s) - 1
        assert now_s - max(news_s, sent_s) < LATE_S + slack_s
        return now_s - news_s if sent_s < news_s < math.inf else None


class Rendezvous:
    """One device waits, and another writes.

    Args:
        pair: sends what they ask for.
        seed: of their choices.
        expires: whether nobody writes, until the session has ended by itself.
    """

    def __init__(self, pair: Pair, seed: int, *, expires: bool = False) -> None:
        self._pair = pair
        self._random = random.Random(seed)
        self._last = 0 if expires else self._random.randint(1, 3)
        self._deletes = not expires and self._random.random() < 0.3
        self._ends = expires or self._deletes

    async def play(self) -> None:
        asked_s = time.monotonic()
        created = await self._pair.ask("POST", PATH, b"0")
        assert 200 == created.status
        self._path = f"{PATH}/{json.loads(created.content)['id']}"
        self.revisions = Revisions(asked_s, time.monotonic())
        await asyncio.gather(self._wait(created.etag), self._write(created.etag))

    async def _wait(self, etag: str) -> None:
        """Ask for news as long as some is to come; leave now and then before there is an answer."""
        known = 0
        has_left = False
        while known < self._last or self._ends:
            timeout_ms = self._random.choice([0, self._random.randrange(50), self._random.randrange(2000), LONGEST_MS])
            query = f"?timeout={timeout_ms}"
            if timeout_ms == LONGEST_MS and self._random.random() < 0.7:
                query = ""  # by default it is held for as long
            has_left = not has_left and self._random.random() < 0.2
            stays_s = self._random.random() * 0.05 if has_left else None
            asking = self._pair.ask("GET", f"{self._path}{query}", If_None_Match=etag)
            sent_s = time.monotonic()
            try:
                answer = await asyncio.wait_for(asking, stays_s)
            except asyncio.TimeoutError:
                continue
            self.revisions.told.append(Told(answer, known, sent_s, timeout_ms / 1000, time.monotonic()))
            assert answer.status in (200, 304, 404)
            if answer.status == 404:
                break
            if answer.status == 200:
                known, etag = int(answer.content), answer.etag
            elif timeout_ms < 50:
                await asyncio.sleep(0.01)

    async def _write(self, etag: str) -> None:
        revisions = self.revisions
        for number in range(1, self._last + 1):
            await self._pause()
            revisions.asked_s.append(time.monotonic())
            written = await self._pair.ask("PUT", self._path, b"%d" % number, If_Match=etag)
            assert 202 == written.status
            revisions.known_s.append(time.monotonic())
            etag = written.etag
        if self._deletes:
            await self._pause()
            revisions.may_end_s = time.monotonic()
            assert 204 == (await self._pair.ask("DELETE", self._path)).status
            revisions.has_ended_s = time.monotonic()

    async def _pause(self) -> None:
        """Wait for a moment; half of the times for none, so that a wait and a write begin together."""
        await asyncio.sleep(self._random.choice([0, self._random.random() * 0.05]))


async def play(urls: Sequence[str]) -> list[Revisions]:
    """Play many rendezvous, some at a time, besides some that expire."""
    played: list[Revisions] = []

    async def take_turns(seed: int, turns: Iterable[int], *, expires: bool = False) -> None:
        await asyncio.sleep(seed * 0.01)  # more connections at once than a listener takes would wait for a second
        async with Pair(Record(), urls, seed=seed) as pair:
            for turn in turns:
                rendezvous = Rendezvous(pair, turn, expires=expires)
                await rendezvous.play()
                played.append(rendezvous.revisions)

    turns = iter(range(WAITS))
    expiring = [take_turns(seed, [seed], expires=True) for seed in range(EXPIRING)]
    await asyncio.gather(*expiring, *(take_turns(seed, turns) for seed in range(AT_A_TIME)))
    return played


async def create(pair: Pair) -> tuple[str, str]:
    """Return the path of a new session, and its tag."""
    created = await pair.ask("POST", PATH, b"hello")
    return f"{PATH}/{json.loads(created.content)['id']}", created.etag


async def create_some(urls: Sequence[str], count: int, *, patient: bool = False) -> list[tuple[str, str]]:
    """Return so many new sessions."""
    async with Pair(Record(), urls, patient=patient) as pair:
        return [await create(pair) for _ in range(count)]


def hold(pair: Pair, session: tuple[str, str], *, at: str, timeout_ms: int = 5000) -> "asyncio.Task[Reply]":
    """Let a device of a session wait at a process."""
    path, etag = session
    return asyncio.ensure_future(pair.ask("GET", f"{path}?timeout={timeout_ms}", at=at, If_None_Match=etag))


async def fill(urls: Sequence[str]) -> float:
    """See that each process has all its places free, to take, to leave and to take again, and none beyond.

    Returns:
        How long it took at most until all who waited had their news.
    """
    longest_s = 0.0
    async with Pair(Record(), urls) as pair:
        for url in urls:
            for stays in (False, True):
                sessions = [await create(pair) for _ in range(MAX_WAITING // 4 + 1)]
                held = [hold(pair, sessions[-1], at=url)]  # the one beyond, if no other comes later
                for session in sessions[:-1]:
                    held += [hold(pair, session, at=url) for _ in range(4)]
                    await asyncio.sleep(0.02)  # as above
                refused, waiting = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
                assert [304] == [one.result().status for one in refused]
                await asyncio.sleep(0.2)
                assert not any(one.done() for one in waiting)
                if stays:
                    begin_s = time.monotonic()
                    await asyncio.gather(*(pair.ask("PUT", path, b"news") for path, _ in sessions))
                    assert {(200, b"news")} == {answer[:2] for answer in await asyncio.gather(*waiting)}
                    longest_s = max(longest_s, time.monotonic() - begin_s)
                else:
                    for one in waiting:
                        one.cancel()
                    await asyncio.gather(*waiting, return_exceptions=True)
                    await asyncio.sleep(0.2)  # for the process to learn that they left
    return longest_s


def test_random_timing(processes: Processes) -> None:
    """Whenever devices wait, write, leave and end: news comes as soon as it is there, and nobody stays behind."""
    with quiet(processes.logs), Pulse(processes.urls) as pulse:
        begin_s = time.monotonic()
        played = asyncio.run(play(processes.urls))
        took_s = time.monotonic() - begin_s
        filled_s = asyncio.run(fill(processes.urls))
    assert filled_s < LATE_S + pulse.longest_s
    ms = sorted(late * 1000 for revisions in played for late in revisions.check(pulse.longest_s))
    percentiles = f"p50 {statistics.median(ms):.1f}, p99 {ms[len(ms) * 99 // 100]:.1f}, at most {ms[-1]:.1f} ms"
    print(f"{WAITS} rendezvous in {took_s:.1f} s; {len(ms)} were waiting when their news came, late by {percentiles}")
    print(f"Any answer took {pulse.longest_s * 1000:.0f} ms at most.")


def test_log_context(processes: Processes) -> None:
    """What is logged of a request that was woken names that one, and what of the one that woke it, the other."""

    async def wake(holding: str, waking: str) -> None:
        async with Pair(Record(), processes.urls) as pair:
            session = path, _ = await create(pair)
            in_time, leaving, *woken = [hold(pair, session, at=holding, timeout_ms=ms) for ms in (200, *[5000] * 3)]
            assert 304 == (await in_time).status
            leaving.cancel()
            written = await pair.ask("PUT", path, b"news", at=waking)
            assert [(200, b"news", written.etag)] * 2 == [answer[:3] for answer in await asyncio.gather(*woken)]
            waiting = hold(pair, (path, written.etag), at=holding)
            await asyncio.sleep(0.1)
            await pair.ask("DELETE", path, at=waking)
            assert 404 == (await waiting).status

    for holding, waking in itertools.product(processes.urls, repeat=2):
        with quiet([log for url, log in zip(processes.urls, processes.logs, strict=True) if url in (holding, waking)]):
            asyncio.run(wake(holding, waking))


@needs_redis
def test_lost_wake_up(stack: WorkerStack) -> None:
    """While Redis drops those who listen, news comes within seconds all the same, and then at once again."""
    holding, writing = stack.urls[:2]

    async def deliver(*, loses: bool) -> float:
        async with Pair(Record(), stack.urls) as pair:
            session = path, _ = await create(pair)
            held = hold(pair, session, at=holding, timeout_ms=10_000)  # the session ends sooner
            await asyncio.sleep(0.1)
            assert not held.done()
            if loses:
                assert b":0\r\n" != stack.redis.command("CLIENT", "KILL", "TYPE", "pubsub")
            await pair.ask("PUT", path, b"news", at=writing)
            written_s = time.monotonic()
            assert (200, b"news") == (await held)[:2]
            return time.monotonic() - written_s

    def listen() -> bool:
        return stack.redis.command("PUBSUB", "NUMSUB", CHANNEL).endswith(b":%d\r\n" % len(stack.urls))

    with Pulse(stack.urls) as pulse:
        lost_s = asyncio.run(deliver(loses=True))
        wait_until(listen)
        late_s = [asyncio.run(deliver(loses=False)) for _ in range(20)]
    print(f"Without its wake-up, news came after {lost_s:.2f} s; then after {max(late_s) * 1000:.0f} ms at most")
    assert lost_s < 5 + LATE_S + pulse.longest_s
    assert max(late_s) < 1 + pulse.longest_s


def wait(url: str, etag: str, timeout_ms: int) -> tuple[int, float]:
    """Let a device wait; return the status of the answer and after how many seconds it came."""
    begin_s = time.monotonic()
    status = ask("GET", f"{url}?timeout={timeout_ms}", If_None_Match=etag).status
    return status, time.monotonic() - begin_s


@needs_redis
def test_redis_restarts_while_waiting(stack: WorkerStack) -> None:
    """Whoever waits when Redis dies is answered in time: with 503, or with 404 if it is back with an empty memory."""
    short, long = asyncio.run(create_some(stack.urls, 2))
    with ThreadPoolExecutor() as pool, Pulse(stack.urls) as pulse:
        waits_shortly = pool.submit(wait, stack.urls[0] + short[0], short[1], 2000)
        waits_longer = pool.submit(wait, stack.urls[1] + long[0], long[1], 10_000)
        time.sleep(0.3)
        stack.redis.kill()
        try:
            status, took_s = waits_shortly.result()
        finally:
            stack.redis.start()
        begin_s = time.monotonic()
        asyncio.run(create_some(stack.urls, 2, patient=True))
        recovery_s = time.monotonic() - begin_s
        then_status, then_took_s = waits_longer.result()
    print(f"When Redis died: {status} after {took_s:.1f} s, {then_status} after {then_took_s:.1f} s")
    assert 503 == status
    assert took_s < 2 + 3 + pulse.longest_s
    assert then_status in (404, 503)
    assert then_took_s < 10 + 3 + pulse.longest_s
    assert recovery_s < RECOVERY_S + pulse.longest_s
    # The one warning is logged by the request that was held, and in its name.
    assert re.search(r" - synapse_rendezvous\.\S+ - \d+ - WARNING - GET-\d+ - ", stack.logs[0].read_text())


def test_shutdown(processes: Processes) -> None:
    """A process that is told to end answers those who wait that nothing is new, and does not end later for it."""
    begin_s = time.monotonic()
    processes.first.stop()
    idle_s = time.monotonic() - begin_s
    processes.first.start()
    (session,) = asyncio.run(create_some(processes.urls, 1))
    with ThreadPoolExecutor() as pool:
        held = pool.submit(wait, processes.urls[0] + session[0], session[1], 10_000)
        time.sleep(0.3)
        begin_s = time.monotonic()
        processes.first.stop()
        took_s = time.monotonic() - begin_s
        processes.first.start()
    status, waited_s = held.result()
    assert 304 == status
    assert waited_s < 0.3 + LATE_S + idle_s
    assert took_s < LATE_S + idle_s
