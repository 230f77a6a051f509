"""The protocol over sockets, against a Synapse process."""

import http.client
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import treq
from conftest import assert_clean
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import TestCase
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from synapse_rendezvous.demo.throwaway_homeserver import DidNotStart, ThrowawayHomeserver, free_port

PATH = "/_synapse/client/rendezvous"


def connect(homeserver: ThrowawayHomeserver) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(homeserver.url.removeprefix("http://"), timeout=60)


class HandshakeTestCase(TestCase):
    """Two devices, each with its own connection."""

    @pytest.fixture(autouse=True)
    def _homeserver(self, homeserver: ThrowawayHomeserver) -> None:
        self.homeserver = homeserver

    def device(self) -> Callable[..., Coroutine[Deferred[Any], Any, IResponse]]:
        pool = HTTPConnectionPool(reactor)
        self.addCleanup(pool.closeCachedConnections)

        async def send(method: str, url: str, data: bytes | None = None, **headers: str) -> IResponse:
            fields = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
            response = await treq.request(method, url, data=data, headers=fields, pool=pool, timeout=60)
            self.assertEqual([b"*"], response.headers.getRawHeaders(b"Access-Control-Allow-Origin"))
            return response

        return send

    def etag(self, response: IResponse) -> str:
        (tag,) = response.headers.getRawHeaders("ETag")
        return str(tag)

    async def test_rendezvous(self) -> None:
        """A whole rendezvous: create, read, poll, answer, conflict, end."""
        new, known = self.device(), self.device()

        created = await new("POST", self.homeserver.url + PATH, b"", Content_Type="text/plain")
        self.assertEqual(200, created.code)
        url = (await treq.json_content(created))["url"]
        read = await known("GET", url)
        self.assertEqual((200, b""), (read.code, await treq.content(read)))
        written = await known("PUT", url, b"\x00\xffanswer", If_Match=self.etag(read), Content_Type="text/plain")
        self.assertEqual(202, written.code)
        polled = await new("GET", url, If_None_Match=self.etag(created))
        self.assertEqual((200, b"\x00\xffanswer"), (polled.code, await treq.content(polled)))
        self.assertEqual([b"text/plain"], polled.headers.getRawHeaders(b"Content-Type"))
        idle = await new("GET", url, If_None_Match=self.etag(polled))
        self.assertEqual((304, self.etag(polled)), (idle.code, self.etag(idle)))
        stale = await known("PUT", url, b"stale", If_Match=self.etag(created))
        self.assertEqual((412, self.etag(polled)), (stale.code, self.etag(stale)))
        self.assertEqual("M_UNKNOWN", (await treq.json_content(stale))["errcode"])
        self.assertEqual(204, (await new("DELETE", url)).code)
        gone = await known("GET", url)
        self.assertEqual((404, "M_NOT_FOUND"), (gone.code, (await treq.json_content(gone))["errcode"]))

    async def test_race(self) -> None:
        """Of two writers who saw the same revision, one wins, each time, and the loser learns its tag."""
        devices = [self.device(), self.device()]
        created = await devices[0]("POST", self.homeserver.url + PATH, b"start")
        url, tag = (await treq.json_content(created))["url"], self.etag(created)
        for round_ in range(100):
            puts = [
                ensureDeferred(device("PUT", url, b"%d %d" % (round_, index), If_Match=tag))
                for index, device in enumerate(devices)
            ]
            answers = [await put for put in puts]
            self.assertEqual([202, 412], sorted(answer.code for answer in answers))
            self.assertEqual(1, len({self.etag(answer) for answer in answers}))
            tag = self.etag(answers[0])
            for answer in answers:
                await treq.content(answer)


