"""MSC4388's writes under transaction ids, its three paths, and its access tokens."""

import itertools
from typing import Any, ClassVar

from parameterized import parameterized, parameterized_class
from synapse.rest import admin
from synapse.rest.client import login, register
from synapse.types import UserID, create_requester

from support.rendezvous_case import RendezvousTestCase

OURS = "/_synapse/client/io.element.msc4388/rendezvous"
UNSTABLE = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
STABLE = "/_matrix/client/v1/rendezvous"


class JSONTestCase(RendezvousTestCase):
    """Sends JSON to MSC4388."""

    path = OURS
    options: ClassVar[dict[str, Any]] = {"client_paths": "on"}

    def create_resource_dict(self) -> dict[str, Any]:
        """Serve nothing of Synapse's own, as on a listener without its `client` resource."""
        return dict(self.hs._module_web_resources)

    def ask(self, method: str, below: str, content: dict[str, Any] | None = None, **more: Any) -> Any:
        """Send a request to a session or a collection."""
        return self.make_request(method, more.pop("path", self.path) + below, content or b"", shorthand=False, **more)

    def begin(self, data: str = "hello") -> tuple[str, str]:
        """Create a session; return what to append to the path for it, and its token."""
        created = self.ask("POST", "", {"data": data})
        self.assertEqual(200, created.code)
        return f"/{created.json_body['id']}", created.json_body["sequence_token"]

    def put(self, below: str, transaction_id: str, token: str, data: str, **more: Any) -> Any:
        """Write under a transaction id."""
        return self.ask("PUT", f"{below}/{transaction_id}", {"sequence_token": token, "data": data}, **more)

    def assertAnswers(self, expected: tuple[int, str], channel: Any) -> None:
        """Compare a status, and the token or the errcode."""
        body = channel.json_body
        self.assertEqual(expected, (channel.code, body.get("sequence_token") or body.get("errcode")))

    def read(self, below: str) -> tuple[str, str]:
        """Return the data and the token of a session."""
        body = self.ask("GET", below).json_body
        return body["data"], body["sequence_token"]


