"""docs/openapi.yaml is valid and true: generated requests, and a walk past all that it says, with real processes.

`OPENAPI_EXAMPLES` is how many requests are generated for each operation, and how many stories of several requests.
"""

import copy
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml
from hypothesis import Phase, settings
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import Case, CheckContext, Response
from schemathesis.specs.openapi import checks

from support.homeservers import behind_proxy, running
from support.http_client import ask
from support.programs import needs
from support.recipes import DOCS
from support.servers import ENDLESS, UNLIMITED, RedisServer
from synapse_rendezvous import __version__
from synapse_rendezvous.demo.throwaway_homeserver import HOST, ThrowawayHomeserver

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "25"))
DOCUMENT = yaml.safe_load((DOCS / "openapi.yaml").read_text())
MSC3886 = "/_synapse/client/rendezvous"
MSC4108 = "/_synapse/client/rendezvous/msc4108"
MSC4388 = "/_synapse/client/io.element.msc4388/rendezvous"
PATHS = (MSC3886, MSC4108, MSC4388)
PARAMETERS = ("id", "transactionId")
ON_SESSION = ("GET", "HEAD", "PUT", "DELETE")
DENIED = "203.0.113.1"

HTTPS_OWN = {"connection", "content-length", "content-type", "date", "server"}
"""Fields that the document leaves to HTTP, as it says."""

# What a generated request cannot know is whether its conditions hold or what is too long in bytes; and `*/*` may turn
# out as multipart/form-data, which Synapse refuses in a POST.
REFUSALS = [400, 401, 403, 404, 405, 409, 412, 413, 415]
CONFIG = {
    # Unknown parameters are ignored.
    "generation": {"max-examples": EXAMPLES, "deterministic": True, "allow-extra-parameters": False},
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["2xx", "3xx", 401, 403, 404, 409, 412, 413]},
        "negative_data_rejection": {"expected-statuses": REFUSALS},
    },
    "operations": [
        {
            "include-operation-id": "msc3886Create",
            "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", 415]}},
        },
        # Synapse answers these itself, whatever the path.
        {
            "include-method": "OPTIONS",
            "checks": {"negative_data_rejection": {"enabled": False}, "use_after_free": {"enabled": False}},
        },
    ],
}


def schema(*paths: str) -> Any:
    """Return the document as schemathesis has it, or what it says of some collections and their sessions."""
    document = copy.deepcopy(DOCUMENT)
    # OpenAPI has no way to say that the last segment of a URL is the id; schemathesis has one of its own.
    created = document["paths"][MSC4108]["post"]["responses"]["201"]
    last_segment = "$response.header.Location#regex:([^/]+)$"
    created["links"] = copy.deepcopy(document["paths"][MSC3886]["post"]["responses"]["200"]["links"])
    for link in created["links"].values():
        link["operationId"] = link["operationId"].replace("msc3886", "msc4108")
        link["parameters"]["id"] = last_segment
    if paths:
        document["paths"] = {path: document["paths"][path] for at in paths for path in (at, f"{at}/{{id}}")}
    return schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(CONFIG))


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """Return what a part of the document says, also where it says so elsewhere."""
    if "$ref" in part:
        _, *names = part["$ref"].split("/")
        part = DOCUMENT
        for name in names:
            part = part[name]
    return part


def documented(path: str, method: str, status: int) -> dict[str, Any]:
    """Return the answer that the document gives for a status."""
    operation = DOCUMENT["paths"][path].get(method.lower())
    if operation is None:
        assert 405 == status
        return resolved({"$ref": "#/components/responses/MethodNotAllowed"})
    assert str(status) in operation["responses"], f"{status} is not documented"
    return resolved(operation["responses"][str(status)])


