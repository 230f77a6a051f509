"""Slow and broken clients hold nothing of ours, and honest ones pair meanwhile.

What is left to the proxy: Synapse has no idle time-out, so whoever opens a connection and comes to a halt keeps it, and
with it a file descriptor and what Twisted needs for it, for as long as they like. nginx, with what `synapse-rendezvous
snippet` prints, reads requests to their end before it passes them on, gives up on those that take a minute
(`client_header_timeout`, `client_body_timeout`, `send_timeout`), and takes answers off Synapse's hands.

`SLOW_CLIENTS` is how many there are of each kind, `SLOW_S` how many seconds slowhttptest goes on.
"""

import asyncio
import itertools
import json
import os
import pathlib
import re
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from conftest import assert_clean
from test_deployment import ask, needs, start, start_nginx
from test_floods import PATH, Connection, Honest, port_of, serve

from support.servers import UNLIMITED
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver
from synapse_rendezvous.snippets.command import render

CLIENTS = int(os.environ.get("SLOW_CLIENTS", "100"))
SLOW_S = int(os.environ.get("SLOW_S", "2"))

MAX_SESSIONS, MAX_TOTAL_BYTES = CLIENTS + 100, CLIENTS * 100 + 50_000
CONFIG = {
    "max_sessions": MAX_SESSIONS,
    "max_total_bytes": MAX_TOTAL_BYTES,
    "crowded_at": 1,
    "per_client": {**UNLIMITED, "max_waiting": CLIENTS},
    "per_session": {"read": UNLIMITED["read"]},
    "long_poll": {"max_waiting": CLIENTS},
}

