"""How preconditions become swaps: how often the store is asked, and what happens while others write."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from parameterized import parameterized

from support.rendezvous_case import RendezvousTestCase
from synapse_rendezvous.memory_store import MemorySessionStore
from synapse_rendezvous.preconditions import new_tag
from synapse_rendezvous.resource import MAX_SWAPS
from synapse_rendezvous.session import Write

OLD = b"Thu, 01 Jan 1970 00:00:00 GMT"  # when the fake clock starts
LATE = b"Sat, 06 Nov 2094 08:49:36 GMT"
OTHERS = Write(b"by another device", b"text/plain")


class WritesTestCase(RendezvousTestCase):
    """Counts what the resource asks of the store, and writes in between."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor.advance(60)
        store = self.hs._module_web_resources[self.path]._store
        assert isinstance(store, MemorySessionStore)
        self.store = store
        self.below, self.etag = self.create(b"first")
        self.asked: list[str] = []
        self.others_write = 0
        """Before so many of the next swaps and deletions, another device replaces the payload."""
        for name in ("get", "swap", "delete"):
            watching = patch.object(store, name, self.watched(name, getattr(store, name)))
            watching.start()
            self.addCleanup(watching.stop)

    def watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        async def watched(*arguments: Any) -> Any:
            self.asked.append(name)
            if name != "get" and self.others_write:
                self.others_write -= 1
                await MemorySessionStore.swap(self.store, self.below[1:], None, new_tag(), OTHERS)
            return await operation(*arguments)

        return watched

    def write(self, method: str, fields: dict[str, bytes], content: bytes = b"second") -> int:
        named = [(name, value.replace(b"TAG", self.etag)) for name, value in fields.items()]
        return int(self.call(method, self.below, content if method == "PUT" else b"", *named).code)

    def payload(self) -> bytes:
        return bytes(self.call("GET", self.below).result["body"])

    @parameterized.expand(
        [
            ("one_tag", {"If-Match": b"TAG"}, 1),
            ("weakened_by_a_proxy", {"If-Match": b"W/TAG"}, 1),
            ("unconditional", {}, 1),
            ("any", {"If-Match": b"*"}, 1),
            ("other_than", {"If-None-Match": b'"zz"'}, 2),
            ("unmodified", {"If-Unmodified-Since": LATE}, 2),
            ("both", {"If-Match": b"TAG", "If-None-Match": b'"zz"'}, 2),
        ]
    )
    def test_done(self, _name: str, fields: dict[str, bytes], most: int) -> None:
        """A write whose revision is sure asks the store once; others take a look first."""
        self.assertEqual(202, self.write("PUT", fields))
        self.assertEqual(["swap"] * most, self.asked)
        self.assertEqual(b"second", self.payload())
        self.asked.clear()
        self.below, self.etag = self.create(b"first")
        self.assertEqual(204, self.write("DELETE", fields))
        self.assertEqual(["delete"] * most, self.asked)

    @parameterized.expand(
        [
            ("one_tag", {"If-Match": b'"zz"'}),
            ("list", {"If-Match": b'"zz", "yy"'}),
            ("no_tag", {"If-Match": b"nonsense, "}),
            ("current", {"If-None-Match": b"TAG"}),
            ("any", {"If-None-Match": b"*"}),
            ("modified", {"If-Unmodified-Since": OLD}),
            ("both", {"If-Match": b"TAG", "If-None-Match": b"TAG"}),
        ]
    )
    def test_failed(self, _name: str, fields: dict[str, bytes]) -> None:
        """Each 412 asks the store once, and changes nothing."""
        self.assertEqual((412, 412), (self.write("PUT", fields), self.write("DELETE", fields)))
        self.assertEqual(["swap", "delete"], self.asked)
        self.assertEqual(b"first", self.payload())

    def test_list(self) -> None:
        """Whichever tag of a list is the current one, two round trips are enough."""
        for fields in ({"If-Match": b'TAG, "zz"'}, {"If-Match": b'"zz", "yy", TAG'}):
            self.below, self.etag = self.create(b"first")
            self.asked.clear()
            self.assertEqual(202, self.write("PUT", fields))
            self.assertLessEqual(len(self.asked), 2)

    def test_repeat(self) -> None:
        """A write that arrives a second time is recognised at the first look."""
        for _ in range(2):
            self.assertEqual(202, self.write("PUT", {"If-Match": b"TAG"}))
        self.assertEqual(["swap", "swap"], self.asked)
        self.assertEqual(412, self.write("PUT", {"If-Match": b"TAG"}, b"third"))

    @parameterized.expand([("other_than", {"If-None-Match": b'"zz"'}), ("unmodified", {"If-Unmodified-Since": LATE})])
    def test_others_write_meanwhile(self, _name: str, fields: dict[str, bytes]) -> None:
        """Where the preconditions hold for the newer revisions too, the write is tried again until it is done."""
        self.others_write = 3
        self.assertEqual(202, self.write("PUT", fields))
        self.assertEqual(["swap"] * 4, self.asked[-4:])
        self.assertEqual(b"second", self.payload())

    def test_others_were_first(self) -> None:
        """Where they do not hold any more, the write fails, and the other device's payload stays."""
        for fields in ({"If-Match": b"TAG"}, {"If-Match": b'TAG, "zz"'}):
            self.below, self.etag = self.create(b"first")
            self.others_write = 1
            self.assertEqual(412, self.write("PUT", fields))
            self.assertEqual(OTHERS.payload, self.payload())

    def test_others_never_stop(self) -> None:
        """A write that is never done ends in 503, after a bounded number of attempts."""
        for method in ("PUT", "DELETE"):
            self.others_write = 100
            self.asked.clear()
            named = ("If-None-Match", b'"zz"')
            refused = self.call(method, self.below, b"second" if method == "PUT" else b"", named)
            self.assertEqual((503, ["1"]), (refused.code, refused.headers.getRawHeaders("Retry-After")))
            self.assertEqual("Other writes came first each time; try again", refused.json_body["error"])
            self.assertEqual(MAX_SWAPS, len(self.asked))
            self.others_write = 0
            self.assertEqual(OTHERS.payload, self.payload())