@parameterized_class(
    ("path", "conflict"),
    [
        (OURS, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE"),
        (UNSTABLE, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE"),
        (STABLE, "M_CONCURRENT_WRITE"),
    ],
)
class TransactionsTestCase(JSONTestCase):
    """Writes under transaction ids, at each path."""

    conflict: str

    def test_write(self) -> None:
        """A write answers with the new token."""
        below, first = self.begin()
        written = self.put(below, "one", first, "answer")
        self.assertEqual((200, ["sequence_token"]), (written.code, list(written.json_body)))
        self.assertEqual(("answer", written.json_body["sequence_token"]), self.read(below))
        self.assertNotEqual(first, written.json_body["sequence_token"])

    def test_retry_after_the_peer_has_answered(self) -> None:
        """However late a retry comes, and whatever it says, it gets the token of its own write and changes nothing."""
        below, first = self.begin()
        second = self.put(below, "one", first, "from A").json_body["sequence_token"]
        third = self.put(below, "two", second, "from B").json_body["sequence_token"]
        for token, data in ((first, "from A"), (first, "other data"), (third, "other data"), ("nobody's", "")):
            self.assertAnswers((200, second), self.put(below, "one", token, data))
        self.assertEqual(("from B", third), self.read(below))

    def test_retry_of_a_conflict(self) -> None:
        """A conflict stays one, also where the token is right by now; a new id is a new write."""
        below, first = self.begin()
        second = self.put(below, "one", first, "answer").json_body["sequence_token"]
        for token in (first, second):
            self.assertAnswers((409, self.conflict), self.put(below, "two", token, "stale"))
        self.assertEqual(("answer", second), self.read(below))
        self.assertEqual(200, self.put(below, "three", second, "again").code)

    def test_equal_data_do_not_count(self) -> None:
        """What made a retry of an older text's write is a conflict here."""
        below, first = self.begin()
        self.assertEqual(200, self.put(below, "one", first, "answer").code)
        self.assertAnswers((409, self.conflict), self.put(below, "two", first, "answer"))
        self.assertEqual(200, self.ask("PUT", below, {"sequence_token": first, "data": "answer"}).code)

    def test_ids_are_those_of_a_session(self) -> None:
        """One id in two sessions names two writes."""
        sessions = [self.begin() for _ in range(2)]
        tokens = {self.put(below, "one", token, "answer").json_body["sequence_token"] for below, token in sessions}
        self.assertEqual(2, len(tokens))
        for below, _ in sessions:
            self.assertEqual("answer", self.read(below)[0])

    def test_end(self) -> None:
        """Once a session has ended, nothing is known of its writes."""
        for end in (lambda below: self.ask("DELETE", below), lambda _: self.reactor.advance(302)):
            below, first = self.begin()
            self.assertEqual(200, self.put(below, "one", first, "answer").code)
            end(below)
            self.assertAnswers((404, "M_NOT_FOUND"), self.put(below, "one", first, "answer"))

    @parameterized.expand(["a", "-._~", "0" * 255, "~" * 255])
    def test_ids(self, transaction_id: str) -> None:
        """All that the grammar allows, to the longest, which are told apart to the last character."""
        below, first = self.begin()
        second = self.put(below, transaction_id, first, "2").json_body["sequence_token"]
        self.assertAnswers((200, second), self.put(below, transaction_id, first, "2"))
        self.assertAnswers((409, self.conflict), self.put(below, transaction_id[:-1] + "b", first, "2"))

    @parameterized.expand(["", "a" * 256, "%41", "a=", "a+b", "a:b", "*", "a%2Fb"])
    def test_no_ids(self, transaction_id: str) -> None:
        """What is outside the grammar is refused with the reason, also where there is no session."""
        below, first = self.begin()
        for target in (below, "/d" + "x" * 22):
            refused = self.put(target, transaction_id, first, "answer")
            self.assertAnswers((400, "M_INVALID_PARAM"), refused)
            self.assertIn("transaction id must be 1 to 255", refused.json_body["error"])
        self.assertEqual("hello", self.read(below)[0])

    def test_no_such_endpoint(self) -> None:
        """Paths and methods at which the text has nothing are told apart from sessions that are not there."""
        below, _ = self.begin()
        for method, deeper, expected in (
            ("GET", f"{below}/one/two", 404),
            ("PUT", f"{below}/one/two", 404),
            ("PUT", "//one", 404),
            ("GET", f"{below}/one", 405),
            ("DELETE", f"{below}/one", 405),
            ("POST", below, 405),
            ("PUT", "", 405),
            ("PATCH", "/x", 405),
        ):
            self.assertAnswers((expected, "M_UNRECOGNIZED"), self.ask(method, deeper))
        for method, missing in (("GET", "/x"), ("DELETE", "/d" + "x" * 22)):
            self.assertAnswers((404, "M_NOT_FOUND"), self.ask(method, missing))
        for missing in ("/x", "/d" + "x" * 22):
            self.assertAnswers((404, "M_NOT_FOUND"), self.put(missing, "one", "token", "data"))

    def test_preflight(self) -> None:
        """Browsers may write."""
        below, _ = self.begin()
        preflight = self.ask("OPTIONS", f"{below}/one")
        self.assertIn("PUT", preflight.headers.getRawHeaders("Access-Control-Allow-Methods")[0])
        self.assertIn("Content-Type", preflight.headers.getRawHeaders("Access-Control-Allow-Headers")[0])


class PathsTestCase(JSONTestCase):
    """The paths of MSC4388."""

    def test_shared(self) -> None:
        """Sessions and the outcomes of their writes are the same at each path; the errcode is that of the path."""
        for first, second in itertools.permutations((OURS, UNSTABLE, STABLE), 2):
            self.path = first
            below, token = self.begin()
            self.path = second
            written = self.put(below, "one", token, "answer").json_body["sequence_token"]
            self.assertAnswers((200, written), self.put(below, "one", token, "answer", path=first))
            for path in (first, second):
                conflict = "M_CONCURRENT_WRITE" if path == STABLE else "IO_ELEMENT_MSC4388_CONCURRENT_WRITE"
                self.assertAnswers((409, conflict), self.put(below, "two", token, "stale", path=path))
            self.assertEqual(200, self.ask("DELETE", below, path=first).code)
            self.assertEqual(404, self.ask("GET", below).code)


class BoundsTestCase(JSONTestCase):
    """How much is kept of writes, and which of them are not kept."""

    options: ClassVar[dict[str, Any]] = {
        "max_updates": 3,
        "max_total_bytes": "15K",
        "per_session": {"write": {"per_second": 0.5, "burst_count": 5}},
    }

    def test_as_many_as_a_client_needs(self) -> None:
        """Every write may conflict once; what comes then is refused, and what is kept is still answered."""
        below, token = self.begin()
        outcomes: dict[str, tuple[int, str]] = {}
        for number in range(3):
            token = self.put(below, f"done{number}", token, str(number)).json_body["sequence_token"]
            outcomes[f"done{number}"] = 200, token
            self.assertEqual(409, self.put(below, f"stale{number}", "nobody's", str(number)).code)
            outcomes[f"stale{number}"] = 409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE"
            self.reactor.advance(10)
        for token_now in (token, "nobody's"):
            self.assertAnswers((429, "M_LIMIT_EXCEEDED"), self.put(below, "more", token_now, "x"))
        for transaction_id, outcome in outcomes.items():
            self.reactor.advance(10)
            self.assertAnswers(outcome, self.put(below, transaction_id, token, "x"))
        self.assertEqual("2", self.read(below)[0])

    def test_refusals_are_not_kept(self) -> None:
        """A write that was refused for its form, its size or want of room is served once nothing is wrong with it."""
        below, token = self.begin()
        others = [self.begin("x" * 4000)[0] for _ in range(3)]
        for content, code in (
            ({"data": "x"}, 400),
            ({"sequence_token": token, "data": "x" * 4097}, 413),
            ({"sequence_token": token, "data": "x" * 4096}, 429),
        ):
            self.assertEqual(code, self.ask("PUT", f"{below}/one", content).code)
        self.ask("DELETE", others[0])
        self.assertEqual(200, self.put(below, "one", token, "x" * 4096).code)

    def test_retries_and_the_limit_of_a_session(self) -> None:
        """A retry counts as a write does, no more; one that is refused is served later."""
        below, token = self.begin()
        first = self.put(below, "one", token, "x").json_body["sequence_token"]
        codes = [self.put(below, "one", token, "x").code for _ in range(5)]
        self.assertEqual([200] * 4 + [429], codes)
        self.reactor.advance(2)
        self.assertAnswers((200, first), self.put(below, "one", token, "x"))


class TokensTestCase(RendezvousTestCase):
    """Access tokens at MSC4388's collection, whatever the policy; a token that is not valid is never ignored."""

    servlets: ClassVar[list[Any]] = [admin.register_servlets, login.register_servlets, register.register_servlets]
    policy = "open"
    path = OURS
    options: ClassVar[dict[str, Any]] = {"dialects": {"msc4388": {"create_policy": policy}}}

    def answers(self, token: str | None) -> tuple[Any, ...]:
        """Return what discovery and creation answer: whether creating is available and the errcode, if any."""
        discovery = self.call("GET", access_token=token)
        creation = self.call("POST", "", b'{"data": "x"}', access_token=token)
        available = discovery.json_body.get("create_available", discovery.json_body.get("errcode"))
        return discovery.code, available, creation.code, creation.json_body.get("errcode")

    def user(self, name: str) -> tuple[str, str]:
        user_id = self.register_user(name, "secret")
        return user_id, self.login(name, "secret")

    def test_tokens(self) -> None:
        """No token, a user's, a guest's, and those that are not valid, as Synapse takes them elsewhere."""
        nobody, user, guest = {
            "open": ((200, True, 200, None),) * 3,
            "authenticated": (
                (200, False, 403, "M_FORBIDDEN"),
                (200, True, 200, None),
                (200, False, 403, "M_GUEST_ACCESS_FORBIDDEN"),
            ),
            "closed": ((200, False, 403, "M_FORBIDDEN"),) * 3,
        }[self.policy]
        self.assertEqual(nobody, self.answers(None))
        alice, token = self.user("alice")
        self.assertEqual(user, self.answers(token))
        self.hs.config.registration.allow_guest_access = True
        guests = self.make_request("POST", "/_matrix/client/v3/register?kind=guest", {}).json_body
        self.assertEqual(guest, self.answers(guests["access_token"]))

        self.assertEqual((401, "M_UNKNOWN_TOKEN", 401, "M_UNKNOWN_TOKEN"), self.answers("wrong"))
        self.get_success(self.hs.get_datastores().main.set_user_locked_status(alice, True))
        self.assertEqual((401, "M_USER_LOCKED", 401, "M_USER_LOCKED"), self.answers(token))
        bob, token = self.user("bob")
        admin_handler = self.hs.get_deactivate_account_handler()
        self.get_success(admin_handler.deactivate_account(bob, False, self.requester(bob)))
        self.assertEqual((401, "M_UNKNOWN_TOKEN", 401, "M_UNKNOWN_TOKEN"), self.answers(token))

    def test_suspended_and_shadow_banned(self) -> None:
        """They are users as any other here, as they are to Synapse wherever they send nothing to rooms."""
        erin, token = self.user("erin")
        expected = self.answers(token)
        store = self.hs.get_datastores().main
        self.get_success(store.set_user_suspended_status(erin, True))
        self.assertEqual(expected, self.answers(token))
        self.get_success(store.set_shadow_banned(UserID.from_string(erin), True))
        self.assertEqual(expected, self.answers(token))

    def test_expired_account(self) -> None:
        """Who may not do anything may not create, though nobody need be anybody."""
        carol, token = self.user("carol")

        async def is_expired(user_id: str) -> bool:
            return user_id == carol

        self.hs.get_module_api().register_account_validity_callbacks(is_user_expired=is_expired)
        self.assertEqual((200, False, 403, "ORG_MATRIX_EXPIRED_ACCOUNT"), self.answers(token))

    def requester(self, user_id: str) -> Any:
        return create_requester(user_id)


class AuthenticatedTokensTestCase(TokensTestCase):
    """Creation by users of the homeserver."""

    policy = "authenticated"
    options: ClassVar[dict[str, Any]] = {"dialects": {"msc4388": {"create_policy": policy}}}


class ClosedTokensTestCase(TokensTestCase):
    """Creation by nobody."""

    policy = "closed"
    options: ClassVar[dict[str, Any]] = {"dialects": {"msc4388": {"create_policy": policy}}}
