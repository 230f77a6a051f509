"""Two devices that pair by MSC4108, as strict as the clients that people use."""

import gzip
from collections.abc import Mapping
from urllib.parse import urlsplit

from support.http_client import Answer, NoAnswer, ask

PATH = "/_synapse/client/rendezvous/msc4108"
MESSAGES = [f"{number} {'a line of JSON, or as good as that; ' * 60}".encode() for number in range(3)]
"""What is said: each about 2 kB, as the longest of a real sign-in are."""

_TEXT = {"Content-Type": "text/plain"}


class PairingFailed(Exception):
    """The devices do not get to the end; the message says where."""


class Device:
    """A device of one person, on whose requests nothing is imposed but HTTP.

    Args:
        url: the homeserver's address, without a slash at its end.
        address: where the device is, one of 127.0.0.0/8.

    Attributes:
        tag: the last ETag seen.
    """

    def __init__(self, url: str, address: str) -> None:
        self._url = url
        self._address = address
        self.tag: str | None = None

    def ask(self, method: str, path: str, fields: Mapping[str, str], content: bytes | None = None) -> Answer:
        """Send a request; each on a connection of its own, so that proxies may choose anew among servers."""
        fields = {"Accept-Encoding": "gzip", **fields}
        try:
            answer = ask(method, self._url + path, content or b"", fields, address=self._address)
        except NoAnswer as error:
            raise PairingFailed(f"no answer: {error}") from error
        if answer.headers.get("Content-Encoding") == "gzip" and answer.content:
            return answer._replace(content=gzip.decompress(answer.content))
        return answer

    def create(self) -> str:
        """Create a session without a payload and return its path."""
        answer = self.ask("POST", PATH, _TEXT, b"")
        if answer.status != 201:
            raise PairingFailed(f"POST got {answer.status}")
        self._remember(answer)
        return str(urlsplit(answer.json()["url"]).path)

    def send(self, path: str, message: bytes) -> None:
        """Replace the payload."""
        raise NotImplementedError

    def receive(self, path: str) -> bytes | None:
        """Poll once; return the payload if it is a new one."""
        raise NotImplementedError

    def _remember(self, answer: Answer) -> None:
        raise NotImplementedError

    def _conditions(self, name: str) -> dict[str, str]:
        return {} if self.tag is None else {name: self.tag}


class Phone(Device):
    """Goes by matrix-rust-sdk: three headers on each answer, and nothing but success."""

    def send(self, path: str, message: bytes) -> None:
        """Replace the payload; any refusal is the end."""
        answer = self.ask("PUT", path, {**_TEXT, **self._conditions("If-Match")}, message)
        if answer.status != 202:
            raise PairingFailed(f"PUT got {answer.status}")
        self._remember(answer)

    def receive(self, path: str) -> bytes | None:
        """Poll once; any refusal, and any other type, is the end."""
        answer = self.ask("GET", path, self._conditions("If-None-Match"))
        if answer.status not in (200, 304):
            raise PairingFailed(f"GET got {answer.status}")
        self._remember(answer)
        if answer.status == 304:
            return None
        if answer.headers.getall("Content-Type", []) != ["text/plain"]:
            raise PairingFailed(f"GET got the type {answer.headers.get('Content-Type')}")
        return answer.content

    def _remember(self, answer: Answer) -> None:
        missing = [name for name in ("ETag", "Expires", "Last-Modified") if name not in answer.headers]
        if missing:
            raise PairingFailed(f"{answer.status} without {', '.join(missing)}")
        self.tag = answer.headers.get("ETag")


class Browser(Device):
    """Goes by matrix-js-sdk on a page of another origin: CORS on each answer, and little care for the status."""

    _ORIGIN = "https://app.example.org"
    # What a page may send without asking first (Fetch standard), for the types that are used here.
    _SAFE_METHODS = ("GET", "POST")
    _SAFE_FIELDS = ("accept-encoding", "content-type")

    def ask(self, method: str, path: str, fields: Mapping[str, str], content: bytes | None = None) -> Answer:
        """Send a request as a page may, and return what the page may see of the answer."""
        unsafe = sorted(name.lower() for name in fields if name.lower() not in self._SAFE_FIELDS)
        if unsafe or method not in self._SAFE_METHODS:
            asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": ",".join(unsafe)}
            allowed = super().ask("OPTIONS", path, {"Origin": self._ORIGIN, **asked})
            self._check_origin(allowed)
            if not 200 <= allowed.status < 300:
                raise PairingFailed(f"the preflight got {allowed.status}")
            if method not in self._SAFE_METHODS and method not in _list(allowed, "Access-Control-Allow-Methods"):
                raise PairingFailed(f"the preflight does not allow {method}")
            names = {name.lower() for name in _list(allowed, "Access-Control-Allow-Headers")}
            if not names.issuperset(unsafe):
                raise PairingFailed(f"the preflight allows only {names}")
        answer = super().ask(method, path, {"Origin": self._ORIGIN, **fields}, content)
        self._check_origin(answer)
        if "ETag" in answer.headers and "ETag" not in _list(answer, "Access-Control-Expose-Headers"):
            del answer.headers["ETag"]
        return answer

    def send(self, path: str, message: bytes) -> None:
        """Replace the payload; only 404 is the end, any other refusal is taken for success."""
        answer = self.ask("PUT", path, {**_TEXT, **self._conditions("If-Match")}, message)
        if answer.status == 404:
            raise PairingFailed("PUT got 404")
        self._remember(answer)

    def receive(self, path: str) -> bytes | None:
        """Poll once; a payload of another type is overlooked."""
        answer = self.ask("GET", path, self._conditions("If-None-Match"))
        if answer.status == 404:
            raise PairingFailed("GET got 404")
        is_text = answer.headers.getall("Content-Type", []) == ["text/plain"]
        if answer.status == 200 and is_text:
            self._remember(answer)
            return answer.content
        if not is_text:
            self._remember(answer)
        return None

    def _remember(self, answer: Answer) -> None:
        self.tag = answer.headers.get("ETag")

    @staticmethod
    def _check_origin(answer: Answer) -> None:
        origins = answer.headers.getall("Access-Control-Allow-Origin", [])
        if origins != ["*"]:
            raise PairingFailed(f"{answer.status} with Access-Control-Allow-Origin: {origins}")


def _list(answer: Answer, name: str) -> list[str]:
    return [member.strip() for line in answer.headers.getall(name, []) for member in line.split(",")]


def pair(new: Device, known: Device) -> None:
    """Let two devices find each other and say something three times, by turns.

    Raises:
        PairingFailed: they do not get to the end.
    """
    path = new.create()
    _expect(new, path, None)
    _expect(known, path, b"")
    for number, message in enumerate(MESSAGES):
        sender, receiver = (new, known) if number % 2 else (known, new)
        sender.send(path, message)
        _expect(sender, path, None)
        _expect(receiver, path, message)
        _expect(receiver, path, None)


def _expect(device: Device, path: str, message: bytes | None) -> None:
    received = device.receive(path)
    if received != message:
        raise PairingFailed(f"GET got {_worded(received)} instead of {_worded(message)}")


def _worded(message: bytes | None) -> str:
    return "nothing new" if message is None else f"the message {message[:12]!r}"
