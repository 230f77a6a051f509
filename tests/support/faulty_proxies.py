"""Reverse proxies as they are met: with our configuration inside hostile settings, and with one known fault each."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from support.proxies import ReverseProxy
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.snippets.command import render


class Fault(NamedTuple):
    """Configuration that makes a proxy faulty.

    Attributes:
        lines: at the place where it says what is forwarded.
        outer: before that; see `ReverseProxy`.
        names_client: whether the proxy says truly for whom it asks.
    """

    lines: str = ""
    outer: str = ""
    names_client: bool = True


_NAMES_CLIENT = {
    "nginx": "proxy_set_header X-Forwarded-For $remote_addr;",
    "haproxy": "http-request set-header X-Forwarded-For %[src]",
    "apache": "RequestHeader unset X-Forwarded-For",  # it adds the address by itself
    "caddy": "",  # it does by itself
}

_HTML = "<html><body>Sorry!</body></html>"
_SESSION = r"/rendezvous/(msc4108/)?[A-Za-z0-9_-]{22,}$"
_ALLOWED = "Origin, X-Requested-With, Content-Type, Accept, Authorization"  # what the usual recipes for CORS allow

FAULTS: dict[str, dict[str, Fault]] = {
    "nginx": {
        "compression": Fault("gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;"),
        "charset": Fault("charset utf-8;"),
        # It honours no-store, but asks Synapse without If-None-Match and answers 200 where nothing is new.
        "cache": Fault("proxy_cache cache; proxy_cache_valid any 1m;"),
        "forced_cache": Fault(
            "proxy_cache cache; proxy_cache_valid any 1m; proxy_ignore_headers Cache-Control Expires Vary;"
        ),
        "duplicate_cors": Fault("add_header Access-Control-Allow-Origin * always;"),
        "options_intercepted": Fault(
            f"""if ($request_method = OPTIONS) {{
                add_header Access-Control-Allow-Origin *;
                add_header Access-Control-Allow-Methods 'GET, POST, PUT, DELETE, OPTIONS';
                add_header Access-Control-Allow-Headers '{_ALLOWED}';
                return 204;
            }}"""
        ),
        "error_pages": Fault(
            f"""proxy_intercept_errors on; error_page 404 412 413 429 500 502 503 504 /sorry.html;
            location = /sorry.html {{ default_type text/html; return 200 '{_HTML}'; }}"""
        ),
        "body_limit": Fault("client_max_body_size 1k;"),
        "forwarded_appended": Fault("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;", names_client=False),
        "forwarded_missing": Fault(names_client=False),  # what the client claims is passed on
        "cut_at_5s": Fault("proxy_read_timeout 5s;"),
        "no_ids": Fault(f'location ~ "{_SESSION}" {{ return 404; }}'),
        "two_processes": Fault(),  # all by the number of backends
        "etag_removed": Fault("proxy_hide_header ETag;"),
    },
    "haproxy": {
        # "compression" and "cache" are left out: it honours no-transform, which no rule can take away before it is
        # looked at, and no-store.
        # It has no setting for it, but rules that rewrite.
        "charset": Fault("http-response replace-header Content-Type ^text/plain$ 'text/plain; charset=utf-8'"),
        # It honours no-store unless it is rewritten; and whatever is not asked by GET would end what is kept.
        "forced_cache": Fault(
            """http-request cache-use kept if METH_GET
            http-response del-header Pragma
            http-response set-header Cache-Control max-age=60
            http-response cache-store kept"""
        ),
        "duplicate_cors": Fault("http-response add-header Access-Control-Allow-Origin *"),
        "options_intercepted": Fault(
            f"""http-request return status 204 hdr Access-Control-Allow-Origin * hdr Access-Control-Allow-Methods "GET, POST, PUT, DELETE, OPTIONS" hdr Access-Control-Allow-Headers "{_ALLOWED}" if {{ method OPTIONS }}"""  # noqa: E501
        ),
        "error_pages": Fault(
            f'http-response return status 404 content-type text/html string "{_HTML}" if {{ status 404 }}\n'
            f'http-response return status 412 content-type text/html string "{_HTML}" if {{ status 412 }}\n'
            f'http-response return status 413 content-type text/html string "{_HTML}" if {{ status 413 }}'
        ),
        "body_limit": Fault("http-request deny deny_status 413 if { req.body_size gt 1000 }"),
        "forwarded_appended": Fault("option forwardfor", names_client=False),
        "forwarded_missing": Fault(names_client=False),
        "cut_at_5s": Fault("timeout server 5s"),
        "no_ids": Fault(f"http-request deny deny_status 404 if {{ path_reg {_SESSION} }}"),
        "two_processes": Fault(),
        "etag_removed": Fault("http-response del-header ETag"),
    },
    "apache": {
        "compression": Fault("SetOutputFilter BROTLI_COMPRESS;DEFLATE"),
        "charset": Fault("AddDefaultCharset utf-8"),
        # It honours no-store, but takes Last-Modified from each 304.
        "cache": Fault("CacheEnable socache /\nCacheSocache shmcb"),
        "forced_cache": Fault(
            """CacheEnable socache /
            CacheSocache shmcb
            Header set Cache-Control max-age=60
            Header unset Pragma"""
        ),
        "duplicate_cors": Fault("Header always set Access-Control-Allow-Origin *"),
        "options_intercepted": Fault(
            f"""Header always set Access-Control-Allow-Origin * "expr=%{{REQUEST_METHOD}} == 'OPTIONS'"
            Header always set Access-Control-Allow-Methods "GET, POST, PUT, DELETE, OPTIONS"
            Header always set Access-Control-Allow-Headers "{_ALLOWED}"
            RewriteEngine on
            RewriteCond %{{REQUEST_METHOD}} OPTIONS
            RewriteRule ^ - [R=204,L]"""
        ),
        "error_pages": Fault(
            f"""ProxyErrorOverride on 404 412 413 500 502 503
            ErrorDocument 404 "{_HTML}"
            ErrorDocument 412 "{_HTML}"
            ErrorDocument 413 "{_HTML}" """
        ),
        # LimitRequestBody does not hold for what is forwarded.
        "body_limit": Fault(
            """RewriteEngine on
            RewriteCond expr "%{HTTP:Content-Length} -gt 1000"
            RewriteRule ^ - [R=413,L]"""
        ),
        # It always names the client at the end of the header, so "missing" it cannot be unless a line takes it away.
        "forwarded_appended": Fault(names_client=False),
        "forwarded_missing": Fault("ProxyAddHeaders off", names_client=False),
        "cut_at_5s": Fault("ProxyTimeout 5"),
        "no_ids": Fault(f'RewriteEngine on\nRewriteRule "{_SESSION}" - [R=404,L]'),
        "two_processes": Fault(),
        "etag_removed": Fault("Header unset ETag"),
    },
    "caddy": {
        # 2.6 leaves the ETag as it is; 2.11 changes it.
        "compression": Fault(outer="encode zstd gzip {\nminimum_length 1\nmatch {\nheader Content-Type *\n}\n}"),
        # It has no setting for it, but rules that rewrite.
        "charset": Fault('header_down Content-Type "^text/plain$" "text/plain; charset=utf-8"'),
        # "cache" and "forced_cache" are left out: it has no cache without a plugin.
        "duplicate_cors": Fault(outer="header Access-Control-Allow-Origin *"),
        "options_intercepted": Fault(
            outer=f"""@options method OPTIONS
            handle @options {{
                header Access-Control-Allow-Origin *
                header Access-Control-Allow-Methods "GET, POST, PUT, DELETE, OPTIONS"
                header Access-Control-Allow-Headers "{_ALLOWED}"
                respond 204
            }}"""
        ),
        "error_pages": Fault(
            f"""@error status 404 412 413 429 5xx
            handle_response @error {{
                header Content-Type text/html
                respond `{_HTML}` {{rp.status_code}}
            }}"""
        ),
        "body_limit": Fault(outer="request_body {\nmax_size 1000\n}"),
        # "forwarded_appended": it does so only for clients in trusted_proxies.
        "forwarded_appended": Fault("trusted_proxies 127.0.0.0/8", names_client=False),
        # It always names the client unless a line takes it away.
        "forwarded_missing": Fault("header_up -X-Forwarded-For", names_client=False),
        "cut_at_5s": Fault("transport http {\nresponse_header_timeout 5s\n}"),
        "no_ids": Fault(outer=f"@ids path_regexp {_SESSION}\nrespond @ids 404"),
        "two_processes": Fault("lb_policy round_robin"),
        "etag_removed": Fault("header_down -ETag"),
    },
}
"""Product, fault, and the configuration that brings the fault about. What a product cannot do wrong is left out."""

# Settings for everything that the proxy serves, as far as it has them, which our configuration has to stand.
_HOSTILE: dict[str, Fault] = {
    # Not in it: "if ($request_method = OPTIONS)" outside of a location, which acts before any location is chosen.
    "nginx": Fault(
        lines=FAULTS["nginx"]["options_intercepted"].lines,
        outer=f"""
            gzip on; gzip_types *; gzip_proxied any; gzip_min_length 1;
            charset utf-8; charset_types *;
            proxy_cache cache; proxy_cache_valid any 1m; proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;
            expires 1h;
            add_header Access-Control-Allow-Origin * always;
            proxy_intercept_errors on; error_page 400 404 412 413 429 500 502 503 504 /sorry.html;
            location = /sorry.html {{ default_type text/html; return 200 '{_HTML}'; }}
            client_max_body_size 1k;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_read_timeout 1s;
            location ~ ^(/_matrix|/_synapse/client) {{ return 404; }}
            """,
    ),
    "haproxy": Fault(
        lines=f"""
            compression algo gzip deflate
            compression type text/plain application/octet-stream application/json
            {FAULTS["haproxy"]["forced_cache"].lines}
            http-response add-header Access-Control-Allow-Origin *
            {FAULTS["haproxy"]["options_intercepted"].lines}
            {FAULTS["haproxy"]["body_limit"].lines}
            http-request deny deny_status 404 if {{ path_beg /_synapse }}
            http-error status 413 content-type text/html string "{_HTML}"
            http-error status 503 content-type text/html string "{_HTML}"
            option forwardfor
            timeout server 1s
            """
    ),
    "apache": Fault(
        lines=f"""
            {FAULTS["apache"]["options_intercepted"].lines}
            """,
        outer=f"""
            {FAULTS["apache"]["compression"].lines}
            {FAULTS["apache"]["charset"].lines}
            {FAULTS["apache"]["forced_cache"].lines}
            {FAULTS["apache"]["duplicate_cors"].lines}
            {FAULTS["apache"]["error_pages"].lines}
            {FAULTS["apache"]["body_limit"].lines}
            ErrorDocument 502 "{_HTML}"
            ErrorDocument 503 "{_HTML}"
            ProxyTimeout 1
            """,
    ),
    "caddy": Fault(
        lines="""
            header_up -X-Forwarded-For
            """,
        outer=f"""
            {FAULTS["caddy"]["compression"].outer}
            {FAULTS["caddy"]["duplicate_cors"].outer}
            header Cache-Control max-age=60
            {FAULTS["caddy"]["options_intercepted"].outer}
            handle_errors {{
                header Content-Type text/html
                respond `{_HTML}`
            }}
            """,
    ),
}


def places(product: str, snippet: str) -> tuple[str, str]:
    """Return what of our configuration are `lines` and what is `outer`; see `ReverseProxy`."""
    if product == "haproxy":  # its first part belongs into the frontend
        frontend, _, sections = snippet.partition("\n\n")
        return frontend, sections
    return "", snippet


def healthy(directory: pathlib.Path, product: str, backends: Sequence[str]) -> ReverseProxy:
    """Return a proxy that has our configuration amidst settings that would break everything.

    Args:
        directory: an existing folder.
        product: one of `FAULTS`.
        backends: URLs of homeservers: our configuration leads to the first, all else to the last.
    """
    lines, outer, _ = _HOSTILE[product]
    our_lines, our_outer = places(product, render(product, host=HOST, upstream=backends[0].removeprefix("http://")))
    # nginx finds a location wherever it stands; for the others, ours stands first.
    outer = f"{outer}\n{our_outer}" if product == "nginx" else f"{our_outer}\n{outer}"
    return ReverseProxy(directory, product, backends[-1], f"{our_lines}\n{lines}", outer)


def faulty(directory: pathlib.Path, product: str, fault: str, backends: Sequence[str]) -> ReverseProxy:
    """Return a proxy without our configuration that has one fault.

    Args:
        directory: an existing folder.
        product: one of `FAULTS`.
        fault: one of `FAULTS[product]`.
        backends: URLs of homeservers; of several, only `two_processes` uses more than the first.
    """
    lines, outer, names_client = FAULTS[product][fault]
    if names_client:
        lines = f"{_NAMES_CLIENT[product]}\n{lines}"
    return ReverseProxy(directory, product, backends if fault == "two_processes" else backends[:1], lines, outer)
