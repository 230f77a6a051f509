"""MSC4108, MSC4388, who may create, and what today's clients send and depend on."""

import itertools
import json
from collections.abc import Callable
from typing import Any, ClassVar

from parameterized import parameterized
from synapse.rest import admin
from synapse.rest.client import login, register
from twisted.web.http import stringToDatetime

from support.rendezvous_case import RendezvousTestCase

TEXT = b"text/plain"


class MSC4108TestCase(RendezvousTestCase):
    """MSC4108 to the letter."""

    path = "/_synapse/client/rendezvous/msc4108"

    def test_create(self) -> None:
        """POST answers 201 and an absolute URL, also without content."""
        for content in (b"", b"hello"):
            channel = self.call("POST", "", content, *([] if content else [("Content-Type", TEXT)]))

            self.assertEqual((201, ["url"]), (channel.code, list(channel.json_body)))
            self.assertRegex(channel.json_body["url"], rf"^https://test{self.path}/c[A-Za-z0-9_-]{{22}}$")
            self.assertEqual(
                [channel.json_body["url"].removeprefix("https://test")], channel.headers.getRawHeaders("Location")
            )
            for name in ("ETag", "Expires", "Last-Modified"):
                self.assertEqual(1, len(channel.headers.getRawHeaders(name)))

    def begin(self) -> tuple[str, bytes]:
        channel = self.call("POST", "", b"hello")
        return f"/{channel.json_body['url'].rpartition('/')[2]}", self.tag(channel)

    def test_exchange(self) -> None:
        """Read, poll, write, conflict, end."""
        below, tag = self.begin()
        read = self.call("GET", below)
        self.assertEqual((200, b"hello", tag), (read.code, read.result["body"], self.tag(read)))
        self.assertEqual(["text/plain"], read.headers.getRawHeaders("Content-Type"))
        self.assertEqual(304, self.call("GET", below, b"", ("If-None-Match", tag)).code)
        put = self.call("PUT", below, b"answer", ("If-Match", tag))
        self.assertEqual((202, ["text/plain"]), (put.code, put.headers.getRawHeaders("Content-Type")))
        stale = self.call("PUT", below, b"stale", ("If-Match", tag))
        self.assertEqual((412, self.tag(put)), (stale.code, self.tag(stale)))
        self.assertEqual("M_UNKNOWN", stale.json_body["errcode"])
        self.assertEqual("M_CONCURRENT_WRITE", stale.json_body["org.matrix.msc4108.errcode"])
        self.assertEqual(202, self.call("PUT", below, b"answer", ("If-Match", tag)).code)  # a repeat
        self.assertEqual(204, self.call("DELETE", below).code)
        self.assertEqual("M_NOT_FOUND", self.errcode(self.call("GET", below)))

    def test_required(self) -> None:
        """What the text requires is asked for, in the order of Synapse's server: size, type, condition, session."""
        below, tag = self.begin()
        unknown = "/c" + "x" * 22
        for target in (below, unknown):
            no_match = self.call("PUT", target, b"x")
            self.assertEqual((400, "M_MISSING_PARAM"), (no_match.code, self.errcode(no_match)))
            self.assertEqual("Missing required header: if-match", no_match.json_body["error"])
            no_type = self.call("PUT", target, b"", ("If-Match", tag))
            self.assertEqual((400, "M_MISSING_PARAM"), (no_type.code, self.errcode(no_type)))
            for sent in (b"application/json", b"text/plain; charset=utf-8", b"text/html", b"\xff"):
                other = self.call("PUT", target, b"x", content_type=sent)
                self.assertEqual((400, "M_INVALID_PARAM"), (other.code, self.errcode(other)))
            large = self.call("PUT", target, b"x" * 4097, content_type=b"text/html")
            self.assertEqual((413, "M_TOO_LARGE"), (large.code, self.errcode(large)))
        self.assertEqual(404, self.call("PUT", unknown, b"x", ("If-Match", tag)).code)
        self.assertEqual("Missing required header: content-type", self.call("POST", "").json_body["error"])
        self.assertEqual(400, self.call("POST", "", b"x", content_type=b"application/json").code)
        self.assertEqual(413, self.call("POST", "", b"x" * 4097).code)
        self.assertEqual(201, self.call("POST", "", b"x" * 4096).code)
        self.assertEqual(202, self.call("PUT", below, b"x" * 4096, ("If-Match", tag), content_type=b"Text/PLAIN").code)
        self.assertEqual(["text/plain"], self.call("GET", below).headers.getRawHeaders("Content-Type"))

    def test_equal_payloads(self) -> None:
        """The text wants tags unique to session and time, so the same bytes written twice have two."""
        below, tag = self.begin()
        again = self.tag(self.call("PUT", below, b"hello", ("If-Match", tag)))

        self.assertNotEqual(tag, again)

    def test_described(self) -> None:
        """An operator who opens the path sees what it is."""
        self.assertEqual(4096, self.call("GET", "").json_body["max_bytes"])
        self.assertEqual(["GET, HEAD, POST, OPTIONS"], self.call("PUT", "").headers.getRawHeaders("Allow"))

    def test_preflight(self) -> None:
        """Browsers may send conditions."""
        channel = self.make_request("OPTIONS", f"{self.path}/x".encode(), shorthand=False)

        self.assertEqual(
            ["Content-Type, If-Match, If-None-Match"], channel.headers.getRawHeaders("Access-Control-Allow-Headers")
        )


