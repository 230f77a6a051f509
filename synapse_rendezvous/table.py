"""How sessions lie in memory: so that a million of them hold nobody up.

While Python collects garbage or copies a dict that has outgrown its room, every request waits. The collector looks at
whatever could refer to something else, but not into a dict of nothing but strings, bytes and numbers, however long it
is: so a session lies here as bytes. And what is divided among many dicts is never copied as a whole.
"""

import functools
import marshal
from collections.abc import Iterator, MutableMapping
from typing import Generic, TypeVar

from synapse_rendezvous.session import Session

_V = TypeVar("_V", bytes, int)


class Parts(MutableMapping[str, _V], Generic[_V]):
    """A dict in parts, in no order."""

    COUNT = 64

    def __init__(self) -> None:
        self._parts: tuple[dict[str, _V], ...] = tuple({} for _ in range(self.COUNT))
        self._length = 0

    def __getitem__(self, key: str) -> _V:
        return self._parts[hash(key) % self.COUNT][key]

    def __setitem__(self, key: str, value: _V) -> None:
        part = self._parts[hash(key) % self.COUNT]
        length = len(part)
        part[key] = value
        self._length += len(part) - length

    def __delitem__(self, key: str) -> None:
        del self._parts[hash(key) % self.COUNT][key]
        self._length -= 1

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            yield from part

    def __len__(self) -> int:
        return self._length


class Counts(Parts[int]):
    """How often something has happened, by key."""

    def count(self, key: str) -> None:
        """Add one to the number under this key; there is none at first."""
        part = self._parts[hash(key) % self.COUNT]
        if key in part:
            part[key] += 1
        else:
            self[key] = 1


@functools.lru_cache(maxsize=256)  # for the devices that poll now
def _read(session_id: str, revision: bytes) -> Session:
    return Session(session_id, *marshal.loads(revision))  # noqa: S302 (only we wrote it)


class SessionTable(MutableMapping[str, Session]):
    """Sessions by their ids, in the order of their ends as far as whole seconds go, and within one of their creation.

    A session under the same id as one before ends when that one does.
    """

    def __init__(self) -> None:
        self._revisions = Parts[bytes]()
        # By the second in which they end, so that who looks for the first need not pass all those that were before.
        self._ids: dict[int, dict[str, None]] = {}

    def __getitem__(self, session_id: str) -> Session:
        return _read(session_id, self._revisions[session_id])

    def __setitem__(self, session_id: str, session: Session) -> None:
        self._ids.setdefault(session.expires_ms // 1000, {})[session_id] = None
        # In the order of Session's arguments. Version 2 is the last that does not look for what occurs twice.
        revision = (
            session.payload,
            session.content_type,
            session.tag,
            session.previous_tag,
            session.last_modified_ms,
            session.expires_ms,
            session.updates,
            session.client,
        )
        self._revisions[session_id] = marshal.dumps(revision, 2)

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
