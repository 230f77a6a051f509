"""Which reverse proxy answers come through, by what it says and by how it words its errors."""

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
"""Those that are known, with their names for a person."""

_NAMES = re.compile("|".join([*PRODUCTS, "openresty", "tengine", "istio"]), re.IGNORECASE)
_SAME = {"openresty": "nginx", "tengine": "nginx", "istio": "envoy"}

# The pages of those that do not say in a header who they are.
_PAGES = {
    "nginx": re.compile(rb"<center>(nginx|openresty)"),
    "apache": re.compile(rb'<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2\.0//EN">'),
    "haproxy": re.compile(rb"\A<html><body><h1>\d{3} [A-Za-z -]+</h1>\n"),
    # Other programs in Go say so, too, but few of them stand before a homeserver.
    "traefik": re.compile(rb"\A404 page not found\n\Z"),
}


def product_of(server: str | None, via: str | None, body: bytes) -> str | None:
    """Return the product that an answer shows, by a key of `PRODUCTS`; None if it shows none.

    Args:
        server: its Server field.
        via: its Via field.
        body: its content.
    """
    for field in (server, via):
        if name := _NAMES.search(field or ""):
            return _SAME.get(name[0].lower(), name[0].lower())
    return next((product for product, page in _PAGES.items() if page.search(body)), None)
