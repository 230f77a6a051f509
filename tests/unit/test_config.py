"""The options under `config:`: what is accepted, and what an operator is told about the rest."""

import copy
import ipaddress
from typing import Any

import pytest
from synapse.module_api.errors import ConfigError

from synapse_rendezvous import RendezvousModule
from synapse_rendezvous.config import RateLimit, RendezvousConfig
from synapse_rendezvous.homeserver import require_supported

DEFAULTS = RendezvousConfig()


@pytest.mark.parametrize("options", [{}, None, {"per_client": None}, {"per_client": {"create": None, "read": {}}}])
def test_empty_sections(options: Any) -> None:
    """Nothing need be said, on any level."""
    assert DEFAULTS == RendezvousModule.parse_config(options)


def test_defaults() -> None:
    """The defaults are the documented ones."""
    assert (300_000, 10240, 5000, 50 * 1024 * 1024) == (
        DEFAULTS.ttl_ms,
        DEFAULTS.max_bytes,
        DEFAULTS.max_sessions,
        DEFAULTS.max_total_bytes,
    )
    assert DEFAULTS.max_total_bytes >= DEFAULTS.room_bytes
    assert RateLimit(0.5, 40) == DEFAULTS.per_client.create
    assert "open" == DEFAULTS.dialects.msc4108.create_policy
    assert not DEFAULTS.strict_etags


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 50 << 20),
        ({"max_sessions": 10}, 50 << 20),
        ({"max_sessions": 5120}, 50 << 20),
        ({"max_sessions": 5121}, 5121 * 10240),
        ({"max_sessions": 20_000, "max_bytes": 1}, 20_000 * 4096),  # those of MSC4108 and MSC4388
        ({"max_sessions": 20_000, "max_bytes": "1M"}, 20_000 << 20),
        ({"max_sessions": 20_000, "max_total_bytes": "50M"}, 50 << 20),
    ],
)
def test_room(options: dict[str, Any], size: int) -> None:
    """There is room for the longest payload in each session, unless the operator says otherwise."""
    config = RendezvousModule.parse_config(options)
    assert size == config.max_total_bytes
    assert (config.max_total_bytes < config.room_bytes) == ("max_total_bytes" in options)


def test_frozen_and_copyable() -> None:
    """Synapse deep-copies configurations, and nothing may change them."""
    assert DEFAULTS == copy.deepcopy(DEFAULTS)
    assert hash(DEFAULTS) == hash(copy.deepcopy(DEFAULTS))
    with pytest.raises(AttributeError):
        DEFAULTS.ttl_ms = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "ttl_ms"),
    [("5m", 300_000), ("30s", 30_000), (30_000, 30_000), ("30000", 30_000), ("1h", 3_600_000), (1000, 1000)],
)
def test_durations(written: Any, ttl_ms: int) -> None:
    """Durations are written as everywhere in homeserver.yaml."""
    assert ttl_ms == RendezvousConfig.parse({"ttl": written}).ttl_ms


@pytest.mark.parametrize(("written", "size"), [("10K", 10240), (4096, 4096), ("4096", 4096), ("1M", 1 << 20), (1, 1)])
def test_sizes(written: Any, size: int) -> None:
    """Sizes are written as everywhere in homeserver.yaml."""
    assert size == RendezvousConfig.parse({"max_bytes": written}).max_bytes


def test_partial_limit() -> None:
    """What is left out of a limit keeps that limit's own default."""
    limits = RendezvousConfig.parse(
        {"per_client": {"create": {"burst_count": 7}, "miss": {"per_second": 9}}}
    ).per_client

    assert RateLimit(0.5, 7) == limits.create
    assert RateLimit(9, 30) == limits.miss
    assert DEFAULTS.per_client.read == limits.read


def test_dialects() -> None:
    """Dialects are moved, closed and switched off each by itself; one that is off leaves its path to another."""
    dialects = RendezvousConfig.parse(
        {"dialects": {"msc3886": {"enabled": False}, "msc4108": {"path": "/_synapse/client/rendezvous"}}}
    ).dialects

    assert not dialects.msc3886.enabled
    assert "/_synapse/client/rendezvous" == dialects.msc4108.path
    assert DEFAULTS.dialects.msc4388 == dialects.msc4388


def test_networks() -> None:
    """Networks and single addresses of both families."""
    config = RendezvousConfig.parse({"trusted_proxies": ["10.1.2.3", "2001:db8::/32"]})

    assert (ipaddress.ip_network("10.1.2.3/32"), ipaddress.ip_network("2001:db8::/32")) == config.trusted_proxies
    assert () == RendezvousConfig.parse({"trusted_proxies": []}).trusted_proxies


