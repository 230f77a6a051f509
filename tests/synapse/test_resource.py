"""The protocol through Synapse's own test homeserver, under its fake clock."""

import re
from typing import Any, ClassVar
from unittest.mock import patch

from parameterized import parameterized
from synapse.http.site import XForwardedForRequest
from synapse.module_api.errors import ConfigError
from tests.unittest import HomeserverTestCase
from twisted.web.http import stringToDatetime

from support.rendezvous_case import RendezvousTestCase
from synapse_rendezvous import RendezvousModule
from synapse_rendezvous.memory_store import MemorySessionStore

PATH = RendezvousTestCase.path


class ProtocolTestCase(RendezvousTestCase):
    """Statuses, bodies and headers."""

    def test_create(self) -> None:
        """POST answers all that readers of any text of the protocol look for."""
        for below in ("", "/", "?query"):
            channel = self.call("POST", below, b"hello")

            self.assertEqual(200, channel.code)
            self.assertEqual(["application/json"], channel.headers.getRawHeaders("Content-Type"))
            body = channel.json_body
            self.assertEqual(["id", "max_bytes", "url"], list(body))
            self.assertRegex(body["id"], "^[A-Za-z0-9_-]{22}$")
            self.assertEqual(10240, body["max_bytes"])
            self.assertEqual(f"https://test{PATH}/{body['id']}", body["url"])
            self.assertEqual([f"{PATH}/{body['id']}"], channel.headers.getRawHeaders("Location"))
            self.assertEqual(["10240"], channel.headers.getRawHeaders("X-Max-Bytes"))
            self.tag(channel)
            self.assertNotIn(b" ", channel.result["body"])

    def test_read(self) -> None:
        """GET answers the payload as it was stored."""
        below, tag = self.create(b"\x00\xff<p>", content_type=b'text/HTML;charset="x"')

        channel = self.call("GET", below)

        self.assertEqual((200, b"\x00\xff<p>"), (channel.code, channel.result["body"]))
        self.assertEqual(['text/HTML;charset="x"'], channel.headers.getRawHeaders("Content-Type"))
        self.assertEqual(["attachment"], channel.headers.getRawHeaders("Content-Disposition"))
        self.assertEqual(tag, self.tag(channel))

    def test_head(self) -> None:
        """HEAD answers what GET does, without content."""
        below, tag = self.create(b"hello")

        channel = self.call("HEAD", below)

        self.assertEqual((200, ["5"]), (channel.code, channel.headers.getRawHeaders("Content-Length")))
        self.assertNotIn("body", channel.result)
        self.assertEqual(tag, self.tag(channel))
        self.assertEqual(304, self.call("HEAD", below, b"", ("If-None-Match", tag)).code)
        self.assertEqual(404, self.call("HEAD", "/" + "x" * 22).code)
        self.assertEqual(200, self.call("HEAD").code)

    def test_poll(self) -> None:
        """A reader who has the current revision is told so, with all that clients insist on."""
        below, tag = self.create()

        channel = self.call("GET", below, b"", ("If-None-Match", tag))

        self.assertEqual(304, channel.code)
        self.assertEqual(tag, self.tag(channel))
        for name in ("Expires", "Last-Modified"):
            self.assertEqual(1, len(channel.headers.getRawHeaders(name)))

    def test_write(self) -> None:
        """PUT replaces payload and type, once for each revision."""
        below, tag = self.create()

        channel = self.call("PUT", below, b"second", ("If-Match", tag), content_type=b"application/json")

        self.assertEqual((202, ["text/plain"]), (channel.code, channel.headers.getRawHeaders("Content-Type")))
        self.assertEqual(b"", channel.result.get("body", b""))
        second = self.tag(channel)
        self.assertNotEqual(tag, second)
        read = self.call("GET", below, b"", ("If-None-Match", tag))
        self.assertEqual((200, b"second", second), (read.code, read.result["body"], self.tag(read)))
        self.assertEqual(["application/json"], read.headers.getRawHeaders("Content-Type"))

        stale = self.call("PUT", below, b"stale", ("If-Match", tag))

        self.assertEqual((412, "M_UNKNOWN", second), (stale.code, self.errcode(stale), self.tag(stale)))
        for name in ("Expires", "Last-Modified"):
            self.assertEqual(read.headers.getRawHeaders(name), stale.headers.getRawHeaders(name))
        self.assertEqual(b"second", self.call("GET", below).result["body"])
        self.assertEqual(202, self.call("PUT", below, b"without a condition").code)

    def test_same_bytes_from_both(self) -> None:
        """Each device notices the other's write though the bytes are the same."""
        below, tag = self.create(b"ping")
        tags = {tag}
        for _ in range(5):
            read = self.call("GET", below)
            tags.add(self.tag(self.call("PUT", below, b"ping", ("If-Match", self.tag(read)))))

        self.assertEqual(6, len(tags))

    def test_repeated_write(self) -> None:
        """A proxy that sends a PUT twice does no harm."""
        below, tag = self.create()
        first = self.call("PUT", below, b"x", ("If-Match", tag))

        again = self.call("PUT", below, b"x", ("If-Match", tag))

        self.assertEqual((202, self.tag(first)), (again.code, self.tag(again)))
        self.assertEqual(412, self.call("PUT", below, b"y", ("If-Match", tag)).code)
        self.assertEqual(412, self.call("PUT", below, b"x", ("If-Match", tag), content_type=b"text/html").code)

    def test_delete(self) -> None:
        """DELETE ends a session."""
        below, tag = self.create()
        self.assertEqual(412, self.call("DELETE", below, b"", ("If-Match", b'"other"')).code)
        self.assertEqual(412, self.call("DELETE", below, b"", ("If-None-Match", b"*")).code)

        self.assertEqual(204, self.call("DELETE", below, b"", ("If-Match", tag)).code)

        for method in ("GET", "HEAD", "PUT", "DELETE"):
            self.assertEqual(404, self.call(method, below).code)

    def test_describe(self) -> None:
        """An operator who opens the path in a browser sees what it is."""
        for below in ("", "/"):
            channel = self.call("GET", below, b"", ("Sec-Fetch-Mode", b"navigate"), ("Sec-Fetch-Dest", b"document"))

            self.assertEqual(200, channel.code)
            self.assertEqual("synapse_rendezvous", channel.json_body["name"])
            self.assertEqual((10240, 300_000), (channel.json_body["max_bytes"], channel.json_body["ttl_ms"]))
            self.assertRegex(channel.json_body["version"], r"^\d+\.\d+\.\d+$")
            self.assertRegex(channel.json_body["process"], "^[0-9a-f]{8}$")
            self.assertEqual("memory", channel.json_body["store"])

    def test_describe_to_client(self) -> None:
        """Everybody is told whom their requests count for."""
        for address, client in (
            ("203.0.113.9", "203.0.113.9"),
            ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
            ("/run/synapse.sock", "unknown"),
        ):
            self.assertEqual(client, self.call("GET", "", client_ip=address).json_body["client"])

    @parameterized.expand(
        [
            ("if_none_match_put", "PUT", "If-None-Match", b"*", 412),
            ("if_none_match_put_other", "PUT", "If-None-Match", b'"x"', 202),
            ("if_match_get", "GET", "If-Match", b'"x"', 412),
            ("if_match_get_any", "GET", "If-Match", b"*", 200),
            ("if_match_list", "PUT", "If-Match", b'"x", %s', 202),
            ("if_match_weak", "PUT", "If-Match", b"W/%s", 202),
            ("if_none_match_list", "GET", "If-None-Match", b',"a,b" ,%s', 304),
            ("if_none_match_weak", "GET", "If-None-Match", b"W/%s", 304),
            ("garbage", "PUT", "If-Match", b'\xff\x01,,,"', 412),
            ("garbage_read", "GET", "If-None-Match", b'\xff\x01,,,"', 200),
            ("unmodified", "PUT", "If-Unmodified-Since", b"Wed, 31 Dec 1969 23:59:59 GMT", 412),
            ("modified", "GET", "If-Modified-Since", b"Fri, 31 Dec 2999 23:59:59 GMT", 304),
        ]
    )
    def test_conditions(self, _name: str, method: str, field: str, value: bytes, code: int) -> None:
        """Conditions reach the session, whatever they hold; test_preconditions.py has all of them."""
        below, tag = self.create()

        channel = self.call(method, below, b"", (field, value.replace(b"%s", tag)))

        self.assertEqual(code, channel.code)
        if method == "PUT" and code == 202:
            self.assertNotEqual(tag, self.tag(channel))
        else:
            self.assertEqual(tag, self.tag(channel))

    def test_several_header_lines(self) -> None:
        """A list may be spread over lines."""
        below, tag = self.create()

        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", b'"a"'), ("If-None-Match", tag)).code)

    @parameterized.expand(
        [
            "/x",
            "/%41{id}",
            "/{id}%00",
            "/{id}%2F",
            "/%FF",  # unencoded, Synapse itself does not let such bytes through
            "/" + "a" * 21,
            "/" + "a" * 22,
            "/" + "a" * 23,
            "/" + "+" * 22,
            "/" + "a" * 4000,
        ]
    )
    def test_not_found(self, below: str) -> None:
        """Whatever could be a session's path and is none that lives answers alike."""
        known, _ = self.create()
        below = below.replace("{id}", known[1:])
        for method in ("GET", "PUT", "DELETE"):
            channel = self.call(method, below)

            self.assertEqual((404, "M_NOT_FOUND"), (channel.code, self.errcode(channel)))
            self.assertEqual(self.call("GET", "/" + "x" * 22).result["body"], channel.result["body"])

    @parameterized.expand(
        ["//", "/{id}/", "/{id}/deeper", "/{id}/deeper/still", "//{id}", "/./{id}", "/../rendezvous/{id}"]
    )
    def test_no_endpoint(self, below: str) -> None:
        """A path at which the protocol has nothing is told apart from a session that is not there."""
        known, _ = self.create()
        for method in ("GET", "PUT", "DELETE", "BREW"):
            channel = self.call(method, below.replace("{id}", known[1:]))

            self.assertEqual((404, "M_UNRECOGNIZED"), (channel.code, self.errcode(channel)))

    def test_encoded_mount_point(self) -> None:
        """Synapse decodes the path before it finds us; a name that was encoded is still not ours."""
        known, _ = self.create()
        channel = self.make_request("GET", f"/_synapse/client/%72endezvous{known}".encode(), shorthand=False)

        self.assertEqual((404, "M_UNRECOGNIZED"), (channel.code, self.errcode(channel)))

    def test_methods(self) -> None:
        """Other methods are told which ones there are."""
        known, _ = self.create()
        for below, allowed in (("", "GET, HEAD, POST, OPTIONS"), (known, "GET, HEAD, PUT, DELETE, OPTIONS")):
            for method in ("POST" if below else "PUT", "PATCH", "TRACE", "get", "PROPFIND", "X"):
                channel = self.call(method, below)

                self.assertEqual((405, "M_UNRECOGNIZED"), (channel.code, self.errcode(channel)))
                self.assertEqual([allowed], channel.headers.getRawHeaders("Allow"))

    def test_preflight(self) -> None:
        """Synapse allows the conditional headers from browsers below our path."""
        channel = self.make_request("OPTIONS", f"{PATH}/x".encode(), shorthand=False)

        self.assertEqual(204, channel.code)
        self.assertEqual(
            ["Content-Type, If-Match, If-None-Match"], channel.headers.getRawHeaders("Access-Control-Allow-Headers")
        )

    def test_not_for_display(self) -> None:
        """A browser gets a payload for a script of the client, never as a page, frame, image or program."""
        below, _ = self.create(b"<script>alert(1)</script>", content_type=b"text/html")
        for headers in (
            [("Sec-Fetch-Mode", b"navigate")],
            [("Sec-Fetch-Mode", b"navigate"), ("Sec-Fetch-Dest", b"iframe")],
            [("Sec-Fetch-Mode", b"no-cors"), ("Sec-Fetch-Dest", b"script")],
            [("Sec-Fetch-Mode", b"no-cors"), ("Sec-Fetch-Dest", b"image")],
        ):
            channel = self.call("GET", below, b"", *headers)
            self.assertEqual((403, "M_FORBIDDEN"), (channel.code, self.errcode(channel)))
            self.assertEqual(403, self.call("GET", "/" + "x" * 22, b"", *headers).code)
        fetch = [("Sec-Fetch-Mode", b"cors"), ("Sec-Fetch-Dest", b"empty"), ("Sec-Fetch-Site", b"cross-site")]
        self.assertEqual(200, self.call("GET", below, b"", *fetch).code)

    def test_an_error_of_ours(self) -> None:
        """Even a bug answers as Matrix JSON that browsers can read."""
        with (
            patch.object(MemorySessionStore, "get", side_effect=ZeroDivisionError),
            self.assertLogs("synapse_rendezvous.resource", level="ERROR") as logs,
        ):
            channel = self.call("GET", "/" + "x" * 22)

        self.assertEqual((500, "M_UNKNOWN"), (channel.code, self.errcode(channel)))
        self.assertIn("ZeroDivisionError", logs.output[0])
        self.assertIn("Traceback", logs.output[0])
        self.assertNotIn("x" * 22, logs.output[0])


