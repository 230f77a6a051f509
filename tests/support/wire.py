"""Connections on which any bytes can be sent, also such as are not HTTP, or come to no end."""

import re
import select
import socket
import struct
from urllib.parse import urlsplit

from multidict import CIMultiDict

from support.http_client import PATIENCE_S, Answer


class Wire:
    """A connection on which bytes are sent, and answers are read as they come. To be used in a `with` statement.

    Args:
        url: the server.
        sent: what is sent at once.
    """

    def __init__(self, url: str, sent: bytes = b"") -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port or 80), timeout=PATIENCE_S)
        self._stream = self._socket.makefile("rb")
        self.send(sent)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *pieces: bytes) -> None:
        """Send these bytes, a piece at a time."""
        for piece in pieces:
            self._socket.sendall(piece)

    def ask(self, method: str, path: str, *headers: bytes, content: bytes = b"") -> Answer:
        """Send a request with these header lines, and return its answer."""
        self.send(request(method, path, *headers, content=content))
        return self.receive(head=method == "HEAD")

    def receive(self, *, head: bool = False) -> Answer:
        """Return the next answer, whose content has a length; interim answers are passed over.

        Args:
            head: whether it has no content whatever it says, since it answers HEAD.

        Raises:
            EOFError: the connection ended before it began.
        """
        answer = self.receive_head()
        if head or answer.status in (204, 304):
            return answer
        return answer._replace(content=self.receive_content(answer))

    def receive_head(self) -> Answer:
        """Return the next answer as far as its header goes; interim answers are passed over.

        Raises:
            EOFError: the connection ended before it began.
        """
        line = self._stream.readline()
        if not line:
            raise EOFError
        assert re.fullmatch(rb"HTTP/1\.1 \d{3} [^\r\n]*\r\n", line), line
        headers: CIMultiDict[str] = CIMultiDict()
        while (field := self._stream.readline()) != b"\r\n":
            assert field.endswith(b"\r\n"), "the connection ended in the header"
            name, _, value = field.decode("latin-1").partition(":")
            headers.add(name, value.strip())
        status = int(line[9:12])
        return self.receive_head() if status == 100 else Answer(status, headers, b"")

    def receive_content(self, answer: Answer) -> bytes:
        """Return the content behind the header of an answer, which says its length."""
        length = int(answer.headers["Content-Length"])
        content = self._stream.read(length)
        assert length == len(content), "the connection ended in the content"
        return content

    def is_silent(self) -> bool:
        """Tell whether nothing has come yet, neither a byte nor the end."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def reset(self) -> None:
        """Break the connection, so that the server cannot but notice."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._stream.close()
        self._socket.close()


def request(method: str, path: str, *headers: bytes, content: bytes = b"") -> bytes:
    """Return a request with these header lines as it is on the wire."""
    head = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: x", *headers, b"Content-Length: %d" % len(content)]
    return b"\r\n".join([*head, b"", content])
