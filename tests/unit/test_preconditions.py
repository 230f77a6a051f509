"""Conditional requests by the letter of RFC 9110, and beyond it where proxies damage tags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_rendezvous.dialects.msc3886 import MSC3886Dialect
from synapse_rendezvous.preconditions import (
    ANY_TAG,
    NO_TAG,
    HeaderFields,
    PreconditionResult,
    Preconditions,
    parse_entity_tags,
)
from synapse_rendezvous.session import Session, Write

NOON_S = 784_111_777  # Sun, 06 Nov 1994 08:49:37 GMT, the RFC's own example
SESSION = Session(
    id="A" * 22,
    payload=b"hello",
    content_type=b"text/plain",
    tag=b"b1",
    previous_tag=b"a0",
    last_modified_ms=NOON_S * 1000 + 500,
    expires_ms=NOON_S * 1000 + 300_000,
    updates=1,
    client="203.0.113.9",
)


def tags(*lines: bytes, weak: bool = True, tolerant: bool = False) -> frozenset[bytes]:
    return parse_entity_tags(lines, weak=weak, tolerant=tolerant)[0]


def parse(headers: HeaderFields, *, tolerant: bool) -> Preconditions:
    dialect = MSC3886Dialect(
        base_url="https://matrix.example.com",
        path="/rendezvous",
        max_bytes=1,
        ttl_ms=1,
        max_wait_ms=1,
        process="main",
        store="memory",
        strict_etags=not tolerant,
    )
    return dialect.parse_conditions(headers, {})


@pytest.mark.parametrize(
    ("value", "listed"),
    [
        (b'"b1"', {b"b1"}),
        (b'W/"b1"', {b"b1"}),
        (b'"a", "b1"', {b"a", b"b1"}),
        (b'"a","b1"', {b"a", b"b1"}),
        (b'"a"\t , \t"b1" ', {b"a", b"b1"}),
        (b', ,, "b1",,', {b"b1"}),
        (b'"a,b1", "c"', {b"a,b1", b"c"}),
        (b'"a, \\", "c"', {b"c"}),  # no space in a tag, and no escaping
        (b'"\xff\x80"', {b"\xff\x80"}),
        (b'""', {b""}),
        (b'w/"b1"', set()),  # case matters
        (b"b1", set()),
        (b'"b1', set()),
        (b'"a"b"b1"', set()),
        (b'"b1" "b1"', set()),
        (b'*, "b1"', {b"b1"}),
        (b'"b1", *', {b"b1"}),
        (b"", set()),
        (b"\x00\xff", set()),
        (b'"b1"\n', set()),
        (b"\n", set()),
        (b'W/ "b1"', set()),
    ],
)
def test_lists(value: bytes, listed: set[bytes]) -> None:
    """Entity tag lists are read as RFC 9110 section 8.8.3 writes them; what is no tag matches nothing."""
    assert tags(value) is not ANY_TAG
    assert tags(value) == listed


def test_star() -> None:
    """`*` alone names every session; in a list it names none."""
    assert b"anything" in tags(b" * ")
    assert b"anything" not in tags(b"*, *")
    assert b"anything" not in tags(b"*", b"*")


def test_several_lines() -> None:
    """Several header lines are one list."""
    assert tags(b'"a"', b'"b1", "c"') == {b"a", b"b1", b"c"}


def test_strong_comparison() -> None:
    """If-Match does not see weak tags, by the letter."""
    assert b"b1" not in tags(b'W/"b1"', weak=False)
    assert b"b1" in tags(b'W/"b1", "b1"', weak=False)


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        b'"b1"',
        b'W/"b1"',
        b"b1",
        b"W/b1",
        b'"b1-gzip"',
        b'"b1-br"',
        b'"b1-zstd"',
        b'"b1-deflate"',
        b'"b1;gzip"',
        b'"b1--gzip"',
        b'W/"b1-gzip"',
        b"b1-gzip",
        b'"zz", b1-br',
    ],
)
def test_tolerance(value: bytes, weak: bool) -> None:
    """What proxies make of a tag is recognised in both fields, unless tags are strict."""
    assert b"b1" in tags(value, weak=weak, tolerant=True)
    assert (b"b1" in tags(value, weak=weak, tolerant=False)) == (value == b'"b1"' or (weak and value == b'W/"b1"'))


@pytest.mark.parametrize("value", [b'"b1-gzip-gzip"', b'"b1-lz4"', b'"-gzip"', b'"b2"', b'"B1"', b'"b1 -gzip"', b"b 1"])
def test_tolerance_ends(value: bytes) -> None:
    """One suffix of a known coding, no more."""
    assert b"b1" not in tags(value, tolerant=True)


@pytest.mark.parametrize("run", [b" ", b"\t", b'"', b'" ', b"W/", b"a", b",", b'"a"', b'"a', b'",', b"\xff"])
def test_long_values_take_no_longer_than_their_length(run: bytes) -> None:
    """Nobody can keep the server busy with a header; if the time grew as a square, this would not come to an end."""
    for value in (run * 100_000, run * 100_000 + b"!", b'"a"' + run * 100_000 + b'"'):
        assert b"b1" not in tags(value, tolerant=True)


@given(st.lists(st.binary(max_size=60), max_size=4), st.booleans(), st.booleans())
def test_any_bytes(lines: list[bytes], weak: bool, tolerant: bool) -> None:
    """No bytes make parsing fail, and none match by accident."""
    parsed = tags(*lines, weak=weak, tolerant=tolerant)

    assert (b"0123456789abcdef0123" in parsed) == (parsed is ANY_TAG)
    assert (parsed is ANY_TAG) == (b",".join(lines).strip(b" \t") == b"*")


@given(st.lists(st.from_regex(rb"[\x21\x23-\x7e\x80-\xff]{0,9}", fullmatch=True), min_size=1, max_size=5))
def test_round_trip(opaque: list[bytes]) -> None:
    """Every list of valid tags is read back, whatever they hold."""
    assert tags(b", ".join(b'"%b"' % tag for tag in opaque)) == set(opaque)


OLD, NOW, NEW = b"Sun, 06 Nov 1994 08:49:36 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sun, 06 Nov 1994 08:49:38 GMT"
PROCEED, NOT_MODIFIED, FAILED = (
    PreconditionResult.PROCEED,
    PreconditionResult.NOT_MODIFIED,
    PreconditionResult.FAILED,
)


@pytest.mark.parametrize(
    ("headers", "on_get", "on_put"),
    [
        ({}, PROCEED, PROCEED),
        ({"If-Match": b'"b1"'}, PROCEED, PROCEED),
        ({"If-Match": b"*"}, PROCEED, PROCEED),
        ({"If-Match": b'"zz"'}, FAILED, FAILED),
        ({"If-Match": b""}, FAILED, FAILED),
        ({"If-None-Match": b'"b1"'}, NOT_MODIFIED, FAILED),
        ({"If-None-Match": b"*"}, NOT_MODIFIED, FAILED),
        ({"If-None-Match": b'"zz"'}, PROCEED, PROCEED),
        # If-Match comes first
        ({"If-Match": b'"zz"', "If-None-Match": b'"b1"'}, FAILED, FAILED),
        ({"If-Match": b'"b1"', "If-None-Match": b'"b1"'}, NOT_MODIFIED, FAILED),
        ({"If-Match": b'"b1"', "If-None-Match": b'"zz"'}, PROCEED, PROCEED),
        # dates
        ({"If-Unmodified-Since": OLD}, FAILED, FAILED),
        ({"If-Unmodified-Since": NOW}, PROCEED, PROCEED),
        ({"If-Unmodified-Since": NEW}, PROCEED, PROCEED),
        ({"If-Modified-Since": OLD}, PROCEED, PROCEED),
        ({"If-Modified-Since": NOW}, NOT_MODIFIED, PROCEED),
        ({"If-Modified-Since": NEW}, NOT_MODIFIED, PROCEED),
        # tags silence the dates of their kind, and only these
        ({"If-Match": b'"b1"', "If-Unmodified-Since": OLD}, PROCEED, PROCEED),
        ({"If-None-Match": b'"zz"', "If-Modified-Since": NEW}, PROCEED, PROCEED),
        ({"If-Match": b'"b1"', "If-Modified-Since": NEW}, NOT_MODIFIED, PROCEED),
        ({"If-None-Match": b'"b1"', "If-Unmodified-Since": OLD}, FAILED, FAILED),
        # the obsolete forms of dates, and what is no date
        ({"If-Modified-Since": b"Sunday, 06-Nov-94 08:49:37 GMT"}, NOT_MODIFIED, PROCEED),
        ({"If-Modified-Since": b"Sun Nov  6 08:49:37 1994"}, NOT_MODIFIED, PROCEED),
        ({"If-Unmodified-Since": b"Fri, 30 Jun 1972 23:59:60 GMT"}, FAILED, FAILED),
        ({"If-Modified-Since": b"Sat Dec 31 23:59:60 2016"}, NOT_MODIFIED, PROCEED),
        ({"If-Unmodified-Since": b"yesterday"}, PROCEED, PROCEED),
        ({"If-Modified-Since": b"Sun, 99 Nov 1994 08:49:37 GMT"}, PROCEED, PROCEED),
        ({"If-Modified-Since": b"Sun, 06 Nov 1994 09:49:37 +0100"}, PROCEED, PROCEED),
        ({"If-Unmodified-Since": b"\xff\x00"}, PROCEED, PROCEED),
        ({"If-Unmodified-Since": b""}, PROCEED, PROCEED),
    ],
)
def test_evaluation(headers: dict[str, bytes], on_get: PreconditionResult, on_put: PreconditionResult) -> None:
    """Preconditions count in the order of RFC 9110 section 13.2.2."""
    preconditions = parse({name.encode(): [value] for name, value in headers.items()}, tolerant=False)

    assert on_get == preconditions.evaluate(SESSION, safe=True)
    assert on_put == preconditions.evaluate(SESSION, safe=False)


def test_two_dates() -> None:
    """A date that is sent twice is no date."""
    assert Preconditions() == parse({b"If-Unmodified-Since": [OLD, OLD]}, tolerant=True)


@given(st.binary(max_size=60))
def test_any_date(value: bytes) -> None:
    """No bytes make reading a date fail."""
    parse({b"If-Modified-Since": [value]}, tolerant=True)


@pytest.mark.parametrize(
    ("value", "payload", "content_type", "is_repeat"),
    [
        (b'"a0"', b"hello", b"text/plain", True),
        (b'"zz", W/"a0-gzip"', b"hello", b"text/plain", True),
        (b'"a0"', b"hello!", b"text/plain", False),
        (b'"a0"', b"hello", b"text/html", False),
        (b'"zz"', b"hello", b"text/plain", False),
        (b'"a0", "b1"', b"hello", b"text/plain", False),
        (b"*", b"hello", b"text/plain", False),
        (None, b"hello", b"text/plain", False),
    ],
)
def test_repeat(value: bytes | None, payload: bytes, content_type: bytes, is_repeat: bool) -> None:
    """Only the write that made the current revision is recognised as a repeat."""
    preconditions = parse({b"If-Match": [value]} if value is not None else {}, tolerant=True)

    assert is_repeat == preconditions.is_repeat(SESSION, Write(payload, content_type))


def test_repeat_from_any() -> None:
    """Where it is enough that the data are current, every older revision will do."""
    known = frozenset({b"zz"})

    assert Preconditions(if_match=known, repeats_from_any=True).is_repeat(SESSION, Write(b"hello", b"text/plain"))
    assert not Preconditions(if_match=known, repeats_from_any=True).is_repeat(SESSION, Write(b"bye", b"text/plain"))


@pytest.mark.parametrize(
    ("headers", "expected_tag"),
    [
        ({}, None),
        ({"If-Modified-Since": NOW}, None),
        ({"If-Unmodified-Since": b"yesterday"}, None),
        ({"If-Match": b"*"}, None),
        ({"If-Match": b'"b1"'}, b"b1"),
        ({"If-Match": b'"b1"', "If-Unmodified-Since": OLD}, b"b1"),
        ({"If-Match": b'"b1"', "If-None-Match": b'"zz"'}, NO_TAG),
        ({"If-Match": b'W/"b1"'}, NO_TAG),
        ({"If-None-Match": b"*"}, NO_TAG),
        ({"If-Unmodified-Since": NOW}, NO_TAG),
    ],
)
def test_expected_tag(headers: dict[str, bytes], expected_tag: bytes | None) -> None:
    """A write can be swapped in without another look where it is sure which revision it replaces."""
    assert (
        expected_tag == parse({name.encode(): [value] for name, value in headers.items()}, tolerant=False).expected_tag
    )


def test_expected_tag_of_a_list() -> None:
    """Of a list, each tag is as good as another."""
    assert parse({b"If-Match": [b'"a", "b"']}, tolerant=False).expected_tag in (b"a", b"b")


@given(
    st.one_of(st.none(), st.just(ANY_TAG), st.frozensets(st.sampled_from([b"a0", b"b1", b"zz", b""]))),
    st.one_of(st.none(), st.just(ANY_TAG), st.frozensets(st.sampled_from([b"a0", b"b1", b"zz", b""]))),
    st.sampled_from([None, NOON_S - 1, NOON_S, NOON_S + 1]),
)
def test_expected_tag_meets_the_preconditions(
    if_match: frozenset[bytes] | None, if_none_match: frozenset[bytes] | None, unmodified_since_s: int | None
) -> None:
    """Whatever the preconditions are, a revision with the expected tag meets them."""
    preconditions = Preconditions(if_match, if_none_match, None, unmodified_since_s)
    expected_tag = preconditions.expected_tag
    if expected_tag is None or expected_tag == SESSION.tag:
        assert PROCEED == preconditions.evaluate(SESSION, safe=False)