class BodyTestCase(RendezvousTestCase):
    """What may be stored, to the byte."""

    options: ClassVar[dict[str, Any]] = {"max_bytes": 100, "max_total_bytes": 1000}

    def test_size(self) -> None:
        """The limit is the last size that fits."""
        for content in (b"", b"\x00", b"x" * 100):
            below, tag = self.create(content)
            self.assertEqual(content, self.call("GET", below).result.get("body", b""))
            self.assertEqual(202, self.call("PUT", below, content, ("If-Match", tag)).code)
        for method, target in (("POST", ""), ("PUT", below)):
            channel = self.call(method, target, b"x" * 101)
            self.assertEqual((413, "M_TOO_LARGE"), (channel.code, self.errcode(channel)))
        self.assertEqual(b"x" * 100, self.call("GET", below).result["body"])

    def test_content_type(self) -> None:
        """What can be a header comes back byte for byte; what cannot is refused."""
        for sent in (b"a", b"text/plain; charset=utf-8", b'A/b;c="\xe4\xff"\t;d', b"x" * 255, b"!,;"):
            below, _ = self.create(content_type=sent)
            self.assertEqual([sent], self.call("GET", below).headers.getRawHeaders(b"Content-Type"))
            self.assertEqual(202, self.call("PUT", below, b"x", content_type=sent).code)
            self.assertEqual([sent], self.call("GET", below).headers.getRawHeaders(b"Content-Type"))
        for sent in (b"a\x00b", b"a\x7f", b"a\x1bb", b"x" * 256):
            for method, target in (("POST", ""), ("PUT", below)):
                channel = self.call(method, target, b"x", content_type=sent)
                self.assertEqual((400, "M_INVALID_PARAM"), (channel.code, self.errcode(channel)))
                self.assertIn("Content-Type must be at most 255 bytes", channel.json_body["error"])
        twice = self.call("POST", "", b"", ("Content-Type", b"a/b"), ("Content-Type", b"c/d"))
        self.assertEqual((400, "M_INVALID_PARAM"), (twice.code, self.errcode(twice)))

    def test_no_content_type(self) -> None:
        """Without a type, a payload is bytes."""
        for headers in ([], [("Content-Type", b"")]):
            channel = self.call("POST", "", b"", *headers)
            below = f"/{channel.json_body['id']}"
            self.assertEqual(
                ["application/octet-stream"], self.call("GET", below).headers.getRawHeaders("Content-Type")
            )

    def test_total_bytes(self) -> None:
        """When the bytes are spent, the newcomer is refused with a time to come back; a session is not."""
        below, _ = self.create(b"x" * 50)
        for _ in range(9):
            self.create(b"x" * 100)
        self.create(b"x" * 50)
        refused = self.call("POST", "", b"x")

        self.assertEqual((429, "M_LIMIT_EXCEEDED"), (refused.code, self.errcode(refused)))
        self.assertEqual(30_000, refused.json_body["retry_after_ms"])
        self.assertEqual(["30"], refused.headers.getRawHeaders("Retry-After"))
        self.assertEqual(202, self.call("PUT", below, b"y" * 50).code)
        self.assertEqual(429, self.call("PUT", below, b"y" * 51).code)
        self.assertEqual(b"y" * 50, self.call("GET", below).result["body"])
        self.assertEqual(204, self.call("DELETE", below).code)
        self.create(b"x" * 50)


