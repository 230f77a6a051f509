"""The demonstration, as a stranger starts it."""

import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from support.http_client import ask
from support.ports import free_port
from support.recipes import ROOT
from support.until import wait_until
from synapse_rendezvous.demo.command import DEFAULT_PORT
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.paths import MSC3886


def demo(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synapse_rendezvous", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,
    )


def test_demo_once() -> None:
    """One command plays a rendezvous and shows each step."""
    played = demo("--once", "--port", "0", "--ttl", "30s")

    assert (0, "") == (played.returncode, played.stderr)
    answers = [int(line.split()[0]) for line in played.stdout.splitlines() if line.strip()[:3].isdecimal()]
    assert [200, 200, 304, 202, 200, 412, 204, 404] == answers
    for method in ("POST", "GET", "PUT", "DELETE"):
        assert f"device  {method} {MSC3886}" in played.stdout
    assert 'ETag: "' in played.stdout


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_serves(ending: signal.Signals) -> None:
    """The demonstration serves, its page too, until it is interrupted, and leaves nothing behind."""
    port = free_port()
    arguments = ["--port", str(port), "--page-port", "0", "--ttl", "2s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "synapse_rendezvous", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    while "curl -i -X DELETE" not in (line := process.stdout.readline()):
        assert line, process.communicate()
        lines.append(line)
    assert 2000 == ask("GET", f"http://{HOST}:{port}{MSC3886}").json()["ttl_ms"]
    (page,) = (line.split()[0] for line in lines if "pair two devices" in line)
    shown = ask("GET", page)
    assert 200 == shown.status
    assert f'data-collection="http://{HOST}:{port}{MSC3886}"' in shown.content.decode()

    process.send_signal(ending)
    rest, errors = process.communicate(timeout=60)

    assert (0, "") == (process.returncode, errors)
    assert "Stopped" in rest
    with socket.socket() as probe:
        wait_until(lambda: probe.connect_ex((HOST, port)) != 0)


def test_demo_mistakes() -> None:
    """What a stranger gets wrong is answered in one sentence."""
    with socket.socket() as busy:
        busy.bind((HOST, 0))
        busy.listen()
        port = busy.getsockname()[1]
        refused = demo("--port", str(port), "--page-port", "0")
        refused_page = demo("--port", "0", "--page-port", str(port))
    assert (1, f"Port {port} is in use. Choose another with --port, or let --port 0 find a free one.\n") == (
        refused.returncode,
        refused.stderr,
    )
    assert f"Port {port} is in use. Choose another with --page-port," in refused_page.stderr
    assert "--ttl must be a duration from 1s to 1h" in demo("--ttl", "soon", "--page-port", "0").stderr
    assert "cannot be used" in demo("--port", "99999", "--page-port", "0").stderr
    for host in "0.0.0.0", "fd00::2", "phone.local":
        assert (
            f"--host must be an IPv4 address of this machine, such as 192.168.1.20; not '{host}'."
            in demo("--host", host).stderr
        )
    strange = demo("--host", "203.0.113.77").stderr
    assert "--host 203.0.113.77 cannot be used: it is no address of this machine." in strange
    assert str(DEFAULT_PORT) in demo("--help").stdout


def test_demo_without_synapse(tmp_path: pathlib.Path) -> None:
    """A missing or outdated Synapse is said so, not shown as a traceback."""
    code = f"import sys; sys.path[:] = [{str(ROOT)!r}] + [p for p in sys.path if 'site-packages' not in p]\n"
    run = "from synapse_rendezvous.__main__ import main; sys.exit(main(['demo', '--once']))"
    alone = subprocess.run(
        [sys.executable, "-S", "-c", code + run], capture_output=True, text=True, timeout=60, check=False
    )
    assert 1 == alone.returncode
    assert "Synapse is not installed" in alone.stderr
    assert "pip install matrix-synapse" in alone.stderr
    assert "Traceback" not in alone.stderr

    outdated = "import synapse; synapse.__version__ = '1.130.0'\n"
    old = subprocess.run(
        [sys.executable, "-c", "import sys\n" + outdated + run], capture_output=True, text=True, timeout=60, check=False
    )
    assert (1, "synapse_rendezvous needs Synapse 1.140 or newer; this is 1.130.0. Upgrade Synapse.\n") == (
        old.returncode,
        old.stderr,
    )
