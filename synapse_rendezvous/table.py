"""Tables that hold a million sessions without a pause.

While Python collects garbage or copies a dict that has outgrown its room, every request waits. The collector skips a
dict that holds nothing but strings, bytes and numbers, so a session is stored here as bytes. And a table that is
divided among many dicts is never copied as a whole.
"""

import marshal
from collections.abc import Iterator, MutableMapping

from synapse_rendezvous.session import Session

PARTS = 64
"""How many dicts a table has."""


class Counts:
    """A number under each key; a key that is not there has 0."""

    def __init__(self) -> None:
        self._parts: tuple[dict[str, int], ...] = tuple({} for _ in range(PARTS))

    def __len__(self) -> int:
        """Return how many keys have a number other than 0."""
        return sum(map(len, self._parts))

    def __getitem__(self, key: str) -> int:
        return self._parts[hash(key) % PARTS].get(key, 0)

    def add(self, key: str) -> None:
        """Add one."""
        part = self._parts[hash(key) % PARTS]
        part[key] = part.get(key, 0) + 1

    def remove(self, key: str) -> None:
        """Subtract one from a number that is not 0."""
        part = self._parts[hash(key) % PARTS]
        part[key] -= 1
        if not part[key]:
            del part[key]


class SessionTable(MutableMapping[str, Session]):
    """Sessions by their ids, in the order of their ends as far as whole seconds go, and within one of their creation.

    A session under the same id as one before ends when that one does.
    """

    def __init__(self) -> None:
        self._revisions: tuple[dict[str, bytes], ...] = tuple({} for _ in range(PARTS))
        self._count = 0
        # By the second in which they end: iterating a dict from which many items were deleted is slow.
        self._ids: dict[int, dict[str, None]] = {}

    def __getitem__(self, session_id: str) -> Session:
        revision = self._revisions[hash(session_id) % PARTS][session_id]
        return Session(session_id, *marshal.loads(revision))  # noqa: S302 (only we wrote it)

    def __setitem__(self, session_id: str, session: Session) -> None:
        revisions = self._revisions[hash(session_id) % PARTS]
        if session_id not in revisions:
            self._count += 1
            self._ids.setdefault(session.expires_ms // 1000, {})[session_id] = None
        # All but the id. Version 2 is the last that does not look for what occurs twice.
        revisions[session_id] = marshal.dumps(session[1:], 2)

    def __delitem__(self, session_id: str) -> None:
        second = self[session_id].expires_ms // 1000
        del self._revisions[hash(session_id) % PARTS][session_id]
        self._count -= 1
        del self._ids[second][session_id]
        if not self._ids[second]:
            del self._ids[second]

    def __iter__(self) -> Iterator[str]:
        for ids in self._ids.values():
            yield from ids

    def __len__(self) -> int:
        return self._count