class LifetimeTestCase(RendezvousTestCase):
    """From creation to the last millisecond."""

    options: ClassVar[dict[str, Any]] = {"ttl": "10s"}

    def test_dates(self) -> None:
        """Expires is the end, fixed and in the future; Last-Modified is the payload's."""
        created_s = self.reactor.seconds()
        channel = self.call("POST", "", b"x")
        below = f"/{channel.json_body['id']}"
        expires = channel.headers.getRawHeaders("Expires")
        self.assertLess(abs(created_s + 10 - stringToDatetime(expires[0].encode())), 1.1)

        self.reactor.advance(5)
        written_s = self.reactor.seconds()
        put = self.call("PUT", below, b"y")

        self.assertEqual(expires, put.headers.getRawHeaders("Expires"))
        modified = stringToDatetime(put.headers.getRawHeaders("Last-Modified")[0].encode())
        self.assertLess(abs(written_s - modified), 1.1)
        self.assertLessEqual(modified, self.reactor.seconds())
        while (read := self.call("GET", below)).code == 200:
            self.assertGreater(stringToDatetime(read.headers.getRawHeaders("Expires")[0].encode()), written_s)
            self.reactor.advance(0.3)
        # A client whose timer goes by Expires is told by it, and not by a 404 before it.
        lingered_s = self.reactor.seconds() - stringToDatetime(expires[0].encode())
        self.assertTrue(1 <= lingered_s <= 2.4, lingered_s)

    def test_end(self) -> None:
        """Exactly two seconds after its ttl it is gone, and polling did not prolong it."""
        below, tag = self.create()
        created_ms = self.store()._sessions[below[1:]].expires_ms - 10_000
        while self.reactor.seconds() * 1000 < created_ms + 10_000:
            self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", tag)).code)
            self.reactor.advance(0.5)
        self.reactor.advance((created_ms + 11_999) / 1000 - self.reactor.seconds())
        self.assertEqual(created_ms + 11_999, round(self.reactor.seconds() * 1000))
        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", tag)).code)
        self.reactor.advance((created_ms + 12_000) / 1000 - self.reactor.seconds())
        self.assertEqual(404, self.call("GET", below).code)

    def test_memory_is_given_back(self) -> None:
        """Expired sessions leave memory within a minute, without any traffic."""
        for _ in range(3):
            self.create(b"x" * 1000)
        self.assertEqual((3, 3000), (len(self.store()), self.store().total_bytes))

        self.reactor.pump([1] * 60)

        self.assertEqual((0, 0), (len(self.store()), self.store().total_bytes))

    def store(self) -> MemorySessionStore:
        store = self.hs._module_web_resources[PATH]._store
        assert isinstance(store, MemorySessionStore)
        return store


