"""Conditional requests (RFC 9110 section 13): entity tags, dates, and the order in which they count."""

import calendar
import contextlib
import enum
import re
import time
from collections.abc import Iterator, Mapping, Sequence
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


class EntityTags(NamedTuple):
    """The value of one If-Match or If-None-Match field.

    Attributes:
        any: whether the value is `*`, which every existing session matches.
        tags: the opaque parts of the tags listed.
        changes: what proxies seem to have done to these since we sent them: `weak`, `suffix`, `unquoted`.
    """

    any: bool
    tags: frozenset[bytes]
    changes: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, lines: Sequence[bytes], *, weak: bool, tolerant: bool) -> "EntityTags":
        """Read a field, all of its lines together (RFC 9110 section 5.3). Never raises.

        Args:
            lines: the field's values, any bytes. Members that are no entity tags match nothing.
            weak: whether the comparison is weak (If-None-Match), so that weak tags count too.
            tolerant: read a tag that a proxy weakened, suffixed or unquoted as the one that was sent. This cannot
                accept a wrong revision, because every revision has a tag of its own.
        """
        # What nearly all requests have: a tag of ours, as we sent it. For `tuple.__new__`, see `Session.create`.
        if len(lines) == 1 and lines[0][:1] == lines[0][-1:] == b'"' and lines[0][1:-1].isalnum():
            return tuple.__new__(cls, (False, frozenset((lines[0][1:-1],)), frozenset()))
        value = b",".join(lines)
        if value.strip(b" \t") == b"*":
            return cls(any=True, tags=frozenset())
        members = list(_members(value, weak=weak or tolerant, tolerant=tolerant))
        return cls(False, frozenset(tag for tag, _ in members), frozenset().union(*(changes for _, changes in members)))

    def match(self, tag: bytes) -> bool:
        """Whether a session whose current tag is `tag` is among those named."""
        return self.any or tag in self.tags


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


def _date(lines: Sequence[bytes]) -> int | None:
    """Return a date field in seconds since the epoch; None if absent or not one date (RFC 9110 section 13.1.3)."""
    if len(lines) != 1:
        return None
    for form in _DATES:
        with contextlib.suppress(ValueError):
            return calendar.timegm(time.strptime(lines[0].decode("latin-1"), form))
    return None


class Verdict(enum.Enum):
    """What the preconditions of a request say of it."""

    PROCEED = enum.auto()
    NOT_MODIFIED = enum.auto()
    FAILED = enum.auto()


class Preconditions(NamedTuple):
    """The precondition fields of one request; None where a field is absent or to be ignored.

    Attributes:
        if_match: RFC 9110 section 13.1.1.
        if_none_match: section 13.1.2.
        if_modified_since_s: section 13.1.3, in seconds since the epoch.
        if_unmodified_since_s: section 13.1.4, in seconds since the epoch.
        repeats_from_any: whether a write that repeats the current revision counts as done whichever older revision
            it names, not only the one that was replaced.
        changes: what proxies seem to have done to the tags; see `EntityTags`.
    """

    if_match: EntityTags | None = None
    if_none_match: EntityTags | None = None
    if_modified_since_s: int | None = None
    if_unmodified_since_s: int | None = None
    repeats_from_any: bool = False
    changes: frozenset[str] = frozenset()

    @classmethod
    def read(cls, headers: HeaderFields, *, tolerant: bool) -> "Preconditions":
        """Read the precondition fields of a request, whatever bytes they hold.

        Args:
            headers: the request's header fields.
            tolerant: see `EntityTags.parse`.
        """
        if_match = if_none_match = if_modified_since_s = if_unmodified_since_s = None
        changes: frozenset[str] = frozenset()
        # A date counts only where the tags of its kind are absent (sections 13.1.3 and 13.1.4).
        if (lines := headers.get(b"If-Match")) is not None:
            if_match = EntityTags.parse(lines, weak=False, tolerant=tolerant)
            changes = if_match.changes
        elif b"If-Unmodified-Since" in headers:
            if_unmodified_since_s = _date(headers[b"If-Unmodified-Since"])
        if (lines := headers.get(b"If-None-Match")) is not None:
            if_none_match = EntityTags.parse(lines, weak=True, tolerant=tolerant)
            changes = changes or if_none_match.changes
        elif b"If-Modified-Since" in headers:
            if_modified_since_s = _date(headers[b"If-Modified-Since"])
        return tuple.__new__(cls, (if_match, if_none_match, if_modified_since_s, if_unmodified_since_s, False, changes))

    def evaluate(self, session: Session, *, safe: bool) -> Verdict:
        """Judge the request against the current revision, in the order of RFC 9110 section 13.2.2.

        Args:
            session: the current revision.
            safe: whether the method is GET or HEAD.

        Returns:
            NOT_MODIFIED only when `safe`. Dates count whole seconds, as the Last-Modified that they echo.
        """
        if self.if_match is not None:
            if not self.if_match.match(session.tag):
                return Verdict.FAILED
        elif self.if_unmodified_since_s is not None:
            if session.last_modified_ms // 1000 > self.if_unmodified_since_s:
                return Verdict.FAILED
        if self.if_none_match is not None:
            if self.if_none_match.match(session.tag):
                return Verdict.NOT_MODIFIED if safe else Verdict.FAILED
        elif safe and self.if_modified_since_s is not None:
            if session.last_modified_ms // 1000 <= self.if_modified_since_s:
                return Verdict.NOT_MODIFIED
        return Verdict.PROCEED

    def repeat(self, session: Session, write: Write) -> bool:
        """Whether this request asks again for the write that made the current revision.

        Proxies send a PUT a second time when the first answer got lost; RFC 9110 section 13.1.1 allows to answer it
        as a success. Only the revision replaced by that write, with the same bytes and the same type, counts, unless
        `repeats_from_any`.
        """
        return (
            self.if_match is not None
            and session.tag not in self.if_match.tags
            and (self.repeats_from_any or session.previous_tag in self.if_match.tags)
            and session.payload == write.payload
            and session.content_type == write.content_type
        )


UNCONDITIONAL = Preconditions()
"""The preconditions of a request without any."""
