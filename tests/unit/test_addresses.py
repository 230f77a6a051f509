"""IPv4 inside IPv6."""

import ipaddress

import pytest

from synapse_rendezvous.addresses import AmbiguousNetwork, parse_address, parse_network


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("::fffe:203.0.113.9", "::fffe:cb00:7109"),
        ("::203.0.113.9", "::cb00:7109"),  # was a form once, and is none any more
        ("64:ff9b::203.0.113.9", "203.0.113.9"),
        ("64:ff9b::1:203.0.113.9", "64:ff9b::1:cb00:7109"),
        ("64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff", "64:ff9a:ffff:ffff:ffff:ffff:ffff:ffff"),
        # prefixes for one network: a /96, and the /48, which has eight bits of zero in the middle of the address
        ("64:ff9b:1::203.0.113.9", "203.0.113.9"),
        ("64:ff9b:1:fffe::203.0.113.9", "203.0.113.9"),
        ("64:ff9b:1:cb00:71:900::", "203.0.113.9"),
        ("64:ff9b:2::203.0.113.9", "64:ff9b:2::cb00:7109"),
        ("64:ff9b:0:ffff::203.0.113.9", "64:ff9b:0:ffff::cb00:7109"),
    ],
)
def test_addresses(written: str, meant: str) -> None:
    """What stands for an IPv4 address is read as that; whatever is next to it is not."""
    assert ipaddress.ip_address(meant) == parse_address(written)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("::ffff:203.0.113.9", "203.0.113.9/32"),
        ("::ffff:0:0/96", "0.0.0.0/0"),  # the same hosts
        ("::/64", "::/64"),
        ("::/0", "::/0"),
        ("64:ff9b::203.0.113.0/120", "203.0.113.0/24"),
        ("64:ff9b::/97", "0.0.0.0/1"),
        ("64:ff9b:1:2::203.0.113.9", "203.0.113.9/32"),
        ("64:ff9b::/32", "64:ff9b::/32"),
        ("64:ff9b:2::/48", "64:ff9b:2::/48"),
    ],
)
def test_networks(written: str, meant: str) -> None:
    """Networks are read as their addresses are."""
    assert ipaddress.ip_network(meant) == parse_network(written)


@pytest.mark.parametrize("written", ["64:ff9b::/96", "64:ff9b:1::/48", "64:ff9b:1:2::/96", "64:ff9b:1:cb00::/64"])
def test_all_behind_a_translator(written: str) -> None:
    """To trust all that a translator stands for would be to trust every IPv4 address."""
    with pytest.raises(AmbiguousNetwork):
        parse_network(written)


@pytest.mark.parametrize("written", ["", "garbage", "203.0.113.9/24", "64:ff9b::203.0.113.9/97", "::1/64"])
def test_no_networks(written: str) -> None:
    """What is none is refused."""
    with pytest.raises(ValueError, match=r".+"):
        parse_network(written)
