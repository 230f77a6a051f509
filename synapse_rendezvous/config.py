"""The options under `config:` in homeserver.yaml, read once into frozen objects."""

from collections.abc import Mapping

import attr
from synapse.config._base import ConfigError

from synapse_rendezvous import paths
from synapse_rendezvous.addresses import IPNetwork
from synapse_rendezvous.options import (
    choice,
    count,
    duration,
    flag,
    networks,
    networks_or_hops,
    option,
    parse_section,
    real,
    size,
    subsection,
    switch,
    url_path,
)
from synapse_rendezvous.outcomes import OUTCOME_BYTES

FIXED_MAX_BYTES = 4096
"""How long one payload may be in the dialects whose proposals say so."""

SESSION_BYTES = 600
"""What a session takes in memory beside its payload, at most."""

WAITING_BYTES = 16 * 1024
"""What a request that waits takes, at most."""

LIMITS = 6
"""How many rate limits there are."""

LIMIT_KEYS = 5000
"""How many clients or sessions one rate limit remembers at once."""

LIMIT_BYTES = LIMIT_KEYS * 550
"""What its tables take, at most."""

PREPAID_BYTES = 150
"""What the prepaid tokens of one more session take in each of the two limits for sessions."""


@attr.s(auto_attribs=True, frozen=True, slots=True)
class RateLimit:
    """So many at once and, in the long run, so many a second: a limit in the terms of Synapse's own."""

    per_second: float = option("per_second", real(0.001, 1_000_000))
    burst_count: int = option("burst_count", count(1, 1_000_000))

    def __str__(self) -> str:
        return f"{self.burst_count} at once and {self.per_second:g}/s"


@attr.s(auto_attribs=True, frozen=True, slots=True)
class PerClientLimits:
    """How much one client may do. An office of fifty pairings at once behind one address stays below all of it."""

    max_sessions: int = option("max_sessions", count(1, 10_000_000), 100)
    crowded_sessions: int = option("crowded_sessions", count(1, 10_000_000), 2)
    max_waiting: int = option("max_waiting", count(1, 100_000), 200)
    create: RateLimit = subsection("create", RateLimit(per_second=0.5, burst_count=40))
    read: RateLimit = subsection("read", RateLimit(per_second=150, burst_count=300))
    miss: RateLimit = subsection("miss", RateLimit(per_second=2, burst_count=30))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class PerSessionLimits:
    """How often one session may be asked for by its devices together; they read twice a second and write ten times."""

    read: RateLimit = subsection("read", RateLimit(per_second=10, burst_count=60))
    write: RateLimit = subsection("write", RateLimit(per_second=2, burst_count=20))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class PerUserLimits:
    """How often one signed-in user may do what, where creation needs one."""

    create: RateLimit = subsection("create", RateLimit(per_second=0.1, burst_count=10))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class LongPollConfig:
    """How long a GET may be held while there is nothing new, in milliseconds, and how many at once."""

    max_wait_ms: int = option("max_wait", duration("0", "60s"), "10s")
    # Clients on okhttp give up after 10 seconds, those on matrix-rust-sdk after 30.
    default_wait_ms: int = option("default_wait", duration("0", "25s"), "8s")
    max_waiting: int = option("max_waiting", count(1, 100_000), 2000)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class DialectConfig:
    """Whether a protocol is spoken, where, and who may create sessions in it."""

    path: str = option("path", url_path)
    enabled: bool = option("enabled", flag, True)
    create_policy: str = option("create_policy", choice("open", "authenticated", "closed"), "open")


