"""Formats a report: as text, as JSON, and without names of hosts."""

import ipaddress
import json
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import attr

from synapse_rendezvous import __version__
from synapse_rendezvous.check.findings import Finding, Report
from synapse_rendezvous.check.problems import SECTIONS, Level
from synapse_rendezvous.check.products import PRODUCTS

_SYMBOLS = {
    Level.OK: "✅",
    Level.NOTE: "💡",
    Level.NOT_TESTED: "…",
    Level.WARNING: "⚠️ ",
    Level.BLOCKED: "❔",
    Level.FAILURE: "❌",
}
_ASCII_SYMBOLS = {
    Level.OK: "ok  ",
    Level.NOTE: "note",
    Level.NOT_TESTED: "--  ",
    Level.WARNING: "WARN",
    Level.BLOCKED: "????",
    Level.FAILURE: "FAIL",
}
_COLOURS = {Level.WARNING: "33", Level.BLOCKED: "35", Level.FAILURE: "31"}
_SNIPPETS = ("nginx", "haproxy", "caddy", "apache", "traefik")
"""Products that `synapse-rendezvous snippet` has a configuration for."""

_ADDRESS = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})(?![\w.]|:\w)")

_HOST_IN_URL = re.compile(r"(?<=://)(?:[A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]*")


def as_text(report: Report, *, has_colour: bool, has_unicode: bool) -> str:
    """Return a report as text for a person.

    Args:
        report: what was found.
        has_colour: whether the terminal shows colours.
        has_unicode: whether the terminal shows more than ASCII.
    """
    lines = [f"synapse_rendezvous {__version__}: checking {report.url}", ""]
    symbols = _SYMBOLS if has_unicode else _ASCII_SYMBOLS
    for name, title in SECTIONS.items():
        findings = [finding for finding in report.findings if finding.section == name]
        if not findings or _is_untested(report, name):
            continue
        if report.verdict == "fine":
            passed = [finding.title for finding in findings if finding.level is Level.OK]
            level = Level.OK if passed else findings[0].level
            lines.append(f" {symbols[level]} {title + ':':<16}{'; '.join(passed)}")
            findings = [finding for finding in findings if finding.level is not Level.OK]
        else:
            lines.append(f" {title}")
        for finding in findings:
            lines += _finding_lines(finding, symbols[finding.level], report.product, has_colour=has_colour)
    untested: dict[str, list[str]] = {}
    for finding in report.findings:
        if _is_untested(report, finding.section):
            untested.setdefault(finding.title, []).append(SECTIONS[finding.section])
    for reason, titles in untested.items():
        lines.append(f" Not tested: {', '.join(dict.fromkeys(titles))} ({reason})")
    text = "\n".join([*lines, "", _summary(report)])
    return text if has_unicode else text.encode("ascii", "replace").decode("ascii")


def _is_untested(report: Report, section: str) -> bool:
    levels = {finding.level for finding in report.findings if finding.section == section}
    return levels == {Level.NOT_TESTED}


def _finding_lines(finding: Finding, symbol: str, product: str | None, *, has_colour: bool) -> Iterator[str]:
    """Yield the lines of one finding."""
    colour = _COLOURS.get(finding.level) if has_colour else None
    title = f"not tested: {finding.title}" if finding.level is Level.NOT_TESTED else finding.title
    yield f"  {symbol} \033[{colour}m{title}\033[0m" if colour else f"  {symbol} {title}"
    for line in finding.evidence:
        yield f"       {line}"
    if finding.server_fields:
        yield f"       by:     {finding.server_fields}"
    if finding.fix:
        where = f" ({PRODUCTS[finding.product]})" if finding.product else ""
        yield f"       {f'fix{where}:':<7} {finding.fix}"
        if product in _SNIPPETS and finding.section not in ("configuration", "reach"):
            yield f"               or take it all from:  synapse-rendezvous snippet {product}"
        yield f"       effect: {finding.effect}"
        yield f"       more:   {finding.doc}  {finding.id}"


def _summary(report: Report) -> str:
    took = f"{_format_count(report.requests, 'request')}, {report.seconds:.1f} s."
    if report.verdict == "fine":
        return f"Everything a client needs works. {took}"
    failures, blocked, warnings = map(report.count, (Level.FAILURE, Level.BLOCKED, Level.WARNING))
    counts = [_format_count(failures, "problem"), _format_count(warnings, "warning")]
    effects = dict.fromkeys(finding.effect for finding in report.findings if finding.level is Level.FAILURE)
    found = f"{', '.join(count for count in counts if count)}{': ' if effects else ''}{'; '.join(effects)}."
    untested = "It could not be tested whether pairing works." if blocked and not failures else ""
    works = "Pairing works all the same." if report.verdict == "warnings" else ""
    return " ".join(part for part in (found if failures or warnings else "", untested, works, took) if part)


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}" if count else ""


def as_json(report: Report) -> str:
    """Return a report as JSON; docs/check.md describes it."""
    findings = [
        {
            "id": finding.id,
            "section": finding.section,
            "level": finding.level.value,
            "title": finding.title,
            "evidence": list(finding.evidence),
            "fix": finding.fix,
            "effect": finding.effect,
            "doc": finding.doc,
        }
        for finding in report.findings
    ]
    content = {
        "url": report.url,
        "verdict": report.verdict,
        "requests": report.requests,
        "seconds": round(report.seconds, 3),
        "findings": findings,
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def anonymize(report: Report) -> Report:
    """Return a report without names of hosts and addresses, except loopback addresses and those for examples."""
    pseudonyms: dict[str, str] = {}

    def hide_address(match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        reserved = ipaddress.ip_network("192.0.2.0/24" if address.version == 4 else "::/128")
        is_kept = address.is_loopback or address in reserved
        return match[0] if is_kept else pseudonyms.setdefault(match[0], f"address-{len(pseudonyms) + 1}")

    host = urlsplit(report.url).hostname or ""
    name = re.compile(rf"(?<![\w-]){re.escape(host)}(?![\w-])", re.IGNORECASE)

    def hide_names(text: str) -> str:
        if host != "localhost" and not _ADDRESS.fullmatch(host):
            text = name.sub("homeserver.example", text)
        return _ADDRESS.sub(hide_address, _HOST_IN_URL.sub("homeserver.example", text))

    findings = [
        attr.evolve(
            finding,
            title=hide_names(finding.title),
            evidence=tuple(map(hide_names, finding.evidence)),
            server_fields=hide_names(finding.server_fields),
        )
        for finding in report.findings
    ]
    return attr.evolve(report, url=hide_names(report.url), findings=findings)
