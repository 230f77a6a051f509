"""One client's connection: requests as bytes, one after the other, with as little work as possible in between."""

import socket
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 60


class BenchmarkError(Exception):
    """Why there is no result: one sentence, for whoever started the benchmark."""


class Request(NamedTuple):
    """What is asked.

    Attributes:
        method: of the request.
        target: path and query.
        fields: header fields; Host and Content-Length are added.
        content: the body, if there is one.
    """

    method: str
    target: str
    fields: Mapping[str, str] = {}
    content: bytes | None = None

    def raw(self, host: str, client: str | None = None) -> bytes:
        """Return it as it is sent to this host, by a proxy if it is for a client of another address."""
        more = {} if client is None else {"X-Forwarded-For": client, "X-Forwarded-Proto": "https"}
        if self.content is not None:
            more["Content-Length"] = str(len(self.content))
        head = [f"{name}: {value}\r\n" for name, value in {"Host": host, **self.fields, **more}.items()]
        return f"{self.method} {self.target} HTTP/1.1\r\n{''.join(head)}\r\n".encode("ascii") + (self.content or b"")


class Answer(NamedTuple):
    """What was answered.

    Attributes:
        status: the code.
        fields: the header fields, by their names in lower case.
        content: the body, b"" if there is none.
    """

    status: int
    fields: Mapping[str, str]
    content: bytes


class Connection:
    """A connection that is kept, to be used in a `with` statement.

    Args:
        url: of the server.
        client: the address that a proxy would say it has.
    """

    def __init__(self, url: str, client: str | None = None) -> None:
        address = urlsplit(url)
        self._host = address.netloc
        self._client = client
        self._socket = socket.create_connection((address.hostname, address.port or 80), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answers = self._socket.makefile("rb")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_error: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, request: Request) -> Answer:
        """Send a request and return its answer."""
        self._socket.sendall(request.raw(self._host, self._client))
        line = self._line()
        fields = {}
        while field := self._line():
            name, _, value = field.partition(": ")
            fields[name.lower()] = value
        return Answer(int(line[9:12]), fields, self._content(fields))

    def _content(self, fields: Mapping[str, str]) -> bytes:
        if fields.get("transfer-encoding") != "chunked":
            return self._answers.read(int(fields.get("content-length", 0)))
        content = b""
        while length := int(self._line(), 16):
            content += self._answers.read(length)
            self._line()
        self._line()
        return content

    def _line(self) -> str:
        line = self._answers.readline()
        if not line:
            raise BenchmarkError("A server closed a connection instead of answering.")
        return line.decode("latin-1").rstrip("\r\n")
