"""How a client words what it asks of each server, and what it reads of the answers."""

import dataclasses
import json
from typing import ClassVar, Protocol

from connection import Answer, BenchmarkError, Request

PAYLOAD = b"x" * 1024

OPERATIONS = ("create", "poll", "read", "write", "news", "delete")
"""What a client asks for. A poll knows the current revision, news is the poll of one that knows the one before."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What a client knows of a session.

    Attributes:
        id: names it.
        tag: names its revision, in the words of the dialect: an entity tag or a sequence token.
    """

    id: str
    tag: str


class Dialect(Protocol):
    """A protocol as one server speaks it."""

    def request(self, operation: str, session: Session, payload: bytes = PAYLOAD) -> Request:
        """Return a request for one of `OPERATIONS`; to create, the session is ignored."""

    def status(self, operation: str) -> int:
        """Return the status of the answer to it."""

    def created(self, answer: Answer) -> Session:
        """Return the session that was created."""

    def tag(self, answer: Answer) -> str:
        """Return the revision that an answer tells of."""


class ETagDialect:
    """MSC3886 and MSC4108: payloads as they are, revisions by entity tags.

    Args:
        path: where sessions are.
        create_path: where they are created, if that is elsewhere.
        create_status: of the answer to a creation.
    """

    _STATUS: ClassVar = {"poll": 304, "read": 200, "write": 202, "news": 200, "delete": 204}

    def __init__(self, path: str, *, create_path: str | None = None, create_status: int = 201) -> None:
        self._path = path
        self._create_path = create_path or path
        self._create_status = create_status

    def request(self, operation: str, session: Session, payload: bytes = PAYLOAD) -> Request:
        """See `Dialect.request`."""
        text = {"Content-Type": "text/plain"}
        if operation == "create":
            return Request("POST", self._create_path, text, payload)
        target = f"{self._path}/{session.id}"
        if operation == "write":
            return Request("PUT", target, {**text, "If-Match": session.tag}, payload)
        if operation == "delete":
            return Request("DELETE", target)
        return Request("GET", target, {} if operation == "read" else {"If-None-Match": session.tag})

    def status(self, operation: str) -> int:
        """See `Dialect.status`."""
        return self._create_status if operation == "create" else self._STATUS[operation]

    def created(self, answer: Answer) -> Session:
        """See `Dialect.created`."""
        location = answer.fields.get("location") or json.loads(answer.content)["url"]
        return Session(location.rpartition("/")[2], self.tag(answer))

    def tag(self, answer: Answer) -> str:
        """See `Dialect.tag`."""
        return answer.fields["etag"]


class JSONDialect:
    """MSC4388: payloads in JSON, revisions by sequence tokens. It has no conditions, so each poll brings the data.

    Args:
        path: where sessions are created, and below which they are.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def request(self, operation: str, session: Session, payload: bytes = PAYLOAD) -> Request:
        """See `Dialect.request`."""
        known = {"sequence_token": session.tag} if operation == "write" else {}
        content = json.dumps({**known, "data": payload.decode("ascii")}).encode("ascii")
        target = f"{self._path}/{session.id}"
        if operation in ("create", "write"):
            method, target = ("POST", self._path) if operation == "create" else ("PUT", target)
            return Request(method, target, {"Content-Type": "application/json"}, content)
        return Request("DELETE" if operation == "delete" else "GET", target)

    def status(self, operation: str) -> int:
        """See `Dialect.status`."""
        return 200

    def created(self, answer: Answer) -> Session:
        """See `Dialect.created`."""
        return Session(json.loads(answer.content)["id"], self.tag(answer))

    def tag(self, answer: Answer) -> str:
        """See `Dialect.tag`."""
        return str(json.loads(answer.content)["sequence_token"])


class BareDialect(ETagDialect):
    """The requests of MSC3886 to the constants of `bare.py`."""

    def __init__(self) -> None:
        super().__init__("/_synapse/client/bare", create_status=200)

    def request(self, operation: str, session: Session, payload: bytes = PAYLOAD) -> Request:
        """See `Dialect.request`."""
        request = super().request(operation, session, payload)
        place = "read" if operation == "news" else operation
        return request._replace(target=request.target.replace("/bare", f"/bare_{place}"))


def checked(answer: Answer, dialect: Dialect, operation: str) -> Answer:
    """Return the answer to an operation.

    Raises:
        BenchmarkError: it is not what a client wants.
    """
    if answer.status != dialect.status(operation):
        raise BenchmarkError(f"A request to {operation} was answered with {answer.status}: {answer.content[:200]!r}")
    return answer