class Wire:
    """A connection on which bytes are sent and answers are read as they come."""

    def __init__(self, homeserver: ThrowawayHomeserver) -> None:
        host, port = homeserver.url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._stream = self._socket.makefile("rb")

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._socket.sendall(piece)

    def receive(self, *, head: bool = False) -> tuple[int, dict[bytes, list[bytes]], bytes]:
        """Return status, header fields by lower-case name, and content by its Content-Length."""
        status = int(self._stream.readline().split()[1])
        headers: dict[bytes, list[bytes]] = {}
        while line := self._stream.readline().strip():
            name, _, value = line.partition(b":")
            headers.setdefault(name.lower(), []).append(value.strip())
        if status in (204, 304) or head:
            return status, headers, b""
        (length,) = headers[b"content-length"]
        return status, headers, self._stream.read(int(length))

    def ask(
        self, method: str, path: str, *headers: bytes, content: bytes = b""
    ) -> tuple[int, dict[bytes, list[bytes]], bytes]:
        lines = [
            f"{method} {path} HTTP/1.1".encode("latin-1"),
            b"Host: x",
            *headers,
            b"Content-Length: %d" % len(content),
        ]
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + content)
        return self.receive(head=method == "HEAD")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@pytest.fixture
def wire(homeserver: ThrowawayHomeserver) -> Iterator[Wire]:
    wire = Wire(homeserver)
    yield wire
    wire.close()


def create(wire: Wire, content: bytes = b"hello", *headers: bytes) -> tuple[str, bytes]:
    status, fields, body = wire.ask("POST", PATH, *headers, content=content)
    assert 200 == status
    return f"{PATH}/{json.loads(body)['id']}", fields[b"etag"][0]


def test_no_content(wire: Wire) -> None:
    """204 and 304 have neither length nor type nor content: the connection goes on in step behind them."""
    path, tag = create(wire)
    for method, headers, expected in (("GET", [b"If-None-Match: " + tag], 304), ("DELETE", [], 204)):
        status, fields, _ = wire.ask(method, path, *headers)
        assert expected == status
        assert not {b"content-length", b"content-type", b"transfer-encoding"} & set(fields)
    status, _, body = wire.ask("GET", path)
    assert (404, "M_NOT_FOUND") == (status, json.loads(body)["errcode"])


def test_head(wire: Wire) -> None:
    """HEAD has the header of GET and nothing behind it."""
    path, _ = create(wire)
    (head, head_fields, _), (get, get_fields, body) = wire.ask("HEAD", path), wire.ask("GET", path)

    assert (200, 200, b"hello") == (head, get, body)
    for fields in (head_fields, get_fields):
        fields.pop(b"date")
    assert get_fields == head_fields


def test_chunked_in_single_bytes(wire: Wire) -> None:
    """A chunked body is as good as one with a length, however it arrives, to the last byte that is allowed."""
    payload = bytes(range(256)) * 40
    assert 10240 == len(payload)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
    chunks = b"1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (payload[:1], len(payload) - 1, payload[1:])
    wire.send(*(bytes([byte]) for byte in head + chunks))
    status, _, body = wire.receive()
    assert 200 == status
    path = f"{PATH}/{json.loads(body)['id']}"

    assert payload == wire.ask("GET", path)[2]
    for method, target in (("POST", PATH), ("PUT", path)):
        wire.send(
            b"%s %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % (method.encode(), target.encode()),
            b"1\r\nx\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload),
        )
        status, fields, body = wire.receive()
        assert (413, "M_TOO_LARGE") == (status, json.loads(body)["errcode"])
        assert [b"*"] == fields[b"access-control-allow-origin"]
    assert payload == wire.ask("GET", path)[2]


def test_large_bodies(wire: Wire, homeserver: ThrowawayHomeserver) -> None:
    """Bodies far over the limit are refused without being read into memory."""
    before = resident_bytes(homeserver.pid)
    for _ in range(5):
        status, _, body = wire.ask("POST", PATH, content=b"x" * 12_000_000)
        assert (413, "M_TOO_LARGE") == (status, json.loads(body)["errcode"])
    assert resident_bytes(homeserver.pid) - before < 12_000_000


