"""How an option is declared, and how what an operator wrote is read."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import attr
from synapse.config._base import Config, ConfigError

from synapse_rendezvous.addresses import AmbiguousNetwork, IPNetwork, parse_network
from synapse_rendezvous.paths import MSC3886

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


def duration(low: str, high: str) -> Parser:
    """Return a parser for durations; it returns milliseconds."""
    return _number_between("a duration", Config.parse_duration, low, high, "5m, 30s or 300000 (milliseconds)")


def size(low: str, high: str) -> Parser:
    """Return a parser for sizes; it returns bytes."""
    return _number_between("a size", Config.parse_size, low, high, "10K, 1M or 10240 (bytes)")


def count(low: int, high: int) -> Parser:
    """Return a parser for whole numbers."""
    return _number_between("a whole number", _whole, low, high, "100")


def real(low: float, high: float) -> Parser:
    """Return a parser for numbers."""
    return _number_between("a number", _real, low, high, "0.5")


def choice(*choices: str) -> Parser:
    """Return a parser for one of these words."""

    def parse(value: Any, path: Path) -> str:
        if value not in choices:
            raise ConfigError(f"must be {' or '.join(choices)}; this is {value!r}", path)
        return str(value)

    return parse


def switch(value: Any, path: Path) -> str:
    """Read `auto`, `on` or `off`; YAML reads the last two as booleans, unless they are quoted."""
    word: str = choice("auto", "on", "off")({True: "on", False: "off"}.get(value, value), path)
    return word


def flag(value: Any, path: Path) -> bool:
    """Read `true` or `false`."""
    if not isinstance(value, bool):
        raise ConfigError(f"must be true or false; this is {value!r}", path)
    return value


def url_path(value: Any, path: Path) -> str:
    """Read the path of a resource."""
    if not isinstance(value, str) or not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", value):
        raise ConfigError(f"must be a path without a slash at its end, such as {MSC3886}; this is {value!r}", path)
    return value


def networks(value: Any, path: Path) -> tuple[IPNetwork, ...]:
    """Read a list of networks."""
    if not isinstance(value, list):
        raise ConfigError(f"must be a list of networks, such as [127.0.0.0/8, 10.1.2.3]; this is {value!r}", path)
    networks = []
    for index, item in enumerate(value):
        try:
            if not isinstance(item, str):
                raise ValueError
            networks.append(parse_network(item))
        except AmbiguousNetwork:
            raise ConfigError(
                "must not be so wide: the addresses in it stand for IPv4 addresses behind a translator (NAT64), and are"
                f" read as these. Name their IPv4 networks, such as 203.0.113.0/24; this is {item!r}",
                (*path, f"<item {index}>"),
            ) from None
        except ValueError:
            raise ConfigError(
                f"must be an address or a network, such as 10.1.2.3, 10.0.0.0/8 or fc00::/7; this is {item!r}",
                (*path, f"<item {index}>"),
            ) from None
    return tuple(networks)


def networks_or_hops(value: Any, path: Path) -> tuple[IPNetwork, ...] | int:
    """Read a list of networks, or a number of proxies."""
    return count(0, 10)(value, path) if type(value) is int else networks(value, path)


_Section = TypeVar("_Section", bound="attr.AttrsInstance")


def parse_section(default: _Section, options: Any, path: Path) -> _Section:
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


def option(key: str, parse: Parser, default: object = None) -> Any:
    """Return a field for one option, its default written as an operator would write it."""
    return attr.ib(
        default=attr.NOTHING if default is None else parse(default, (key,)), metadata={"key": key, "parse": parse}
    )


def subsection(key: str, default: attr.AttrsInstance) -> Any:
    """Return a field for a section of options; what the operator leaves out of it stays as in `default`."""
    return attr.ib(
        default=default,
        metadata={"key": key, "parse": lambda options, path: parse_section(default, options, path)},
    )
