"""Which client a request counts for."""

import pytest

from synapse_rendezvous.admission import Clients
from synapse_rendezvous.config import RendezvousConfig

TRUSTING = Clients(RendezvousConfig().trusted_proxies)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # directly
        ("203.0.113.9", [], "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("127.0.0.1", [], "127.0.0.1"),
        # a proxy that sets the header, or appends to what the client wrote
        ("127.0.0.1", [b"203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66", b"203.0.113.9"], "203.0.113.9"),
        ("::1", [b"192.0.2.66,2001:db8:1:2::9"], "2001:db8:1:2::/64"),
        # two proxies
        ("127.0.0.1", [b"192.0.2.66, 203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 203.0.113.9", b"10.1.2.3"], "203.0.113.9"),
        # nobody but the last hop is believed from outside
        ("203.0.113.9", [b"192.0.2.66"], "203.0.113.9"),
        ("127.0.0.1", [b"192.0.2.66, 198.51.100.7, 203.0.113.9"], "203.0.113.9"),
        # a client in the operator's own network
        ("127.0.0.1", [b"192.168.1.20"], "192.168.1.20"),
        ("127.0.0.1", [b"10.0.0.5, 192.168.1.20"], "10.0.0.5"),
        # unix sockets
        (None, [b"203.0.113.9"], "203.0.113.9"),
        (None, [], "unknown"),
        # garbage counts for one client together, wherever the trusted part ends in it
        ("127.0.0.1", [b"203.0.113.9, garbage"], "unknown"),
        ("127.0.0.1", [b"garbage, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", [b""], "unknown"),
        ("127.0.0.1", [b"\xff\x00"], "unknown"),
        ("127.0.0.1", [b"203.0.113.9:1234"], "unknown"),
        ("127.0.0.1", [b"0" * 16000], "unknown"),
        ("127.0.0.1", [b"2001:db8:0000:0000:0000:ffff:192.168.100.228"], "2001:db8::/64"),
        ("/run/synapse.sock", [b"203.0.113.9"], "unknown"),
    ],
)
def test_name(peer: str | None, forwarded: list[bytes], client: str) -> None:
    """The client is the first address from the right that is not a trusted proxy's, or the last that is."""
    assert client == TRUSTING.name(peer, forwarded)


def test_nobody_trusted() -> None:
    """Without trusted proxies the peer is the client."""
    assert "127.0.0.1" == Clients([]).name("127.0.0.1", [b"203.0.113.9"])
