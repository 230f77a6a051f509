"""Limits for sessions and networks, and what the operator decides about addresses and is told of them."""

import itertools
from typing import Any, ClassVar
from unittest.mock import patch

from synapse.api.errors import LimitExceededError
from synapse.http.site import XForwardedForRequest

from support.rendezvous_case import RendezvousTestCase
from synapse_rendezvous.rate_limit import Limit

ONE, OTHER = "203.0.113.1", "203.0.113.2"
OBSERVER = "synapse_rendezvous.observer"


class NetworksTestCase(RendezvousTestCase):
    """IPv6 customers have networks of several sizes."""

    options: ClassVar[dict[str, Any]] = {
        "per_client": {
            "create": {"per_second": 0.001, "burst_count": 40},
            "miss": {"per_second": 0.001, "burst_count": 30},
        }
    }

    def codes(self, addresses: list[str], **more: Any) -> list[int]:
        return [self.call("POST", "", b"", client_ip=address, **more).code for address in addresses]

    def test_wider_networks_create(self) -> None:
        """A /56 network creates three times as much as a /64, a /48 six times; its neighbours are not touched."""
        self.assertEqual([200] * 120 + [429], self.codes([f"2001:db8:1:{index:x}::1" for index in range(121)]))
        # The refusal has cost the /48 network nothing.
        self.assertEqual([200] * 120 + [429], self.codes([f"2001:db8:1:{0x100 + index:x}::1" for index in range(121)]))
        self.assertEqual([429], self.codes(["2001:db8:1:ffff::1"]))
        self.assertEqual([200], self.codes(["2001:db8:2::1"]))

    def test_neighbours(self) -> None:
        """Who asks in a loop is refused, and that takes nothing from the networks around."""
        self.assertEqual([200] * 40 + [429] * 300, self.codes(["2001:db8:1::1"] * 340))
        self.assertEqual([200] * 80, self.codes([f"2001:db8:1:{index % 2 + 1:x}::1" for index in range(80)]))
        self.assertEqual([200] * 120, self.codes([f"2001:db8:1:{0x100 * index:x}::1" for index in range(1, 121)]))

    def test_misses_of_neighbours(self) -> None:
        """Who looks for sessions in a loop takes nothing from the networks around either."""
        codes = [self.call("PUT", f"/{index:022}", client_ip="2001:db8:1::1").code for index in range(300)]
        self.assertEqual([404] * 30 + [429] * 270, codes)
        for index in range(150):
            address = f"2001:db8:1:{0x100 * (1 + index):x}::1"
            self.assertEqual(404, self.call("GET", f"/{index:022}", client_ip=address).code)

    def test_misses_of_networks(self) -> None:
        """Scanning from many addresses of a network is stopped like scanning from one."""
        codes = [
            self.call("GET", f"/{index:022}", client_ip=f"2001:db8:1:{index % 256:x}::1").code for index in range(91)
        ]
        self.assertEqual([404] * 90 + [429], codes)


class SessionRatesTestCase(RendezvousTestCase):
    """One session is asked for only so often, whoever asks."""

    options: ClassVar[dict[str, Any]] = {
        "per_session": {
            "read": {"per_second": 0.001, "burst_count": 4},
            "write": {"per_second": 0.001, "burst_count": 3},
        }
    }

    def test_reads(self) -> None:
        """One past the limit is refused, with the session's type and tag; other sessions are not touched."""
        below, tag = self.create()
        other, _ = self.create()
        self.assertEqual([200] * 4, [self.call("GET", below, client_ip=f"203.0.113.{n}").code for n in range(4)])
        refused = self.call("GET", below, client_ip=OTHER)
        self.assertEqual((429, tag), (refused.code, self.tag(refused)))
        self.assertEqual(["text/plain"], refused.headers.getRawHeaders("Content-Type"))
        self.assertEqual(200, self.call("GET", other).code)

    def test_writes(self) -> None:
        """One past the limit is refused, whoever writes; the session can still be read, and ended."""
        below, _ = self.create()
        self.assertEqual([202, 202, 202, 429], [self.call("PUT", below, b"x").code for _ in range(4)])
        self.assertEqual(429, self.call("PUT", below, b"y", client_ip=OTHER).code)
        self.assertEqual(b"x", self.call("GET", below).result["body"])
        self.assertEqual(204, self.call("DELETE", below).code)


