"""The options under `config:` in homeserver.yaml, read once into frozen objects."""

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import attr
from synapse.config._base import Config, ConfigError

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

Path = tuple[str, ...]
"""Where in the configuration a value stands, from our section downwards."""

Parser = Callable[[Any, Path], Any]
"""Turns a value from YAML into what the program uses, or raises a ConfigError that names the rule."""


def _number_between(kind: str, read: Callable[[Any], float], low: object, high: object, example: str) -> Parser:
    """Return a parser for numbers whose bounds are written as an operator would write them."""

    def parse(value: Any, path: Path) -> float:
        try:
            number = read(value)
        except (TypeError, ValueError, IndexError):
            number = None
        if number is None or not read(low) <= number <= read(high):
            raise ConfigError(f"must be {kind} from {low} to {high}, such as {example}; this is {value!r}", path)
        return number

    return parse


def _whole(value: Any) -> int:
    if type(value) is not int:  # not isinstance: `true` is no number
        raise TypeError
    return value


def _real(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def _duration(low: str, high: str) -> Parser:
    return _number_between("a duration", Config.parse_duration, low, high, "5m, 30s or 300000 (milliseconds)")


def _size(low: str, high: str) -> Parser:
    return _number_between("a size", Config.parse_size, low, high, "10K, 1M or 10240 (bytes)")


def _count(low: int, high: int) -> Parser:
    return _number_between("a whole number", _whole, low, high, "100")


def _rate(low: float, high: float) -> Parser:
    return _number_between("a number", _real, low, high, "0.5")


def _choice(*choices: str) -> Parser:
    def parse(value: Any, path: Path) -> str:
        if value not in choices:
            raise ConfigError(f"must be {' or '.join(choices)}; this is {value!r}", path)
        return str(value)

    return parse


def _flag(value: Any, path: Path) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"must be true or false; this is {value!r}", path)
    return value


def _path(value: Any, path: Path) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
        raise ConfigError(
            f"must be a path without a slash at its end, such as /_synapse/client/rendezvous; this is {value!r}", path
        )
    return value


def _networks(value: Any, path: Path) -> tuple[IPNetwork, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"must be a list of networks, such as [127.0.0.0/8, 10.1.2.3]; this is {value!r}", path)
    networks = []
    for index, item in enumerate(value):
        try:
            if not isinstance(item, str):
                raise ValueError
            networks.append(ipaddress.ip_network(item))
        except ValueError:
            raise ConfigError(
                f"must be an address or a network, such as 10.1.2.3, 10.0.0.0/8 or fc00::/7; this is {item!r}",
                (*path, f"<item {index}>"),
            ) from None
    return tuple(networks)


_Section = TypeVar("_Section", bound="attr.AttrsInstance")


def _parse_section(default: _Section, options: Any, path: Path) -> _Section:
    """Return `default` with what the operator set in this section."""
    if options is None:  # a key with nothing below it
        return default
    if not isinstance(options, Mapping):
        raise ConfigError(f"must be a section of options; this is {options!r}", path)
    fields = {field.metadata["key"]: field for field in attr.fields(type(default))}
    for key in options:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            meant = f"did you mean {near[0]}?" if near else f"the options here are {', '.join(fields)}."
            raise ConfigError(f"unknown option; {meant}", (*path, str(key)))
    changes = {fields[key].name: fields[key].metadata["parse"](value, (*path, key)) for key, value in options.items()}
    section: _Section = attr.evolve(cast(Any, default), **changes)
    return section


def _option(key: str, parse: Parser, default: object = None) -> Any:
    """Return a field for one option, its default written as an operator would write it."""
    return attr.ib(
        default=attr.NOTHING if default is None else parse(default, (key,)), metadata={"key": key, "parse": parse}
    )


def _subsection(key: str, default: attr.AttrsInstance) -> Any:
    """Return a field for a section of options; what the operator leaves out of it stays as in `default`."""
    return attr.ib(
        default=default,
        metadata={"key": key, "parse": lambda options, path: _parse_section(default, options, path)},
    )


@attr.s(auto_attribs=True, frozen=True, slots=True)
class RateLimit:
    """So many at once and, in the long run, so many a second: a limit in the terms of Synapse's own."""

    per_second: float = _option("per_second", _rate(0.001, 1_000_000))
    burst_count: int = _option("burst_count", _count(1, 1_000_000))

    def __str__(self) -> str:
        return f"{self.burst_count} at once and {self.per_second:g}/s"


