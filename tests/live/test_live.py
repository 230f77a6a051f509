"""The protocol over sockets, against a Synapse process."""

import asyncio
import pathlib
import time
from collections.abc import Awaitable, Iterator
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from support.homeservers import new_homeserver, resident_bytes, running
from support.http_client import Answer, Client, ask
from support.wire import Wire
from synapse_rendezvous.demo.throwaway_homeserver import DidNotStart, ThrowawayHomeserver

PATH = "/_synapse/client/rendezvous"


async def check(answer: Awaitable[Answer]) -> Answer:
    """Return an answer, which pages of other origins may read."""
    checked = await answer
    assert "*" == checked.headers["Access-Control-Allow-Origin"]
    return checked


def test_rendezvous(homeserver: ThrowawayHomeserver) -> None:
    """A whole rendezvous of two devices: create, read, poll, answer, conflict, end."""

    async def play() -> None:
        text = {"Content-Type": "text/plain"}
        async with Client() as new, Client() as known:
            created = await check(new.ask("POST", homeserver.url + PATH, b"", text))
            assert 200 == created.status
            url = created.json()["url"]
            read = await check(known.ask("GET", url))
            assert (200, b"") == read.seen()[:2]
            written = await check(known.ask("PUT", url, b"\x00\xffanswer", text, If_Match=read.etag))
            assert 202 == written.status
            polled = await check(new.ask("GET", url, If_None_Match=created.etag))
            assert (200, b"\x00\xffanswer") == polled.seen()[:2]
            assert ["text/plain"] == polled.headers.getall("Content-Type")
            idle = await check(new.ask("GET", url, If_None_Match=polled.etag))
            assert (304, polled.etag) == (idle.status, idle.etag)
            stale = await check(known.ask("PUT", url, b"stale", If_Match=created.etag))
            assert (412, polled.etag, "M_UNKNOWN") == (stale.status, stale.etag, stale.json()["errcode"])
            assert 204 == (await check(new.ask("DELETE", url))).status
            gone = await check(known.ask("GET", url))
            assert (404, "M_NOT_FOUND") == (gone.status, gone.json()["errcode"])

    asyncio.run(play())


def test_race(homeserver: ThrowawayHomeserver) -> None:
    """Of two writers who saw the same revision, one wins, each time, and the loser learns its tag."""

    async def play() -> None:
        async with Client() as one, Client() as other:
            created = await check(one.ask("POST", homeserver.url + PATH, b"start"))
            url, tag = created.json()["url"], created.etag
            for turn in range(100):
                puts = [
                    device.ask("PUT", url, b"%d %d" % (turn, number), If_Match=tag)
                    for number, device in enumerate((one, other))
                ]
                answers = await asyncio.gather(*map(check, puts))
                assert [202, 412] == sorted(answer.status for answer in answers)
                (tag,) = {answer.etag for answer in answers}
                assert tag

    asyncio.run(play())


@pytest.fixture
def wire(homeserver: ThrowawayHomeserver) -> Iterator[Wire]:
    with Wire(homeserver.url) as wire:
        yield wire


def create(wire: Wire, content: bytes = b"hello", *headers: bytes) -> tuple[str, bytes]:
    created = wire.ask("POST", PATH, *headers, content=content)
    assert 200 == created.status
    return f"{PATH}/{created.json()['id']}", created.etag.encode()


def test_no_content(wire: Wire) -> None:
    """204 and 304 have neither length nor type nor content: the connection goes on in step behind them."""
    path, tag = create(wire)
    for method, headers, expected in (("GET", [b"If-None-Match: " + tag], 304), ("DELETE", [], 204)):
        answer = wire.ask(method, path, *headers)
        assert expected == answer.status
        assert not {"content-length", "content-type", "transfer-encoding"} & {name.lower() for name in answer.headers}
    gone = wire.ask("GET", path)
    assert (404, "M_NOT_FOUND") == (gone.status, gone.json()["errcode"])


def test_head(wire: Wire) -> None:
    """HEAD has the header of GET and nothing behind it."""
    path, _ = create(wire)
    (head, head_fields, _), (get, get_fields, body) = wire.ask("HEAD", path), wire.ask("GET", path)

    assert (200, 200, b"hello") == (head, get, body)
    for fields in (head_fields, get_fields):
        fields.popone("Date")
    assert get_fields == head_fields


def test_chunked_in_single_bytes(wire: Wire) -> None:
    """A chunked body is as good as one with a length, however it arrives, to the last byte that is allowed."""
    payload = bytes(range(256)) * 40
    assert 10240 == len(payload)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
    chunks = b"1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (payload[:1], len(payload) - 1, payload[1:])
    wire.send(*(bytes([byte]) for byte in head + chunks))
    created = wire.receive()
    assert 200 == created.status
    path = f"{PATH}/{created.json()['id']}"

    assert payload == wire.ask("GET", path).content
    for method, target in (("POST", PATH), ("PUT", path)):
        wire.send(
            b"%s %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % (method.encode(), target.encode()),
            b"1\r\nx\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload),
        )
        refused = wire.receive()
        assert (413, "M_TOO_LARGE") == (refused.status, refused.json()["errcode"])
        assert ["*"] == refused.headers.getall("Access-Control-Allow-Origin")
    assert payload == wire.ask("GET", path).content


