"""A coroutine that is started in one place and awaited in another."""

from collections.abc import Coroutine, Generator
from typing import Any


class StartedCoroutine:
    """A coroutine that was started by hand, to be continued by an await.

    Args:
        coroutine: one that was started.
        awaited: what it awaits.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        while True:
            try:
                try:
                    result = yield self._awaited
                except GeneratorExit:  # nobody awaits it any more
                    self._coroutine.close()
                    raise
                except BaseException as error:  # whatever it is, it belongs to the coroutine
                    self._awaited = self._coroutine.throw(error)
                else:
                    self._awaited = self._coroutine.send(result)
            except StopIteration:
                return
