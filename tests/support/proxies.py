"""Real reverse proxies before a homeserver."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from support.ports import free_port
from support.programs import find_program
from support.servers import Server
from synapse_rendezvous.demo.throwaway_homeserver import HOST


class _Product(NamedTuple):
    program: str
    package: str
    arguments: tuple[str, ...]
    server: str  # how one of those behind it is written
    config: str


_APACHE_MODULES = (
    "mpm_event",
    "authz_core",
    "brotli",
    "cache",
    "cache_socache",
    "deflate",
    "env",
    "headers",
    "lbmethod_byrequests",
    "proxy",
    "proxy_balancer",
    "proxy_http",
    "rewrite",
    "slotmem_shm",
    "socache_shmcb",
)

# Each forwards everything, says by which scheme it was asked, and otherwise does what it does by default: what is
# loaded or set up beside does nothing until `lines` or `outer` use it. It runs in the foreground, keeps its files in
# its folder and needs no user of its own.
_PRODUCTS = {
    "nginx": _Product(
        "nginx",
        "nginx-light",
        ("-c", "%(config)s", "-e", "%(directory)s/error.log"),
        "server %(address)s;",
        # Without a master process, which would make its worker another user, who cannot read the folder.
        """
        daemon off; master_process off; pid %(directory)s/nginx.pid; error_log %(directory)s/error.log;
        events { }
        http {
            access_log off;
            client_body_temp_path %(directory)s/client_body; proxy_temp_path %(directory)s/proxy;
            fastcgi_temp_path %(directory)s/fastcgi; uwsgi_temp_path %(directory)s/uwsgi;
            scgi_temp_path %(directory)s/scgi;
            proxy_cache_path %(directory)s/cache keys_zone=cache:1m;
            upstream homeserver { %(servers)s }
            server {
                listen %(host)s:%(port)d;
                %(outer)s
                location / {
                    proxy_pass http://homeserver;
                    proxy_set_header Host $http_host;
                    proxy_set_header X-Forwarded-Proto $scheme;
                    %(lines)s
                }
            }
        }
        """,
    ),
    "haproxy": _Product(
        "haproxy",
        "haproxy",
        ("-db", "-f", "%(config)s"),
        "server synapse%(number)d %(address)s",
        """
        defaults
            mode http
            timeout connect 5s
            timeout client 75s
            timeout server 75s
        cache kept
            total-max-size 1
        %(outer)s
        listen homeserver
            bind %(host)s:%(port)d
            http-request set-header X-Forwarded-Proto http
            %(lines)s
            %(servers)s
        """,
    ),
    "apache": _Product(
        "apache2",
        "apache2",
        ("-D", "FOREGROUND", "-f", "%(config)s"),
        "BalancerMember %(backend)s",
        """
        ServerRoot %(directory)s
        ServerName %(host)s
        PidFile %(directory)s/apache.pid
        ErrorLog /dev/stderr
        # Only for root, whom it does not like to be.
        User www-data
        Group www-data
        %(modules)s
        Listen %(host)s:%(port)d
        %(outer)s
        ProxyPreserveHost on
        <Proxy "balancer://homeserver">
            %(servers)s
        </Proxy>
        ProxyPass / balancer://homeserver/ nocanon
        RequestHeader set X-Forwarded-Proto http
        %(lines)s
        """,
    ),
    "caddy": _Product(
        "caddy",
        "caddy",
        ("run", "--config", "%(config)s", "--adapter", "caddyfile"),
        "%(backend)s",
        """
        {
            admin off
            auto_https off
            grace_period 1s
        }
        http://:%(port)d {
            bind %(host)s
            %(outer)s
            reverse_proxy %(servers)s {
                %(lines)s
            }
        }
        """,
    ),
}


def program_of(product: str) -> str:
    """Return the path of a product's program. It skips the test where that is not installed."""
    program, package, *_ = _PRODUCTS[product]
    path = find_program(program)
    if path is None:
        pytest.skip(f"{program} is not installed (Debian: apt install {package})")
    return path


class ReverseProxy(Server):
    """A reverse proxy that forwards everything. It skips the test where the product is not installed.

    Args:
        directory: an existing folder.
        product: `nginx`, `haproxy`, `apache` or `caddy`.
        backend: a URL without a slash at its end, or what the product writes in its place for a unix socket; or
            several, which it asks in turn (Caddy at random, unless `lines` say otherwise).
        lines: more of its configuration, at the place where it says what is forwarded.
        outer: more of its configuration, before that: nginx's `server`, Caddy's site, Apache's main server; HAProxy's
            sections.

    Attributes:
        config: the file that holds its configuration.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        product: str,
        backend: str | Sequence[str],
        lines: str = "",
        outer: str = "",
    ) -> None:
        program = program_of(product)
        _, _, arguments, server, config = _PRODUCTS[product]
        port = free_port()
        folder = directory / f"{product}-{port}"
        folder.mkdir()
        self.config = folder / "config"
        backends = [backend] if isinstance(backend, str) else backend
        servers = [
            server % {"number": number, "backend": backend, "address": backend.removeprefix("http://")}
            for number, backend in enumerate(backends)
        ]
        values = {
            "directory": folder,
            "config": self.config,
            "host": HOST,
            "port": port,
            # A line each, but for Caddy, which has them in one.
            "servers": (" " if product == "caddy" else "\n").join(servers),
            "modules": "\n".join(
                f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _APACHE_MODULES
            ),
            "lines": lines,
            "outer": outer,
        }
        self.config.write_text(config % values + "\n")
        # In an environment of its own, since Caddy keeps files at home.
        command = ("env", "-i", f"HOME={folder}", program, *(argument % values for argument in arguments))
        super().__init__(folder, product, port, *command)
