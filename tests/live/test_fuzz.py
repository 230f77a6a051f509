"""Random requests against a Synapse process: nothing they hold may break it."""

import json
import os
import pathlib
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from support.homeservers import new_homeserver, resident_bytes, running
from support.random_requests import FIELDS, METHODS, PATHS, VALUES
from support.servers import ENDLESS, UNLIMITED
from support.wire import Wire

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "3000"))
CONNECTIONS = 8


class Client:
    """One connection that sends random requests and knows some sessions."""

    def __init__(self, seed: int, url: str) -> None:
        self._random = random.Random(seed)
        self._path = PATHS[seed % len(PATHS)]
        self._url = url
        self._known: list[tuple[bytes, bytes]] = []
        self.statuses: Counter[int] = Counter()

    def run(self, count: int) -> None:
        wire = Wire(self._url)
        for _ in range(count):
            method, request = self._request()
            wire.send(request)
            try:
                self._read(wire, method)
            except EOFError:  # closed between answers: what came before was not HTTP
                self.statuses[0] += 1
                wire.close()
                wire = Wire(self._url)
        wire.close()

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

    def _read(self, wire: Wire, method: bytes) -> None:
        status, headers, content = answer = wire.receive_head()
        self.statuses[status] += 1
        if status == 400 and "Content-Length" not in headers:  # Twisted's own answer to what is not HTTP
            return
        assert "*" == headers["Access-Control-Allow-Origin"], headers
        if status not in (204, 304) and method != b"HEAD":
            content = wire.receive_content(answer)
        if status >= 400:
            assert "application/json" == headers["Content-Type"], headers
            assert method == b"HEAD" or {"errcode", "error"} <= set(json.loads(content))
        if method == b"POST" and status in (200, 201):
            created = json.loads(content)
            id_ = created["id"] if "id" in created else created["url"].rpartition("/")[2]
            tag = headers["ETag"] if "ETag" in headers else created["sequence_token"]
            self._known = [*self._known[-19:], (id_.encode(), tag.encode())]


def test_random_requests(tmp_path: pathlib.Path) -> None:
    """No answer is a 500, each is well formed, the log stays clean, and the memory comes back."""
    homeserver = new_homeserver(tmp_path, {"ttl": "3s", "per_client": UNLIMITED, **ENDLESS})

    def fuzz(seed: int, count: int) -> Counter[int]:
        clients = [Client(seed + index, homeserver.url) for index in range(CONNECTIONS)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda client: client.run(count // CONNECTIONS), clients))
        return sum((client.statuses for client in clients), Counter())

    with running(homeserver):
        fuzz(seed=1000, count=5000)  # until the process has reached its working size
        before = resident_bytes(homeserver.pid)
        statuses = fuzz(seed=0, count=REQUESTS)
        time.sleep(15)  # ttl and a sweep: what is left now is lost
        growth = resident_bytes(homeserver.pid) - before

    print(f"{REQUESTS} requests: {sorted(statuses.items())}; memory grew by {growth / 1e6:.1f} MB")
    assert not [status for status in statuses if status >= 500]
    assert {200, 201, 202, 204, 304, 400, 404, 405, 409, 412, 413} <= set(statuses)
    assert growth < 10_000_000