def test_form(wire: Wire) -> None:
    """The type that curl gives to data is a type like any other."""
    path, _ = create(wire, b"a=b&c", b"Content-Type: application/x-www-form-urlencoded")
    status, fields, body = wire.ask("GET", path)
    assert (200, [b"application/x-www-form-urlencoded"], b"a=b&c") == (status, fields[b"content-type"], body)


def test_odd_bytes_in_headers(wire: Wire) -> None:
    """Field values may hold any byte that HTTP lets through."""
    path, tag = create(wire)
    for value in (bytes(range(128, 256)), b"\x01\x02\x7f", b'"' * 50, b"," * 5000, b'W/"', b"*,*", b""):
        assert 412 == wire.ask("PUT", path, b"If-Match: " + value)[0]
        assert 200 == wire.ask("GET", path, b"If-None-Match: " + value)[0]
        for name in (b"If-Modified-Since", b"If-Unmodified-Since", b"Sec-Fetch-Site", b"Range", b"User-Agent"):
            assert 200 == wire.ask("GET", path, name + b": " + value)[0]
    assert 202 == wire.ask("PUT", path, b"If-Match: " + b'"x", ' * 1000 + tag)[0]


def test_a_client_that_leaves(homeserver: ThrowawayHomeserver) -> None:
    """Who hangs up in the middle of a request or an answer disturbs nobody."""
    for pieces in ([b"POST "], [b"POST %s HTTP/1.1\r\nContent-Length: 5\r\n\r\nhel" % PATH.encode()]):
        leaver = Wire(homeserver)
        leaver.send(*pieces)
        leaver.close()
    leaver = Wire(homeserver)
    leaver.send(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % PATH.encode() * 50)
    leaver.close()
    stayer = Wire(homeserver)
    create(stayer)
    stayer.close()


def test_memory_is_not_lost(homeserver: ThrowawayHomeserver, wire: Wire) -> None:
    """Sessions that were ended leave nothing behind."""
    for _ in range(200):  # until the process has reached its working size
        wire.ask("DELETE", create(wire, b"x" * 10240)[0])
    before = resident_bytes(homeserver.pid)
    for _ in range(2000):
        wire.ask("DELETE", create(wire, b"x" * 10240)[0])
    assert resident_bytes(homeserver.pid) - before < 5_000_000


def resident_bytes(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


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
    homeserver = ThrowawayHomeserver(
        tmp_path,
        port=free_port(),
        modules=[{"module": "synapse_rendezvous.RendezvousModule", "config": config}],
        settings=settings,
    )
    with pytest.raises(DidNotStart) as error:
        homeserver.start()
    assert said in str(error.value)


def test_expiry(tmp_path: pathlib.Path) -> None:
    """The end comes by itself, at the time that was promised."""
    homeserver = ThrowawayHomeserver(
        tmp_path,
        port=free_port(),
        modules=[{"module": "synapse_rendezvous.RendezvousModule", "config": {"ttl": "1s"}}],
    )
    try:
        homeserver.start()
        wire = Wire(homeserver)
        path, _ = create(wire)
        status, fields, _ = wire.ask("GET", path)
        assert 200 == status
        assert parsedate_to_datetime(fields[b"expires"][0].decode()) > parsedate_to_datetime(
            fields[b"date"][0].decode()
        )
        time.sleep(1.1)
        assert 404 == wire.ask("GET", path)[0]
        wire.close()
    finally:
        homeserver.stop()
    assert_clean(homeserver)


def test_absent_config(tmp_path: pathlib.Path) -> None:
    """The module's name alone is a good configuration."""
    homeserver = ThrowawayHomeserver(
        tmp_path, port=free_port(), modules=[{"module": "synapse_rendezvous.RendezvousModule"}]
    )
    try:
        homeserver.start()
        connection = connect(homeserver)
        connection.request("GET", PATH)
        assert 300_000 == json.load(connection.getresponse())["ttl_ms"]
        connection.close()
    finally:
        homeserver.stop()
    assert_clean(homeserver)
    assert 1 == homeserver.log.read_text().count("synapse_rendezvous 0")
