"""Slow and broken clients hold nothing of ours, and honest ones pair meanwhile.

What is left to the proxy: Synapse has no idle time-out, so whoever opens a connection and comes to a halt keeps it, and
with it a file descriptor and what Twisted needs for it, for as long as they like. nginx, with what `synapse-rendezvous
snippet` prints, reads requests to their end before it passes them on, gives up on those that take a minute
(`client_header_timeout`, `client_body_timeout`, `send_timeout`), and takes answers off Synapse's hands.

`SLOW_CLIENTS` is how many there are of each kind, `SLOW_S` how many seconds slowhttptest goes on.
"""

import asyncio
import contextlib
import itertools
import os
import pathlib
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from support import wire
from support.homeservers import behind_proxy, running
from support.honest import Honest
from support.http_client import Answer, Client
from support.programs import needs
from support.proxies import ReverseProxy
from support.servers import UNLIMITED
from support.wire import Wire
from synapse_rendezvous.demo.throwaway_homeserver import ThrowawayHomeserver
from synapse_rendezvous.snippets.command import render

PATH = "/_synapse/client/rendezvous"
CLIENTS = int(os.environ.get("SLOW_CLIENTS", "100"))
SLOW_S = int(os.environ.get("SLOW_S", "2"))

pytestmark = pytest.mark.timing