@schemathesis.check
def is_all_documented(_context: CheckContext, response: Response, case: Case[Any]) -> None:
    """Fail if an answer has a field that is not documented, or lacks one where schemathesis does not look."""
    answer = documented(case.path, case.method, response.status_code)
    names = {name.lower() for name in answer.get("headers", {})}
    assert set(response.headers) <= names | HTTPS_OWN, "fields that are not documented"
    if response.status_code == 405:
        assert names <= set(response.headers), "fields that are missing"
        if case.method != "HEAD" and response.content:
            content = {**answer["content"]["application/json"]["schema"], "components": DOCUMENT["components"]}
            OAS31Validator(content).validate(json.loads(response.content))


CONFORMANCE: list[Any] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    is_all_documented,
]


def test_valid() -> None:
    """The document is OpenAPI 3.1, and of this version."""
    assert [] == list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors())
    assert __version__ == DOCUMENT["info"]["version"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawayHomeserver]:
    """A homeserver that limits nobody, and where waiting is short."""
    config = {"long_poll": {"max_wait": 20}, "max_sessions": 1_000_000, "per_client": UNLIMITED, **ENDLESS}
    homeserver = behind_proxy(tmp_path_factory.mktemp("quick"), config)
    with running(homeserver):
        yield homeserver


@schema().parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=EXAMPLES, deadline=None)
def test_generated(case: Case[Any], quick: ThrowawayHomeserver) -> None:
    """Whatever is sent to an operation, well formed or not, the answer is one that the document has."""
    case.call_and_validate(base_url=quick.url)


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        (MSC3886, {"Create 200", "Read 200", "Read 304", "Replace 202", "End 204"}),
        (MSC4108, {"Create 201", "Read 200", "Read 304", "Replace 202", "End 204"}),
        (MSC4388, {"Create 200", "Read 200", "Replace 200", "End 200"}),
    ],
)
def test_stories(quick: ThrowawayHomeserver, path: str, reached: set[str]) -> None:
    """So it is when a request takes up what another was answered: the session, its tag, its token."""
    seen = set()

    class Story(schema(path).as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Case[Any]) -> dict[str, Any]:
            return {"base_url": quick.url}

        def after_call(self, response: Response, case: Case[Any]) -> None:
            operation_id = case.operation.definition.raw["operationId"]
            seen.add(f"{operation_id[len('msc0000') :]} {response.status_code}")

    # A story that fails is told as it is: ids are random, so a shorter one would be another one.
    once = settings(max_examples=EXAMPLES, stateful_step_count=8, phases=[Phase.generate], derandomize=True)
    Story.run(settings=settings(once, deadline=None))
    assert reached <= seen


class Walk:
    """Sends requests, each for one answer of the document, and remembers which answers there were."""

    def __init__(self) -> None:
        self.answers: set[tuple[str, str, int]] = set()
        self._schema = schema()

    def ask(
        self, url: str, path: str, method: str, status: int, body: bytes = b"", query: str = "", /, **fields: str
    ) -> Response:
        """Send a request and return its answer, which must have that status and be as documented.

        Args:
            url: the homeserver.
            path: a path of the document and, behind blanks, the values of its parameters.
            method: the method.
            status: what is expected.
            body: the content.
            query: what stands behind the path.
            fields: the header, with `_` for `-`.
        """
        template, *names = path.split(" ")
        operations = self._schema[template]
        is_known = method.lower() in DOCUMENT["paths"][template]
        case = operations[method if is_known else "OPTIONS"].Case(
            method=method,
            path_parameters=dict(zip(PARAMETERS, names, strict=False)) or None,
            headers={name.replace("_", "-"): value for name, value in fields.items()},
        )
        response: Response = case.call(base_url=url, data=body or None, params=query or None)
        assert status == response.status_code, f"{method} {path}: {response.content!r}"
        case.validate_response(response, checks=CONFORMANCE if is_known else [is_all_documented])
        self.answers.add((template, method, status))
        return response

    def create(self, url: str, path: str, **fields: str) -> tuple[str, str]:
        """Create a session and return its path, as `ask` takes it, and its tag or token."""
        status = 201 if path == MSC4108 else 200
        response = self.ask(url, path, "POST", status, content(path), Content_Type="text/plain", **fields)
        created = response.json()
        session_id = created["id"] if "id" in created else created["url"].rpartition("/")[2]
        tag = created["sequence_token"] if path == MSC4388 else response.headers["etag"][0]
        return f"{path}/{{id}} {session_id}", tag