def test_large_bodies(wire: Wire, homeserver: ThrowawayHomeserver) -> None:
    """Bodies far over the limit are refused without being read into memory."""
    before = resident_bytes(homeserver.pid)
    for _ in range(5):
        refused = wire.ask("POST", PATH, content=b"x" * 12_000_000)
        assert (413, "M_TOO_LARGE") == (refused.status, refused.json()["errcode"])
    assert resident_bytes(homeserver.pid) - before < 12_000_000


def test_form(wire: Wire) -> None:
    """The type that curl gives to data is a type like any other."""
    path, _ = create(wire, b"a=b&c", b"Content-Type: application/x-www-form-urlencoded")
    status, headers, content = wire.ask("GET", path)
    assert (200, b"a=b&c") == (status, content)
    assert ["application/x-www-form-urlencoded"] == headers.getall("Content-Type")


def test_odd_bytes_in_headers(wire: Wire) -> None:
    """Field values may hold any byte that HTTP lets through."""
    path, tag = create(wire)
    for value in (bytes(range(128, 256)), b"\x01\x02\x7f", b'"' * 50, b"," * 5000, b'W/"', b"*,*", b""):
        assert 412 == wire.ask("PUT", path, b"If-Match: " + value).status
        assert 200 == wire.ask("GET", path, b"If-None-Match: " + value).status
        for name in (b"If-Modified-Since", b"If-Unmodified-Since", b"Sec-Fetch-Site", b"Range", b"User-Agent"):
            assert 200 == wire.ask("GET", path, name + b": " + value).status
    assert 202 == wire.ask("PUT", path, b"If-Match: " + b'"x", ' * 1000 + tag).status


def test_a_client_that_leaves(homeserver: ThrowawayHomeserver) -> None:
    """Who hangs up in the middle of a request or an answer disturbs nobody."""
    for piece in (b"POST ", b"POST %s HTTP/1.1\r\nContent-Length: 5\r\n\r\nhel" % PATH.encode()):
        Wire(homeserver.url, piece).close()
    Wire(homeserver.url, b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % PATH.encode() * 50).close()
    with Wire(homeserver.url) as stayer:
        create(stayer)


def test_memory_is_not_lost(homeserver: ThrowawayHomeserver, wire: Wire) -> None:
    """Sessions that were ended leave nothing behind."""
    for _ in range(200):  # until the process has reached its working size
        wire.ask("DELETE", create(wire, b"x" * 10240)[0])
    before = resident_bytes(homeserver.pid)
    for _ in range(2000):
        wire.ask("DELETE", create(wire, b"x" * 10240)[0])
    assert resident_bytes(homeserver.pid) - before < 5_000_000


@pytest.mark.parametrize(
    ("settings", "config", "said"),
    [
        ({}, {"ttl": "5x"}, "must be a duration from 1s to 1h"),
        ({}, {"ttl": "5x"}, "modules.<item 0>.config.ttl"),
        ({}, {"tll": "5m"}, "did you mean ttl?"),
        ({}, {"store": "redis"}, "Set `redis: {enabled: true}`, with host and port, or remove `store`"),
        (
            {
                "experimental_features": {"msc4108_enabled": True},
                "matrix_authentication_service": {"enabled": True, "endpoint": "http://127.0.0.1:9", "secret": "x"},
            },
            {},
            "Remove experimental_features.msc4108_enabled",
        ),
    ],
)
def test_refuses_to_start(tmp_path: pathlib.Path, settings: dict[str, Any], config: dict[str, Any], said: str) -> None:
    """A mistake in homeserver.yaml stops Synapse, and the operator reads which."""
    homeserver = new_homeserver(tmp_path, config, settings)
    with pytest.raises(DidNotStart) as error:
        homeserver.start()
    assert said in str(error.value)


def test_expiry(tmp_path: pathlib.Path) -> None:
    """The end comes by itself, at the time that was promised."""

    def date(answer: Answer, name: str) -> datetime:
        return parsedate_to_datetime(answer.headers[name])

    with running(new_homeserver(tmp_path, {"ttl": "3s"})) as homeserver, Wire(homeserver.url) as wire:
        path, _ = create(wire)
        read = wire.ask("GET", path)
        assert 200 == read.status
        assert date(read, "Expires") > date(read, "Date")
        while (gone := wire.ask("GET", path)).status == 200:
            assert date(gone, "Date") <= date(read, "Expires") + timedelta(seconds=3)
            time.sleep(0.05)
        assert 404 == gone.status
        assert date(gone, "Date") > date(read, "Expires")  # so the client's own timer is first


def test_absent_config(tmp_path: pathlib.Path) -> None:
    """The module's name alone is a good configuration."""
    with running(new_homeserver(tmp_path, modules=[{"module": "synapse_rendezvous.RendezvousModule"}])) as homeserver:
        assert 300_000 == ask("GET", homeserver.url + PATH).json()["ttl_ms"]
    assert 1 == homeserver.log.read_text().count("synapse_rendezvous 0")