class MSC4388TestCase(RendezvousTestCase):
    """MSC4388 whole."""

    path = "/_synapse/client/io.element.msc4388/rendezvous"

    def send(
        self, method: str, below: str = "", content: object = None, *headers: tuple[str, bytes], **more: Any
    ) -> Any:
        raw = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        channel = self.call(method, below, raw, *headers, **{"content_type": b"application/json", **more})
        self.assertEqual(["application/json"], channel.headers.getRawHeaders("Content-Type"))
        self.assertIsNone(channel.headers.getRawHeaders("ETag"))
        return channel

    def begin(self, data: str = "hello") -> tuple[str, str]:
        channel = self.send("POST", "", {"data": data})
        self.assertEqual(200, channel.code)
        return f"/{channel.json_body['id']}", channel.json_body["sequence_token"]

    def test_discovery(self) -> None:
        """Everybody may create here."""
        self.assertEqual({"create_available": True, "max_wait_ms": 10000}, self.send("GET").json_body)

    def test_exchange(self) -> None:
        """Create, read, write, conflict, end."""
        created = self.send("POST", "", {"data": "häl\u2028lo\0", "unknown": [1]})
        self.assertEqual((200, ["id", "sequence_token", "expires_in_ms"]), (created.code, list(created.json_body)))
        self.assertRegex(created.json_body["id"], "^[0-9A-Za-z._~-]{1,255}$")
        self.assertRegex(created.json_body["sequence_token"], "^[0-9A-Za-z._~-]{1,255}$")
        self.assertTrue(299_000 <= created.json_body["expires_in_ms"] <= 300_000)
        below, token = f"/{created.json_body['id']}", created.json_body["sequence_token"]
        self.reactor.advance(10)
        for _ in range(2):  # also when nothing changed
            read = self.send("GET", below)
            self.assertEqual((200, "häl\u2028lo\0", token), (read.code, *list(read.json_body.values())[:2]))
            self.assertTrue(280_000 < read.json_body["expires_in_ms"] <= 290_000)
        put = self.send("PUT", below, {"sequence_token": token, "data": "answer"})
        self.assertEqual((200, ["sequence_token"]), (put.code, list(put.json_body)))
        self.assertNotEqual(token, put.json_body["sequence_token"])
        stale = self.send("PUT", below, {"sequence_token": token, "data": "stale"})
        self.assertEqual((409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE"), (stale.code, self.errcode(stale)))
        self.assertEqual("answer", self.send("GET", below).json_body["data"])
        self.assertEqual((200, {}), ((ended := self.send("DELETE", below)).code, ended.json_body))
        for method, content in (("GET", None), ("DELETE", None), ("PUT", {"sequence_token": token, "data": ""})):
            gone = self.send(method, below, content)
            self.assertEqual((404, "M_NOT_FOUND"), (gone.code, self.errcode(gone)))

    def test_token_changes_on_every_write(self) -> None:
        """Equal data in the same millisecond included."""
        below, token = self.begin()
        tokens = {token}
        for _ in range(20):
            token = self.send("PUT", below, {"sequence_token": token, "data": "hello"}).json_body["sequence_token"]
            tokens.add(token)

        self.assertEqual(21, len(tokens))

    def test_retry(self) -> None:
        """A token that is not current does no harm if the data are, whichever token it is."""
        below, first = self.begin()
        second = self.send("PUT", below, {"sequence_token": first, "data": "2"}).json_body["sequence_token"]
        third = self.send("PUT", below, {"sequence_token": second, "data": "3"}).json_body["sequence_token"]
        for token in (first, second, "never seen", "\ud800"):
            again = self.send("PUT", below, {"sequence_token": token, "data": "3"})
            self.assertEqual((200, third), (again.code, again.json_body.get("sequence_token")))
            self.assertEqual(409, self.send("PUT", below, {"sequence_token": token, "data": "2"}).code)

    @parameterized.expand(
        [
            (b"",),
            (b"hello",),
            (b"[]",),
            (b'"data"',),
            (b"{}",),
            (b'{"data": 1}',),
            (b'{"data": null}',),
            (b'{"data": ["x"]}',),
            (b'{"data": "x", "data": "x"}',),
            (b'{"data": "\xff"}',),
            (b'{"data": "\\ud800"}',),
            (b'{"data": "x"',),
            (b"[" * 20_000,),
            (b'{"data": ' + b"1" * 10_000 + b"}",),
        ]
    )
    def test_malformed(self, content: bytes) -> None:
        """What is not the JSON required is refused with the reason."""
        below, _ = self.begin()
        for method, target in (("POST", ""), ("PUT", below), ("PUT", "/d" + "x" * 22)):
            channel = self.send(method, target, content)
            self.assertEqual((400, "M_INVALID_PARAM"), (channel.code, self.errcode(channel)))
            self.assertTrue(channel.json_body["error"].startswith("Invalid JSON in request body: "))

    def test_token_required(self) -> None:
        """A write says what it replaces."""
        below, _ = self.begin()
        for body in ({"data": "x"}, {"data": "x", "sequence_token": 5}, {"data": "x", "sequence_token": None}):
            channel = self.send("PUT", below, body)
            self.assertEqual(400, channel.code)
            self.assertIn("sequence_token must be a string", channel.json_body["error"])

    def test_size(self) -> None:
        """4096 bytes of UTF-8 are counted, not characters and not their escapes."""
        below, token = self.begin("x" * 4096)
        for data, code in (("x" * 4097, 413), ("ä" * 2048, 200), ("ä" * 2048 + "x", 413), ("\U0001f600" * 1024, 200)):
            for escaped in (json.dumps({"data": data}), json.dumps({"data": data}, ensure_ascii=False)):
                self.assertEqual(code, self.send("POST", "", escaped.encode()).code)
        self.assertEqual(413, self.send("PUT", below, {"data": "x" * 4097, "sequence_token": token}).code)
        self.assertEqual(200, self.send("POST", "", b'{"data": "' + b"\\u0041" * 4096 + b'"}').code)
        too_large = self.send("POST", "", b'{"data": "x", "other": "' + b"x" * 40_000 + b'"}')
        self.assertEqual((413, "M_TOO_LARGE"), (too_large.code, self.errcode(too_large)))

    def test_display(self) -> None:
        """A browser that navigates or embeds is refused, before the id is looked at."""
        below, _ = self.begin()
        for target in (below, "/d" + "x" * 22):
            for name, value in (("Dest", b"document"), ("Mode", b"navigate"), ("User", b"?1"), ("Site", b"none")):
                refused = self.send("GET", target, None, (f"Sec-Fetch-{name}", value))
                self.assertEqual((403, "M_FORBIDDEN"), (refused.code, self.errcode(refused)))
        fetch = [("Sec-Fetch-Dest", b"empty"), ("Sec-Fetch-Mode", b"cors"), ("Sec-Fetch-Site", b"cross-site")]
        self.assertEqual(200, self.send("GET", below, None, *fetch).code)

    def test_preflight(self) -> None:
        """Browsers may send their token."""
        channel = self.make_request("OPTIONS", self.path.encode(), shorthand=False)

        self.assertIn("Authorization", channel.headers.getRawHeaders("Access-Control-Allow-Headers")[0])

    def test_limits(self) -> None:
        """A refusal tells when to come back."""
        for _ in range(40):
            self.begin()
        refused = self.send("POST", "", {"data": ""})
        self.assertEqual((429, "M_LIMIT_EXCEEDED"), (refused.code, self.errcode(refused)))
        self.assertEqual(1, len(refused.headers.getRawHeaders("Retry-After")))


class SeparateTestCase(RendezvousTestCase):
    """What one dialect creates, another does not serve."""

    PATHS = (RendezvousTestCase.path, MSC4108TestCase.path, MSC4388TestCase.path)

    def test_separate(self) -> None:
        """Every id is known at its own path only."""
        base, _ = self.create()
        text = self.make_request("POST", self.PATHS[1].encode(), b"x", shorthand=False, content_type=TEXT)
        json_ = self.make_request("POST", self.PATHS[2].encode(), b'{"data": "x"}', shorthand=False)
        ids = [base[1:], text.json_body["url"].rpartition("/")[2], json_.json_body["id"]]
        for own, path in enumerate(self.PATHS):
            for index, id_ in enumerate(ids):
                for method in ("GET", "DELETE") if own != index else ("GET",):
                    code = self.make_request(method, f"{path}/{id_}".encode(), shorthand=False).code
                    self.assertEqual(200 if own == index else 404, code, (path, id_))

    def test_paths_below_each_other(self) -> None:
        """A dialect below another's path does not answer deeper paths."""
        for below in ("/msc4108/", "/msc4108/x/y", "/x/msc4108"):
            self.assertIn(self.call("GET", below).code, (200,) if below == "/msc4108/" else (404,))


class MovedTestCase(RendezvousTestCase):
    """Dialects elsewhere, or nowhere."""

    path = "/_synapse/client/rendezvous"
    options: ClassVar[dict[str, Any]] = {
        "dialects": {
            "msc3886": {"enabled": False},
            "msc4108": {"path": path},
            "msc4388": {"path": "/_synapse/client/elsewhere"},
        }
    }

    def test_moved(self) -> None:
        """The new paths answer, and the old ones do not."""
        channel = self.call("POST", "", b"x")
        self.assertEqual(201, channel.code)
        self.assertTrue(channel.json_body["url"].startswith(f"https://test{self.path}/c"))
        moved = self.make_request("POST", b"/_synapse/client/elsewhere", b'{"data": ""}', shorthand=False)
        self.assertEqual(200, moved.code)
        for path, code in ((MSC4108TestCase.path, 405), (MSC4388TestCase.path, 404)):
            self.assertEqual(code, self.make_request("POST", path.encode(), b"", shorthand=False).code)


class AuthenticatedTestCase(RendezvousTestCase):
    """Creation by users of the homeserver only."""

    servlets: ClassVar[list[Any]] = [admin.register_servlets, login.register_servlets, register.register_servlets]
    path = MSC4388TestCase.path
    options: ClassVar[dict[str, Any]] = {
        "dialects": {
            "msc3886": {"create_policy": "authenticated"},
            "msc4108": {"create_policy": "closed"},
            "msc4388": {"create_policy": "authenticated"},
        },
        "per_user": {"create": {"per_second": 0.001, "burst_count": 2}},
    }

    def test_create(self) -> None:
        """A token is needed to create and for nothing else, and each user has a limit of their own."""
        self.register_user("alice", "secret")
        self.register_user("bob", "secret")
        alice, bob = self.login("alice", "secret"), self.login("bob", "secret")
        body = b'{"data": "x"}'

        missing = self.call("POST", "", body)
        self.assertEqual((403, "M_FORBIDDEN"), (missing.code, self.errcode(missing)))
        unknown = self.call("POST", "", body, access_token="wrong")
        self.assertEqual((401, "M_UNKNOWN_TOKEN"), (unknown.code, self.errcode(unknown)))
        channel = self.call("POST", "", body, access_token=alice)
        self.assertEqual(200, channel.code)
        self.assertEqual(200, self.call("GET", f"/{channel.json_body['id']}").code)
        self.assertEqual(200, self.call("POST", "", body, access_token=alice).code)
        limited = self.call("POST", "", body, access_token=alice, client_ip="203.0.113.1")
        self.assertEqual((429, "M_LIMIT_EXCEEDED"), (limited.code, self.errcode(limited)))
        self.assertEqual(200, self.call("POST", "", body, access_token=bob).code)

    def test_strangers_at_the_address(self) -> None:
        """Who may not create, or not now, takes nothing from the users behind the same address."""
        self.register_user("alice", "secret")
        self.register_user("bob", "secret")
        alice, bob = self.login("alice", "secret"), self.login("bob", "secret")
        body = b'{"data": "x"}'
        for token, code in ((None, 403), ("wrong", 401)):
            self.assertEqual([code] * 50, [self.call("POST", "", body, access_token=token).code for _ in range(50)])
        codes = [self.call("POST", "", body, access_token=alice).code for _ in range(50)]
        self.assertEqual([200] * 2 + [429] * 48, codes)
        self.assertEqual(200, self.call("POST", "", body, access_token=bob).code)

    def test_discovery(self) -> None:
        """Whoever asks learns whether they may create."""
        self.register_user("alice", "secret")
        for token, answer in ((None, False), (self.login("alice", "secret"), True)):
            channel = self.call("GET", "", access_token=token)
            self.assertEqual(
                (200, {"create_available": answer, "max_wait_ms": 10_000}), (channel.code, channel.json_body)
            )
        self.assertEqual(401, self.call("GET", "", access_token="wrong").code)

    def test_guest(self) -> None:
        """A guest is no user of the homeserver."""
        self.hs.config.registration.allow_guest_access = True
        token = self.make_request("POST", "/_matrix/client/v3/register?kind=guest", {}).json_body["access_token"]

        self.assertEqual(
            {"create_available": False, "max_wait_ms": 10000}, self.call("GET", "", access_token=token).json_body
        )
        refused = self.call("POST", "", b'{"data": "x"}', access_token=token)
        self.assertEqual((403, "M_GUEST_ACCESS_FORBIDDEN"), (refused.code, self.errcode(refused)))

    def test_by_dialect(self) -> None:
        """Each dialect has a policy of its own."""
        for path, code, errcode in (
            (RendezvousTestCase.path, 401, "M_MISSING_TOKEN"),
            (MSC4108TestCase.path, 403, "M_FORBIDDEN"),
        ):
            channel = self.make_request("POST", path.encode(), b"x", shorthand=False, content_type=TEXT)
            self.assertEqual((code, errcode), (channel.code, self.errcode(channel)))

    def test_tokens_that_are_not_asked_for(self) -> None:
        """Where a token is needed, a wrong one is an error in every dialect; where none is, only in MSC4388."""
        for path, code in ((RendezvousTestCase.path, 401), (MSC4108TestCase.path, 200), (MSC4388TestCase.path, 401)):
            channel = self.make_request("GET", path.encode(), access_token="wrong", shorthand=False)
            self.assertEqual(code, channel.code)


class ClosedTestCase(RendezvousTestCase):
    """Discovery where nobody may create."""

    path = MSC4388TestCase.path
    options: ClassVar[dict[str, Any]] = {"dialects": {"msc4388": {"create_policy": "closed"}}}

    def test_closed(self) -> None:
        """Clients are told before they try."""
        self.assertEqual({"create_available": False, "max_wait_ms": 10000}, self.call("GET", "").json_body)
        self.assertEqual(403, self.call("POST", "", b'{"data": "x"}').code)


class RefusedPollTestCase(RendezvousTestCase):
    """A poll that is refused does not make clients lose their tag."""

    options: ClassVar[dict[str, Any]] = {"per_session": {"read": {"per_second": 0.001, "burst_count": 1}}}

    def test_refused(self) -> None:
        """The refusal has the session's type and its revision headers; js-sdk then keeps what it has and polls on."""
        below, tag = self.create(content_type=b"application/json")
        self.assertEqual(200, self.call("GET", below).code)

        refused = self.make_request("GET", (self.path + below).encode(), shorthand=False)

        self.assertEqual((429, tag), (refused.code, self.tag(refused)))
        self.assertEqual(["application/json"], refused.headers.getRawHeaders("Content-Type"))
        self.assertEqual("M_LIMIT_EXCEEDED", refused.json_body["errcode"])
        for name in ("Expires", "Last-Modified", "Retry-After"):
            self.assertEqual(1, len(refused.headers.getRawHeaders(name)))

    def test_refused_msc4108(self) -> None:
        """Likewise in MSC4108, whose text has another code for it."""
        path = MSC4108TestCase.path.encode()
        created = self.make_request("POST", path, b"x", shorthand=False, content_type=TEXT)
        session = created.json_body["url"].removeprefix("https://test").encode()
        self.assertEqual(200, self.make_request("GET", session, shorthand=False).code)

        refused = self.make_request("GET", session, shorthand=False)

        self.assertEqual(429, refused.code)
        self.assertEqual(["text/plain"], refused.headers.getRawHeaders("Content-Type"))
        self.assertEqual(created.headers.getRawHeaders("ETag"), refused.headers.getRawHeaders("ETag"))
        self.assertEqual("M_UNKNOWN", refused.json_body["errcode"])

    def test_refused_and_gone(self) -> None:
        """What is not there is not found, however often it is asked for."""
        self.assertEqual([404, 404], [self.call("GET", "/" + "x" * 22).code for _ in range(2)])


class Client:
    """What matrix-js-sdk keeps between requests, and how it reads answers.

    Args:
        case: sends the requests.
        content_type: what this client's transport writes, and insists on reading.
        mangle: what a proxy does to each ETag on its way to the client.
    """

    def __init__(self, case: RendezvousTestCase, content_type: bytes, mangle: Callable[[str], str]) -> None:
        self.case = case
        self.content_type = content_type
        self.mangle = mangle
        self.path = ""
        self.etag: str | None = None

    def request(self, method: str, content: bytes | None = None) -> Any:
        headers = []
        if content == b"":  # with content, Synapse's harness adds the type itself
            headers.append((b"Content-Type", self.content_type))
        if self.etag and method != "DELETE":
            headers.append((b"If-Match" if method == "PUT" else b"If-None-Match", self.etag.encode()))
        return self.case.make_request(
            method,
            self.path.encode(),
            content or b"",
            shorthand=False,
            content_type=self.content_type,
            custom_headers=headers,
        )

    def remember(self, channel: Any) -> None:
        tags = channel.headers.getRawHeaders("ETag")
        self.etag = self.mangle(tags[0]) if tags else None

    def create(self, path: str, content: bytes) -> Any:
        self.path = path
        channel = self.request("POST", content)
        self.remember(channel)
        return channel

    def send(self, content: bytes) -> Any:
        channel = self.request("PUT", content)
        self.remember(channel)
        return channel

    def receive(self) -> bytes | None:
        """Poll once. An answer of another type makes it take that answer's tag and ignore the rest."""
        channel = self.request("GET")
        if channel.code == 404:
            raise LookupError
        if channel.headers.getRawHeaders(b"Content-Type") != [self.content_type]:
            self.remember(channel)
            return None
        if channel.code != 200:
            return None
        self.remember(channel)
        return bytes(channel.result.get("body", b""))


MANGLED = [
    ("plain", lambda tag: tag),
    ("weakened", lambda tag: f"W/{tag}"),
    ("suffixed", lambda tag: f'{tag[:-1]}-gzip"'),
]


class ClientsTestCase(RendezvousTestCase):
    """The request sequences of real clients, through proxies that damage tags."""

    def pair(self, creator: Client, scanner: Client) -> None:
        """Exchange messages both ways, each side polling in between, the same bytes from both among them."""
        self.assertIsNone(creator.receive())
        first = scanner.receive()
        self.assertIsNotNone(first)
        for message in (b"LoginInitiate", b"ok", b"ok", b"protocols"):
            for sender, reader in ((scanner, creator), (creator, scanner)):
                self.assertEqual(202, sender.send(message).code)
                self.assertIsNone(sender.receive(), "a sender must not read its own message")
                self.assertEqual(message, reader.receive())
                self.assertIsNone(reader.receive())

    @parameterized.expand(MANGLED)
    def test_js_sdk_msc3886(self, _proxy: str, mangle: Callable[[str], str]) -> None:
        """matrix-js-sdk to 34.9: JSON, the Location of the answer to POST."""
        creator, scanner = (Client(self, b"application/json", mangle) for _ in range(2))
        created = creator.create(self.path, b'{"algorithm":"x"}')
        creator.path = scanner.path = created.headers.getRawHeaders("Location")[0]
        self.pair(creator, scanner)

    @parameterized.expand(MANGLED)
    def test_js_sdk_msc4108(self, _proxy: str, mangle: Callable[[str], str]) -> None:
        """matrix-js-sdk since 33.1, at the base path and at the strict one: an absolute url, text/plain exactly."""
        for path in (self.path, MSC4108TestCase.path):
            creator, scanner = (Client(self, TEXT, mangle) for _ in range(2))
            created = creator.create(path, b"")
            expires_s = stringToDatetime(created.headers.getRawHeaders("Expires")[0].encode())
            self.assertGreater(expires_s, self.reactor.seconds() + 60)
            creator.path = scanner.path = created.json_body["url"].removeprefix("https://test")
            self.pair(creator, scanner)
            self.assertEqual(204, creator.request("DELETE").code)
            with self.assertRaises(LookupError):
                scanner.receive()

    @parameterized.expand(MANGLED)
    def test_rust_sdk_msc4108(self, _proxy: str, mangle: Callable[[str], str]) -> None:
        """matrix-rust-sdk: every answer below 400 has all three headers, the type is exact, no 200 has another."""
        for path in (self.path, MSC4108TestCase.path):
            creator, scanner = (Client(self, TEXT, mangle) for _ in range(2))
            self.insist(creator.create(path, b""))
            creator.path = scanner.path = self.last.json_body["url"].removeprefix("https://test")
            scanner.remember(self.insist(scanner.request("GET")))  # without a condition; the body is ignored
            for message in (b"LoginInitiate", b"again", b"again"):
                self.assertEqual(304, self.insist(creator.request("GET")).code)
                known = scanner.etag
                self.assertEqual(202, self.insist(scanner.send(message)).code)
                scanner.etag = known
                self.assertEqual(202, self.insist(scanner.send(message)).code)  # the answer was lost on its way
                polled = self.insist(creator.request("GET"))
                self.assertEqual((200, message), (polled.code, polled.result["body"]))
                self.assertEqual([TEXT], polled.headers.getRawHeaders(b"Content-Type"))
                creator.remember(polled)

    def insist(self, channel: Any) -> Any:
        self.assertLess(channel.code, 400)
        self.tag(channel)
        for name in (b"Expires", b"Last-Modified"):
            (date,) = channel.headers.getRawHeaders(name)
            stringToDatetime(date)
        self.last = channel
        return channel


class WarningsTestCase(RendezvousTestCase):
    """What an operator is told about the paths."""

    numbers = itertools.count()

    def start(self, dialects: dict[str, Any], **options: Any) -> list[str]:
        module = {"module": "synapse_rendezvous.RendezvousModule", "config": {"dialects": dialects, **options}}
        with self.assertLogs("synapse_rendezvous", level="INFO") as logs:
            # A name for each: older releases of prometheus_client fail where two that had the same one shut down.
            config = {**super().default_config(), "modules": [module]}
            self.setup_test_homeserver(f"test{next(self.numbers)}", config)
        return [line for line in logs.output if line.startswith("WARNING")]

    def test_long_hold(self) -> None:
        """What clients on a common library give up is named."""
        self.assertEqual([], self.start({}, long_poll={"default_wait": "9s"}))
        (warning,) = self.start({}, long_poll={"default_wait": "10s"})
        self.assertIn("long_poll.default_wait is 10 s, but some clients (on okhttp) give up", warning)

    def test_room(self) -> None:
        """A bound that strangers could fill is named, with what it would have to be."""
        (warning,) = self.start({}, max_sessions=20_000, max_total_bytes="50M")
        self.assertIn("max_total_bytes (52428800) has no room for max_sessions (20000) payloads", warning)
        self.assertIn("set it to 204800000 or more", warning)
        self.assertEqual([], self.start({}, max_sessions=20_000, max_total_bytes=204_800_000))
        self.assertEqual([], self.start({}, max_sessions=20_000))

    def test_warnings(self) -> None:
        """Each combination that clients, or browsers, cannot use is named."""
        self.assertEqual([], self.start({"msc4388": {"create_policy": "authenticated"}}))
        (warning,) = self.start({"msc3886": {"create_policy": "authenticated"}})
        self.assertIn("Web clients cannot create sessions at /_synapse/client/rendezvous:", warning)
        self.assertIn("dialects.msc3886.create_policy", warning)
        (warning,) = self.start({"msc4108": {"path": "/_synapse/client/msc4108"}})
        self.assertIn("Web clients cannot use /_synapse/client/msc4108:", warning)
        self.assertIn("dialects.msc4108.path", warning)
        (warning,) = self.start({"msc4388": {"path": "/_matrix/client/unstable/io.element.msc4388/rendezvous"}})
        self.assertIn("is reached only on listeners without Synapse's own `client` resource", warning)