@attr.s(auto_attribs=True, frozen=True, slots=True)
class DialectsConfig:
    """The protocols."""

    msc3886: DialectConfig = subsection("msc3886", DialectConfig(paths.MSC3886))
    msc4108: DialectConfig = subsection("msc4108", DialectConfig(paths.MSC4108))
    msc4388: DialectConfig = subsection("msc4388", DialectConfig(paths.MSC4388))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class RendezvousConfig:
    """Everything an operator can set. What each option is for: docs/configuration.md.

    Attributes:
        store: where sessions are kept: `auto`, `memory` or `redis`.
        ttl_ms: how long a session lives, in milliseconds.
        max_bytes: how long one payload may be.
        max_sessions: how many sessions may live at once.
        max_total_bytes: how many bytes of payload they may hold together.
        max_updates: how often a payload may be replaced.
        crowded_at: from which share of max_sessions on a client may have only a few.
        client_paths: whether clients are served at the paths of the proposals: `auto`, `on` or `off`.
        dialects: the protocols, by the names of their proposals.
        per_client: how much one client may do.
        per_session: how often one session may be asked for.
        per_user: how often one signed-in user may do what.
        trusted_proxies: whose X-Forwarded-For is believed, or how many proxies there are.
        exempt: addresses that are exempt from the limits for one client.
        deny: addresses that are refused (403).
        observe: whether limits for clients and sessions are only counted.
        long_poll: how long and how many requests may wait.
        strict_etags: whether entity tags are compared without tolerance for proxies.
    """

    store: str = option("store", choice("auto", "memory", "redis"), "auto")
    ttl_ms: int = option("ttl", duration("1s", "1h"), "5m")
    max_bytes: int = option("max_bytes", size("1", "1M"), "10K")
    max_sessions: int = option("max_sessions", count(1, 10_000_000), 5000)
    max_total_bytes: int = option("max_total_bytes", size("1", "16G"), "50M")
    max_updates: int = option("max_updates", count(1, 9_999_999), 64)
    crowded_at: float = option("crowded_at", real(0.1, 1), 0.8)
    client_paths: str = option("client_paths", switch, "auto")
    dialects: DialectsConfig = subsection("dialects", DialectsConfig())
    per_client: PerClientLimits = subsection("per_client", PerClientLimits())
    per_session: PerSessionLimits = subsection("per_session", PerSessionLimits())
    per_user: PerUserLimits = subsection("per_user", PerUserLimits())
    trusted_proxies: tuple[IPNetwork, ...] | int = option(
        "trusted_proxies",
        networks_or_hops,
        [
            "127.0.0.0/8",
            "::1/128",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
        ],
    )
    exempt: tuple[IPNetwork, ...] = option("exempt", networks, [])
    deny: tuple[IPNetwork, ...] = option("deny", networks, [])
    observe: bool = option("observe", flag, False)
    long_poll: LongPollConfig = subsection("long_poll", LongPollConfig())
    strict_etags: bool = option("strict_etags", flag, False)

    @classmethod
    def parse(cls, options: object) -> "RendezvousConfig":
        """Read what stands under `config:`; None and an empty mapping are the defaults.

        Raises:
            ConfigError: an option is unknown or its value impossible. The path leads to it from `config` downwards.
        """
        if "write" in _section(options, "per_client"):
            raise ConfigError(
                "is gone, because people behind one address could use it up for each other: writes are charged to"
                " their session alone (per_session.write). Remove it.",
                ("per_client", "write"),
            )
        config = parse_section(cls(), options, ())
        if not (isinstance(options, Mapping) and "max_total_bytes" in options):
            config = attr.evolve(config, max_total_bytes=max(config.max_total_bytes, config.room_bytes))
        if config.max_total_bytes < config.max_bytes:
            raise ConfigError(
                f"must be at least max_bytes ({config.max_bytes}), or a payload could never be stored;"
                f" this is {config.max_total_bytes}",
                ("max_total_bytes",),
            )
        if "default_wait" not in _section(options, "long_poll"):
            wait_ms = min(config.long_poll.default_wait_ms, config.long_poll.max_wait_ms)
            config = attr.evolve(config, long_poll=attr.evolve(config.long_poll, default_wait_ms=wait_ms))
        if config.long_poll.default_wait_ms > config.long_poll.max_wait_ms:
            raise ConfigError(
                f"must be at most max_wait ({config.long_poll.max_wait_ms} ms); this is"
                f" {config.long_poll.default_wait_ms} ms",
                ("long_poll", "default_wait"),
            )
        names: dict[str, str] = {}
        if config.dialects.msc4388.enabled:
            names = {paths.UNSTABLE_MSC4388: "msc4388", paths.STABLE_MSC4388: "msc4388"}
        for field in attr.fields(DialectsConfig):
            dialect = getattr(config.dialects, field.name)
            if dialect.enabled and names.setdefault(dialect.path, field.name) != field.name:
                raise ConfigError(
                    f"is that of {names[dialect.path]} as well; each dialect needs its own",
                    ("dialects", field.name, "path"),
                )
        if not names:
            raise ConfigError("must have one that is enabled, or the module does nothing", ("dialects",))
        return config

    @property
    def room_bytes(self) -> int:
        """What all sessions take when each has the longest payload. With less room, they take it from each other."""
        return self.max_sessions * max(self.max_bytes, FIXED_MAX_BYTES)

    @property
    def max_outcomes(self) -> int:
        """The outcomes of how many transactions are kept for each session.

        A client reads before it writes again, so none of its writes meets a revision of the other device twice: there
        are no more conflicts than updates.
        """
        return 2 * self.max_updates

    def summary(self) -> str:
        """Say in a line what is in force, for the log."""
        client, session, wait, proxies = self.per_client, self.per_session, self.long_poll, self.trusted_proxies
        hops = f"{proxies} proxies" if isinstance(proxies, int) else ", ".join(map(str, proxies)) or "nobody"
        parts = [
            f"ttl {self.ttl_ms / 1000:g} s, at most {self.max_bytes} bytes a payload, {self.max_updates} updates,"
            f" {self.max_sessions} sessions and {self.max_total_bytes} bytes in all",
            f"{self.max_memory_bytes() / 2**20:.0f} MiB of memory at the very most",
            f"a GET may wait {wait.max_wait_ms / 1000:g} s, {wait.default_wait_ms / 1000:g} s unasked,"
            f" {wait.max_waiting} at once",
            f"a client may have {client.max_sessions} sessions ({client.crowded_sessions} while {self.crowded_at:.0%}"
            f" of all are taken) and {client.max_waiting} waiting, create {client.create}, read {client.read}"
            f" and miss {client.miss}",
            f"a session may be read {session.read} and written {session.write}",
            f"X-Forwarded-For believed from {hops}",
        ]
        parts += ["limits for clients and sessions only observed"] if self.observe else []
        parts += ["entity tags strict"] if self.strict_etags else []
        return "; ".join(parts)

    def max_memory_bytes(self) -> int:
        """Return how much memory rendezvous can take in a process, at the very most, with sessions in memory."""
        return (
            self.max_total_bytes
            + self.max_sessions * (SESSION_BYTES + self.max_outcomes * OUTCOME_BYTES)
            + self.long_poll.max_waiting * WAITING_BYTES
            + LIMITS * LIMIT_BYTES
            + 2 * max(0, self.max_sessions - LIMIT_KEYS) * PREPAID_BYTES
        )


def _section(options: object, key: str) -> Mapping[str, object]:
    """Return a section as the operator wrote it; empty if there is none."""
    section = options.get(key) if isinstance(options, Mapping) else None
    return section if isinstance(section, Mapping) else {}
