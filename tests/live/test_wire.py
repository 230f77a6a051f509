"""Header fields as they are on the wire: each once, and those that go with the content where there is content."""

import json
from collections import Counter

import pytest

from support.http_client import Answer
from support.wire import Wire
from synapse_rendezvous.demo.throwaway_homeserver import ThrowawayHomeserver

MSC3886 = "/_synapse/client/rendezvous"
MSC4108 = "/_synapse/client/rendezvous/msc4108"
MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"
WRITE = b'{"data": "", "sequence_token": ""}'
TEXT = b"Content-Type: text/plain"
TOO_LONG = b"x" * 10241

EVERYWHERE = {"server", "date", "access-control-allow-origin", "access-control-expose-headers"}
OURS = EVERYWHERE | {
    "cache-control",
    "pragma",
    "vary",
    "cross-origin-resource-policy",
    "x-content-type-options",
    "content-security-policy",
}


class Conversation:
    """Requests on one connection, whose answers are looked at field by field.

    Args:
        wire: the connection.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def expect(self, status: int, method: str, path: str, *headers: bytes, content: bytes = b"") -> Answer:
        """Send a request and return its answer, which must have this status and no field twice."""
        answer = self._wire.ask(method, path, *headers, content=content)
        asked = f"{method} {path}"
        assert status == answer.status, asked
        names = Counter(name.lower() for name, _ in answer.headers.items())  # its keys are there once
        assert not {name for name, times in names.items() if times > 1}, asked
        expected = EVERYWHERE if method == "OPTIONS" else OURS
        assert expected <= names.keys(), asked
        of_content = names.keys() & {"content-type", "content-length", "transfer-encoding"}
        if method == "OPTIONS":  # Synapse's own answer, which has a length of 0
            of_content.discard("content-length")
        assert (set() if status in (204, 304) else {"content-type", "content-length"}) == of_content, asked
        return answer

    def refusals(self, collection: str, session: str) -> None:
        """Expect what all dialects refuse alike."""
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            self.expect(404, method, f"{collection}/nothing", TEXT, b'If-Match: "x"', content=WRITE)
            self.expect(404, method, f"{collection}/nothing/at/all")
        for path in (collection, session):
            self.expect(405, "BREW", path)
            self.expect(204, "OPTIONS", path)


@pytest.mark.parametrize(("collection", "created"), [(MSC3886, 200), (MSC4108, 201)], ids=["msc3886", "msc4108"])
def test_with_entity_tags(homeserver: ThrowawayHomeserver, collection: str, created: int) -> None:
    """Whatever the dialects that have entity tags answer."""
    with Wire(homeserver.url) as wire:
        conversation = Conversation(wire)
        ask = conversation.expect
        for method in ("GET", "HEAD"):
            ask(200, method, collection)
        new = ask(created, "POST", collection, TEXT, content=b"hello")
        session, old = new.headers["Location"], b"If-Match: " + new.etag.encode()
        for method in ("GET", "HEAD"):
            ask(200, method, session)
            ask(304, method, session, b"If-None-Match: " + new.etag.encode())
        ask(202, "PUT", session, TEXT, old, content=b"world")
        ask(412, "PUT", session, TEXT, old, content=b"moon")
        for method, path in (("POST", collection), ("PUT", session)):
            ask(413, method, path, TEXT, old, content=TOO_LONG)
        conversation.refusals(collection, session)
        ask(204, "DELETE", session)
        ask(404, "GET", session)


def test_msc4388(homeserver: ThrowawayHomeserver) -> None:
    """Whatever MSC4388 answers."""
    with Wire(homeserver.url) as wire:
        conversation = Conversation(wire)
        ask = conversation.expect
        for method in ("GET", "HEAD"):
            ask(200, method, MSC4388)
        new = ask(200, "POST", MSC4388, content=b'{"data": "hello"}').json()
        session = f"{MSC4388}/{new['id']}"
        for method in ("GET", "HEAD"):
            ask(200, method, session)
        for status, data in ((200, "world"), (409, "moon"), (413, TOO_LONG.decode())):
            write = {"sequence_token": new["sequence_token"], "data": data}
            for path in (f"{session}/{status}", session):
                ask(status, "PUT", path, content=json.dumps(write).encode())
        for path in (f"{session}/one", f"{session}/=", session):
            ask(400, "PUT", path, content=b"{}")
        ask(405, "GET", f"{session}/one")
        ask(204, "OPTIONS", f"{session}/one")
        conversation.refusals(MSC4388, session)
        ask(200, "DELETE", session)
        ask(404, "GET", session)
