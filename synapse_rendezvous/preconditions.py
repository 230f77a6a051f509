"""Conditional requests (RFC 9110 section 13): entity tags, dates, and the order in which they count."""

import calendar
import contextlib
import enum
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from synapse_rendezvous.session import Session, Write

HeaderFields = Mapping[bytes, Sequence[bytes]]
"""Header fields of a request: all values of each, by names as Twisted writes them, such as `If-None-Match`."""

# A tag, a comma, or something else; no byte is looked at more than twice. A tag may hold commas (RFC 9110 section
# 8.8.3), so lists are never split on them.
_TOKEN = re.compile(rb'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"|(,)|[^ \t,"]+|"')

# What proxies append to a tag when they compress the payload: nginx and HAProxy weaken the tag, Apache, lighttpd
# and Caddy add the coding. Our own tags are only [0-9a-z], so what is left is never ambiguous.
_CODED_TAG = re.compile(rb"(?:W/)?([0-9a-z]+)(--gzip|;gzip|-gzip|-br|-zstd|-deflate)?")


class _AnyTag(frozenset[bytes]):
    """Contains every tag, as the field value `*` does."""

    def __contains__(self, tag: object) -> bool:
        return True


ANY_TAG: frozenset[bytes] = _AnyTag()
"""What `parse_entity_tags` returns for `*`, which every existing session matches."""

NO_TAG = b""
"""No revision has this tag."""


def new_tag() -> bytes:
    """Return a tag for a new revision: 80 random bits, in characters that no proxy rewrites.

    A tag is random rather than a hash of the payload, so that the same bytes written again, over the revision that they
    made, are another revision and the reader notices both. Two writes of the same bytes over the same revision are one:
    see `Preconditions.is_repeat`.
    """
    return os.urandom(10).hex().encode("ascii")


def parse_entity_tags(lines: Sequence[bytes], *, weak: bool, tolerant: bool) -> tuple[frozenset[bytes], frozenset[str]]:
    """Read an If-Match or If-None-Match field, all of its lines together (RFC 9110 section 5.3). Never raises.

    Args:
        lines: the field's values, any bytes. Members that are no entity tags match nothing.
        weak: whether the comparison is weak (If-None-Match), so that weak tags count too.
        tolerant: read a tag that a proxy weakened, suffixed or unquoted as the one that was sent. This cannot accept a
            wrong revision, because every revision has a tag of its own.

    Returns:
        The opaque parts of the tags, or `ANY_TAG`; and what proxies seem to have done to them: `weak`, `suffix`,
        `unquoted`.
    """
    # Nearly all requests have one tag of ours, as we sent it.
    if len(lines) == 1 and lines[0][:1] == lines[0][-1:] == b'"' and lines[0][1:-1].isalnum():
        return frozenset((lines[0][1:-1],)), frozenset()
    value = b",".join(lines)
    if value.strip(b" \t") == b"*":
        return ANY_TAG, frozenset()
    members = list(_members(value, weak=weak or tolerant, tolerant=tolerant))
    return frozenset(tag for tag, _ in members), frozenset().union(*(changes for _, changes in members))


def _members(value: bytes, *, weak: bool, tolerant: bool) -> Iterator[tuple[bytes, set[str]]]:
    """Yield the opaque part of each member of a list that is one entity tag and nothing else, and what changed it."""
    for tokens in _between_commas(value):
        if len(tokens) != 1:
            continue
        is_weak, opaque, _ = tokens[0].groups()
        changes = {"weak"} if is_weak else set()
        if tolerant and (coded := _CODED_TAG.fullmatch(tokens[0][0] if opaque is None else opaque)):
            changes |= {"unquoted"} if opaque is None else set()
            changes |= {"suffix"} if coded[2] else set()
            opaque = coded[1]
        if opaque is not None and (weak or not is_weak):
            yield opaque, changes


def _between_commas(value: bytes) -> Iterator[list[re.Match[bytes]]]:
    tokens = []
    for token in _TOKEN.finditer(value):
        if token[3] is None:
            tokens.append(token)
        else:
            yield tokens
            tokens = []
    yield tokens