MAX_SESSIONS, MAX_TOTAL_BYTES = CLIENTS + 100, CLIENTS * 100 + 50_000
CONFIG = {
    "max_sessions": MAX_SESSIONS,
    "max_total_bytes": MAX_TOTAL_BYTES,
    "crowded_at": 1,
    "per_client": {**UNLIMITED, "max_waiting": CLIENTS},
    "per_session": {"read": UNLIMITED["read"]},
    "long_poll": {"max_wait": "60s", "max_waiting": CLIENTS},
}


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver whose room for sessions, bytes and waiting requests is known, which tells of nothing wrong."""
    homeserver = behind_proxy(tmp_path_factory.mktemp("homeserver"), CONFIG)
    with running(homeserver):
        begun = len(homeserver.log.read_text(errors="replace"))
        yield homeserver
    warnings = re.findall(r".* - WARNING - .*", homeserver.log.read_text(errors="replace")[begun:])
    # The tests find out how much room there is, and slowhttptest asks without a proxy.
    expected = ("over a limit and refused in the last minute: max_", "without a usable client address")
    assert [] == [line for line in warnings if not any(words in line for words in expected)]


def request(method: str, path: str, *headers: bytes, content: bytes = b"") -> bytes:
    """Return a request as a proxy passes it on."""
    proxied = b"X-Forwarded-For: 203.0.113.1", b"X-Forwarded-Proto: https"
    return wire.request(method, path, *proxied, *headers, content=content)


async def open_all(url: str, sent: Sequence[bytes]) -> list[Wire]:
    """Open a connection for each of these, and send it."""
    return await asyncio.to_thread(lambda: [Wire(url, each) for each in sent])


@asynccontextmanager
async def honest_pairing(url: str) -> AsyncIterator[Honest]:
    """Let honest clients pair while a `with` statement lasts, and until all who were about it then have paired."""
    honest = Honest(url)
    async with honest.pairing():
        yield honest
        await asyncio.wait_for(honest.complete_all_begun(), 120)
    print(honest)


def other_client(url: str) -> Client:
    """Return a client that is neither slow nor one of those that pair."""
    return Client(url, {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.2"})


async def assert_room(url: str, *, sessions: int, total_bytes: int) -> None:
    """Fail unless so many more sessions fit, and so many bytes; what that takes is removed again."""

    async def fill(sizes: Iterator[int]) -> list[int]:
        """Create sessions until one is refused; return the sizes of those that fitted, and end them."""
        fitted = []
        for size in sizes:
            created = await client.ask("POST", PATH, b"x" * size)
            if created.status == 429:
                break
            fitted.append((size, f"{PATH}/{created.json()['id']}"))
        for _, path in fitted:
            assert 204 == (await client.ask("DELETE", path)).status
        return [size for size, _ in fitted]

    async with other_client(url) as client:
        assert sessions == len(await fill(itertools.repeat(0)))
        whole, rest = divmod(total_bytes, 10_000)
        assert [10_000] * whole + [rest] == await fill(iter([10_000] * whole + [rest, 1]))


async def create(url: str, count: int, content: bytes) -> list[tuple[str, str]]:
    """Create sessions; return their paths and tags."""
    async with other_client(url) as client:
        answers = [await client.ask("POST", PATH, content) for _ in range(count)]
    return [(f"{PATH}/{answer.json()['id']}", answer.etag) for answer in answers]


async def delete(url: str, paths: list[str]) -> None:
    async with other_client(url) as client:
        for path in paths:
            assert 204 == (await client.ask("DELETE", path)).status


def test_unfinished_requests(homeserver: ThrowawayHomeserver) -> None:
    """What has not come to its end has not begun: it takes no session, no byte and no place."""
    url = homeserver.url
    kinds = (
        ("half a header", b"Content-Length: 1000\r\nX-Hal", b""),
        ("half a body", b"Content-Length: 1000\r\n\r\n" + b"x" * 500, b""),
        ("a body without an end", b"Transfer-Encoding: chunked\r\n\r\n", b"10\r\n0123456789abcdef\r\n"),
    )

    async def be_slow() -> None:
        ((path, _),) = await create(url, 1, b"hello")
        lines = [f"{method} HTTP/1.1\r\nHost: x\r\n".encode() for method in (f"POST {PATH}", f"PUT {path}")]
        begun = list(itertools.product(kinds, itertools.islice(itertools.cycle(lines), CLIENTS)))
        async with honest_pairing(url):
            slow = await open_all(url, [line + begin for (_, begin, _), line in begun])
            for _ in range(5):
                for one, ((_, _, more), _) in zip(slow, begun, strict=True):
                    one.send(more)
                await asyncio.sleep(0.1)
        await assert_room(url, sessions=MAX_SESSIONS - 1, total_bytes=MAX_TOTAL_BYTES - 5)
        for one in slow[::2]:
            one.reset()
        for one in slow[1::2]:
            one.close()
        await assert_room(url, sessions=MAX_SESSIONS - 1, total_bytes=MAX_TOTAL_BYTES - 5)
        async with other_client(url) as client:
            assert (200, b"hello") == (await client.ask("GET", path))[::2]
        await delete(url, [path])

    asyncio.run(be_slow())


async def one_answer(wires: Sequence[Wire]) -> None:
    """Return when something came on one of these connections."""
    while all(one.is_silent() for one in wires):
        await asyncio.sleep(0.05)


def test_resets_while_waiting(homeserver: ThrowawayHomeserver) -> None:
    """Each place at which a request waits is free again as soon as its connection breaks."""
    url = homeserver.url

    async def be_slow() -> None:
        sessions = await create(url, CLIENTS // 4, b"hello")
        held = [request("GET", f"{path}?timeout=60000", f"If-None-Match: {tag}".encode()) for path, tag in sessions] * 4
        async with honest_pairing(url):
            for _ in range(3):
                slow = await open_all(url, [*held, held[0]])
                await asyncio.wait_for(one_answer(slow), 120)
                await asyncio.sleep(0.5)
                (beyond,) = [one for one in slow if not one.is_silent()]  # answered at once: no place is left
                assert 304 == beyond.receive().status
                for one in slow:
                    one.reset()
                await asyncio.sleep(0.2)
        await delete(url, [path for path, _ in sessions])
        await assert_room(url, sessions=MAX_SESSIONS, total_bytes=MAX_TOTAL_BYTES)

    asyncio.run(be_slow())


def test_resets_in_answers(homeserver: ThrowawayHomeserver) -> None:
    """Who does not read the answer has created, written and ended all the same, and nothing is counted twice."""
    url = homeserver.url

    async def break_off(sent: list[bytes]) -> list[Answer]:
        """Send each on a connection of its own, and break that when the head of the answer has come."""
        heads = []
        for one in await open_all(url, sent):
            heads.append(await asyncio.to_thread(one.receive_head))
            assert 200 <= heads[-1].status < 210
            one.reset()
        return heads

    async def be_slow() -> None:
        async with honest_pairing(url):
            heads = await break_off([request("POST", PATH, content=b"x" * 100)] * CLIENTS)
        await assert_room(url, sessions=MAX_SESSIONS - CLIENTS, total_bytes=50_000)
        ((path, _),) = await create(url, 1, b"x" * 10_000)
        sessions = await create(url, 50, b"x" * 200)
        async with honest_pairing(url):
            await break_off([request("GET", path) * 50] * CLIENTS)  # 500 KB, of which most never leaves
            await break_off([request("PUT", path, content=b"x" * 100) for path, _ in sessions])
        await assert_room(url, sessions=MAX_SESSIONS - CLIENTS - 51, total_bytes=50_000 - 10_000 - 50 * 100)
        await break_off([request("DELETE", path) for path, _ in sessions])
        await assert_room(url, sessions=MAX_SESSIONS - CLIENTS - 1, total_bytes=50_000 - 10_000)
        await delete(url, [path, *(head.headers["Location"] for head in heads)])
        await assert_room(url, sessions=MAX_SESSIONS, total_bytes=MAX_TOTAL_BYTES)

    asyncio.run(be_slow())


@needs("slowhttptest", "slowhttptest")
@needs("nginx", "nginx-light")
@pytest.mark.parametrize("behind", ["Synapse", "nginx"])
def test_slowhttptest(homeserver: ThrowawayHomeserver, tmp_path: pathlib.Path, behind: str) -> None:
    """While slowhttptest attacks in three ways, with most of the 512 connections that nginx has, pairings go on."""
    with contextlib.ExitStack() as stack:
        url = homeserver.url
        if behind == "nginx":
            proxy = ReverseProxy(tmp_path, "nginx", url, outer=render("nginx", upstream=url.removeprefix("http://")))
            stack.callback(proxy.stop)
            proxy.start()
            url = proxy.url
        asyncio.run(endure_attack(homeserver.url, url, tmp_path))


async def endure_attack(homeserver_url: str, url: str, directory: pathlib.Path) -> None:
    """Let slowhttptest attack, and honest clients pair meanwhile."""
    ((path, _),) = await create(homeserver_url, 1, b"x" * 10_000)
    slow = f"-c 120 -r 120 -i 1 -x 24 -p 5 -l {SLOW_S} -u {url}"
    attacks = [f"-H {slow}{PATH}", f"-B {slow}{PATH}", f"-X -w 10 -y 20 -n 1 -z 32 -k 3 {slow}{path}"]

    async def attack(options: str) -> str:
        """Return what slowhttptest says in the end."""
        process = await asyncio.create_subprocess_exec(
            "slowhttptest", *options.split(), cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = await asyncio.wait_for(process.communicate(), SLOW_S + 60)
        return said.decode(errors="replace")

    async with honest_pairing(url):
        reports = await asyncio.gather(*map(attack, attacks))
    for report in reports:
        assert re.search(r"service available:\S* *\S*YES", report), report
    await delete(homeserver_url, [path])
    await assert_room(homeserver_url, sessions=MAX_SESSIONS, total_bytes=MAX_TOTAL_BYTES)
