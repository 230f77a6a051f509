"""A real homeserver that lives for a moment: for the demonstration, the tests and the benchmarks."""

import base64
import http.client
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from synapse_rendezvous.demo.certificate import Certificate

HOST = "127.0.0.1"
START_TIMEOUT_S = 120


class DidNotStart(Exception):
    """The homeserver ended or did not answer in time; the message holds the end of its log."""


class ThrowawayHomeserver:
    """A real Synapse in a process of its own that keeps nothing.

    Args:
        directory: an empty folder for its files.
        port: where it listens.
        modules: the `modules` list of its homeserver.yaml.
        host: the IPv4 address at which it listens; by default, this machine only can reach it.
        certificate: for TLS; None for plain HTTP.
        settings: more of its homeserver.yaml.
        environment: more of its environment.

    In a `with` statement, it is started and stopped.

    Attributes:
        url: its address, without a slash at the end.
        certificate: its certificate, if it speaks TLS.
        log: the file that holds its log.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        port: int,
        modules: Sequence[Mapping[str, Any]],
        host: str = HOST,
        certificate: Certificate | None = None,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = origin(host, port, is_tls=certificate is not None)
        self.log = directory / "homeserver.log"
        self._address = host, port
        self.certificate = certificate
        self._config = directory / "homeserver.yaml"
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        key = base64.b64encode(os.urandom(32)).decode("ascii").rstrip("=")
        (directory / "signing.key").write_text(f"ed25519 a_demo {key}\n")
        # JSON is YAML as well.
        self._config.write_text(
            json.dumps(
                {
                    "server_name": "rendezvous.localhost",
                    "public_baseurl": f"{self.url}/",
                    "report_stats": False,
                    "signing_key_path": str(directory / "signing.key"),
                    "macaroon_secret_key": base64.b64encode(os.urandom(32)).decode("ascii"),
                    "database": {"name": "sqlite3", "args": {"database": str(directory / "homeserver.db")}},
                    "enable_media_repo": False,
                    "trusted_key_servers": [],
                    "listeners": [
                        {
                            "port": port,
                            "bind_addresses": [host],
                            "type": "http",
                            "tls": certificate is not None,
                            "resources": [{"names": ["client"]}],
                        }
                    ],
                    "tls_certificate_path": str(certificate.path) if certificate else None,
                    "tls_private_key_path": str(certificate.key_path) if certificate else None,
                    "modules": list(modules),
                    **(settings or {}),
                },
                indent=1,
            )
        )

    def __enter__(self) -> "ThrowawayHomeserver":
        try:
            self.start()
        except BaseException:  # an interrupt, too, must leave nothing behind
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "not started"  # noqa: S101
        return self._process.pid

    def start(self) -> None:
        """Start it and return once it answers.

        Raises:
            DidNotStart: it ended or did not answer in time.
        """
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "synapse.app.homeserver", "-c", str(self._config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._config.parent,
                start_new_session=True,  # so that Ctrl-C reaches us alone, and we end it
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DidNotStart(f"Synapse did not start. {self.log_end()}")
            time.sleep(0.05)

    def log_end(self) -> str:
        """Return what it last logged, for a person."""
        return f"The end of its log:\n{self.log.read_text(errors='replace')[-3000:]}"

    def wait(self) -> None:
        """Return when the process has ended."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return a connection to it, which opens with the first request.

        Args:
            timeout_s: how many seconds it may be silent.
        """
        if self.certificate is None:
            return http.client.HTTPConnection(*self._address, timeout=timeout_s)
        trust = ssl.create_default_context(cafile=self.certificate.path)
        return http.client.HTTPSConnection(*self._address, timeout=timeout_s, context=trust)

    def _healthy(self) -> bool:
        connection = self.connect(timeout_s=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def origin(host: str, port: int, *, is_tls: bool) -> str:
    """Return the origin of what listens there, such as `http://127.0.0.1:8008`.

    Args:
        host: an IPv4 address.
        port: a port.
        is_tls: whether it speaks TLS.
    """
    return f"{'https' if is_tls else 'http'}://{host}:{port}"


def free_port(host: str = HOST) -> int:
    """Return a port on which nothing listens now, at this IPv4 address."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
