"""A filter for Synapse's `log_config`: the access log without polls that found nothing new."""

import logging
from collections.abc import Sequence

from synapse_rendezvous.paths import PREFIXES, UNSTABLE_MSC4108, UNSTABLE_MSC4388

_PATHS = (*PREFIXES, UNSTABLE_MSC4108, UNSTABLE_MSC4388)


class QuietPolls(logging.Filter):
    """Drops the lines of Synapse's access log about a GET of a session that was answered with 304.

    Two devices that pair send one a second each, and each line has the session's id in it. It is for a handler in
    `log_config`, since filters of loggers do not see what other loggers pass on.

    Args:
        paths: what the paths of sessions begin with; by default those that docs/configuration.md and docs/clients.md
            mount dialects at.
    """

    def __init__(self, paths: Sequence[str] = _PATHS) -> None:
        super().__init__()
        self._paths = tuple(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is to be logged."""
        # What a line says stands in its arguments (synapse/http/site.py), which are cheaper to look at than its text.
        said = record.args
        return not (
            record.name.startswith("synapse.access.")
            and isinstance(said, tuple)
            and "304" in said
            and "GET" in said
            and any(isinstance(each, str) and each.startswith(self._paths) for each in said)
        )
