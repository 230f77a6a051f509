"""Clients find the server at their own paths, without more configuration than the module itself."""

from typing import Any, ClassVar
from unittest.mock import patch

import synapse.rest
from parameterized import parameterized
from synapse.rest import ClientRestResource

from support.rendezvous_case import RendezvousTestCase

MAS = {"enabled": True, "endpoint": "http://127.0.0.1:9/", "secret": "nobody answers there"}
MSC4108 = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
UNSTABLE_MSC4388 = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
STABLE_MSC4388 = "/_matrix/client/v1/rendezvous"


class ClientPathsTestCase(RendezvousTestCase):
    """A homeserver with a listener that has Synapse's own `client` resource, as operators have it."""

    settings: ClassVar[dict[str, Any]] = {"matrix_authentication_service": MAS}

    def default_config(self) -> dict[str, Any]:
        config = super().default_config()
        config |= {"public_baseurl": "https://matrix.example.com/", "enable_registration": False}
        return {**config, **self.settings}

    def create_resource_dict(self) -> dict[str, Any]:
        return {"/_matrix/client": ClientRestResource(self.hs), **self.hs._module_web_resources}

    def ask(self, method: str, path: str, content: Any = b"", **more: Any) -> Any:
        more = {"content_type": b"text/plain", **more} if isinstance(content, bytes) else more
        return self.make_request(method, path, content, shorthand=False, **more)

    def is_advertised(self) -> bool:
        return bool(self.ask("GET", "/_matrix/client/versions").json_body["unstable_features"]["org.matrix.msc4108"])

    def assertServesMSC4108(self) -> None:
        """A session is created at the clients' path, and goes on where browsers may send entity tags."""
        for path in (MSC4108, f"{MSC4108}/"):
            created = self.ask("POST", path, b"hello")
            self.assertEqual(201, created.code)
            url = created.json_body["url"]
            self.assertTrue(url.startswith("https://matrix.example.com/_synapse/client/rendezvous/msc4108/c"))
        session = url.removeprefix("https://matrix.example.com")
        match = ("If-Match", created.headers.getRawHeaders("ETag")[0])
        self.assertEqual(202, self.ask("PUT", session, b"hello", custom_headers=[match]).code)
        self.assertEqual(b"hello", self.ask("GET", session).result["body"])

    def assertServesMSC4388(self, path: str, conflict: str) -> None:
        """A whole rendezvous takes place at a path of the proposal."""
        self.assertTrue(self.ask("GET", path).json_body["create_available"])
        self.assertEqual(200, self.ask("HEAD", path).code)
        created = self.ask("POST", path, {"data": "hello"}).json_body
        session, token = f"{path}/{created['id']}", created["sequence_token"]
        for _ in range(2):
            written = self.ask("PUT", f"{session}/one", {"sequence_token": token, "data": "answer"})
            self.assertEqual(200, written.code)
        stale = self.ask("PUT", f"{session}/two", {"sequence_token": token, "data": "stale"})
        self.assertEqual((409, conflict), (stale.code, self.errcode(stale)))
        old = self.ask("PUT", session, {"sequence_token": written.json_body["sequence_token"], "data": "again"})
        self.assertEqual((200, "again"), (old.code, self.ask("GET", session).json_body["data"]))
        for method, below in (("PATCH", session), ("GET", f"{session}/one"), ("GET", f"{session}/one/two")):
            self.assertEqual("M_UNRECOGNIZED", self.errcode(self.ask(method, below)))
        self.assertEqual((200, 404), (self.ask("DELETE", session).code, self.ask("GET", session).code))
        for below in ("", f"/{created['id']}", f"/{created['id']}/one"):
            allowed = self.ask("OPTIONS", path + below).headers.getRawHeaders("Access-Control-Allow-Headers")[0]
            self.assertLessEqual({"Authorization", "Content-Type"}, set(allowed.split(", ")))

    def assertServesNothing(self) -> None:
        self.assertFalse(self.is_advertised())
        for path in (MSC4108, UNSTABLE_MSC4388, STABLE_MSC4388):
            answer = self.ask("POST", path, {"data": ""})
            self.assertEqual((404, "M_UNRECOGNIZED"), (answer.code, self.errcode(answer)))
        self.create()