class LimitsTestCase(RendezvousTestCase):
    """The limits that protect the server, at their defaults."""

    def test_create(self) -> None:
        """The forty-first session in a row is refused, of that client alone, and later it may again."""
        for _ in range(40):
            self.create(client_ip="203.0.113.1")
        refused = self.call("POST", "", b"", client_ip="203.0.113.1")

        self.assertEqual((429, "M_LIMIT_EXCEEDED"), (refused.code, self.errcode(refused)))
        self.assertGreater(refused.json_body["retry_after_ms"], 0)
        self.assertRegex(refused.headers.getRawHeaders("Retry-After")[0], r"^[1-9]\d*$")
        self.create(client_ip="203.0.113.2")
        self.reactor.advance(2)
        self.create(client_ip="203.0.113.1")

    def test_ipv6_by_network(self) -> None:
        """A client does not get further by changing its address within its network."""
        for index in range(40):
            self.create(client_ip=f"2001:db8:0:1::{index:x}")

        self.assertEqual(429, self.call("POST", "", b"", client_ip="2001:db8:0:1:ffff::1").code)
        self.create(client_ip="2001:db8:0:2::1")

    def test_misses(self) -> None:
        """Who looks for sessions is stopped; what exists, everybody still gets."""
        below, tag = self.create()
        codes = [self.call("GET", f"/{index:022}").code for index in range(31)]

        self.assertEqual([404] * 30 + [429], codes)
        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", tag)).code)
        self.assertEqual(404, self.call("GET", "/" + "x" * 22, client_ip="203.0.113.2").code)

    def test_an_ordinary_pairing(self) -> None:
        """Two devices behind one address that poll each second and write now and then never meet a limit."""
        below, tag = self.create()
        for second in range(240):
            for device in range(2):
                poll = self.call("GET", below, b"", ("If-None-Match", tag))
                self.assertIn(poll.code, (200, 304))
                if second % 10 == device:
                    put = self.call("PUT", below, b"%d" % second, ("If-Match", self.tag(poll)))
                    self.assertEqual(202, put.code)
                    tag = self.tag(put)
            self.reactor.advance(0.4)

    def test_an_office(self) -> None:
        """Thirty people pair within half a minute behind one address."""
        sessions = []
        for second in range(45):
            if second < 30:
                sessions.append(self.create()[0])
            for below in sessions:
                for _device in range(2):
                    read = self.call("GET", below)
                    self.assertEqual(200, read.code)
            if second % 5 == 0:
                for below in sessions:
                    self.assertEqual(202, self.call("PUT", below, b"x").code)
            self.reactor.advance(1)

    def test_forwarded_address(self) -> None:
        """Limits follow the address that the proxy saw, not what the client claims."""
        for index in range(40):
            self.create(
                request=XForwardedForRequest,
                custom=f"192.0.2.{index}, 203.0.113.1",
            )
        refused = self.create_from("192.0.2.99, 203.0.113.1")
        self.assertEqual(429, refused.code)
        self.assertEqual(200, self.create_from("203.0.113.2").code)

    def create(self, content: bytes = b"hello", *, custom: str | None = None, **more: Any) -> tuple[str, bytes]:
        if custom is None:
            return super().create(content, **more)
        channel = self.create_from(custom)
        self.assertEqual(200, channel.code)
        return f"/{channel.json_body['id']}", self.tag(channel)

    def create_from(self, forwarded: str) -> Any:
        headers = [("X-Forwarded-For", forwarded.encode()), ("X-Forwarded-Proto", b"https")]
        return self.call("POST", "", b"", *headers, request=XForwardedForRequest)


