"""Floods against a Synapse process while honest clients pair: nobody can spoil it for the others.

`FLOOD` is how many requests the largest flood has, `FLOOD_S` how many seconds the slow one takes.

Synapse has one thread for everything, so a flood that keeps it busy makes everybody wait, whoever refuses it. So honest
requests take at most three times as long as in quiet or, where that is more, as while Synapse itself answers such a
flood with 404. Only the proxy can do better.
"""

import asyncio
import functools
import itertools
import multiprocessing
import os
import pathlib
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import pytest

from support.homeservers import behind_proxy, resident_bytes, running
from support.honest import Honest
from support.http_client import Client, ask
from support.servers import UNLIMITED
from synapse_rendezvous.admission import CREATE_PAUSE_S
from synapse_rendezvous.config import RateLimit, RendezvousConfig
from synapse_rendezvous.demo.throwaway_homeserver import ThrowawayHomeserver
from synapse_rendezvous.session import new_random_id

FLOOD = int(os.environ.get("FLOOD", "1000"))
FLOOD_S = int(os.environ.get("FLOOD_S", "2"))
QUIET_S = 1.0
ENOUGH = 150
"""How many answers to honest clients tell how long these take."""
MOST_SLOWDOWN = 3
ROUNDS = 5
LIMITS = RendezvousConfig().per_client
PATH = "/_synapse/client/rendezvous"

pytestmark = pytest.mark.timing

CREATE = f"POST {PATH}"
NOWHERE = "POST /_synapse/client/nowhere"
"""What Synapse itself answers, with 404; no module can refuse for less."""


class Flood(NamedTuple):
    """Requests, on many connections at once, each sent when the one before it is answered.

    Attributes:
        line: method and path; `{id}` stands for another id each time.
        addresses: whom they come from, in turn.
        requests: how many they are.
        connections: on how many connections they are sent.
        pause_s: how long a connection waits after each answer.
    """

    line: str
    addresses: Sequence[str]
    requests: int
    connections: int
    pause_s: float = 0

    def send(self, url: str) -> Counter[int]:
        """Send them to a homeserver, and return how many answers had which status."""
        return asyncio.run(self._send(url))

    async def _send(self, url: str) -> Counter[int]:
        statuses: Counter[int] = Counter()
        addresses = itertools.islice(itertools.cycle(self.addresses), self.requests)

        async def send_in_turn() -> None:
            for address in addresses:
                method, path = self.line.format(id=new_random_id()).split()
                statuses[(await client.ask(method, path, X_Forwarded_For=address)).status] += 1
                await asyncio.sleep(self.pause_s)

        async with Client(url, {"X-Forwarded-Proto": "https"}) as client:
            await asyncio.gather(*(send_in_turn() for _ in range(min(self.connections, self.requests))))
        return statuses


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """One for all floods, with the default limits. Its log and its memory stay small, whatever comes."""
    homeserver = behind_proxy(tmp_path_factory.mktemp("homeserver"), {})
    begin_s = time.monotonic()
    with running(homeserver):
        Flood(CREATE, ["203.0.113.254"], 200, 20).send(homeserver.url)  # until the process has its working size
        before = resident_bytes(homeserver.pid)
        yield homeserver
        growth, minutes = resident_bytes(homeserver.pid) - before, (time.monotonic() - begin_s) / 60
    warnings = re.findall(r".*synapse_rendezvous.* - WARNING - .*", homeserver.log.read_text(errors="replace"))
    print(f"Memory grew by {growth / 1e6:.1f} MB; {len(warnings)} lines about refusals in {minutes:.1f} minutes.")
    assert all("Requests that were over a limit and refused in the last minute: " in line for line in warnings)
    assert int(minutes > 1.2) <= len(warnings) <= minutes + 1
    assert growth <= RendezvousConfig().max_memory_bytes()


def network(number: int) -> list[str]:
    """Return an address in each /64 of an IPv6 /48, in any order."""
    return [f"2001:db8:{number:x}:{subnet:x}::1" for subnet in random.sample(range(2**16), 2**16)]


