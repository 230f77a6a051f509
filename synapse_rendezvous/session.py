"""A rendezvous session: one payload that two devices read and replace in turn."""

import os
from base64 import urlsafe_b64encode
from typing import NamedTuple

ID_LENGTH = 22
"""How many characters `new_random_id` returns: 128 random bits in unpadded base64url."""


def new_random_id() -> str:
    """Return an id that nobody can guess and that says nothing of when it was made."""
    return urlsafe_b64encode(os.urandom(16))[:ID_LENGTH].decode("ascii")


def new_tag() -> bytes:
    """Return a fresh revision tag: 80 random bits, in characters that no proxy rewrites.

    A tag is random rather than a hash of the payload, so that the same bytes written twice are two revisions
    and the reader notices both.
    """
    return os.urandom(10).hex().encode("ascii")


class Write(NamedTuple):
    """What a client wants stored.

    Attributes:
        payload: any bytes, none included.
        content_type: the Content-Type as it was sent; returned byte for byte.
    """

    payload: bytes
    content_type: bytes


class Session(NamedTuple):
    """One revision of a session.

    Attributes:
        id: names it among all sessions; a dialect's prefix and 128 random bits.
        payload: the bytes last written.
        content_type: the Content-Type they were written with.
        tag: names this revision; the entity tag without its quotes.
        previous_tag: names the revision that this one replaced; None before the first replacement.
        last_modified_ms: when the payload was written, in milliseconds since the epoch.
        expires_ms: when the session ends: at this millisecond it is gone. Fixed at creation.
        updates: how often its payload has been replaced.
        client: who created it, as `Clients.name` names clients.
    """

    id: str
    payload: bytes
    content_type: bytes
    tag: bytes
    previous_tag: bytes | None
    last_modified_ms: int
    expires_ms: int
    updates: int
    client: str

    @classmethod
    def create(cls, session_id: str, write: Write, client: str, now_ms: int, ttl_ms: int) -> "Session":
        """Return the first revision of a new session that lives for `ttl_ms` from `now_ms`."""
        # Not by `Session(...)`, here and where one is unpacked: that is a call of Python more for each request.
        return tuple.__new__(cls, (session_id, *write, new_tag(), None, now_ms, now_ms + ttl_ms, 0, client))

    def replaced(self, write: Write, now_ms: int) -> "Session":
        """Return the revision that follows this one. The end of its life stays where it was."""
        values = (self.id, *write, new_tag(), self.tag, now_ms, self.expires_ms, self.updates + 1, self.client)
        return tuple.__new__(Session, values)


class Ended(NamedTuple):
    """What is known of a session that has ended.

    Attributes:
        id: what named it.
        updates: how often its payload was replaced.
        reads: how often it was read; None where nobody counts.
        lived_ms: how long it lived.
        reason: `deleted` or `expired`.
    """

    id: str
    updates: int
    reads: int | None
    lived_ms: int
    reason: str

    @property
    def outcome(self) -> str:
        """`paired` if it was ever written to, which by all protocols the second device does first; else `lonely`."""
        return "paired" if self.updates else "lonely"


class Held(NamedTuple):
    """What a store holds.

    Attributes:
        sessions: how many.
        total_bytes: of all payloads together.
        clients: how many clients have sessions; each IPv6 network that shares counts as well.
        is_swept: whether nothing of it has expired.
    """

    sessions: int
    total_bytes: int
    clients: int
    is_swept: bool
