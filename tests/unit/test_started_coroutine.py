"""A coroutine that is started in one place and awaited in another."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred

from synapse_rendezvous.started_coroutine import StartedCoroutine


class Log(list[str]):
    """What a coroutine came across."""

    async def run(self, awaited: Deferred[str]) -> None:
        try:
            self.append(await awaited)
        except Exception as error:
            self.append(type(error).__name__)
        finally:
            self.append("end")


def begin(awaited: Deferred[str]) -> tuple[Log, Any, StartedCoroutine]:
    log = Log()
    coroutine = log.run(awaited)
    return log, coroutine, StartedCoroutine(coroutine, coroutine.send(None))


async def go_on(begun: StartedCoroutine) -> None:
    await begun


def test_goes_on() -> None:
    """Whoever awaits it goes on with it, to its end."""
    awaited: Deferred[str] = Deferred()
    log, _, begun = begin(awaited)
    done = ensureDeferred(go_on(begun))
    assert [] == log
    awaited.callback("news")
    assert (["news", "end"], True) == (log, done.called)


def test_cancelled() -> None:
    """To cancel what awaits it cancels what it waits for."""
    log, _, begun = begin(Deferred())
    ensureDeferred(go_on(begun)).cancel()
    assert [CancelledError.__name__, "end"] == log


@pytest.mark.parametrize("is_closed", [False, True])
def test_given_up(is_closed: bool) -> None:
    """If nobody awaits it any more it ends, and that is no error, even where it was given up before."""
    log, coroutine, begun = begin(Deferred())
    waiting = go_on(begun)
    waiting.send(None)
    if is_closed:
        coroutine.close()
    waiting.close()
    assert ["end"] == log
