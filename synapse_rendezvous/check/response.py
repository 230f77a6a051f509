"""What came of a request: a response as it arrived, or none."""

import json
import re
from typing import Any, TypeAlias, TypeGuard

import attr
from twisted.web.http_headers import Headers

from synapse_rendezvous.check.products import identify_product

_TAG = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Response:
    """A response as it arrived.

    Attributes:
        code: the status code.
        headers: all header fields.
        body: the content, not decoded.
        seconds: how long it took.
    """

    code: int
    headers: Headers
    body: bytes
    seconds: float

    def field_lines(self, name: str) -> list[str]:
        """Return the values of a header field, one for each line that has it."""
        return list(self.headers.getRawHeaders(name, []))

    def field_value(self, name: str) -> str | None:
        """Return the value of a header field, its lines joined; None if the response does not have the field."""
        lines = self.field_lines(name)
        return ", ".join(lines) if lines else None

    def list_members(self, name: str) -> set[str]:
        """Return the members of a header field whose value is a comma-separated list."""
        return {member.strip() for line in self.field_lines(name) for member in line.split(",")}

    @property
    def content(self) -> dict[str, Any]:
        """The body as a JSON object; empty if it is not one."""
        try:
            content = json.loads(self.body)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def is_from_module(self) -> bool:
        """Whether synapse_rendezvous wrote it, by a header of all its responses, or by the form of its errors."""
        if "sandbox; default-src 'none'" in (self.field_value("Content-Security-Policy") or ""):
            return True
        return self.content.get("errcode") not in (None, "M_UNRECOGNIZED")  # which is Synapse's own

    @property
    def is_html(self) -> bool:
        """Whether it is a page for a person."""
        return "html" in (self.field_value("Content-Type") or "")

    @property
    def server_fields(self) -> str:
        """The fields by which servers and proxies name themselves, for a person."""
        named = [f"{name}: {value}" for name in ("Server", "Via") if (value := self.field_value(name))]
        return ", ".join(named) or "(no Server header)"

    @property
    def product(self) -> str | None:
        """The reverse proxy that it came from or through, if the response shows it."""
        return identify_product(self.field_value("Server"), self.field_value("Via"), self.body)

    def __str__(self) -> str:
        start = " ".join(_TAG.sub(" ", self.body[:600].decode("latin-1")).split())[:80]
        redirect = f"to {self.field_value('Location')}" if 300 <= self.code < 400 else ""
        parts = (str(self.code), self.field_value("Content-Type") or "", start, redirect)
        return " ".join(part for part in parts if part)


class NoResponse(Exception):
    """No response came, or only part of one.

    Attributes:
        reason: `dns`, `connect`, `tls`, `timeout` or `cut`.
        after_s: after how long the request failed.
    """

    def __init__(self, reason: str, detail: str, after_s: float) -> None:
        super().__init__(detail)
        self.reason = reason
        self.after_s = after_s


Outcome: TypeAlias = Response | NoResponse


def has_status(outcome: Outcome, *codes: int) -> TypeGuard[Response]:
    """Whether a response came, with one of these status codes."""
    return isinstance(outcome, Response) and outcome.code in codes
