"""Addresses and networks, of which IPv4 addresses that are written as IPv6 become IPv4 again.

One host must not have two names: else a network in the configuration would not match it, or all the hosts behind a
translator would be in one IPv6 /64, and thus one client.
"""

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""How sockets for both families name IPv4 addresses (RFC 4291, section 2.5.5.2)."""

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""How NAT64 names them (RFC 6052, section 2.1)."""

_TRANSLATED_LOCALLY = ipaddress.IPv6Network("64:ff9b:1::/48")
"""How NAT64 within one network does (RFC 8215): by this prefix itself, or by a /96 in it."""


class AmbiguousNetwork(ValueError):
    """A network that means IPv4 by way of a translator, but no IPv4 network in particular."""


def parse_address(text: str) -> IPAddress:
    """Read an address.

    Raises:
        ValueError: it is none.
    """
    address = ipaddress.ip_address(text)
    return _ipv4_in(address) if isinstance(address, ipaddress.IPv6Address) else address


def parse_network(text: str) -> IPNetwork:
    """Read a network, or an address as the network of that address alone.

    Raises:
        AmbiguousNetwork: see there.
        ValueError: it is none, or has bits set behind its prefix.
    """
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv4Network):
        return network
    is_translated = network.subnet_of(_TRANSLATED) or network.subnet_of(_TRANSLATED_LOCALLY)
    if is_translated and network.prefixlen <= 96:
        raise AmbiguousNetwork
    if is_translated or network.subnet_of(_MAPPED):
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _ipv4_in(address: ipaddress.IPv6Address) -> IPAddress:
    """Return the IPv4 address that is written in an IPv6 address, or this itself."""
    bits = int(address)
    if address in _TRANSLATED_LOCALLY and not bits & 0xFFFFFFFF:
        # Behind a prefix of 48 bits come half of the IPv4 address, eight bits of zero, and the other half (RFC 6052).
        return ipaddress.IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)
    if address in _MAPPED or address in _TRANSLATED or address in _TRANSLATED_LOCALLY:
        return ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    return address
