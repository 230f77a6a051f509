"""Random requests against a Synapse process: nothing they hold may break it."""

import asyncio
import json
import os
import pathlib
import random
from collections import Counter

from conftest import assert_clean

from support.random_requests import FIELDS, METHODS, PATHS, VALUES
from support.servers import ENDLESS, UNLIMITED
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver, free_port

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "10000"))
CONNECTIONS = 8


class Client:
    """One connection that sends random requests and knows some sessions."""

    def __init__(self, seed: int, port: int) -> None:
        self._random = random.Random(seed)
        self._path = PATHS[seed % len(PATHS)]
        self._port = port
        self._known: list[tuple[bytes, bytes]] = []
        self.statuses: Counter[int] = Counter()

    async def run(self, count: int) -> None:
        reader, writer = await asyncio.open_connection(HOST, self._port)
        for _ in range(count):
            method, request = self._request()
            writer.write(request)
            try:
                await asyncio.wait_for(self._read(reader, method), 60)
            except asyncio.IncompleteReadError as error:
                assert not error.partial  # closed between answers: what came before was not HTTP
                self.statuses[0] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(HOST, self._port)
        writer.close()

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def _request(self) -> tuple[bytes, bytes]:
        pick = self._random.choice
        method = pick(METHODS)
        session, tag = pick(self._known) if self._known else (b"x" * 22, b'"x"')
        below = b"/" + session if method != b"POST" else b""
        if self._random.random() < 0.2:
            odd = b"".join(b"%%%02x" % byte if byte < 33 or byte > 126 else bytes([byte]) for byte in self._bytes(40))
            below = pick([b"/", b"//", b"/" + session + b"/", b"/..", b"?" + odd, b"/" + odd, b"/%2e" + session, below])
        fields = []
        for _ in range(self._random.randrange(4)):
            # Not the bytes that end a line in some alphabet: with these in the Content-Type of a POST, Twisted drops
            # the connection and logs an error before it looks for a resource.
            noise = self._bytes(60).translate(None, b"\0\n\v\f\r\x1c\x1d\x1e\x85")
            fields.append(pick(FIELDS) + b": " + pick([*VALUES, noise, tag, tag, b"W/" + tag, tag[:-1] + b'-gzip"']))
        if self._random.random() < 0.5:
            fields.append(b"Content-Type: text/plain")
        body = b""
        if method in (b"PUT", b"POST", b"PATCH"):
            token = tag.strip(b'"')
            fine = b'{"data": "%d", "sequence_token": "%b"}' % (self._random.randrange(3), token)
            body = pick([b"", b"\0", self._bytes(2000), b"x" * 10240, b"x" * 10241, b"x" * 4096, b"x" * 4097])
            body = pick([body, fine, fine, fine.replace(b":", pick([b"", b": [", b": {}"])), b"[" * 9999])
        if self._random.random() < 0.2:
            cut = self._random.randrange(len(body) + 1)
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
            fields.append(b"Transfer-Encoding: chunked")
            body = chunks + b"0\r\n\r\n"
        else:
            fields.append(b"Content-Length: %d" % len(body))
        return method, b"\r\n".join([method + b" " + self._path + below + b" HTTP/1.1", b"Host: x", *fields, b"", body])

    async def _read(self, reader: asyncio.StreamReader, method: bytes) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split()[1])
        self.statuses[status] += 1
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if status == 400 and b"content-length" not in fields:  # Twisted's own answer to what is not HTTP
            return
        assert b"*" == fields[b"access-control-allow-origin"], head
        content = b""
        if status not in (204, 304) and method != b"HEAD":
            content = await reader.readexactly(int(fields[b"content-length"]))
        if status >= 400:
            assert b"application/json" == fields[b"content-type"], head
            assert method == b"HEAD" or {"errcode", "error"} <= set(json.loads(content))
        if method == b"POST" and status in (200, 201):
            created = json.loads(content)
            id_ = created["id"] if "id" in created else created["url"].rpartition("/")[2]
            tag = fields[b"etag"] if b"etag" in fields else created["sequence_token"].encode()
            self._known = [*self._known[-19:], (id_.encode(), tag)]


def test_random_requests(tmp_path: pathlib.Path) -> None:
    """No answer is a 500, each is well formed, the log stays clean, and the memory comes back."""
    config = {"ttl": "3s", "per_client": UNLIMITED, **ENDLESS}
    homeserver = ThrowawayHomeserver(
        tmp_path,
        port=free_port(),
        modules=[{"module": "synapse_rendezvous.RendezvousModule", "config": config}],
    )
    port = int(homeserver.url.rpartition(":")[2])

    def resident_bytes() -> int:
        return int(pathlib.Path(f"/proc/{homeserver.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def fuzz(seed: int, count: int) -> Counter[int]:
        clients = [Client(seed + index, port) for index in range(CONNECTIONS)]
        await asyncio.gather(*(client.run(count // CONNECTIONS) for client in clients))
        return sum((client.statuses for client in clients), Counter())

    try:
        homeserver.start()
        asyncio.run(fuzz(seed=1000, count=5000))  # until the process has reached its working size
        before = resident_bytes()
        statuses = asyncio.run(fuzz(seed=0, count=REQUESTS))
        asyncio.run(asyncio.sleep(15))  # ttl and a sweep: what is left now is lost
        growth = resident_bytes() - before
    finally:
        homeserver.stop()
    assert_clean(homeserver)

    print(f"{REQUESTS} requests: {sorted(statuses.items())}; memory grew by {growth / 1e6:.1f} MB")
    assert not [status for status in statuses if status >= 500]
    assert {200, 201, 202, 204, 304, 400, 404, 405, 409, 412, 413} <= set(statuses)
    assert growth < 10_000_000