class RatesTestCase(RendezvousTestCase):
    """Each kind of request has a limit of its own, exact to the request."""

    options: ClassVar[dict[str, Any]] = {
        "per_client": {
            "read": {"per_second": 0.001, "burst_count": 2},
            "miss": {"per_second": 0.001, "burst_count": 2},
        },
        "per_session": {
            "read": {"per_second": 0.001, "burst_count": 5},
            "write": {"per_second": 0.001, "burst_count": 4},
        },
    }

    def test_reads_and_writes(self) -> None:
        """One past the limit of a session is refused, and the session is not harmed: it can still be ended."""
        below, _ = self.create()
        fails = ("If-Match", b'"x"')
        self.assertEqual([202] * 2, [self.call("PUT", below, b"x").code for _ in range(2)])
        self.assertEqual([412] * 2, [self.call(method, below, b"y", fails).code for method in ("PUT", "DELETE")])
        self.assertEqual([429] * 2, [self.call(method, below, b"y", fails).code for method in ("PUT", "DELETE")])
        self.assertEqual(429, self.call("PUT", below).code)
        self.assertEqual([200] * 5 + [429], [self.call("GET", below).code for _ in range(6)])
        self.assertEqual(204, self.call("DELETE", below).code)

    def test_strangers(self) -> None:
        """However much those who share an address ask for, a session there is read, written and ended."""
        below, _ = self.create()
        for method, what in (("GET", ""), ("HEAD", "/"), ("GET", "/x"), ("PUT", "/x"), ("DELETE", "/x")):
            codes = [self.call(method, what, b"x").code for _ in range(3)]
            self.assertEqual(429, codes[-1])
        codes = [self.call(method, below, b"x").code for method in ("PUT", "GET", "PUT", "GET", "DELETE")]
        self.assertEqual([202, 200, 202, 200, 204], codes)


