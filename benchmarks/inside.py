"""A Synapse module for `million.py`: fills the real store within the process, and notes what holds the process up.

All of it is told in CPU time of Synapse's main thread, so that other work on the machine does not count.
"""

import functools
import gc
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from synapse.module_api import ModuleApi
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import Request

from synapse_rendezvous.preconditions import new_tag
from synapse_rendezvous.session import Write, new_random_id

PATH = "/_synapse/client/inside"

SLICE_S = 0.002
"""How long the store is filled before everybody else gets a turn as long."""

NOTED_MS = 1.0
"""Shorter work is not noted, but for the longest of each kind."""


class Notes:
    """What took how long.

    Attributes:
        work: kind, when it ended by the clock of all processes of this machine, and milliseconds.
    """

    def __init__(self) -> None:
        self.work: list[tuple[str, float, float]] = []
        self._longest: dict[str, float] = {}

    def add(self, kind: str, took_s: float) -> None:
        """Note a piece of work that has just ended, unless it is short."""
        took_ms = took_s * 1000
        if took_ms > min(NOTED_MS, self._longest.get(kind, 0)):
            self._longest[kind] = max(took_ms, self._longest.get(kind, 0))
            self.work.append((kind, time.monotonic(), took_ms))


class InsideModule(Resource):
    """Is told by POST how many sessions to create, and tells by GET how far it is; with `?work`, also what was noted.

    Args:
        config: nothing.
        api: Synapse's interface for modules.
    """

    isLeaf = True

    def __init__(self, config: None, api: ModuleApi) -> None:
        Resource.__init__(self)
        ours: Any = api._hs._module_web_resources["/_synapse/client/rendezvous"]
        self._store = ours._store
        self._notes = Notes()
        self._call_later: Any = api._hs.get_reactor().callLater
        self._wanted = 0
        self._created = 0
        self._collection_began_s = 0.0
        self._ticked = time.thread_time()
        gc.callbacks.append(self._collected)
        self._store._sweep = self._timed("sweep", self._store._sweep)
        LoopingCall(self._tick).start(SLICE_S, now=False)
        api.register_web_resource(PATH, self)

    @staticmethod
    def parse_config(config: object) -> None:
        """Accept any options and read none; called by Synapse."""

    def render_POST(self, request: Request) -> bytes:
        """Begin to fill the store up to so many more sessions."""
        assert request.content is not None
        self._wanted = int(request.content.read())
        self._created = 0
        self._fill()
        return b""

    def render_GET(self, request: Request) -> bytes:
        """Tell how many of the wanted sessions were created and how many there are."""
        told: dict[str, Any] = {"created": self._created, "sessions": len(self._store)}
        if request.uri.endswith(b"?work"):  # takes long itself
            told["work"] = self._notes.work
        return json.dumps(told).encode("ascii")

    def _fill(self) -> None:
        end_s = time.monotonic() + SLICE_S
        while self._created < self._wanted and time.monotonic() < end_s:
            number = self._created
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            begin_s = time.thread_time()
            write = Write(b"%064d" % number, b"text/plain")
            self._finish(self._store.create(new_random_id(), new_tag(), write, address))
            self._notes.add("create", time.thread_time() - begin_s)
            self._created += 1
        if self._created < self._wanted:
            self._call_later(SLICE_S, self._fill)

    @staticmethod
    def _finish(coroutine: Awaitable[Any]) -> None:
        """Run a coroutine of the store in memory, which waits for nothing."""
        try:
            coroutine.__await__().send(None)
        except StopIteration:
            return
        raise AssertionError("The store in memory waits for something.")

    def _timed(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any) -> Any:
            begin_s = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self._notes.add(kind, time.thread_time() - begin_s)

        return timed

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began_s = time.thread_time()
        else:
            self._notes.add(f"collection {info['generation']}", time.thread_time() - self._collection_began_s)

    def _tick(self) -> None:
        """Note how long the process worked on other things since the last tick."""
        now_s = time.thread_time()
        self._notes.add("pause", now_s - self._ticked)
        self._ticked = now_s
