"""The page of the demonstration: a web client on an origin of its own."""

import html
import importlib.util
import io
import pathlib
import socket
import ssl
import string
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from synapse_rendezvous.demo.certificate import Certificate
from synapse_rendezvous.demo.throwaway_homeserver import origin
from synapse_rendezvous.paths import MSC3886, MSC4388

FOLDER = pathlib.Path(__file__).parent / "static"
TYPES = {".css": "text/css", ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".svg": "image/svg+xml"}
LONGEST_LINK = 1000
"""How many bytes of UTF-8 a QR code may hold; phones have trouble with more."""


class Page:
    """Serves the page, in a `with` statement.

    Args:
        homeserver_url: the homeserver whose rendezvous server the page's client uses, without a slash at its end.
        host: the IPv4 address to listen at.
        port: the port to listen at; 0 for any free one.
        certificate: for TLS; None for plain HTTP, which browsers take for secure on this machine only.

    Attributes:
        url: the page's address.

    Raises:
        OSError: it cannot listen there.
    """

    def __init__(self, *, homeserver_url: str, host: str, port: int, certificate: Certificate | None = None) -> None:
        self._server = _Server(host, port, certificate)
        self.url = f"{origin(host, self._server.server_port, is_tls=certificate is not None)}/"
        self._server.headers = {
            "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
            f" connect-src {homeserver_url};"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        self._server.files = {f"/{file.name}": file.read_bytes() for file in FOLDER.iterdir() if file.suffix in TYPES}
        index = string.Template(self._server.files["/index.html"].decode("utf-8")).substitute(
            collection=html.escape(homeserver_url + MSC3886),
            json_collection=html.escape(homeserver_url + MSC4388),
            qr="yes" if importlib.util.find_spec("segno") else "",
            certificate="yes" if certificate else "",
        )
        self._server.files["/index.html"] = index.encode("utf-8")

    def __enter__(self) -> "Page":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Knows the files by their paths, so that nothing else can be asked for."""

    files: dict[str, bytes]
    headers: dict[str, str]

    def __init__(self, host: str, port: int, certificate: Certificate | None) -> None:
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate.path, certificate.key_path)
        super().__init__((host, port), _Request)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake is left to the thread that reads the request, so that nobody who is slow holds up others.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: browsers that have not accepted the certificate hang up."""


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30  # seconds, for a client to send its request

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = "/index.html" if path == "/" else path
        if path == "/qr.svg":
            text = urllib.parse.parse_qs(query).get("text", [""])[0]
            if 0 < len(text.encode()) <= LONGEST_LINK:
                self._answer(_qr_code(text), ".svg")
            else:
                self.send_error(400, explain=f"text must have from 1 to {LONGEST_LINK} bytes of UTF-8")
        else:
            self._answer(self.server.files.get(path), pathlib.PurePath(path).suffix)

    def _answer(self, content: bytes | None, suffix: str) -> None:
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", TYPES[suffix])
        self.send_header("Content-Length", str(len(content)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: what is asked for is on the page."""


def _qr_code(text: str) -> bytes | None:
    try:
        import segno
    except ImportError:
        return None
    image = io.BytesIO()
    segno.make(text, error="m", micro=False).save(image, kind="svg", xmldecl=False, scale=8, light="white")
    return image.getvalue()