class FullTestCase(RendezvousTestCase):
    """A server at its last session."""

    options: ClassVar[dict[str, Any]] = {"max_sessions": 2}

    def test_full(self) -> None:
        """Nobody's session makes room for a newcomer."""
        sessions = [self.create() for _ in range(2)]
        refused = self.call("POST", "", b"", client_ip="203.0.113.1")

        self.assertEqual((429, ["30"]), (refused.code, refused.headers.getRawHeaders("Retry-After")))
        for below, tag in sessions:
            self.assertEqual(202, self.call("PUT", below, b"x" * 5000, ("If-Match", tag)).code)
        self.call("DELETE", sessions[0][0])
        self.create()


class ClosedTestCase(RendezvousTestCase):
    """A server that creates nothing."""

    options: ClassVar[dict[str, Any]] = {"dialects": {"msc3886": {"create_policy": "closed"}}}

    def test_closed(self) -> None:
        """Creation is forbidden, and everything else answers as ever."""
        channel = self.call("POST", "", b"hello")

        self.assertEqual((403, "M_FORBIDDEN"), (channel.code, self.errcode(channel)))
        self.assertEqual(404, self.call("GET", "/" + "x" * 22).code)
        self.assertEqual(200, self.call("GET").code)


class StrictTestCase(RendezvousTestCase):
    """Entity tags by the letter."""

    options: ClassVar[dict[str, Any]] = {"strict_etags": True}

    def test_strict(self) -> None:
        """What a proxy did to a tag is not forgiven."""
        below, tag = self.create()
        coded = tag[:-1] + b'-gzip"'
        for value in (b"W/" + tag, coded, tag.strip(b'"')):
            self.assertEqual(412, self.call("PUT", below, b"x", ("If-Match", value)).code)
        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", b"W/" + tag)).code)
        self.assertEqual(200, self.call("GET", below, b"", ("If-None-Match", coded)).code)
        self.assertEqual(202, self.call("PUT", below, b"x", ("If-Match", tag)).code)


