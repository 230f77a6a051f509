"""How sessions lie in memory: so that a million of them hold nobody up.

While Python collects garbage or copies a dict that has outgrown its room, every request waits. The collector looks at
whatever could refer to something else, but not into a dict of nothing but strings, bytes and numbers, however long it
is: so a session lies here as bytes. And what is divided among many dicts is never copied as a whole.
"""

import marshal
from collections.abc import Iterator, MutableMapping
from typing import Generic, TypeVar

from synapse_rendezvous.session import Session

_V = TypeVar("_V", bytes, int)


class Parts(MutableMapping[str, _V], Generic[_V]):
    """A dict in parts, in no order."""

    COUNT = 64

    def __init__(self) -> None:
        self.parts: tuple[dict[str, _V], ...] = tuple({} for _ in range(self.COUNT))
        self._length = 0

    def __getitem__(self, key: str) -> _V:
        return self.parts[hash(key) % self.COUNT][key]

    def __setitem__(self, key: str, value: _V) -> None:
        part = self.parts[hash(key) % self.COUNT]
        length = len(part)
        part[key] = value
        self._length += len(part) - length

    def __contains__(self, key: object) -> bool:
        return key in self.parts[hash(key) % self.COUNT]

    def __delitem__(self, key: str) -> None:
        del self.parts[hash(key) % self.COUNT][key]
        self._length -= 1

    def __iter__(self) -> Iterator[str]:
        for part in self.parts:
            yield from part

    def __len__(self) -> int:
        return self._length


class Counts(Parts[int]):
    """How often something has happened, by key."""

    def count(self, key: str) -> None:
        """Add one to the number under this key; there is none at first."""
        part = self.parts[hash(key) % self.COUNT]
        count = part[key] = part.get(key, 0) + 1
        if count == 1:
            self._length += 1


class SessionTable(MutableMapping[str, Session]):
    """Sessions by their ids, in the order of their ends as far as whole seconds go, and within one of their creation.

    A session under the same id as one before ends when that one does.
    """

    def __init__(self) -> None:
        self._revisions = Parts[bytes]()
        # By the second in which they end, so that who looks for the first need not pass all those that were before.
        self._ids: dict[int, dict[str, None]] = {}

    def __getitem__(self, session_id: str) -> Session:
        revision = self._revisions.parts[hash(session_id) % Parts.COUNT][session_id]
        return tuple.__new__(Session, (session_id, *marshal.loads(revision)))  # noqa: S302 (only we wrote it)

    def __setitem__(self, session_id: str, session: Session) -> None:
        if session_id not in self._revisions:
            self._ids.setdefault(session.expires_ms // 1000, {})[session_id] = None
        # All but the id. Version 2 is the last that does not look for what occurs twice.
        self._revisions[session_id] = marshal.dumps(session[1:], 2)

    def __delitem__(self, session_id: str) -> None:
        second = self[session_id].expires_ms // 1000
        del self._revisions[session_id]
        del self._ids[second][session_id]
        if not self._ids[second]:
            del self._ids[second]

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._revisions

    def __iter__(self) -> Iterator[str]:
        for ids in self._ids.values():
            yield from ids

    def __len__(self) -> int:
        return len(self._revisions)