@pytest.mark.parametrize(
    ("options", "path", "said"),
    [
        ({"tll": "5m"}, "tll", "unknown option; did you mean ttl?"),
        ({"colour": 1}, "colour", "unknown option; the options here are store, ttl, max_bytes, max_sessions"),
        ({1: 2}, "1", "unknown option"),
        ({"per_client": {"rede": {}}}, "per_client.rede", "did you mean read?"),
        ({"per_client": {"write": {"burst_count": 9}}}, "per_client.write", "is gone"),
        ({"per_client": {"read": {"per_minute": 1}}}, "per_client.read.per_minute", "unknown option"),
        ([], "", "must be a section of options; this is []"),
        ("ttl", "", "must be a section"),
        ({"per_client": 5}, "per_client", "must be a section of options; this is 5"),
        (
            {"ttl": "5x"},
            "ttl",
            "must be a duration from 1s to 1h, such as 5m, 30s or 300000 (milliseconds); this is '5x'",
        ),
        ({"ttl": None}, "ttl", "this is None"),
        ({"ttl": ""}, "ttl", "this is ''"),
        ({"ttl": "-5m"}, "ttl", "this is '-5m'"),
        ({"ttl": 999}, "ttl", "this is 999"),
        ({"ttl": 3_600_001}, "ttl", "from 1s to 1h"),
        ({"ttl": True}, "ttl", "this is True"),
        ({"ttl": 300.0}, "ttl", "this is 300.0"),
        ({"long_poll": {"default_wait": "11s"}}, "long_poll.default_wait", "must be at most max_wait (10000 ms)"),
        ({"long_poll": {"max_wait": "61s"}}, "long_poll.max_wait", "must be a duration from 0 to 60s"),
        ({"store": "disk"}, "store", "must be auto or memory or redis; this is 'disk'"),
        ({"per_client": {"max_sessions": 0}}, "per_client.max_sessions", "must be a whole number from 1 to 10000000"),
        ({"max_bytes": "10KiB"}, "max_bytes", "must be a size from 1 to 1M, such as 10K, 1M or 10240 (bytes)"),
        ({"max_bytes": 0}, "max_bytes", "this is 0"),
        ({"max_bytes": (1 << 20) + 1}, "max_bytes", "from 1 to 1M"),
        ({"max_sessions": 0}, "max_sessions", "must be a whole number from 1 to 10000000, such as 100; this is 0"),
        ({"max_sessions": "5000"}, "max_sessions", "this is '5000'"),
        ({"max_sessions": True}, "max_sessions", "this is True"),
        ({"max_total_bytes": "9K"}, "max_total_bytes", "must be at least max_bytes (10240)"),
        (
            {"dialects": {"msc4108": {"create_policy": "closde"}}},
            "dialects.msc4108.create_policy",
            "must be open or authenticated or closed; this is 'closde'",
        ),
        ({"dialects": {"msc4108": {"create_policy": []}}}, "dialects.msc4108.create_policy", "must be open or"),
        ({"dialects": {"msc4018": {}}}, "dialects.msc4018", "did you mean msc4108?"),
        ({"dialects": {"msc4108": {"path": "/rendezvous/"}}}, "dialects.msc4108.path", "without a slash at its end"),
        ({"dialects": {"msc4108": {"path": "rendezvous"}}}, "dialects.msc4108.path", "must be a path"),
        ({"dialects": {"msc4108": {"path": "/_synapse//x"}}}, "dialects.msc4108.path", "must be a path"),
        ({"dialects": {"msc4108": {"path": "/a b"}}}, "dialects.msc4108.path", "this is '/a b'"),
        ({"dialects": {"msc4108": {"path": 5}}}, "dialects.msc4108.path", "this is 5"),
        (
            {"dialects": {"msc4108": {"path": "/_synapse/client/rendezvous"}}},
            "dialects.msc4108.path",
            "is that of msc3886 as well",
        ),
        (
            {"dialects": {name: {"enabled": False} for name in ("msc3886", "msc4108", "msc4388")}},
            "dialects",
            "must have one that is enabled",
        ),
        ({"strict_etags": "yes"}, "strict_etags", "must be true or false; this is 'yes'"),
        ({"trusted_proxies": "10.0.0.0/8"}, "trusted_proxies", "must be a list of networks"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies.<item 0>", "must be an address or a network"),
        ({"trusted_proxies": ["::1", 5]}, "trusted_proxies.<item 1>", "this is 5"),
        ({"trusted_proxies": ["64:ff9b::/96"]}, "trusted_proxies.<item 0>", "must not be so wide"),
        ({"deny": ["::1", "64:ff9b:1:2::/64"]}, "deny.<item 1>", "must not be so wide"),
        ({"per_client": {"read": {"per_second": 0}}}, "per_client.read.per_second", "from 0.001 to 1000000"),
        ({"per_client": {"read": {"per_second": float("nan")}}}, "per_client.read.per_second", "this is nan"),
        ({"per_client": {"read": {"per_second": "1"}}}, "per_client.read.per_second", "this is '1'"),
        ({"per_client": {"read": {"burst_count": 0}}}, "per_client.read.burst_count", "this is 0"),
        ({"per_client": {"read": {"burst_count": 1.5}}}, "per_client.read.burst_count", "this is 1.5"),
    ],
)
def test_mistakes(options: Any, path: str, said: str) -> None:
    """Each mistake is named by its place, the rule and what was found."""
    with pytest.raises(ConfigError) as error:
        RendezvousModule.parse_config(options)

    assert path == ".".join(error.value.path or ())
    assert said in error.value.msg


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ({"ttl": 1000}, True),
        ({"ttl": 3_600_000}, True),
        ({"max_bytes": 1 << 20}, True),
        ({"max_sessions": 10_000_000}, True),
        ({"max_sessions": 10_000_001}, False),
        ({"max_bytes": 100, "max_total_bytes": 100}, True),
        ({"max_bytes": 101, "max_total_bytes": 100}, False),
        ({"max_total_bytes": "16G"}, True),
        ({"max_total_bytes": "17G"}, False),
    ],
)
def test_bounds(options: Any, accepted: bool) -> None:
    """Bounds are accepted, one past them is not."""
    try:
        RendezvousConfig.parse(options)
    except ConfigError:
        assert not accepted
    else:
        assert accepted


def test_synapse_version() -> None:
    """A Synapse that is too old is refused in plain words; new and odd versions are let through."""
    for version in ("1.140.0", "1.163.2", "1.200.0rc1", "2.0.0", "1.163.2 (b=develop,abc)", "unknown"):
        require_supported(version)
    for version in ("1.139.2", "1.98.0", "0.99.5"):
        with pytest.raises(ConfigError) as error:
            require_supported(version)
        assert "needs Synapse 1.140 or newer" in error.value.msg
        assert version in error.value.msg
