"""Every problem that a check can find; its texts are in problems.yaml."""

import enum
import functools
import pathlib
from collections.abc import Mapping

import attr

SECTIONS = {
    "configuration": "Configuration",
    "reach": "Reach",
    "sign_in": "Sign-in",
    "route": "Route",
    "process": "One process",
    "preflight": "Preflight",
    "create": "Create",
    "read": "Read",
    "poll": "Poll",
    "write": "Write",
    "fresh": "Fresh",
    "wait": "Wait",
    "sizes": "Sizes",
    "address": "Client address",
    "end": "End",
}
"""The sections of a report with their titles, in order. A finding that is no problem has its section as id."""


class Level(enum.Enum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"
    """Good to know."""

    NOT_TESTED = "not tested"
    WARNING = "warning"
    """Clients are served all the same, or nearly so."""

    BLOCKED = "blocked"
    """It kept the check from testing the rest."""

    FAILURE = "failure"
    """Some clients, or all, fail."""

    @property
    def is_problem(self) -> bool:
        """Whether somebody should do something about it."""
        return self in (Level.WARNING, Level.BLOCKED, Level.FAILURE)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class Problem:
    """A kind of problem.

    Attributes:
        id: names it for programs; releases do not change it.
        section: the part of the check that it belongs to.
        level: how serious it is.
        title: what is wrong, in a sentence.
        effect: what that means for users.
        fix: what to do about it with any reverse proxy.
        by_product: what to do about it with certain reverse proxies, by the keys of `PRODUCTS`.
    """

    id: str
    section: str
    level: Level = attr.ib(converter=Level)
    title: str
    effect: str
    fix: str
    by_product: Mapping[str, str] = attr.Factory(dict)


@functools.cache
def problems() -> Mapping[str, Problem]:
    """Return all problems by their ids, in the order of docs/check.md."""
    import yaml  # comes with Synapse

    texts = yaml.safe_load((pathlib.Path(__file__).parent / "problems.yaml").read_text("utf-8"))
    return {problem_id: Problem(id=problem_id, **text) for problem_id, text in texts.items()}


def problem(problem_id: str) -> Problem:
    """Return the problem with an id."""
    return problems()[problem_id]