class StartTestCase(HomeserverTestCase):
    """How the module starts, or refuses to."""

    def test_start_line(self) -> None:
        """One line says what is in force."""
        with self.assertLogs("synapse_rendezvous", level="INFO") as logs:
            self.setup_test_homeserver(
                "second",
                config={
                    **self.default_config(),
                    "modules": [{"module": "synapse_rendezvous.RendezvousModule", "config": {"ttl": "30s"}}],
                },
            )

        (line,) = logs.output
        self.assertTrue(
            re.search(rf"on main: msc3886 at {PATH} \(creation open\), .*; ttl 30 s, at most 10240 bytes", line), line
        )
        self.assertIn("; sessions in the memory of this process; ", line)
        self.assertIn("; a GET may wait 10 s, 8 s unasked, 2000 at once; ", line)
        self.assertIn("a client may have 100 sessions (2 while 80% of all are taken) and 200 waiting, create 40", line)
        self.assertIn("127.0.0.0/8", line)

    def test_redis_that_is_not_there(self) -> None:
        """Redis can be asked for only where Synapse has it."""
        api = self.hs.get_module_api()

        with self.assertRaises(ConfigError) as error:
            RendezvousModule(RendezvousModule.parse_config({"store": "redis"}), api)

        self.assertEqual(("redis", "enabled"), error.exception.path)
        RendezvousModule(RendezvousModule.parse_config({"store": "memory"}), api)

    def test_beside_builtin(self) -> None:
        """Synapse's own server at the same path is a conflict, named by its option."""
        self.hs.config.experimental.msc4108_enabled = True

        for options in ({}, {"dialects": {"msc3886": {"enabled": False}}}):  # at the same path, or below it
            with self.assertRaises(ConfigError) as error:
                RendezvousModule(RendezvousModule.parse_config(options), self.hs.get_module_api())

            self.assertEqual(("experimental_features", "msc4108_enabled"), error.exception.path)
            self.assertIn("Remove experimental_features.msc4108_enabled", error.exception.msg)
        only_msc4388 = {"dialects": {"msc3886": {"enabled": False}, "msc4108": {"enabled": False}}}
        RendezvousModule(RendezvousModule.parse_config(only_msc4388), self.hs.get_module_api())

    def test_twice(self) -> None:
        """A second rendezvous module would be ignored, so it is refused."""
        api = self.hs.get_module_api()
        RendezvousModule(RendezvousModule.parse_config({}), api)

        with self.assertRaises(ConfigError) as error:
            RendezvousModule(RendezvousModule.parse_config({}), api)

        self.assertEqual(("modules",), error.exception.path)