def content(path: str, data: str = "hello", token: str = "") -> bytes:
    return (json.dumps({"data": data, "sequence_token": token}) if path == MSC4388 else data).encode()


def transaction(session: str) -> str:
    """Return the path of a write under a transaction id."""
    template, session_id = session.split(" ")
    return f"{template}/{{transactionId}} {session_id} one"


def walk_open(walk: Walk, url: str, path: str) -> None:
    """Meet all that a homeserver answers that is in order and refuses nobody."""
    session, tag = walk.create(url, path)
    nowhere = session[:-1] + ("A" if session[-1] != "A" else "B")
    plain = {"Content_Type": "text/plain"}
    for method in ("GET", "HEAD"):
        walk.ask(url, path, method, 200)
        walk.ask(url, session, method, 200)
        walk.ask(url, session, method, 400, b"", "timeout=soon")
        walk.ask(url, session, method, 403, Sec_Fetch_Dest="document")
        walk.ask(url, nowhere, method, 404)
        if path != MSC4388:
            walk.ask(url, session, method, 304, b"", "timeout=1", If_None_Match=tag)
            walk.ask(url, session, method, 412, If_Match='"another"')
    for at, methods in ((path, ("PUT", "DELETE", "PATCH")), (session, ("POST", "PATCH"))):
        walk.ask(url, at, "OPTIONS", 204)
        for method in methods:
            walk.ask(url, at, method, 405)

    known = {} if path == MSC4388 else {"If_Match": tag}
    bad_type = {MSC3886: "x" * 256, MSC4108: "application/json", MSC4388: "application/json"}[path]
    for at, method in ((path, "POST"), (session, "PUT")):
        walk.ask(url, at, method, 400, b"{}", Content_Type=bad_type, **known)
        walk.ask(url, at, method, 413, content(path, "x" * 10241), **plain, **known)
    walk.ask(url, path, "POST", 415, b"--x--", Content_Type="multipart/form-data; boundary=x")
    walk.ask(url, nowhere, "PUT", 404, content(path), **plain, **known)
    walk.ask(url, session, "PUT", 200 if path == MSC4388 else 202, content(path, "answer", tag), **plain, **known)
    walk.ask(url, session, "PUT", 409 if path == MSC4388 else 412, content(path, "stale", tag), **plain, **known)

    if path == MSC4388:
        walk_transactions(walk, url, session, nowhere)
    else:
        walk.ask(url, session, "DELETE", 412, **known)
    walk.ask(url, session, "DELETE", 200 if path == MSC4388 else 204)
    walk.ask(url, session, "DELETE", 404)


def walk_transactions(walk: Walk, url: str, session: str, nowhere: str) -> None:
    """Write under transaction ids."""
    path, tag = transaction(session), walk.ask(url, session, "GET", 200).json()["sequence_token"]
    walk.ask(url, path, "OPTIONS", 204)
    walk.ask(url, path, "GET", 405)
    walk.ask(url, path, "PUT", 400, b"{}")
    walk.ask(url, path, "PUT", 413, content(MSC4388, "x" * 4097, tag))
    walk.ask(url, transaction(nowhere), "PUT", 404, content(MSC4388))
    for data in ("answer", "answer sent again"):
        walk.ask(url, path, "PUT", 200, content(MSC4388, data, tag))
    walk.ask(url, f"{path}-more", "PUT", 409, content(MSC4388, "stale", tag))


