"""A rendezvous session: one payload that two devices read and replace in turn."""

import os
from base64 import urlsafe_b64encode
from typing import NamedTuple

ID_LENGTH = 22
"""How many characters `new_random_id` returns: 128 random bits in unpadded base64url."""


def new_random_id() -> str:
    """Return an id that nobody can guess and that says nothing of when it was made."""
    return urlsafe_b64encode(os.urandom(16))[:ID_LENGTH].decode("ascii")


LINGER_MS = 2000
"""How long a session is still there after the time at which it expires.

`Expires` has whole seconds, so it may be up to one later than that; and a client's own timer shall go off before the
server says that the session is gone, which clients take for an error.
"""


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
        expires_ms: until when it can be relied on; it is gone `LINGER_MS` later. Fixed at creation.
        updates: how often its payload has been replaced.
        client: who created it, as `Clients.client_key` names clients.
        outcomes: the outcomes of its transactions, for a store that keeps them with the session; see `outcomes.py`.
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
    outcomes: bytes = b""


class EndedSession(NamedTuple):
    """What is known of a session that has ended.

    Attributes:
        id: its id.
        updates: how often its payload was replaced.
        lived_ms: how long it lived.
        reason: `deleted` or `expired`.
    """

    id: str
    updates: int
    lived_ms: int
    reason: str

    @property
    def outcome(self) -> str:
        """`paired` if it was ever written to, which by all protocols the second device does first; else `lonely`."""
        return "paired" if self.updates else "lonely"


class StoreUsage(NamedTuple):
    """How much a store holds.

    Attributes:
        sessions: the number of sessions.
        total_bytes: the bytes of all payloads together.
        clients: the number of clients that have sessions; the IPv6 networks around them count as well.
        is_swept: whether no expired session is left in it.
    """

    sessions: int
    total_bytes: int
    clients: int
    is_swept: bool
