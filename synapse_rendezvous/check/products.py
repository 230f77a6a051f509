"""Recognizes reverse proxies by their Server and Via fields and by their error pages."""

import re

PRODUCTS = {
    "nginx": "nginx",
    "haproxy": "HAProxy",
    "caddy": "Caddy",
    "apache": "Apache",
    "traefik": "Traefik",
    "cloudflare": "Cloudflare",
    "varnish": "Varnish",
    "envoy": "Envoy",
    "lighttpd": "lighttpd",
}
"""The products that can be recognized, with their names for a person."""

_NAMES = re.compile("|".join([*PRODUCTS, "openresty", "tengine", "istio"]), re.IGNORECASE)
_ALIASES = {"openresty": "nginx", "tengine": "nginx", "istio": "envoy"}

# Error pages of the products that may leave out the Server field.
_ERROR_PAGES = {
    "nginx": re.compile(rb"<center>(nginx|openresty)"),
    "apache": re.compile(rb'<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2\.0//EN">'),
    "haproxy": re.compile(rb"\A<html><body><h1>\d{3} [A-Za-z -]+</h1>\n"),
    # Other programs in Go send this page too, but few of them stand before a homeserver.
    "traefik": re.compile(rb"\A404 page not found\n\Z"),
}


def identify_product(server: str | None, via: str | None, body: bytes) -> str | None:
    """Return the product that a response shows, as a key of `PRODUCTS`; None if it shows none.

    Args:
        server: its Server field.
        via: its Via field.
        body: its content.
    """
    for field in (server, via):
        if name := _NAMES.search(field or ""):
            return _ALIASES.get(name[0].lower(), name[0].lower())
    return next((product for product, page in _ERROR_PAGES.items() if page.search(body)), None)