_ = start  # a fixture


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver whose room for sessions, bytes and waiting requests is known, which tells of nothing wrong."""
    homeserver = serve(tmp_path_factory.mktemp("homeserver"), CONFIG)
    try:
        homeserver.start()
        begun = len(homeserver.log.read_text(errors="replace"))
        yield homeserver
    finally:
        homeserver.stop()
    assert_clean(homeserver)
    warnings = re.findall(r".* - WARNING - .*", homeserver.log.read_text(errors="replace")[begun:])
    # The tests find out how much room there is, and slowhttptest asks without a proxy.
    expected = ("over a limit and refused in the last minute: max_", "without a usable client address")
    assert [] == [line for line in warnings if not any(words in line for words in expected)]


class Slow(NamedTuple):
    """A connection whose other end is not to be relied on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, sent: bytes) -> "Slow":
        """Connect, and send something."""
        reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
        writer.write(sent)
        await writer.drain()
        return cls(reader, writer)

    def reset(self) -> None:
        """Break the connection, so that the server cannot but notice."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def request(method: str, path: str, *fields: str, content: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: x", "X-Forwarded-For: 203.0.113.1", "X-Forwarded-Proto: https"]
    return "\r\n".join([*head, *fields, f"Content-Length: {len(content)}", "", ""]).encode() + content


@asynccontextmanager
async def honest_pairing(port: int) -> AsyncIterator[Honest]:
    """Let honest clients pair while a `with` statement lasts, and for a second before it ends."""
    honest = Honest(port)
    async with honest.pairing():
        yield honest
        await asyncio.sleep(1)
    assert honest.completed["quiet"]
    print(honest)


async def assert_room(port: int, *, sessions: int, total_bytes: int) -> None:
    """Fail unless so many more sessions fit, and so many bytes; what that takes is removed again."""
    connection = await Connection.open(port)

    async def fill(sizes: Iterator[int]) -> list[int]:
        """Create sessions until one is refused; return the sizes of those that fitted, and end them."""
        fitted = []
        for size in sizes:
            created = await connection.ask("POST", PATH, b"x" * size, X_Forwarded_For="203.0.113.2")
            if created.status == 429:
                break
            fitted.append((size, f"{PATH}/{json.loads(created.body)['id']}"))
        for _, path in fitted:
            assert 204 == (await connection.ask("DELETE", path, X_Forwarded_For="203.0.113.2")).status
        return [size for size, _ in fitted]

    assert sessions == len(await fill(itertools.repeat(0)))
    whole, rest = divmod(total_bytes, 10_000)
    assert [10_000] * whole + [rest] == await fill(iter([10_000] * whole + [rest, 1]))
    connection.close()


async def create(port: int, count: int, content: bytes) -> list[tuple[str, str]]:
    """Create sessions; return their paths and tags."""
    connection = await Connection.open(port)
    answers = [await connection.ask("POST", PATH, content, X_Forwarded_For="203.0.113.2") for _ in range(count)]
    connection.close()
    return [(f"{PATH}/{json.loads(answer.body)['id']}", answer.etag) for answer in answers]


async def delete(port: int, paths: list[str]) -> None:
    connection = await Connection.open(port)
    for path in paths:
        assert 204 == (await connection.ask("DELETE", path, X_Forwarded_For="203.0.113.2")).status
    connection.close()


def test_unfinished_requests(homeserver: ThrowawayHomeserver) -> None:
    """What has not come to its end has not begun: it takes no session, no byte and no place."""
    port = port_of(homeserver)
    kinds = (
        ("half a header", b"Content-Length: 1000\r\nX-Hal", b""),
        ("half a body", b"Content-Length: 1000\r\n\r\n" + b"x" * 500, b""),
        ("a body without an end", b"Transfer-Encoding: chunked\r\n\r\n", b"10\r\n0123456789abcdef\r\n"),
    )

    async def be_slow() -> None:
        ((path, _),) = await create(port, 1, b"hello")
        slow = []
        async with honest_pairing(port):
            for (_, begin, more), number in itertools.product(kinds, range(CLIENTS)):
                line = (f"POST {PATH}", f"PUT {path}")[number % 2] + " HTTP/1.1\r\nHost: x\r\n"
                slow.append((await Slow.open(port, line.encode() + begin), more))
            for _ in range(5):
                for one, more in slow:
                    one.writer.write(more)
                await asyncio.sleep(0.1)
        await assert_room(port, sessions=MAX_SESSIONS - 1, total_bytes=MAX_TOTAL_BYTES - 5)
        for one, _ in slow[::2]:
            one.reset()
        for one, _ in slow[1::2]:
            one.writer.close()
        await assert_room(port, sessions=MAX_SESSIONS - 1, total_bytes=MAX_TOTAL_BYTES - 5)
        assert (200, b"hello") == ask(homeserver.url + path, "GET", X_Forwarded_Proto="https")[::2]
        await delete(port, [path])

    asyncio.run(be_slow())


def test_resets_while_waiting(homeserver: ThrowawayHomeserver) -> None:
    """Each place at which a request waits is free again as soon as its connection breaks."""
    port = port_of(homeserver)

    async def be_slow() -> None:
        sessions = await create(port, CLIENTS // 4, b"hello")
        held = [request("GET", f"{path}?timeout=60000", f"If-None-Match: {tag}") for path, tag in sessions] * 4
        async with honest_pairing(port):
            for _ in range(3):
                slow = [await Slow.open(port, sent) for sent in held]
                await asyncio.sleep(0.5)
                assert not any(one.reader._buffer for one in slow)  # type: ignore[attr-defined]
                beyond = await Slow.open(port, held[0])  # answered at once, since all places are taken
                assert (await asyncio.wait_for(beyond.reader.readline(), 5)).startswith(b"HTTP/1.1 304 ")
                for one in [*slow, beyond]:
                    one.reset()
                await asyncio.sleep(0.2)
        await delete(port, [path for path, _ in sessions])
        await assert_room(port, sessions=MAX_SESSIONS, total_bytes=MAX_TOTAL_BYTES)

    asyncio.run(be_slow())


def test_resets_in_answers(homeserver: ThrowawayHomeserver) -> None:
    """Who does not read the answer has created, written and ended all the same, and nothing is counted twice."""
    port = port_of(homeserver)

    async def break_off(sent: list[bytes]) -> list[str]:
        """Send each on a connection of its own, and break that when the head of the answer has come."""
        heads = []
        for one in [await Slow.open(port, request) for request in sent]:
            heads.append((await one.reader.readuntil(b"\r\n\r\n")).decode())
            assert heads[-1].startswith("HTTP/1.1 20")
            one.reset()
        return heads

    async def be_slow() -> None:
        async with honest_pairing(port):
            heads = await break_off([request("POST", PATH, content=b"x" * 100)] * CLIENTS)
        await assert_room(port, sessions=MAX_SESSIONS - CLIENTS, total_bytes=50_000)
        ((path, _),) = await create(port, 1, b"x" * 10_000)
        sessions = await create(port, 50, b"x" * 200)
        async with honest_pairing(port):
            await break_off([request("GET", path) * 50] * CLIENTS)  # 500 KB, of which most never leaves
            await break_off([request("PUT", path, content=b"x" * 100) for path, _ in sessions])
        await assert_room(port, sessions=MAX_SESSIONS - CLIENTS - 51, total_bytes=50_000 - 10_000 - 50 * 100)
        await break_off([request("DELETE", path) for path, _ in sessions])
        await assert_room(port, sessions=MAX_SESSIONS - CLIENTS - 1, total_bytes=50_000 - 10_000)
        created = re.findall(r"^Location: (\S+)", "".join(heads), re.MULTILINE | re.IGNORECASE)
        await delete(port, [path, *created])
        await assert_room(port, sessions=MAX_SESSIONS, total_bytes=MAX_TOTAL_BYTES)

    asyncio.run(be_slow())


@needs("slowhttptest", "slowhttptest")
@needs("nginx", "nginx-light")
@pytest.mark.parametrize("behind", ["Synapse", "nginx"])
def test_slowhttptest(
    homeserver: ThrowawayHomeserver,
    tmp_path: pathlib.Path,
    start: Callable[..., "subprocess.Popen[bytes]"],
    behind: str,
) -> None:
    """While slowhttptest attacks in three ways, with most of the 512 connections that nginx has, pairings go on."""
    url = homeserver.url
    if behind == "nginx":
        url = start_nginx(tmp_path, start, render("nginx", upstream=url.removeprefix("http://")), url)
    port = urlsplit(url).port
    assert port is not None
    slow = f"-c 120 -r 120 -i 1 -x 24 -p 5 -l {SLOW_S} -u {url}"

    async def attack() -> None:
        ((path, _),) = await create(port, 1, b"x" * 10_000)
        commands = {
            "headers": f"slowhttptest -H {slow}{PATH}",
            "body": f"slowhttptest -B {slow}{PATH}",
            "read": f"slowhttptest -X -w 10 -y 20 -n 1 -z 32 -k 3 {slow}{path}",
        }
        async with honest_pairing(port):
            attacking = [start(name, *command.split()) for name, command in commands.items()]
            for process in attacking:
                await asyncio.to_thread(process.wait, SLOW_S + 30)
        for name in commands:
            said = (tmp_path / f"{name}.log").read_text(errors="replace")
            assert re.search(r"service available:\S* *\S*YES", said), said
        await delete(port_of(homeserver), [path])
        await assert_room(port_of(homeserver), sessions=MAX_SESSIONS, total_bytes=MAX_TOTAL_BYTES)

    asyncio.run(attack())
