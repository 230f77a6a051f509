"""Programs that tests use, and that may be missing."""

import shutil

import pytest


def find_program(name: str) -> str | None:
    """Return the path of a program, also of one that only root has in its search path."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """Skip a test where a program is missing.

    Args:
        program: its name.
        package: the Debian package that has it.
    """
    reason = f"{program} is not installed (Debian: apt install {package})"
    return pytest.mark.skipif(find_program(program) is None, reason=reason)
