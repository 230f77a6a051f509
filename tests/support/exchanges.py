"""What clients exchange by each of the proposals, at the real paths of these or elsewhere."""

import json
from urllib.parse import urlsplit

from support.http_client import ask

MSC4108 = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
MSC4388 = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
STABLE_MSC4388 = "/_matrix/client/v1/rendezvous"


def exchange_msc4108(create_url: str, base: str) -> None:
    """Create as Element X does, follow a redirect, and exchange a message at the session's URL, seen from `base`."""
    text = {"Content-Type": "text/plain"}
    created = ask("POST", create_url, b"", text)
    if created.status == 307:
        created = ask("POST", created.headers["Location"], b"", text)
    assert created.status == 201
    session = base + urlsplit(created.json()["url"]).path
    assert ask("PUT", session, b"hello", text, If_Match=created.etag).status == 202
    read = ask("GET", session)
    assert (read.status, read.content, read.headers["Content-Type"]) == (200, b"hello", "text/plain")
    assert ask("GET", session, If_None_Match=read.etag).status == 304
    allowed = ask("OPTIONS", session).headers["Access-Control-Allow-Headers"]
    assert {"If-Match", "If-None-Match"} <= set(allowed.split(", "))


def exchange_msc4388(url: str) -> None:
    """Discover, create, write, read and end at the homeserver's own path."""
    offer = ask("GET", url)
    assert (offer.status, offer.json()) == (200, {"create_available": True, "max_wait_ms": 10000})
    answer = ask("POST", url, b'{"data": ""}')
    created = answer.json()
    session = f"{url}/{created['id']}"
    write = json.dumps({"sequence_token": created["sequence_token"], "data": "hello"}).encode()
    written, again = ask("PUT", f"{session}/one", write), ask("PUT", f"{session}/one", write)
    assert (answer.status, written.status, again.json()) == (200, 200, written.json())
    write = json.dumps({**written.json(), "data": "hello"}).encode()
    assert ask("PUT", session, write).status == 200
    read = ask("GET", session)
    assert (read.status, read.json()["data"]) == (200, "hello")
    assert "Authorization" in ask("OPTIONS", session).headers["Access-Control-Allow-Headers"]
    assert (ask("DELETE", session).status, ask("GET", session).status) == (200, 404)
