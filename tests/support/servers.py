"""A homeserver with workers: Redis, the main process, generic workers and, if wanted, nginx before them."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from support.homeservers import at_once
from support.http_client import PATIENCE_S, NoAnswer, ask
from support.ports import free_port
from support.programs import find_program
from synapse_rendezvous.demo.throwaway_homeserver import HOST, START_TIMEOUT_S, DidNotStart, ThrowawayHomeserver

Self = TypeVar("Self", bound="Program")

_RATE = {"per_second": 1_000_000, "burst_count": 1_000_000}
UNLIMITED = {"max_sessions": 10_000_000, "create": _RATE, "read": _RATE, "miss": _RATE}
"""A `per_client` section that lets one client do whatever a test does."""

ENDLESS = {"max_updates": 9_999_999, "per_session": {"read": _RATE, "write": _RATE}}
"""Options that let one session be read and written as often as a test does."""


class Program:
    """A program in a process of its own. It can be started again after its end, and its log then goes on.

    In a `with` statement, it is started and stopped.

    Args:
        directory: where it works and where its log is.
        name: the name of its log.
        command: what is run.

    Attributes:
        log: the file that holds its output.
    """

    def __init__(self, directory: pathlib.Path, name: str, *command: str) -> None:
        self.log = directory / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start it and return once it answers.

        Raises:
            DidNotStart: it ended or did not answer in time.
        """
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=self.log.parent, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DidNotStart(f"{self.log.stem}: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.02)

    def __enter__(self: Self) -> Self:
        try:
            self.start()
        except BaseException:  # an interrupt, too, must leave nothing behind
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """End the process without giving it notice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """End the process, whatever state it is in."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a paused process does not hear the next one
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()

    def _answers(self) -> bool:
        raise NotImplementedError


class RedisServer(Program):
    """A Redis that keeps nothing on disk.

    Args:
        directory: an existing folder.
        port: where it listens; by default a free port.
        options: more of its command line.

    Attributes:
        port: where it listens.
    """

    def __init__(self, directory: pathlib.Path, port: int | None = None, *options: str) -> None:
        self.port = port or free_port()
        command = ["redis-server", "--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        super().__init__(directory, "redis", *command, *options)

    def pause(self) -> None:
        """Let it hang: connections stay open and new ones are accepted, but nothing is answered."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on: it answers whatever was sent in between."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str | bytes) -> bytes:
        """Send one command and return the answer as it is on the wire, such as `+PONG` and a line break."""
        values = [word.encode() if isinstance(word, str) else word for word in words]
        lines = b"".join(b"$%d\r\n%b\r\n" % (len(value), value) for value in values)
        with (
            socket.create_connection((HOST, self.port), timeout=PATIENCE_S) as connection,
            connection.makefile("rb") as answer,
        ):
            connection.sendall(b"*%d\r\n%b*1\r\n$4\r\nQUIT\r\n" % (len(values), lines))  # so the answer has an end
            return answer.read().removesuffix(b"+OK\r\n")

    def _answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG\r\n"
        except OSError:
            return False


class Server(Program):
    """A program that serves HTTP.

    Attributes:
        url: its address, without a slash at the end.
        health: the path at which it answers 200 once it serves.
    """

    health = "/health"

    def __init__(self, directory: pathlib.Path, name: str, port: int, *command: str) -> None:
        super().__init__(directory, name, *command)
        self.url = f"http://{HOST}:{port}"

    def _answers(self) -> bool:
        try:
            return ask("GET", self.url + self.health, patience_s=5).status == 200
        except NoAnswer:
            return False


class Worker(Server):
    """A generic worker whose listener serves nothing but what modules bring.

    Args:
        directory: where the homeserver.yaml of the main process is.
        name: its name.
    """

    def __init__(self, directory: pathlib.Path, name: str) -> None:
        port = free_port()
        config = directory / f"{name}.yaml"
        config.write_text(
            json.dumps(
                {
                    "worker_app": "synapse.app.generic_worker",
                    "worker_name": name,
                    "worker_listeners": [_listener(port)],
                }
            )
        )
        command = [sys.executable, "-m", "synapse.app.generic_worker"]
        super().__init__(directory, name, port, *command, "-c", str(directory / "homeserver.yaml"), "-c", str(config))


class WorkerStack:
    """Redis, the main process and workers, to be used in a `with` statement or started and stopped by hand.

    The database is SQLite, which Synapse does not support with workers; sessions have nothing to do with it.

    Args:
        directory: an empty folder for their files.
        config: the module's options; see `at_once`. By default the limits for each client are out of the way.
        workers: how many workers there are.
        nginx: whether nginx spreads requests over the workers, one after the other.

    Attributes:
        redis: what the processes share.
        main: the main process.
        workers: the workers, called rendezvous1 and so on.
        url: nginx's address or, without nginx, that of the first worker.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        config: Mapping[str, Any] | None = None,
        workers: int = 2,
        nginx: bool = False,
    ) -> None:
        # The tests ask the processes directly, without a proxy that says for whom.
        config = {"trusted_proxies": [], **({"per_client": UNLIMITED, **ENDLESS} if config is None else config)}
        self.redis = RedisServer(directory)
        port, replication = free_port(), free_port()
        self.main = ThrowawayHomeserver(
            directory,
            port=port,
            modules=[{"module": "synapse_rendezvous.RendezvousModule", "config": at_once(config)}],
            settings={
                "redis": {"enabled": True, "host": HOST, "port": self.redis.port},
                "instance_map": {"main": {"host": HOST, "port": replication}},
                "worker_replication_secret": "secret",
                "listeners": [_listener(port, "client"), _listener(replication, "replication")],
            },
        )
        self.workers = [Worker(directory, f"rendezvous{number}") for number in range(1, workers + 1)]
        self._nginx = _nginx(directory, self.workers, self.main.url) if nginx else None
        self.url = self._nginx.url if self._nginx else self.workers[0].url

    @property
    def urls(self) -> list[str]:
        """The addresses of all processes, the workers' first."""
        return [*(worker.url for worker in self.workers), self.main.url]

    @property
    def logs(self) -> list[pathlib.Path]:
        """The logs of all processes, in the same order."""
        return [*(worker.log for worker in self.workers), self.main.log]

    def start(self) -> None:
        """Start everything and return once all of it answers.

        Raises:
            DidNotStart: a part of it did not; what was started is stopped.
        """
        try:
            self.redis.start()
            self.main.start()  # it makes the tables that the workers need
            with ThreadPoolExecutor() as pool:
                list(pool.map(Worker.start, self.workers))
            if self._nginx:
                self._nginx.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop whatever runs, Redis last."""
        if self._nginx:
            self._nginx.stop()
        for worker in reversed(self.workers):
            worker.stop()
        self.main.stop()
        self.redis.stop()

    def __enter__(self) -> "WorkerStack":
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()


def _listener(port: int, *resources: str) -> dict[str, Any]:
    names = [{"names": list(resources)}] if resources else []
    return {"port": port, "bind_addresses": [HOST], "type": "http", "x_forwarded": True, "resources": names}


def _nginx(directory: pathlib.Path, workers: list[Worker], main_url: str) -> Server:
    port = free_port()
    servers = " ".join(f"server {worker.url.removeprefix('http://')};" for worker in workers)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    config = directory / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/error.log;
        events {{ }}
        http {{ access_log off; {temporary}
            upstream workers {{ {servers} keepalive 16; }}
            proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
            server {{ listen {HOST}:{port};
                location /_synapse/client/ {{ proxy_pass http://workers; }}
                location / {{ proxy_pass {main_url}; }} }} }}"""
    )
    return Server(
        directory,
        "nginx",
        port,
        find_program("nginx") or "nginx",
        "-c",
        str(config),
        "-e",
        str(directory / "error.log"),
    )
