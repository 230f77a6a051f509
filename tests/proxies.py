"""Real reverse proxies before a homeserver."""

import pathlib
import shutil
from typing import NamedTuple

import pytest
from stack import Server

from synapse_rendezvous.throwaway import HOST, free_port


class _Product(NamedTuple):
    program: str
    package: str
    arguments: tuple[str, ...]
    config: str


# Each forwards everything, says by which scheme it was asked, and otherwise does what it does by default. It runs in
# the foreground, keeps its files in its folder and needs no user of its own.
_PRODUCTS = {
    "nginx": _Product(
        "nginx",
        "nginx-light",
        ("-c", "%(config)s", "-e", "%(directory)s/error.log"),
        # Without a master process, which would make its worker another user, who cannot read the folder.
        """
        daemon off; master_process off; pid %(directory)s/nginx.pid; error_log %(directory)s/error.log;
        events { }
        http {
            access_log off;
            client_body_temp_path %(directory)s/client_body; proxy_temp_path %(directory)s/proxy;
            fastcgi_temp_path %(directory)s/fastcgi; uwsgi_temp_path %(directory)s/uwsgi;
            scgi_temp_path %(directory)s/scgi;
            server {
                listen %(host)s:%(port)d;
                location / {
                    proxy_pass %(backend)s;
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
        """
        defaults
            mode http
            timeout connect 5s
            timeout client 75s
            timeout server 75s
        listen homeserver
            bind %(host)s:%(port)d
            http-request set-header X-Forwarded-Proto http
            %(lines)s
            server synapse %(address)s
        """,
    ),
    "apache": _Product(
        "apache2",
        "apache2",
        ("-D", "FOREGROUND", "-f", "%(config)s"),
        """
        ServerRoot %(directory)s
        ServerName %(host)s
        PidFile %(directory)s/apache.pid
        ErrorLog /dev/stderr
        # Only for root, whom it does not like to be.
        User www-data
        Group www-data
        LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
        LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
        LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
        LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
        LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
        Listen %(host)s:%(port)d
        ProxyPreserveHost on
        ProxyPass / %(backend)s/ nocanon
        RequestHeader set X-Forwarded-Proto http
        %(lines)s
        """,
    ),
    "caddy": _Product(
        "caddy",
        "caddy",
        ("run", "--config", "%(config)s", "--adapter", "caddyfile"),
        """
        {
            admin off
            auto_https off
            grace_period 1s
        }
        http://:%(port)d {
            bind %(host)s
            reverse_proxy %(backend)s {
                %(lines)s
            }
        }
        """,
    ),
}


class ReverseProxy(Server):
    """A reverse proxy that forwards everything. It skips the test where the product is not installed.

    Args:
        directory: an existing folder.
        product: `nginx`, `haproxy`, `apache` or `caddy`.
        backend: a URL without a slash at its end, or what the product writes in its place for a unix socket.
        lines: more of its configuration, at the place where it says what is forwarded.
    """

    def __init__(self, directory: pathlib.Path, product: str, backend: str, lines: str = "") -> None:
        program, package, arguments, config = _PRODUCTS[product]
        path = shutil.which(program) or shutil.which(program, path="/usr/sbin")
        if path is None:
            pytest.skip(f"{program} is not installed (Debian: apt install {package})")
        port = free_port()
        folder = directory / f"{product}-{port}"
        folder.mkdir()
        values = {
            "directory": folder,
            "config": folder / "config",
            "host": HOST,
            "port": port,
            "backend": backend,
            "address": backend.removeprefix("http://"),
            "lines": lines,
        }
        (folder / "config").write_text(config % values + "\n")
        # In an environment of its own, since Caddy keeps files at home.
        command = ("env", "-i", f"HOME={folder}", path, *(argument % values for argument in arguments))
        super().__init__(folder, product, port, *command)
