"""What all parts of a check share: the probe that sends requests, what is known so far, and the findings."""

import os
from collections.abc import Mapping
from typing import Any

import attr

from synapse_rendezvous.check.findings import Findings
from synapse_rendezvous.check.probe import Probe
from synapse_rendezvous.check.response import NoResponse, Outcome, Response


@attr.s(auto_attribs=True, slots=True)
class CheckContext:
    """The state of a running check.

    Attributes:
        probe: sends the requests.
        findings: what was found so far.
        collection_url: the URL of the collection.
        serves_msc4388: whether this module serves MSC4388 where clients look for it.
        server_info: the description that the collection gives of the server.
        session_url: the URL of the session that is written and read; empty until it is created.
        etag: the ETag of the session's current revision, as it arrived; empty if none arrived.
        payload: the payload written last; empty if it is not known which one was stored.
        payload_size: the length of payloads in bytes.
        responses: the module's responses, each with the name of its request; their header fields are checked last.
        replaced_errors: where another response came instead of the module's error: a description, and what came.
    """

    probe: Probe
    findings: Findings
    collection_url: str
    serves_msc4388: bool = False
    server_info: Mapping[str, Any] = attr.Factory(dict)
    session_url: str = ""
    etag: str = ""
    payload: bytes = b""
    payload_size: int = 0
    responses: list[tuple[str, Response]] = attr.Factory(list)
    replaced_errors: list[tuple[str, Outcome]] = attr.Factory(list)
    _payloads: int = 0

    def new_payload(self) -> bytes:
        """Return a payload that differs from all before it, and keep it as the one written last."""
        self._payloads += 1
        size = self.payload_size
        self.payload = (f"Payload number {self._payloads}. " * size)[:size].encode("ascii")
        return self.payload

    def session_url_of(self, created: Response) -> str:
        """Return the URL of a session, from the response to its creation; empty if that names no session."""
        content = created.content  # `id` in MSC3886, `url` in MSC4108
        session_id = content.get("id") or str(content.get("url", "")).rpartition("/")[2]
        return f"{self.collection_url}/{session_id}" if session_id else ""

    async def request(
        self,
        method: str,
        url: str,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        name: str | None = None,
        is_recorded: bool = True,
        **options: Any,
    ) -> Outcome:
        """Send a request. Record the response if the module seems to have written it. See `Probe.request`.

        Args:
            method: GET and so on.
            url: absolute.
            fields: header fields.
            body: the content, which is sent as text/plain.
            name: names the request for a person; by default the method.
            is_recorded: whether the response may be recorded in `responses`.
            options: those of `Probe.request`.

        Raises:
            Stopped: the server refuses more requests for now.
        """
        fields = {**({} if body is None else {"Content-Type": "text/plain"}), **(fields or {})}
        try:
            response = await self.probe.request(method, url, fields, body, **options)
        except NoResponse as no_response:
            return no_response
        if response.code == 429 and response.is_from_module:
            raise self.findings.stop("route.limited", f"{name or method}: {response}", response=response)
        if is_recorded and (response.is_from_module or (response.code < 300 and not response.is_html)):
            self.responses.append((name or method, response))
        return response


def cache_busting_url(url: str) -> str:
    """Return the URL with a query that no cache has seen; the server ignores the query."""
    return f"{url}?check={os.urandom(6).hex()}"
