"""Waiting for what comes at a time of its own."""

import time
from collections.abc import Callable

HANGS_S = 120.0
"""What is not so by then never will be, however busy the machine is."""


def wait_until(condition: Callable[[], object], *, about: object = "") -> None:
    """Return once something is so.

    Args:
        condition: whether it is so.
        about: what to say if it never is.
    """
    deadline_s = time.monotonic() + HANGS_S
    while not condition():
        assert time.monotonic() < deadline_s, about
        time.sleep(0.05)
