"""What a check finds, and the verdict that follows from it."""

from collections.abc import Sequence

import attr

from synapse_rendezvous.check.problems import SECTIONS, Level, problem
from synapse_rendezvous.check.response import Outcome, Response
from synapse_rendezvous.paths import MSC3886


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Finding:
    """One fact.

    Attributes:
        id: the id of a problem; for anything else, the section.
        section: the part of the check that it belongs to.
        level: how serious it is.
        title: the fact in a sentence.
        evidence: what was received, a line each.
        server_fields: how the server or proxy that sent the response names itself; empty if it does not matter.
        product: the reverse proxy that the fix is for. Before `Findings.complete`, the one that sent the response.
        effect: what it means for users.
        fix: what to do about it.
    """

    id: str
    section: str
    level: Level
    title: str
    evidence: tuple[str, ...] = ()
    server_fields: str = ""
    product: str | None = None
    effect: str = ""
    fix: str = ""

    @property
    def doc(self) -> str:
        """Where the documentation says more about it."""
        return f"docs/check.md#{SECTIONS[self.section].lower().replace(' ', '-')}"


def printable(text: str) -> str:
    """Return a text without characters that could control a terminal: much of it is what a server has sent."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class Stopped(Exception):
    """A problem was found that makes the rest of the check meaningless."""


class OnlyMSC4388(Stopped):
    """This module serves no dialect with entity tags, which the rest of the check is about."""


class Findings:
    """Collects the findings of a check."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []

    def __contains__(self, finding_id: str) -> bool:
        return any(finding.id == finding_id for finding in self._findings)

    def has_problem(self, section: str) -> bool:
        """Whether there is a problem in a section."""
        return any(finding.section == section and finding.level.is_problem for finding in self._findings)

    def ok(self, section: str, title: str) -> None:
        """Add something that is as it should be."""
        self._findings.append(Finding(section, section, Level.OK, printable(title)))

    def note(self, section: str, title: str) -> None:
        """Add something that is good to know."""
        self._findings.append(Finding(section, section, Level.NOTE, printable(title)))

    def not_tested(self, section: str, reason: str) -> None:
        """Add something that could not be tested."""
        self._findings.append(Finding(section, section, Level.NOT_TESTED, printable(reason)))

    def add_problem(self, problem_id: str, *evidence: object, response: Outcome | None = None) -> None:
        """Add a problem.

        Args:
            problem_id: as in problems.yaml.
            evidence: what was received, a line each.
            response: the response that shows the problem, if it is a single one.
        """
        known = problem(problem_id)
        lines = tuple(printable(str(line)) for line in evidence)
        fields, product = (response.server_fields, response.product) if isinstance(response, Response) else ("", None)
        self._findings.append(
            Finding(known.id, known.section, known.level, known.title, lines, printable(fields), product, known.effect)
        )

    def stop(self, problem_id: str, *evidence: object, response: Outcome | None = None) -> Stopped:
        """Add a problem that makes the rest of the check meaningless; return what to raise."""
        self.add_problem(problem_id, *evidence, response=response)
        return Stopped(problem_id)

    def needs_product(self) -> bool:
        """Whether there is a problem whose fix depends on the reverse proxy."""
        problems = [finding for finding in self._findings if finding.level.is_problem]
        return any(problem(finding.id).by_product for finding in problems)

    def complete(self, product: str | None, path: str, untested_reason: str) -> list[Finding]:
        """Return all findings in the order of the sections, with the fixes for the reverse proxy.

        Args:
            product: the reverse proxy; a finding whose response shows another one gets the fix for that.
            path: the path of the collection, which the fixes name.
            untested_reason: why the sections that have no finding were not tested.
        """
        tested = {finding.section for finding in self._findings} | {"configuration"}
        untested = [Finding(name, name, Level.NOT_TESTED, untested_reason) for name in SECTIONS if name not in tested]
        fixed = [
            _with_fix(finding, product, path) if finding.level.is_problem else finding for finding in self._findings
        ]
        order = list(SECTIONS)
        return sorted([*fixed, *untested], key=lambda finding: order.index(finding.section))


def _with_fix(finding: Finding, product: str | None, path: str) -> Finding:
    known, product = problem(finding.id), finding.product or product
    fix = known.by_product.get(product or "", known.fix).replace(MSC3886, path)
    return attr.evolve(finding, fix=fix, product=product if product in known.by_product else None)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Report:
    """All findings of a check.

    Attributes:
        url: of the collection that was checked.
        product: the reverse proxy, if it is known.
        findings: in the order of the sections.
        requests: how many requests were sent.
        seconds: how long the check took.
    """

    url: str
    product: str | None
    findings: Sequence[Finding]
    requests: int
    seconds: float

    def count(self, level: Level) -> int:
        """Return the number of findings of a level."""
        return sum(finding.level is level for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One of `fine`, `warnings`, `broken` and `not tested`."""
        return self._verdict()[0]

    @property
    def status(self) -> int:
        """The exit status: 0 for fine, 1 for warnings, 2 for broken, 3 where it could not be tested."""
        return self._verdict()[1]

    def _verdict(self) -> tuple[str, int]:
        verdicts = {Level.FAILURE: ("broken", 2), Level.BLOCKED: ("not tested", 3), Level.WARNING: ("warnings", 1)}
        return next((verdict for level, verdict in verdicts.items() if self.count(level)), ("fine", 0))