class DelegatedTestCase(ClientPathsTestCase):
    """Where the homeserver delegates authentication, `config: {}` is enough."""

    def test_advertised(self) -> None:
        """`/versions` says that there is a server for MSC4108."""
        self.assertTrue(self.is_advertised())

    def test_msc4108(self) -> None:
        """It creates sessions without a redirect, which some clients and proxies do not follow."""
        self.assertServesMSC4108()
        allowed = self.ask("OPTIONS", MSC4108).headers.getRawHeaders("Access-Control-Allow-Headers")[0]
        self.assertLessEqual({"Content-Type", "If-Match", "If-None-Match"}, set(allowed.split(", ")))
        for path, code in ((MSC4108, 405), (f"{MSC4108}/c{'x' * 22}", 404)):
            answer = self.ask("GET", path)
            self.assertEqual((code, "M_UNRECOGNIZED"), (answer.code, self.errcode(answer)))

    def test_msc4388(self) -> None:
        """MSC4388 is served at both of its paths."""
        self.assertServesMSC4388(UNSTABLE_MSC4388, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE")
        self.assertServesMSC4388(STABLE_MSC4388, "M_CONCURRENT_WRITE")

    def test_errors_are_ours(self) -> None:
        """What is refused is refused as at our own paths."""
        for path, content, code in ((MSC4108, b"x" * 4097, 413), (STABLE_MSC4388, b"{", 400)):
            answer = self.ask("POST", path, content)
            self.assertEqual((code, ["*"]), (answer.code, answer.headers.getRawHeaders("Access-Control-Allow-Origin")))
            self.assertEqual(["no-store, no-transform"], answer.headers.getRawHeaders("Cache-Control"))

    def test_waiting(self) -> None:
        """A poll is held here as well, and given up when its client leaves."""
        created = self.ask("POST", STABLE_MSC4388, {"data": "hello"}).json_body
        session, token = f"{STABLE_MSC4388}/{created['id']}", created["sequence_token"]
        poll = f"{session}?sequence_token={token}&timeout=9000"
        held = self.ask("GET", poll, await_result=False)
        self.assertFalse(held.is_finished())
        self.assertEqual(200, self.ask("PUT", f"{session}/one", {"sequence_token": token, "data": "news"}).code)
        self.assertEqual("news", held.json_body["data"])


class WhollyDelegatedTestCase(DelegatedTestCase):
    """Likewise where the operator insists."""

    options: ClassVar[dict[str, Any]] = {"client_paths": True}  # as YAML reads `on`


class InsistingTestCase(ClientPathsTestCase):
    """Where the operator insists, it does not matter who authenticates, nor who may create."""

    settings: ClassVar[dict[str, Any]] = {}
    options: ClassVar[dict[str, Any]] = {
        "client_paths": "on",
        "dialects": {"msc4108": {"create_policy": "authenticated"}},
    }

    def test_served(self) -> None:
        """All is served."""
        self.assertTrue(self.is_advertised())
        self.assertEqual(401, self.ask("POST", MSC4108).code)
        self.assertServesMSC4388(STABLE_MSC4388, "M_CONCURRENT_WRITE")


class NotDelegatedTestCase(ClientPathsTestCase):
    """Where nobody can sign in by QR code."""

    settings: ClassVar[dict[str, Any]] = {}

    def test_nothing(self) -> None:
        """Nothing of Synapse is touched."""
        self.assertServesNothing()


class OffTestCase(ClientPathsTestCase):
    """Where the operator wants none of it."""

    options: ClassVar[dict[str, Any]] = {"client_paths": False}  # as YAML reads `off`

    def test_nothing(self) -> None:
        """Nothing of Synapse is touched."""
        self.assertServesNothing()


class DelegatingElsewhereTestCase(ClientPathsTestCase):
    """Where the operator names a server for MSC4108."""

    settings: ClassVar[dict[str, Any]] = {
        "matrix_authentication_service": MAS,
        "experimental_features": {"msc4108_delegation_endpoint": "https://elsewhere.example.com/rendezvous"},
    }

    def test_redirect(self) -> None:
        """That is where clients go; MSC4388 is served all the same."""
        self.assertTrue(self.is_advertised())
        redirect = self.ask("POST", MSC4108)
        location = redirect.headers.getRawHeaders("Location")
        self.assertEqual((307, ["https://elsewhere.example.com/rendezvous"]), (redirect.code, location))
        self.assertServesMSC4388(UNSTABLE_MSC4388, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE")


class BesideSynapseTestCase(ClientPathsTestCase):
    """Where Synapse's own server for MSC4388 is on."""

    settings: ClassVar[dict[str, Any]] = {
        "matrix_authentication_service": MAS,
        "experimental_features": {"msc4388_mode": "open"},
    }

    def test_both(self) -> None:
        """Its path stays Synapse's."""
        if not hasattr(self.hs.config.experimental, "msc4388_enabled"):  # which came with Synapse 1.149
            self.assertServesMSC4388(UNSTABLE_MSC4388, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE")
            return
        created = self.ask("POST", UNSTABLE_MSC4388, {"data": "hello"}).json_body
        self.assertEqual(200, self.ask("GET", f"{UNSTABLE_MSC4388}/{created['id']}").code)
        self.assertEqual(404, self.ask("GET", f"{STABLE_MSC4388}/{created['id']}").code)
        self.assertServesMSC4388(STABLE_MSC4388, "M_CONCURRENT_WRITE")


class ForUsersTestCase(ClientPathsTestCase):
    """Where only users create by MSC4108, for which no client sends a token."""

    options: ClassVar[dict[str, Any]] = {"dialects": {"msc4108": {"create_policy": "authenticated"}}}

    def test_not_advertised(self) -> None:
        """No client is led to what it cannot use."""
        self.assertFalse(self.is_advertised())
        self.assertEqual(404, self.ask("POST", MSC4108).code)


class OneDialectTestCase(ClientPathsTestCase):
    """Where only one dialect is spoken."""

    options: ClassVar[dict[str, Any]] = {"dialects": {"msc3886": {"enabled": False}, "msc4108": {"enabled": False}}}

    def test_only_that(self) -> None:
        """The others are not offered."""
        self.assertFalse(self.is_advertised())
        self.assertEqual(404, self.ask("POST", MSC4108).code)
        self.assertServesMSC4388(STABLE_MSC4388, "M_CONCURRENT_WRITE")


class ChangedSynapseTestCase(ClientPathsTestCase):
    """Where Synapse is no longer what this module was made for."""

    def start(self) -> list[str]:
        """Start a homeserver, and return the warnings."""
        with self.assertLogs("synapse_rendezvous", level="INFO") as logs:
            self.hs = self.setup_test_homeserver("changed", {**self.default_config(), "server_name": "changed"})
        return [line for line in logs.output if line.startswith("WARNING")]

    @parameterized.expand([({},), ({"clients": ()},), ({"client": 5},)])
    def test_servlets(self, groups: dict[str, Any]) -> None:
        """It starts, serves its own paths, and says which line to add."""
        with patch.object(synapse.rest, "SERVLET_GROUPS", groups):
            (warning,) = self.start()
        self.assertIn("experimental_features: {msc4108_delegation_endpoint: https://matrix.example.com/", warning)
        self.assertIn("/_synapse/client/rendezvous/msc4108}", warning)
        self.assertIn("/_synapse/client/rendezvous", self.hs._module_web_resources)