# IMF-fixdate and the two obsolete forms (RFC 9110 section 5.6.7).
_DATES = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")
_LEAP_SECOND = re.compile(r":60 ")


def parse_date(lines: Sequence[bytes]) -> int | None:
    """Return a date field in seconds since the epoch; None if absent or not one date (RFC 9110 section 13.1.3)."""
    if len(lines) != 1:
        return None
    # `datetime` knows no leap seconds, which a date may name.
    text, leap_s = _LEAP_SECOND.subn(":59 ", lines[0].decode("latin-1"))
    for form in _DATES:
        with contextlib.suppress(ValueError):
            return calendar.timegm(datetime.strptime(text, form).timetuple()) + leap_s
    return None


class PreconditionResult(enum.Enum):
    """What the preconditions of a request demand."""

    PROCEED = enum.auto()
    NOT_MODIFIED = enum.auto()
    FAILED = enum.auto()


class Preconditions(NamedTuple):
    """The preconditions of one request; None where there is none of a kind.

    Attributes:
        if_match: RFC 9110 section 13.1.1: the tags listed, or `ANY_TAG`.
        if_none_match: section 13.1.2, likewise.
        if_modified_since_s: section 13.1.3, in seconds since the epoch.
        if_unmodified_since_s: section 13.1.4, in seconds since the epoch.
        repeats_from_any: whether a write that repeats the current revision counts as done whichever older revision
            it names, not only the one that was replaced.
        changes: what proxies seem to have done to the tags; see `parse_entity_tags`.
    """

    if_match: frozenset[bytes] | None = None
    if_none_match: frozenset[bytes] | None = None
    if_modified_since_s: int | None = None
    if_unmodified_since_s: int | None = None
    repeats_from_any: bool = False
    changes: frozenset[str] = frozenset()

    @property
    def expected_tag(self) -> bytes | None:
        """The tag of the only revision that is sure to meet them; None if all do, `NO_TAG` if none is sure to."""
        if self.if_none_match is not None:
            return NO_TAG
        if self.if_match is None:
            return None if self.if_unmodified_since_s is None else NO_TAG
        return None if self.if_match is ANY_TAG else next(iter(self.if_match), NO_TAG)

    def evaluate(self, session: Session, *, safe: bool) -> PreconditionResult:
        """Evaluate them for the current revision, in the order of RFC 9110 section 13.2.2.

        Args:
            session: the current revision.
            safe: whether the method is GET or HEAD.

        Returns:
            NOT_MODIFIED only when `safe`. Dates count whole seconds, as the Last-Modified that they echo.
        """
        if self.if_match is not None:
            if session.tag not in self.if_match:
                return PreconditionResult.FAILED
        elif self.if_unmodified_since_s is not None:
            if session.last_modified_ms // 1000 > self.if_unmodified_since_s:
                return PreconditionResult.FAILED
        if self.if_none_match is not None:
            if session.tag in self.if_none_match:
                return PreconditionResult.NOT_MODIFIED if safe else PreconditionResult.FAILED
        elif safe and self.if_modified_since_s is not None:
            if session.last_modified_ms // 1000 <= self.if_modified_since_s:
                return PreconditionResult.NOT_MODIFIED
        return PreconditionResult.PROCEED

    def is_repeat(self, session: Session, write: Write) -> bool:
        """Whether this request asks again for the write that made the current revision.

        Proxies send a PUT a second time when the first answer got lost; RFC 9110 section 13.1.1 allows to answer it
        as a success. Only the revision replaced by that write, with the same bytes and the same type, counts, unless
        `repeats_from_any`.
        """
        return (
            self.if_match is not None
            and session.tag not in self.if_match
            and (self.repeats_from_any or session.previous_tag in self.if_match)
            and session.payload == write.payload
            and session.content_type == write.content_type
        )


UNCONDITIONAL = Preconditions()
"""The preconditions of a request without any."""
