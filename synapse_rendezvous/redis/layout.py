"""How sessions are kept inside Redis, and the scripts that keep them.

Three keys, all with the version of the layout, and with the homeserver's name in braces, so that a cluster keeps them
together:

- `...:sessions`, a hash: by the id of each session its current revision, laid out as `VALUE` says; and, by the id and a
  slash, the outcomes of its transactions, as `outcomes.py` has them;
- `...:queue`, a list: the ids in the order of creation and hence of expiry, those of deleted sessions among them until
  they come to the front;
- `...:totals`, a hash: the number of `sessions`, the `bytes` of all payloads, and the number of sessions of each client
  and each network around.

The keys stand and fall together: Redis drops all of them a while after the last session's end; and where one is
missing, the others have no meaning, and the next creation drops them.

A script that changes the sessions changes the totals as well, and drops expired sessions before a quota refuses a
creation, so the totals are exact at each refusal and nothing leaks. (Where sessions stop living equally long, because
`ttl` was made shorter or Redis' clock was set back, the shorter ones count until the longer ones before them are over;
they are not served.) All times are Redis' own: the clocks of the workers need not agree.

Each script is given the three keys and, as the first of its arguments, an id. It returns an array: `ok`, `gone`,
`stale`, `kept` or `full`; Redis' time in milliseconds; a value; and a record of each session that it found expired.
Where Redis takes no writes (read-only; out of memory, unless they free some), it refuses the first one of a script and
never a later one. So a script that Redis ends has changed nothing.
"""

import pathlib
import re

VERSION = 2
"""Stands in the names of the keys and of the channel, so that a release with another layout does not read these."""

VALUE = re.compile(
    # The letter keeps Synapse's connection from reading a value as a number.
    rb"r(?P<tag>.{20})(?P<previous_tag>.{20})(?P<last_modified_ms>\d{13})(?P<expires_ms>\d{13})"
    rb"(?P<updates>\d{7})"
    # Lengths in front of what has no fixed length; the rest is the payload.
    rb"(?P<client_length>\d{2})",
    re.DOTALL,
)
"""How a value begins. Then come the client, the length of the type in three digits, the type, and the payload."""

RECORD = re.compile(r"(?P<updates>\d+) (?P<id>\S+)")
"""A script's record of a session that it found expired."""

USAGE = re.compile(rb"(\d+) (-?\d+) (\d+) ([01])")
"""Sessions, bytes, clients, and whether more of the sessions may have expired."""

NO_PREVIOUS_TAG = b"." * 20
"""Stands for the previous tag in the first revision."""


def _script(*names: str) -> str:
    folder = pathlib.Path(__file__).parent / "scripts"
    return "".join((folder / f"{name}.lua").read_text("utf-8") for name in names)


# Each operation of a store is one script: one round trip, and nothing happens in between.
GET = _script("session", "current", "get")
CREATE = _script("session", "accounts", "create")
SWAP = _script("session", "current", "accounts", "swap")
DELETE = _script("session", "current", "accounts", "delete")
SWEEP = _script("session", "accounts", "sweep")