def walk_limited(walk: Walk, url: str, path: str, addresses: Iterator[str]) -> None:
    """Be denied, and go past each limit."""
    session, tag = walk.create(url, path, X_Forwarded_For=next(addresses))
    fields = {"Content-Type": "text/plain", "If-Match": tag}
    requests = [(path, "GET"), (path, "HEAD"), (path, "POST"), *((session, method) for method in ON_SESSION)]
    if path == MSC4388:
        requests.append((transaction(session), "PUT"))
    for at, method in requests:
        walk.ask(url, at, method, 403, X_Forwarded_For=DENIED)
        client = {"X-Forwarded-For": next(addresses)}
        # The first one spends all that there is. What it does to the session does not matter, but it must not end it.
        first = fields if method != "DELETE" else {"If-Match": '"another"'}
        if path == MSC4388 and method == "DELETE":  # which takes no condition: what is not there is refused as well
            at = f"{path}/{{id}} d{'x' * 22}"
        template, *names = at.split(" ")
        ask(
            method,
            url + template.format(**dict(zip(PARAMETERS, names, strict=False))),
            content(path, token=tag),
            {**first, **client},
        )
        walk.ask(url, at, method, 429, content(path) if method in ("POST", "PUT") else b"", **fields, **client)


def walk_signed_in(walk: Walk, url: str, path: str, token: str) -> str:
    """Create where only users may, and return the session."""
    for method in ("GET", "HEAD"):
        walk.ask(url, path, method, 401, Authorization="Bearer unknown")
    walk.ask(url, path, "POST", 401, content(path), Authorization="Bearer unknown")
    walk.ask(url, path, "POST", 403 if path == MSC4388 else 401, content(path))
    return walk.create(url, path, Authorization=f"Bearer {token}")[0]


def walk_without_redis(walk: Walk, url: str, path: str, token: str, session: str) -> None:
    """Ask for sessions that are out of reach."""
    fields = {"Content_Type": "text/plain", "If_Match": '"any"'}
    for method in ON_SESSION:
        walk.ask(url, session, method, 503, content(path) if method == "PUT" else b"", **fields)
    if path == MSC4388:
        walk.ask(url, transaction(session), "PUT", 503, content(path))
    walk.ask(url, path, "POST", 503, content(path), **fields, Authorization=f"Bearer {token}")


@needs("redis-server", "redis-server")
def test_walk(quick: ThrowawayHomeserver, tmp_path: pathlib.Path) -> None:
    """Each answer that the document has is met, but for that to a defect; and each that is met, it has."""
    walk = Walk()
    for path in PATHS:
        walk_open(walk, quick.url, path)

    once = {"per_second": 0.01, "burst_count": 1}
    limits = {
        "per_client": dict.fromkeys(("create", "read", "miss"), once),
        "per_session": {"read": once, "write": once},
    }
    (tmp_path / "limited").mkdir()
    limited = behind_proxy(tmp_path / "limited", {**limits, "deny": [DENIED]})
    redis = RedisServer(tmp_path)
    (tmp_path / "closed").mkdir()
    policies = {dialect: {"create_policy": "authenticated"} for dialect in ("msc3886", "msc4108", "msc4388")}
    users_only = behind_proxy(
        tmp_path / "closed",
        {"store": "redis", "dialects": policies},
        {
            "redis": {"enabled": True, "host": HOST, "port": redis.port},
            "enable_registration": True,
            "enable_registration_without_verification": True,
        },
    )
    try:
        limited.start()
        addresses = (f"198.51.100.{number}" for number in itertools.count(1))
        for path in PATHS:
            walk_limited(walk, limited.url, path, addresses)
        limited.stop()

        redis.start()
        users_only.start()
        register = json.dumps({"username": "alice", "password": "secret", "auth": {"type": "m.login.dummy"}}).encode()
        token = ask("POST", f"{users_only.url}/_matrix/client/v3/register", register).json()["access_token"]
        sessions = {path: walk_signed_in(walk, users_only.url, path, token) for path in PATHS}
        redis.kill()
        for path, session in sessions.items():
            walk_without_redis(walk, users_only.url, path, token, session)
    finally:
        limited.stop()
        users_only.stop()
        redis.stop()

    promised = {
        (path, method.upper(), int(status))
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
        if method != "parameters"
        for status in operation["responses"]
        if status != "500"
    }
    met = {answer for answer in walk.answers if answer[2] != 405}
    assert (set(), set()) == (promised - met, met - promised)
