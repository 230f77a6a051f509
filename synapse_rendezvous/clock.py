"""The clock by which sessions and limits age. Nothing else in the core reads the time by itself."""

import time

monotonic_ns = time.monotonic_ns
"""Returns nanoseconds of a clock that is never set; only differences mean something."""


def monotonic_s() -> float:
    """Return the same in seconds."""
    return monotonic_ns() / 1e9


class MonotonicClock:
    """As much of Synapse's clock as its `Ratelimiter` uses (synapse/api/ratelimiting.py), on monotonic time."""

    def time(self) -> float:
        """Return seconds."""
        return monotonic_s()

    def time_msec(self) -> int:
        """Return whole milliseconds."""
        return monotonic_ns() // 1_000_000
