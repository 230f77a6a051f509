"""What all parts of a check share: whom they ask, what is known so far, and where they tell what they found."""

from collections.abc import Mapping
from typing import Any, TypeGuard

import attr

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.findings import Findings
from synapse_rendezvous.check.probe import Probe, Unanswered


@attr.s(auto_attribs=True, slots=True)
class Visit:
    """A check under way.

    Attributes:
        probe: sends the requests.
        findings: what was found.
        collection: the URL of the collection.
        about: what the server says of itself.
        session: the URL of the session that is written and read; empty before it is there.
        tag: the ETag of its current revision, as it arrived.
        payload: what was written last; empty if that is not known.
        size: how long payloads are.
        answers: those of the server, each with what was asked, for looking at their headers.
        replaced: what came in place of the server's errors: what it was, and the answer, if there was one.
    """

    probe: Probe
    findings: Findings
    collection: str
    about: Mapping[str, Any] = attr.Factory(dict)
    session: str = ""
    tag: str = ""
    payload: bytes = b""
    size: int = 0
    answers: list[tuple[str, Answer]] = attr.Factory(list)
    replaced: list[tuple[str, Answer | None]] = attr.Factory(list)
    _payloads: int = 0

    def new_payload(self) -> bytes:
        """Return a payload like no other, and keep it as the one that is written."""
        self._payloads += 1
        self.payload = (f"Payload number {self._payloads}. " * self.size)[: self.size].encode("ascii")
        return self.payload

    def url_of(self, made: Answer) -> str:
        """Return the URL of a session, by the answer to its creation; empty if that names none."""
        content = made.content  # `id` in MSC3886, `url` in MSC4108
        session_id = content.get("id") or str(content.get("url", "")).rpartition("/")[2]
        return f"{self.collection}/{session_id}" if session_id else ""

    async def ask(
        self,
        method: str,
        url: str,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
        *,
        name: str | None = None,
        is_kept: bool = True,
        **options: Any,
    ) -> Answer | Unanswered:
        """Send a request; keep the answer if it seems to be the server's own. See `Probe.ask`.

        Args:
            method: GET and so on.
            url: absolute.
            fields: header fields.
            body: the content, which is sent as text/plain.
            name: what is asked, for a person; by default the method.
            is_kept: whether the answer may be kept.
            options: those of `Probe.ask`.

        Raises:
            Stopped: the server refuses more requests for now.
        """
        fields = {**({} if body is None else {"Content-Type": "text/plain"}), **(fields or {})}
        try:
            answer = await self.probe.ask(method, url, fields, body, **options)
        except Unanswered as unanswered:
            return unanswered
        if answer.code == 429 and answer.is_ours:
            raise self.findings.stop("route.limited", f"{name or method}: {answer}", answer=answer)
        if is_kept and (answer.is_ours or (answer.code < 300 and not answer.is_page)):
            self.answers.append((name or method, answer))
        return answer


def has(answer: Answer | Unanswered, *codes: int) -> TypeGuard[Answer]:
    """Whether an answer came, with one of these statuses."""
    return isinstance(answer, Answer) and answer.code in codes


def whole(answer: Answer | Unanswered) -> Answer | None:
    """Return the answer, if one came."""
    return answer if isinstance(answer, Answer) else None
