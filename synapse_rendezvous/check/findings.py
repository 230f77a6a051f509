"""What a check finds, and what that makes of the whole."""

from collections.abc import Sequence

import attr

from synapse_rendezvous.check.answer import Answer
from synapse_rendezvous.check.problems import SECTIONS, Level, problem
from synapse_rendezvous.paths import MSC3886


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Finding:
    """One fact.

    Attributes:
        id: that of a problem, or else of a section.
        section: in which part of the check it is told.
        level: what it means.
        title: what was found, in a sentence.
        evidence: what was seen, a line each.
        by: who answered, where that matters.
        product: the reverse proxy that the fix is for; until there is one, the one that answered, if that is known.
        effect: what it means for users.
        fix: what to do about it.
    """

    id: str
    section: str
    level: Level
    title: str
    evidence: tuple[str, ...] = ()
    by: str = ""
    product: str | None = None
    effect: str = ""
    fix: str = ""

    @property
    def doc(self) -> str:
        """Where there is more about it."""
        return f"docs/check.md#{SECTIONS[self.section].lower().replace(' ', '-')}"


class Stopped(Exception):
    """Whatever else would be tested means nothing any more."""


class Findings:
    """Collects what is found."""

    def __init__(self) -> None:
        self._all: list[Finding] = []

    def __contains__(self, finding_id: str) -> bool:
        return any(finding.id == finding_id for finding in self._all)

    def has_problem(self, section: str) -> bool:
        """Whether something is wrong in a section."""
        return any(finding.section == section and finding.level.is_problem for finding in self._all)

    def ok(self, section: str, title: str) -> None:
        """Add what is as it should be."""
        self._all.append(Finding(section, section, Level.OK, title))

    def note(self, section: str, title: str) -> None:
        """Add what is good to know."""
        self._all.append(Finding(section, section, Level.NOTE, title))

    def not_tested(self, section: str, why: str) -> None:
        """Add what could not be tested."""
        self._all.append(Finding(section, section, Level.NOT_TESTED, why))

    def add(self, problem_id: str, *evidence: object, answer: Answer | None = None) -> None:
        """Add a problem.

        Args:
            problem_id: which, as in problems.yaml.
            evidence: what was seen.
            answer: in which answer, if in one alone.
        """
        known = problem(problem_id)
        by, product = ("", None) if answer is None else (answer.by, answer.product)
        seen = tuple(map(str, evidence))
        self._all.append(Finding(known.id, known.section, known.level, known.title, seen, by, product, known.effect))

    def stop(self, problem_id: str, *evidence: object, answer: Answer | None = None) -> Stopped:
        """Add a problem that makes the rest meaningless; return what to raise."""
        self.add(problem_id, *evidence, answer=answer)
        return Stopped(problem_id)

    def needs_product(self) -> bool:
        """Whether there is a problem whose fix depends on the reverse proxy."""
        problems = [finding for finding in self._all if finding.level.is_problem]
        return any(problem(finding.id).by_product for finding in problems)

    def finished(self, product: str | None, path: str, untested: str) -> list[Finding]:
        """Return all in the order of the sections, with the fixes for the reverse proxy.

        Args:
            product: the reverse proxy, where an answer does not show another.
            path: of the collection, for which the fixes are worded.
            untested: why there is nothing about those sections of which nothing was found.
        """
        found = {finding.section for finding in self._all} | {"configuration"}
        rest = [Finding(name, name, Level.NOT_TESTED, untested) for name in SECTIONS if name not in found]
        fixed = [_fixed(finding, product, path) if finding.level.is_problem else finding for finding in self._all]
        order = list(SECTIONS)
        return sorted([*fixed, *rest], key=lambda finding: order.index(finding.section))


def _fixed(finding: Finding, product: str | None, path: str) -> Finding:
    """Return a finding with its fix."""
    known, product = problem(finding.id), finding.product or product
    fix = known.by_product.get(product or "", known.fix).replace(MSC3886, path)
    return attr.evolve(finding, fix=fix, product=product if product in known.by_product else None)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Report:
    """All that a check found.

    Attributes:
        url: of the collection that was checked.
        product: the reverse proxy, if it is known.
        findings: in the order in which they are told.
        requests: how many requests were sent.
        seconds: how long it took.
    """

    url: str
    product: str | None
    findings: Sequence[Finding]
    requests: int
    seconds: float

    def count(self, level: Level) -> int:
        """Return how many findings are of a level."""
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