@attr.s(auto_attribs=True, frozen=True, slots=True)
class PerClientLimits:
    """How much one client may do. An office of fifty pairings at once behind one address stays below all of it."""

    max_sessions: int = _option("max_sessions", _count(1, 10_000_000), 100)
    max_waiting: int = _option("max_waiting", _count(1, 100_000), 200)
    create: RateLimit = _subsection("create", RateLimit(per_second=0.5, burst_count=40))
    read: RateLimit = _subsection("read", RateLimit(per_second=150, burst_count=300))
    write: RateLimit = _subsection("write", RateLimit(per_second=20, burst_count=200))
    miss: RateLimit = _subsection("miss", RateLimit(per_second=2, burst_count=30))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class PerUserLimits:
    """How often one signed-in user may do what, where creation needs one."""

    create: RateLimit = _subsection("create", RateLimit(per_second=0.1, burst_count=10))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class LongPollConfig:
    """How long a GET may be held while there is nothing new, in milliseconds, and how many at once."""

    max_wait_ms: int = _option("max_wait", _duration("0", "60s"), "10s")
    default_wait_ms: int = _option("default_wait", _duration("0", "60s"), "0")
    max_waiting: int = _option("max_waiting", _count(1, 100_000), 2000)


@attr.s(auto_attribs=True, frozen=True, slots=True)
class DialectConfig:
    """Whether a protocol is spoken, where, and who may create sessions in it."""

    path: str = _option("path", _path)
    enabled: bool = _option("enabled", _flag, True)
    create_policy: str = _option("create_policy", _choice("open", "authenticated", "closed"), "open")


@attr.s(auto_attribs=True, frozen=True, slots=True)
class DialectsConfig:
    """The protocols."""

    msc3886: DialectConfig = _subsection("msc3886", DialectConfig("/_synapse/client/rendezvous"))
    msc4108: DialectConfig = _subsection("msc4108", DialectConfig("/_synapse/client/rendezvous/msc4108"))
    msc4388: DialectConfig = _subsection("msc4388", DialectConfig("/_synapse/client/io.element.msc4388/rendezvous"))


@attr.s(auto_attribs=True, frozen=True, slots=True)
class RendezvousConfig:
    """Everything an operator can set. What each option is for: docs/configuration.md.

    Attributes:
        store: where sessions are kept: `auto`, `memory` or `redis`.
        ttl_ms: how long a session lives, in milliseconds.
        max_bytes: how long one payload may be.
        max_sessions: how many sessions may live at once.
        max_total_bytes: how many bytes of payload they may hold together.
        dialects: the protocols, by the names of their proposals.
        per_client: how much one client may do.
        per_user: how often one signed-in user may do what.
        trusted_proxies: whose X-Forwarded-For is believed.
        long_poll: how long and how many requests may wait.
        strict_etags: whether entity tags are compared without tolerance for proxies.
    """

    store: str = _option("store", _choice("auto", "memory", "redis"), "auto")
    ttl_ms: int = _option("ttl", _duration("1s", "1h"), "5m")
    max_bytes: int = _option("max_bytes", _size("1", "1M"), "10K")
    max_sessions: int = _option("max_sessions", _count(1, 10_000_000), 5000)
    max_total_bytes: int = _option("max_total_bytes", _size("1", "16G"), "50M")
    dialects: DialectsConfig = _subsection("dialects", DialectsConfig())
    per_client: PerClientLimits = _subsection("per_client", PerClientLimits())
    per_user: PerUserLimits = _subsection("per_user", PerUserLimits())
    trusted_proxies: tuple[IPNetwork, ...] = _option(
        "trusted_proxies",
        _networks,
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
    long_poll: LongPollConfig = _subsection("long_poll", LongPollConfig())
    strict_etags: bool = _option("strict_etags", _flag, False)

    @classmethod
    def parse(cls, options: object) -> "RendezvousConfig":
        """Read what stands under `config:`; None and an empty mapping are the defaults.

        Raises:
            ConfigError: an option is unknown or its value impossible. The path leads to it from `config` downwards.
        """
        config = _parse_section(cls(), options, ())
        if config.max_total_bytes < config.max_bytes:
            raise ConfigError(
                f"must be at least max_bytes ({config.max_bytes}), or a payload could never be stored;"
                f" this is {config.max_total_bytes}",
                ("max_total_bytes",),
            )
        if config.long_poll.default_wait_ms > config.long_poll.max_wait_ms:
            raise ConfigError(
                f"must be at most max_wait ({config.long_poll.max_wait_ms} ms); this is"
                f" {config.long_poll.default_wait_ms} ms",
                ("long_poll", "default_wait"),
            )
        paths: dict[str, str] = {}
        for field in attr.fields(DialectsConfig):
            dialect = getattr(config.dialects, field.name)
            if dialect.enabled and paths.setdefault(dialect.path, field.name) != field.name:
                raise ConfigError(
                    f"is that of {paths[dialect.path]} as well; each dialect needs its own",
                    ("dialects", field.name, "path"),
                )
        if not paths:
            raise ConfigError("must have one that is enabled, or the module does nothing", ("dialects",))
        return config