class UpdatesTestCase(RendezvousTestCase):
    """No session becomes a channel for messages."""

    options: ClassVar[dict[str, Any]] = {"max_updates": 3}

    def test_updates(self) -> None:
        """A payload is replaced as often as it may be, and the refusal says when to give up."""
        below, _ = self.create(b"0")
        self.assertEqual([202, 202, 202, 429], [self.call("PUT", below, b"%d" % n).code for n in range(1, 5)])
        self.assertEqual(b"3", self.call("GET", below).result["body"])
        self.assertEqual(204, self.call("DELETE", below).code)


class CrowdTestCase(RendezvousTestCase):
    """A server of which a few take all they may."""

    options: ClassVar[dict[str, Any]] = {"max_sessions": 10, "per_client": {"max_sessions": 4}}

    def test_crowd(self) -> None:
        """From 80 per cent on, whoever has two sessions gets no third; strangers still get in, until it is full."""
        for address in (ONE, OTHER):
            codes = [self.call("POST", "", b"", client_ip=address).code for _ in range(5)]
            self.assertEqual([200] * 4 + [429], codes)
        stranger = [self.call("POST", "", b"", client_ip="203.0.113.3").code for _ in range(3)]
        self.assertEqual([200, 200, 429], stranger)
        self.assertEqual(429, self.call("POST", "", b"", client_ip="203.0.113.4").code)


class AddressesTestCase(RendezvousTestCase):
    """Addresses that the operator exempts or denies."""

    options: ClassVar[dict[str, Any]] = {
        "exempt": ["203.0.113.0/28"],
        "deny": ["203.0.113.66"],
        "per_client": {"max_sessions": 3, "create": {"per_second": 0.001, "burst_count": 5}},
    }

    def test_exempt(self) -> None:
        """No limit for one client holds for them."""
        for _ in range(10):
            self.create(client_ip=ONE)
        self.assertEqual("exempt", self.call("GET", "", client_ip=ONE).json_body["client"])
        codes = [self.call("POST", "", b"", client_ip="203.0.113.16").code for _ in range(4)]
        self.assertEqual([200] * 3 + [429], codes)

    def test_denied(self) -> None:
        """They are served nothing, and told nothing."""
        below, _ = self.create(client_ip=ONE)
        for method, path in (
            ("POST", ""),
            ("GET", ""),
            ("GET", below),
            ("PUT", below),
            ("DELETE", below),
            ("GET", "/x"),
        ):
            refused = self.call(method, path, client_ip="203.0.113.66")
            self.assertEqual((403, "M_FORBIDDEN"), (refused.code, self.errcode(refused)))
        self.assertEqual(200, self.call("GET", below, client_ip=ONE).code)


class ObserveTestCase(RendezvousTestCase):
    """An operator who tries limits out."""

    options: ClassVar[dict[str, Any]] = {
        "observe": True,
        "max_sessions": 6,
        "deny": ["203.0.113.66"],
        "per_client": {
            "max_sessions": 1,
            "create": {"per_second": 0.001, "burst_count": 2},
            "miss": {"per_second": 0.001, "burst_count": 1},
        },
        "per_session": {"read": {"per_second": 0.001, "burst_count": 1}},
    }

    def test_observe(self) -> None:
        """What is over a limit is served, counted, and told once a minute; the bounds of the server hold."""
        below, _ = self.create(client_ip=ONE)
        for _ in range(3):
            self.create(client_ip=ONE)
        self.create(client_ip="203.0.113.66")
        self.create(client_ip=OTHER)
        self.assertEqual(429, self.call("POST", "", b"", client_ip=OTHER).code)
        self.assertEqual([200] * 3, [self.call("GET", below).code for _ in range(3)])
        self.assertEqual([404] * 3, [self.call("GET", "/x", client_ip=ONE).code for _ in range(3)])
        with self.assertLogs(OBSERVER, level="WARNING") as logs:
            self.reactor.advance(60)

        (line,) = logs.output
        self.assertIn(
            "over a limit and would have been refused, but for `observe` in the last minute: deny 1 times", line
        )
        self.assertIn(f"per_client.create 2 times from {ONE}", line)
        self.assertIn(f"per_client.max_sessions 3 times from {ONE}", line)
        self.assertIn(f"per_client.miss 2 times from {ONE}", line)
        self.assertIn("per_session.read 2 times", line)
        self.assertIn(f"max_sessions 1 times from {OTHER}", line)
        with self.assertNoLogs(OBSERVER, level="WARNING"):
            self.reactor.advance(120)


