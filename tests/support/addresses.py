"""Clients at addresses of their own, and what they may write to be taken for others."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence

from support.http_client import Client, ask
from support.listeners import BURST
from synapse_rendezvous.demo.throwaway_homeserver import HOST
from synapse_rendezvous.paths import MSC3886

AT_ONCE = 24

Fields = Sequence[tuple[str, str]]


def create(url: str, address: str, fields: Fields = ()) -> int:
    """Create a session from an address, with these header fields, and return the status."""
    return ask("POST", url + MSC3886, b"", fields, address=address).status


def forgeries(other: str) -> list[Fields]:
    """What a client may write to get a fresh limit, to escape any, or to use up that of another."""
    lines = [
        *([f"203.0.113.{number}"] for number in range(1, 5)),
        [other],
        [f"{other}, {HOST}"],
        [other, HOST],
        [f"203.0.113.5, {other}", f"{HOST}, {HOST}"],
        [HOST],
        ["2001:db8::1"],
        ["203.0.113.6:443"],
        ["unknown"],
        [""],
        [", ,"],
        ["x" * 3000],
    ]
    return [
        *([("X-Forwarded-For", value) for value in values] for values in lines),
        [("Connection", "close, X-Forwarded-For")],  # asks proxies to keep that field to themselves
        [("X-Forwarded-For", other), ("Connection", "X-Forwarded-For")],
        [("X_Forwarded_For", "203.0.113.7")],
        [("Forwarded", "for=203.0.113.8"), ("X-Real-IP", "203.0.113.8")],
    ]


def create_all(url: str, attempts: Mapping[str, Sequence[Fields]]) -> dict[str, int]:
    """Create from each address once with each of these; return how often each was admitted. The rest were 429."""
    turns = asyncio.Semaphore(AT_ONCE)  # a refusal takes half a second

    async def create_from(address: str) -> list[int]:
        async def create_with(fields: Fields) -> int:
            async with turns:
                return (await client.ask("POST", MSC3886, b"", fields)).status

        async with Client(url, address=address, keeps_connections=False) as client:
            return list(await asyncio.gather(*map(create_with, attempts[address])))

    async def create_from_all() -> list[list[int]]:
        return list(await asyncio.gather(*map(create_from, attempts)))

    statuses = asyncio.run(create_from_all())
    assert {200, 429} == set(itertools.chain(*statuses))
    return {address: each.count(200) for address, each in zip(attempts, statuses, strict=True)}


def assert_told_apart(url: str, clients: tuple[str, str]) -> None:
    """Fail if one client can escape its limit by what it writes, or take anything from the other's."""
    forger, honest = clients
    assert {forger: BURST, honest: BURST} == create_all(url, {forger: forgeries(honest), honest: [[]] * (BURST + 1)})


def assert_counted_as_one(url: str, clients: tuple[str, str]) -> None:
    """Fail if these clients do not share one limit, or if one can escape it."""
    admitted = create_all(url, {clients[0]: forgeries(clients[1]), clients[1]: [[]]})
    assert BURST == sum(admitted.values())
