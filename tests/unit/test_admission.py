"""Which client a request counts for."""

import ipaddress

import pytest

from synapse_rendezvous.clients import MAX_FORWARDED_BYTES, Clients, format_client, is_private, quota_keys
from synapse_rendezvous.config import RendezvousConfig


def joined(lines: list[bytes] | None) -> bytes | None:
    """Join the lines of X-Forwarded-For as the resource does."""
    return None if lines is None else b",".join(lines)[-MAX_FORWARDED_BYTES:]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # directly
        ("203.0.113.9", None, "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", None, "20010db800010002"),
        ("::ffff:203.0.113.9", None, "203.0.113.9"),
        ("64:ff9b::203.0.113.9", None, "203.0.113.9"),
        ("::ffff:127.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 64:ff9b::203.0.113.9, ::ffff:10.1.2.3"], "203.0.113.9"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("203.0.113.9", [], "203.0.113.9"),
        # a proxy that does not say for whom it asks
        ("127.0.0.1", [], "unknown"),
        ("192.168.1.20", [], "unknown"),
        # a proxy that sets the header, or appends to what the client wrote
        ("127.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66", b"203.0.113.9"], "203.0.113.9"),
        ("::1", [b"192.0.2.66,2001:db8:1:2::9"], "20010db800010002"),
        # two proxies
        ("127.0.0.1", [b"192.0.2.66, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 203.0.113.9", b"10.1.2.3"], "203.0.113.9"),
        # nobody but the last hop is believed from outside
        ("203.0.113.9", [b"192.0.2.66"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 198.51.100.7, 203.0.113.9"], "203.0.113.9"),
        # a client in the operator's own network
        ("127.0.0.1", [b"192.168.1.20"], "192.168.1.20"),
        ("127.0.0.1", [b"10.0.0.5, 192.168.1.20"], "10.0.0.5"),
        # which may write what is no address, as anybody may
        ("127.0.0.1", [b"garbage, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", [b"", b"100.64.1.2"], "100.64.1.2"),
        ("127.0.0.1", [b"203.0.113.9, unknown, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", [b"203.0.113.9:x, 10.1.2.3, 10.0.0.5"], "10.1.2.3"),
        (None, [b"\xff, fd00::1"], "fd00000000000000"),
        # unix sockets
        (None, [b"203.0.113.9"], "203.0.113.9"),
        (None, [], "unknown"),
        (None, None, "unknown"),
        # a proxy that names nobody
        ("127.0.0.1", [b"203.0.113.9, garbage"], "unknown"),
        ("127.0.0.1", [b"garbage, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b""], "unknown"),
        ("127.0.0.1", [b"\xff\x00"], "unknown"),
        ("127.0.0.1", [b"203.0.113.9:1234"], "203.0.113.9"),
        ("127.0.0.1", [b"[2001:db8:1:2::3]:1234"], "20010db800010002"),
        ("127.0.0.1", [b"[2001:db8:1:2::3]"], "20010db800010002"),
        ("127.0.0.1", [b"203.0.113.9:"], "unknown"),
        ("127.0.0.1", [b"203.0.113.9, unix:"], "203.0.113.9"),
        ("127.0.0.1", [b"0" * 16000], "unknown"),
        ("127.0.0.1", [b"2001:db8:0000:0000:0000:ffff:192.168.100.228"], "20010db800000000"),
        ("/run/synapse.sock", [b"203.0.113.9"], "unknown"),
    ],
)
def test_client_key(peer: str | None, forwarded: list[bytes] | None, client: str) -> None:
    """The client is the first address from the right that is not a trusted proxy's, or the last that is."""
    assert client == Clients(RendezvousConfig().trusted_proxies).client_key(peer, joined(forwarded))


def test_unix_socket_is_trusted() -> None:
    """Behind a unix socket is a proxy of the operator's own, whichever networks are named."""
    assert "203.0.113.9" == Clients([]).client_key(None, b"192.0.2.66, 203.0.113.9")


def test_nobody_trusted() -> None:
    """Without trusted proxies the peer is the client."""
    assert "127.0.0.1" == Clients([]).client_key("127.0.0.1", b"203.0.113.9")


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "client"),
    [
        (0, "203.0.113.9", [b"192.0.2.66"], "203.0.113.9"),
        (1, "127.0.0.1", [b"192.0.2.66, 203.0.113.9"], "203.0.113.9"),
        (1, "203.0.113.1", [b"192.0.2.66", b"203.0.113.9"], "203.0.113.9"),
        (2, "203.0.113.1", [b"192.0.2.66, 203.0.113.9", b"203.0.113.2"], "203.0.113.9"),
        (1, None, [b"192.0.2.66, 203.0.113.9"], "203.0.113.9"),
        # fewer hops than proxies: the farthest counts; who makes a proxy drop the header gains nothing
        (2, "127.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        (5, "127.0.0.1", [b"203.0.113.9, 203.0.113.8"], "203.0.113.9"),
        (0, "127.0.0.1", [], "127.0.0.1"),
        (0, None, [b"203.0.113.9"], "127.0.0.1"),
        (2, "127.0.0.1", [b"203.0.113.9, unix:"], "203.0.113.9"),
        (2, "127.0.0.1", [b"unix:, 203.0.113.9"], "127.0.0.1"),
        (1, "127.0.0.1", [], "unknown"),
        (1, "127.0.0.1", [b"garbage"], "unknown"),
        (1, "203.0.113.9", None, "203.0.113.9"),
    ],
)
def test_number_of_proxies(hops: int, peer: str | None, forwarded: list[bytes] | None, client: str) -> None:
    """Where the number of proxies is said, the entry before them is the client, whatever their addresses."""
    assert client == Clients(hops).client_key(peer, joined(forwarded))


def test_exempt_and_denied() -> None:
    """The operator may exempt addresses from limits, and deny some, by the whole address."""
    networks = [ipaddress.ip_network(network) for network in ("203.0.113.0/24", "2001:db8:1:2:3::/80")]
    exempting, denying = Clients(1, exempt=networks), Clients(1, denied=networks)
    for address in (b"203.0.113.9", b"2001:db8:1:2:3::9"):
        assert ("exempt", "denied") == (exempting.client_key(None, address), denying.client_key(None, address))
    for address in (b"203.0.112.9", b"2001:db8:1:2:4::9"):
        assert exempting.client_key(None, address) == denying.client_key(None, address)
    assert "denied" == Clients(1, exempt=networks, denied=networks).client_key(None, b"203.0.113.9")


def test_one_host_has_one_name() -> None:
    """Networks and hosts of IPv4 match, whichever of the two is written as sockets or as translators write it."""
    names = ["{}", "::ffff:{}", "64:ff9b::{}", "64:ff9b:1::{}", "64:ff9b:1:2:3::{}"]
    for network in names:
        suffix = "/25" if network == "{}" else "/121"
        options = [network.format("203.0.113.0") + suffix]
        config = RendezvousConfig.parse({"trusted_proxies": options, "exempt": options})
        for host in names:
            clients = Clients(config.trusted_proxies, denied=config.exempt)
            assert "denied" == clients.client_key(host.format("203.0.113.127"), None)
            assert "203.0.113.128" == clients.client_key(host.format("203.0.113.128"), None)
            assert "192.0.2.7" == clients.client_key(host.format("203.0.113.9"), b"198.51.100.1, 192.0.2.7")


def test_quota_keys() -> None:
    """What an IPv6 client does counts for the networks around it, which may do more; for the unknown nobody counts."""
    assert (("203.0.113.9", 1),) == quota_keys("203.0.113.9")
    assert (("20010db800010203", 1), ("20010db8000102", 3), ("20010db80001", 6)) == quota_keys("20010db800010203")
    assert ((), ()) == (quota_keys("unknown"), quota_keys("exempt"))
    networks = [format_client(network) for network, _ in quota_keys("20010db800010203")]
    assert ["2001:db8:1:203::/64", "2001:db8:1:200::/56", "2001:db8:1::/48"] == networks
    for client in ("1.2.3.4", "203.0.113.10", "203.0.113.100", "192.168.100.10", "unknown", "exempt"):
        assert client == format_client(client)


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.1.2.3", True),
        ("fd00000000000001", True),
        ("8.8.8.8", False),
        ("2a00145040010800", False),
        ("unknown", False),
    ],
)
def test_is_private(client: str, expected: bool) -> None:
    """Addresses in the operator's own network are told from those on the internet."""
    assert expected == is_private(client)
