"""A coroutine that one begins and another awaits."""

from collections.abc import Coroutine, Generator
from typing import Any


class Begun:
    """A coroutine that was begun by hand, to go on in an await.

    Args:
        coroutine: what was begun.
        awaited: what it waits for.
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
                except BaseException as error:  # whatever it is, it is the coroutine's
                    self._awaited = self._coroutine.throw(error)
                else:
                    self._awaited = self._coroutine.send(result)
            except StopIteration:
                return
