"""How sessions lie in memory: so that a million of them hold nobody up.

While Python collects garbage or copies a dict that has outgrown its room, every request waits. The collector looks at
whatever could refer to something else, but not into a dict of nothing but strings, bytes and numbers, however long it
is: so a session lies here as bytes. And what is divided among many dicts is never copied as a whole.
"""

import marshal
from collections.abc import Iterator, MutableMapping

from synapse_rendezvous.session import Session

PARTS = 64
"""How many dicts a table has."""


class _Numbers:
    """A number under each key."""

    def __init__(self) -> None:
        self._parts: tuple[dict[str, int], ...] = tuple({} for _ in range(PARTS))

    def __len__(self) -> int:
        """How many keys have one."""
        return sum(map(len, self._parts))


class Counts(_Numbers):
    """How many there are under each key."""

    def __getitem__(self, key: str) -> int:
        return self._parts[hash(key) % PARTS].get(key, 0)

    def add(self, key: str) -> None:
        """Count one more."""
        part = self._parts[hash(key) % PARTS]
        part[key] = part.get(key, 0) + 1

    def remove(self, key: str) -> None:
        """Count one less of those that there are."""
        part = self._parts[hash(key) % PARTS]
        part[key] -= 1
        if not part[key]:
            del part[key]


class Tally(_Numbers):
    """How often something was done under each key, and how often it may be done before anybody is asked again.

    Args:
        first: how often it may be at first; `LARGEST` at most.
        most: how many keys are remembered. Where more are used at once, some are forgotten, and begin anew.
    """

    LARGEST = 31
    """How often it may be done at once before anybody is asked again."""

    # One number holds both, so that there is one place to look: what may still be done is below these.
    _DONE = 2 * (LARGEST + 1)

    def __init__(self, first: int, most: int) -> None:
        super().__init__()
        self._first = first
        self._most_in_part = most // PARTS + 16

    def spend(self, key: str) -> bool:
        """Count one if it may be done without asking; say whether it may."""
        part = self._parts[hash(key) % PARTS]
        if len(part) > self._most_in_part:
            part.clear()
        known = part.get(key, self._first)
        if not known % self._DONE:
            return False
        part[key] = known + self._DONE - 1
        return True

    def left(self, key: str) -> int:
        """Return how often it may be done without asking."""
        return self._parts[hash(key) % PARTS].get(key, self._first) % self._DONE

    def add(self, key: str, more: int) -> None:
        """Count one that was asked for, since `spend` refused it, and let so many more be done, `LARGEST` at most."""
        part = self._parts[hash(key) % PARTS]
        part[key] = part.get(key, self._first) + self._DONE + more

    def pop(self, key: str) -> int:
        """Forget a key, and return how often it was done."""
        return self._parts[hash(key) % PARTS].pop(key, 0) // self._DONE


class SessionTable(MutableMapping[str, Session]):
    """Sessions by their ids, in the order of their ends as far as whole seconds go, and within one of their creation.

    A session under the same id as one before ends when that one does.
    """

    def __init__(self) -> None:
        self._revisions: tuple[dict[str, bytes], ...] = tuple({} for _ in range(PARTS))
        self._count = 0
        # By the second in which they end, so that who looks for the first need not pass all those that were before.
        self._ids: dict[int, dict[str, None]] = {}

    def __getitem__(self, session_id: str) -> Session:
        revision = self._revisions[hash(session_id) % PARTS][session_id]
        return tuple.__new__(Session, (session_id, *marshal.loads(revision)))  # noqa: S302 (only we wrote it)

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