class ObserveBytesTestCase(RendezvousTestCase):
    """An operator who tries limits out on a server that is full."""

    options: ClassVar[dict[str, Any]] = {"observe": True, "max_total_bytes": "10K", "per_client": {"max_sessions": 1}}

    def test_one_request_counts_once(self) -> None:
        """A request that is over the limit of its client and of the networks around it is counted once."""
        for number in range(6 * 40 + 40 + 1):  # what the /48 network may, and then as much as the /64 may
            self.call("GET", f"/{number:022}", client_ip="2001:db8:1:203::9")
        with self.assertLogs(OBSERVER, level="WARNING") as logs:
            self.reactor.advance(60)
        refused = int(logs.output[0].split("per_client.miss ")[1].split(" times")[0])
        self.assertLessEqual(refused, 6 * 40 + 40 + 1 - 30)
        self.assertGreater(refused, 200)

    def test_both_limits(self) -> None:
        """A creation over two limits, of which one is only observed, is refused by the other, and counted for both."""
        self.create(b"x" * 6000, client_ip=ONE)
        self.assertEqual(429, self.call("POST", "", b"x" * 6000, client_ip=ONE).code)
        with self.assertLogs(OBSERVER, level="WARNING") as logs:
            self.reactor.advance(60)
        self.assertIn(f"max_total_bytes 1 times from {ONE}; per_client.max_sessions 1 times from {ONE}", logs.output[0])


class ToldTestCase(RendezvousTestCase):
    """What the operator is told."""

    options: ClassVar[dict[str, Any]] = {"per_client": {"create": {"per_second": 0.001, "burst_count": 30}}}

    def from_proxy(self, **headers: bytes) -> Any:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return self.call("POST", "", b"", *fields, request=XForwardedForRequest)

    def test_refusals(self) -> None:
        """However many are refused, there is one line a minute that names the worst."""
        for address, times in ((ONE, 40), (OTHER, 31), ("2001:db8:1:2::3", 31)):
            for _ in range(times):
                self.call("POST", "", b"", client_ip=address)
        with self.assertLogs(OBSERVER, level="WARNING") as logs:
            self.reactor.advance(60)

        self.assertEqual(1, len(logs.output))
        self.assertIn(f"refused in the last minute: per_client.create 12 times, 10 of them from {ONE}", logs.output[0])

    def test_unknown_addresses(self) -> None:
        """A proxy that does not say for whom it asks: no limit for one client, and a warning that names the fix."""
        with self.assertLogs(OBSERVER, level="WARNING") as logs:
            for _ in range(20):
                self.assertEqual(200, self.from_proxy(X_Forwarded_Proto=b"https").code)
                self.assertEqual(200, self.from_proxy(X_Forwarded_Proto=b"https", X_Forwarded_For=b"garbage").code)

        (line,) = logs.output
        self.assertIn("proxy_set_header X-Forwarded-For $remote_addr", line)
        self.assertIn("127.0.0.1", line)

    def test_one_private_source(self) -> None:
        """If nearly all sessions come from one private address, that is said; of one on the internet it is not."""
        for address, expected in (("10.1.2.3", True), ("8.8.8.8", False)):
            for _ in range(20):
                self.create(client_ip=address)
            if expected:
                with self.assertLogs(OBSERVER, level="WARNING") as logs:
                    self.reactor.advance(600)
                self.assertIn(
                    "20 of the last 20 sessions were created from 10.1.2.3, a private address", logs.output[0]
                )
            else:
                with self.assertNoLogs(OBSERVER, level="WARNING"):
                    self.reactor.advance(600)

    def test_tables_are_bounded(self) -> None:
        """However many addresses ask, few are remembered; those that come then share a limit, and are still served."""
        with patch.object(Limit, "MAX_KEYS", 50):
            for index in range(200):
                for _ in range(5):  # one batch, and one more
                    self.create(client_ip=f"198.51.{index}.1")
        limit = self.hs._module_web_resources[self.path]._limits.client_create
        self.assertEqual(51, len(limit._ratelimiter.actions))


