"""What is imported when, and where Synapse's private parts are used. pyproject.toml has the layers of the package."""

import ast
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import synapse_rendezvous

PACKAGE = pathlib.Path(synapse_rendezvous.__file__).parent
MODULES = [module.name for module in pkgutil.walk_packages(synapse_rendezvous.__path__, "synapse_rendezvous.")]
SYNAPSE = ("synapse", "OpenSSL", "cryptography", "service_identity", "txredisapi", "yaml")
"""Synapse and packages that come with it. We do not depend on them, so they can be missing where we are installed."""


def python(code: str, *arguments: str, missing: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """Run code in a fresh interpreter that cannot import the missing packages."""
    block = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))"
    return subprocess.run(
        [sys.executable, "-c", f"{block}\n{code}", *arguments],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_commands_import_without_synapse() -> None:
    """All that the command line imports at its start does without Synapse."""
    done = python("import synapse_rendezvous.__main__; print(*sys.modules)", missing=SYNAPSE)
    assert "" == done.stderr
    assert {"synapse_rendezvous.check.command", "synapse_rendezvous.demo.page"} <= set(done.stdout.split())


def test_check_imports_without_synapse() -> None:
    """The whole check does without Synapse, but for its look at homeserver.yaml; so does the rest of the tools."""
    parts = tuple(f"synapse_rendezvous.{part}" for part in ("check.", "demo.", "snippets.", "paths"))
    tools = {name for name in MODULES if name.startswith(parts)} - {"synapse_rendezvous.check.configuration"}
    assert len(tools) > 20
    done = python(
        "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *tools, missing=SYNAPSE[:1]
    )
    assert "" == done.stderr


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        ("snippet nginx", 0, ""),
        ("check localhost", 3, "OpenSSL and yaml cannot be imported by {python}. Run this where Synapse is installed."),
        (
            "check localhost -c homeserver.yaml",
            3,
            "OpenSSL and yaml and synapse cannot be imported by {python}. Run this where Synapse is installed.",
        ),
        (
            "demo",
            1,
            "Synapse is not installed for {python}. Install it beside this package: {python} -m pip install"
            " matrix-synapse",
        ),
    ],
)
def test_commands_say_that_synapse_is_missing(command: str, status: int, complaint: str) -> None:
    """A command that needs Synapse says in a sentence that it is missing."""
    code = "from synapse_rendezvous.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, *command.split(), missing=SYNAPSE)
    assert (status, complaint.format(python=sys.executable)) == (done.returncode, done.stderr.strip())


def test_redis_is_imported_late() -> None:
    """The module imports nothing of Redis until a homeserver has it, since txredisapi is there only then."""
    done = python("from synapse_rendezvous import RendezvousModule; print(*sys.modules)", missing=("txredisapi",))
    assert "" == done.stderr
    imported = set(done.stdout.split())
    assert "synapse_rendezvous.module" in imported
    assert not [name for name in imported if name.startswith("synapse_rendezvous.redis")]


def test_private_homeserver() -> None:
    """Only homeserver.py uses Synapse's private `_hs`."""
    users = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if "_hs" in (getattr(node, "attr", None), getattr(node, "value", None)):
                users.add(path.name)
    assert {"homeserver.py"} == users
