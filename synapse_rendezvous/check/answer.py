"""An answer, as it arrived, and what shows whose it is."""

import json
import re
from typing import Any

import attr
from twisted.web.http_headers import Headers

from synapse_rendezvous.check.products import product_of

_TAG = re.compile(r"<(style|script)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Answer:
    """An answer as it arrived.

    Attributes:
        code: the status.
        headers: all fields.
        body: the content, not decoded.
        seconds: how long it took.
    """

    code: int
    headers: Headers
    body: bytes
    seconds: float

    def all(self, name: str) -> list[str]:
        """Return the values of a field, one for each line that had it."""
        return list(self.headers.getRawHeaders(name, []))

    def one(self, name: str) -> str | None:
        """Return the value of a field, its lines joined; None without one."""
        lines = self.all(name)
        return ", ".join(lines) if lines else None

    @property
    def content(self) -> dict[str, Any]:
        """The content as a JSON object; empty if it is none."""
        try:
            content = json.loads(self.body)
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def is_ours(self) -> bool:
        """Whether synapse_rendezvous wrote it, by a header of all its answers, or by the form of its errors."""
        if "sandbox; default-src 'none'" in (self.one("Content-Security-Policy") or ""):
            return True
        return self.content.get("errcode") not in (None, "M_UNRECOGNIZED")  # which is Synapse's own

    @property
    def is_page(self) -> bool:
        """Whether it is for a person."""
        return "html" in (self.one("Content-Type") or "")

    @property
    def by(self) -> str:
        """Who answered, for a person."""
        told = [f"{name}: {value}" for name in ("Server", "Via") if (value := self.one(name))]
        return ", ".join(told) or "(no Server header)"

    @property
    def product(self) -> str | None:
        """The reverse proxy that it came from or through, if it shows."""
        return product_of(self.one("Server"), self.one("Via"), self.body)

    def __str__(self) -> str:
        begin = " ".join(_TAG.sub(" ", self.body[:600].decode("latin-1")).split())[:80]
        to = f"to {self.one('Location')}" if 300 <= self.code < 400 else ""
        return " ".join(part for part in (str(self.code), self.one("Content-Type") or "", begin, to) if part)