class BatchesTestCase(RendezvousTestCase):
    """Tokens are taken in batches, a tenth of the burst each."""

    options: ClassVar[dict[str, Any]] = {
        "per_client": {"read": {"per_second": 2, "burst_count": 25}},
        "per_session": {"read": {"per_second": 2, "burst_count": 25}},
    }

    def reads_until_refused(self, below: str) -> int:
        return next(
            count for count in itertools.count() if self.call("GET", below, client_ip=ONE).code == 429 or count > 200
        )

    def test_burst(self) -> None:
        """However it is counted, the burst is what was promised, to the request; and others are not touched."""
        below, _ = self.create()
        other, _ = self.create()
        self.assertEqual(25, self.reads_until_refused(below))
        self.assertEqual(200, self.call("GET", other, client_ip=ONE).code)

    def test_rate(self) -> None:
        """In the long run as many are answered as the rate allows, and at most one batch more."""
        below, _ = self.create()
        self.reads_until_refused(below)
        answered = 0
        for _ in range(60):
            self.reactor.advance(1)
            answered += self.reads_until_refused(below)
        self.assertTrue(2 * 60 - 2 <= answered <= 2 * 60 + 2, answered)

    def test_cache_is_bounded(self) -> None:
        """However many clients ask, few are remembered; and forgetting them refuses nobody anything."""
        limits = self.hs._module_web_resources[self.path]._limits
        for number in range(20_000):
            address = f"10.0.{number >> 8}.{number & 255}"
            limits.take(address, limits.client_read, ((address, 1),))
        self.assertLessEqual(len(limits.client_read.prepaid), limits.client_read.max_prepaid)

    def test_sessions_without_room(self) -> None:
        """When more sessions are asked for than the limiter tracks, nobody is refused because of the others."""
        below, _ = self.create()
        with patch.object(Limit, "MAX_KEYS", 3):
            strangers = [self.create(client_ip=f"198.51.{number}.1")[0] for number in range(60)]
            for _ in range(60):
                for other in strangers:
                    self.call("GET", other, client_ip=OTHER)
            self.assertEqual([200] * 20, [self.call("GET", below).code for _ in range(20)])

    def test_check(self) -> None:
        """To check takes nothing; it refuses exactly when taking would."""
        limits = self.hs._module_web_resources[self.path]._limits
        charge = (ONE, limits.client_read, ((ONE, 1),))
        for _ in range(25):
            for _ in range(3):
                self.assertTrue(limits.check(*charge))
            limits.take(*charge)
        self.assertRaises(LimitExceededError, limits.check, *charge)
        self.assertRaises(LimitExceededError, limits.take, *charge)
        limits.take(*charge, is_done=True)

    def test_all_or_nothing(self) -> None:
        """If one bucket is empty, nothing is taken from the others, whichever of them it is."""
        limits = self.hs._module_web_resources[self.path]._limits
        for empty in range(3):
            keys = tuple((f"{empty}{name}", share) for name, share in (("near", 1), ("wide", 1), ("widest", 1)))
            for _ in range(25):
                limits.take(ONE, limits.client_read, keys[empty : empty + 1])
            for _ in range(100):
                self.assertRaises(LimitExceededError, limits.take, ONE, limits.client_read, keys)
            for key in keys[:empty] + keys[empty + 1 :]:
                for _ in range(25):
                    limits.take(ONE, limits.client_read, (key,))
                self.assertRaises(LimitExceededError, limits.take, ONE, limits.client_read, (key,))


class NothingToFindTestCase(RendezvousTestCase):
    """Whether an id was ever there, nobody is told."""

    def test_all_alike(self) -> None:
        """Unknown, expired, deleted and malformed ids, and those of other dialects, are answered alike, to the byte."""
        deleted, _ = self.create()
        self.call("DELETE", deleted)
        expired, _ = self.create()
        self.reactor.advance(302)
        foreign = (
            self.make_request("POST", f"{self.path}/msc4108", b"x", shorthand=False, content_type=b"text/plain")
            .json_body["url"]
            .rpartition("/")[2]
        )
        answers: set[tuple[Any, ...]] = set()
        for below in (deleted, expired, f"/{foreign}", "/" + "x" * 22, "/x", "/" + "x" * 200, "/%2e%2e"):
            channel = self.call("GET", below, client_ip=f"203.0.113.{len(answers)}")
            fields = sorted((name, tuple(values)) for name, values in channel.headers.getAllRawHeaders())
            answers.add((channel.code, channel.result["body"], tuple(field for field in fields if field[0] != b"Date")))
        self.assertEqual(1, len(answers))

    def test_ids_tell_nothing(self) -> None:
        """Ids have no order and nothing in common, so they say nothing of when they were made."""
        ids = [self.create(client_ip=f"198.51.{n}.1")[0][1:] for n in range(200)]
        self.assertNotEqual(sorted(ids), ids)
        rising = sum(first < second for first, second in itertools.pairwise(ids))
        self.assertTrue(60 < rising < 140, rising)
        for position in range(21):
            self.assertGreater(len({each[position] for each in ids}), 30)
