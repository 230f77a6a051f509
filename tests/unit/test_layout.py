"""The folders of the tests hold what they should, and test modules share by support alone."""

import ast
import pathlib
from collections import Counter

import pytest

from support.recipes import ROOT

TESTS = ROOT / "tests"
MODULES = sorted(TESTS.rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    """Return all that a module imports, as `module` and as `module.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


OTHER_CLIENTS = {"aiohttp", "asyncio.open_connection", "http.client", "httpx", "requests", "treq", "urllib.request"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports(path: pathlib.Path) -> None:
    """Nothing is imported from a test module or conftest; live tests alone start homeservers; there is one client."""
    names = imported(path)
    assert not names & {"conftest", *(module.stem for module in TESTS.rglob("test_*.py"))}
    if path.parent.name in ("unit", "synapse"):
        assert not [name for name in names if "ThrowawayHomeserver" in name or name == "support.homeservers"]
    if path.name != "http_client.py":
        assert not names & OTHER_CLIENTS, "requests are sent by support/http_client.py"


def test_names() -> None:
    """Each test module has a name of its own, and our folder is no package: Synapse's harness is called like it."""
    names = Counter(module.stem for module in MODULES if module.parent.name in ("unit", "synapse", "live"))
    assert [] == [name for name, count in names.items() if count > 1]
    packages = {path.parent.name for path in TESTS.rglob("__init__.py")}
    assert {"support", "tools"} == packages
