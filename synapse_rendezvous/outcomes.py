"""The outcomes of a session's transactions, as both stores keep them: one text for all, which is searched as it is.

A client gives each write a transaction id. What became of the write is kept for the life of the session, so that a
retry gets the same answer, however late it comes and whatever has happened since.
"""

from base64 import urlsafe_b64encode
from hashlib import blake2b

TAG_LENGTH = 20
"""How many characters a tag has."""

CONFLICT = b"." * TAG_LENGTH
"""Stands in place of the tag where the write met another revision than it expected."""

OUTCOME_BYTES = 1 + 16 + TAG_LENGTH
"""What one outcome takes: a slash, 16 characters for the transaction id, and the 20 of a tag."""


def transaction_key(transaction_id: bytes) -> bytes:
    """Return what a transaction id is kept as: 96 bits of its hash, so that a long one takes no more room.

    The slash makes a search exact, since neither a key nor a tag has another one.
    """
    return b"/" + urlsafe_b64encode(blake2b(transaction_id, digest_size=12).digest())


def find_outcome(outcomes: bytes, key: bytes) -> bytes | None:
    """Return the tag, or `CONFLICT`, that is kept under a transaction's key; None if there is none."""
    start = outcomes.find(key)
    return None if start < 0 else outcomes[start + len(key) : start + OUTCOME_BYTES]