def addresses(count: int, first: int = 0) -> list[str]:
    """Return addresses that have nothing to do with each other."""
    return [f"11.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(first, first + count)]


def most(rate: RateLimit, seconds: float, share: int = 1) -> int:
    """Return how often something may be done in so many seconds."""
    return int(share * (rate.burst_count + rate.per_second * seconds)) + 1


@functools.cache
def sending() -> ProcessPoolExecutor:
    """Return the process that sends floods; it gives way to the honest ones and to Synapse."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (19,))


def endure(
    homeserver: ThrowawayHomeserver, flood: Flood, *, is_slow: bool = False, honest: Honest | None = None
) -> tuple[Counter[int], float]:
    """Let honest clients pair before, during and after a flood, and fail if they suffer.

    Args:
        homeserver: whom they ask.
        flood: what happens meanwhile.
        is_slow: whether it leaves Synapse time enough for others, so that there is no excuse.
        honest: who pair; by default, each pair at an address that has nothing to do with the flood.

    Returns:
        How many answers to the flood had which status, and how many seconds it took.
    """
    url = homeserver.url
    honest = honest or Honest(url)

    async def send(flood: Flood) -> Counter[int]:
        return await asyncio.get_running_loop().run_in_executor(sending(), flood.send, url)

    async def send_while(phase: str, flood: Flood) -> tuple[Counter[int], float]:
        """Send the flood, and again until there are answers enough to honest clients to tell how long they take."""
        statuses: Counter[int] = Counter()
        honest.phase, begin_s = phase, time.monotonic()
        while not statuses or len(honest.took_s[phase]) < ENOUGH:
            statuses += await send(flood)
        took_s = time.monotonic() - begin_s
        honest.phase = "quiet"
        return statuses, took_s

    async def endure_once() -> tuple[Counter[int], float, float]:
        """Return what is to be returned, and how many times as long honest answers took as they may for nothing."""
        honest.took_s.clear()
        await asyncio.sleep(QUIET_S)
        statuses, took_s = await send_while("flood", flood)
        await asyncio.sleep(QUIET_S)
        if not is_slow and honest.p99_ms("flood") > MOST_SLOWDOWN * honest.p99_ms("quiet"):
            held_s = CREATE_PAUSE_S * statuses[429] / statuses.total() if flood.line == CREATE else 0
            requests = max(2 * flood.connections, flood.requests // 8)
            await send_while("floor", flood._replace(line=NOWHERE, requests=requests, pause_s=held_s))
        rate, memory = statuses.total() / took_s, resident_bytes(homeserver.pid) / 2**20
        print(f"{flood.line} from {len(flood.addresses)}: {dict(statuses)}, {rate:.0f}/s; {honest}; {memory:.0f} MiB")
        return statuses, took_s, honest.p99_ms("flood") / max(honest.p99_ms("quiet"), honest.p99_ms("floor"))

    async def endure_it() -> tuple[Counter[int], float]:
        await send(flood._replace(requests=0))  # until the process is there that sends
        async with Client(url, {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.1"}) as client:
            kept = await client.ask("POST", PATH, b"kept")
            assert 200 == kept.status
            async with honest.pairing():
                statuses, took_s, slowdown = await endure_once()
                if slowdown > MOST_SLOWDOWN:  # a machine that does something else meanwhile does not do so each time
                    slowdown = statistics.median([slowdown, *[(await endure_once())[-1] for _ in range(ROUNDS - 1)]])
            assert (200, b"kept", kept.etag) == (await client.ask("GET", f"{PATH}/{kept.json()['id']}")).seen()
        assert slowdown <= MOST_SLOWDOWN
        return statuses, took_s

    return asyncio.run(endure_it())


def test_creates_from_one_address(homeserver: ThrowawayHomeserver) -> None:
    """One address gets what its limits say, and nobody else is refused anything."""
    statuses, seconds = endure(homeserver, Flood(CREATE, ["203.0.113.1"], FLOOD, 500))
    assert {200, 429} == set(statuses)
    assert statuses[200] <= min(LIMITS.max_sessions, most(LIMITS.create, seconds))


def test_creates_from_a_network(homeserver: ThrowawayHomeserver) -> None:
    """An IPv6 /48 gets six times as much, however many addresses and networks it has."""
    statuses, seconds = endure(homeserver, Flood(CREATE, network(1), FLOOD // 4, 500))
    assert {200, 429} == set(statuses)
    assert statuses[200] <= min(6 * LIMITS.max_sessions, most(LIMITS.create, seconds, 6))


def test_creates_all_the_time(homeserver: ThrowawayHomeserver) -> None:
    """Somebody who asks ten times a second costs the others nothing that they notice."""
    slow = Flood(CREATE, ["203.0.113.2"], 10 * FLOOD_S, 10, pause_s=1 - CREATE_PAUSE_S)
    statuses, seconds = endure(homeserver, slow, is_slow=True)
    assert statuses[200] <= min(LIMITS.max_sessions, most(LIMITS.create, seconds))


@pytest.mark.parametrize(("number", "method"), [(2, "GET"), (3, "PUT")])
def test_misses(homeserver: ThrowawayHomeserver, number: int, method: str) -> None:
    """Who looks for sessions, or writes to what is not there, from wherever in a network, harms no session that is."""
    statuses, seconds = endure(homeserver, Flood(f"{method} {PATH}/{{id}}", network(number), FLOOD // 4, 100))
    assert {404, 429} >= set(statuses)
    assert statuses[404] <= most(LIMITS.miss, seconds, 6)


@pytest.mark.parametrize("line", [CREATE, f"GET {PATH}/{{id}}"])
def test_a_neighbour(homeserver: ThrowawayHomeserver, line: str) -> None:
    """Who asks in a loop costs the networks around, which share an IPv6 /48 with it, no creation and nothing else."""
    number = 4 if line == CREATE else 5
    neighbours = itertools.cycle(f"2001:db8:{number}:{subnet:x}::1" for subnet in range(0x100, 2**16, 0x100))
    flood = Flood(line, [f"2001:db8:{number}::1"], FLOOD // 4, 50)
    statuses, seconds = endure(homeserver, flood, honest=Honest(homeserver.url, neighbours))
    limit = LIMITS.create if line == CREATE else LIMITS.miss
    assert 0 < statuses[429]
    assert statuses[200] + statuses[404] <= most(limit, seconds)


@pytest.mark.parametrize(
    ("number", "line"),
    [(0, f"GET {PATH}"), *((1 + n, f"{method} {PATH}/{{id}}") for n, method in enumerate(("GET", "PUT", "DELETE")))],
)
def test_the_same_address(homeserver: ThrowawayHomeserver, number: int, line: str) -> None:
    """Whatever strangers ask for from the address at which devices pair, these get each answer."""
    address = f"203.0.113.{10 + number}"
    flood = Flood(line, [address], FLOOD // 2, 50)
    statuses, _ = endure(homeserver, flood, honest=Honest(homeserver.url, shared=address))
    assert 0 < statuses[429]


def test_reads_by_strangers(homeserver: ThrowawayHomeserver) -> None:
    """A session whose id has become known is read as often as one may be, and no other session suffers."""
    creator = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.2"}
    path = f"{PATH}/{ask('POST', homeserver.url + PATH, b'public', creator).json()['id']}"
    statuses, seconds = endure(homeserver, Flood(f"GET {path}", addresses(10_000), FLOOD // 8, 100))
    assert {200, 429} == set(statuses)
    assert statuses[200] <= most(RendezvousConfig().per_session.read, seconds)
    assert (200, b"public") == ask("GET", homeserver.url + path, b"", creator)[::2]


def test_creates_from_hundreds(homeserver: ThrowawayHomeserver) -> None:
    """Where hundreds create all they may, together they take what there is before it is crowded, and others get in."""
    statuses, _ = endure(homeserver, Flood(CREATE, addresses(200, first=20_000), FLOOD // 8, 500))
    assert statuses[200] <= 4000
    assert {200, 429} >= set(statuses)


def test_room(tmp_path: pathlib.Path) -> None:
    """Whatever strangers fill, where only `max_sessions` was raised, a session that was there has room to grow."""
    homeserver = behind_proxy(tmp_path, {"max_sessions": 1000, "max_bytes": "128K"})
    count = RendezvousConfig().max_total_bytes // 131_000 + 2  # more than there was room for before
    origins = iter(addresses(count))

    async def fill() -> None:
        async with Client(homeserver.url, {"X-Forwarded-Proto": "https"}) as client:

            async def create_in_turn() -> None:
                for address in origins:
                    created = await client.ask("POST", PATH, bytes(131_000), X_Forwarded_For=address)
                    assert created.status in (200, 429)

            await asyncio.gather(*(create_in_turn() for _ in range(10)))

    honest = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.1"}
    with running(homeserver):
        session = f"{homeserver.url}{PATH}/{ask('POST', homeserver.url + PATH, b'hello', honest).json()['id']}"
        asyncio.run(fill())
        assert 202 == ask("PUT", session, bytes(128 << 10), honest).status


def test_bounds(tmp_path: pathlib.Path) -> None:
    """However fast one may create: 100 sessions for an address, 600 for a /48, all there are for all; to the session.

    When the server is full, a session that was there before lives and works as ever.
    """
    homeserver = behind_proxy(tmp_path, {"max_sessions": 1000, "per_client": {"create": UNLIMITED["create"]}})
    honest = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "198.51.100.1"}
    with running(homeserver):
        session = f"{homeserver.url}{PATH}/{ask('POST', homeserver.url + PATH, b'hello', honest).json()['id']}"
        for origin, bound in ((["203.0.113.1"], 100), (network(1), 600), (addresses(400), 299)):
            flood = Flood(CREATE, origin, bound + 50, 50)
            assert {200: bound, 429: 50} == flood.send(homeserver.url)
        assert 429 == ask("POST", homeserver.url + PATH, b"hello", honest).status
        assert 202 == ask("PUT", session, b"x" * 10240, honest).status
        assert (200, b"x" * 10240) == ask("GET", session, b"", honest)[::2]
        assert 204 == ask("DELETE", session, b"", honest).status
        assert 200 == ask("POST", homeserver.url + PATH, b"hello", honest).status
