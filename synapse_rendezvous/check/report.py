"""Words a report: for a person, for a program, or for strangers."""

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

_SIGNS = {
    Level.OK: "✅",
    Level.NOTE: "💡",
    Level.NOT_TESTED: "…",
    Level.WARNING: "⚠️ ",
    Level.BLOCKED: "❔",
    Level.FAILURE: "❌",
}
_PLAIN_SIGNS = {
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


def as_text(report: Report, *, has_colour: bool, has_signs: bool) -> str:
    """Word a report for a person.

    Args:
        report: what was found.
        has_colour: whether the terminal shows colours.
        has_signs: whether it shows more than ASCII.
    """
    lines = [f"synapse_rendezvous {__version__}: checking {report.url}", ""]
    signs = _SIGNS if has_signs else _PLAIN_SIGNS
    for name, title in SECTIONS.items():
        findings = [finding for finding in report.findings if finding.section == name]
        if not findings or all(finding.level is Level.NOT_TESTED for finding in findings):
            continue
        if report.verdict == "fine":
            worst = Level.OK if any(finding.level is Level.OK for finding in findings) else findings[0].level
            fine = [finding.title for finding in findings if finding.level is Level.OK]
            lines.append(f" {signs[worst]} {title + ':':<16}{'; '.join(fine)}")
            findings = [finding for finding in findings if finding.level is not Level.OK]
        else:
            lines.append(f" {title}")
        for finding in findings:
            lines += _told(finding, signs[finding.level], report.product, has_colour=has_colour)
    untested = [finding for finding in report.findings if finding.level is Level.NOT_TESTED]
    whole = [name for name in SECTIONS if _is_untested(report, name)]
    for why in dict.fromkeys(finding.title for finding in untested if finding.section in whole):
        names = [SECTIONS[finding.section] for finding in untested if finding.title == why and finding.section in whole]
        lines.append(f" Not tested: {', '.join(dict.fromkeys(names))} ({why})")
    text = "\n".join([*lines, "", _summary(report)])
    return text if has_signs else text.encode("ascii", "replace").decode("ascii")


def _is_untested(report: Report, section: str) -> bool:
    levels = {finding.level for finding in report.findings if finding.section == section}
    return levels == {Level.NOT_TESTED}


def _told(finding: Finding, sign: str, product: str | None, *, has_colour: bool) -> Iterator[str]:
    """Yield the lines for one finding."""
    colour = _COLOURS.get(finding.level) if has_colour else None
    title = f"not tested: {finding.title}" if finding.level is Level.NOT_TESTED else finding.title
    yield f"  {sign} \033[{colour}m{title}\033[0m" if colour else f"  {sign} {title}"
    for line in finding.evidence:
        yield f"       {line}"
    if finding.by:
        yield f"       by:     {finding.by}"
    if finding.fix:
        where = f" ({PRODUCTS[finding.product]})" if finding.product else ""
        yield f"       {f'fix{where}:':<7} {finding.fix}"
        if product in _SNIPPETS and finding.section not in ("configuration", "reach"):
            yield f"               or take it all from:  synapse-rendezvous snippet {product}"
        yield f"       effect: {finding.effect}"
        yield f"       more:   {finding.doc}  {finding.id}"


def _summary(report: Report) -> str:
    took = f"{_number(report.requests, 'request')}, {report.seconds:.1f} s."
    if report.verdict == "fine":
        return f"Everything a client needs works. {took}"
    failures, blocked, warnings = map(report.count, (Level.FAILURE, Level.BLOCKED, Level.WARNING))
    counts = [_number(failures, "problem"), _number(warnings, "warning")]
    effects = dict.fromkeys(finding.effect for finding in report.findings if finding.level is Level.FAILURE)
    said = f"{', '.join(count for count in counts if count)}{': ' if effects else ''}{'; '.join(effects)}."
    untested = "It could not be tested whether pairing works." if blocked and not failures else ""
    works = "Pairing works all the same." if report.verdict == "warnings" else ""
    return " ".join(part for part in (said if failures or warnings else "", untested, works, took) if part)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}" if count else ""


def as_json(report: Report) -> str:
    """Word a report for a program; docs/check.md describes it."""
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


def anonymized(report: Report) -> Report:
    """Return a report without names of hosts and without addresses, except those of this machine."""
    hidden: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        kept = address.is_loopback or address in ipaddress.ip_network(
            "192.0.2.0/24" if address.version == 4 else "::/128"
        )
        return match[0] if kept else hidden.setdefault(match[0], f"address-{len(hidden) + 1}")

    host = urlsplit(report.url).hostname or ""
    name = re.compile(rf"(?<![\w-]){re.escape(host)}(?![\w-])", re.IGNORECASE)

    def blind(text: str) -> str:
        if host != "localhost" and not _ADDRESS.fullmatch(host):
            text = name.sub("homeserver.example", text)
        return _ADDRESS.sub(hide, _HOST_IN_URL.sub("homeserver.example", text))

    findings = [
        attr.evolve(
            finding, title=blind(finding.title), evidence=tuple(map(blind, finding.evidence)), by=blind(finding.by)
        )
        for finding in report.findings
    ]
    return attr.evolve(report, url=blind(report.url), findings=findings)
