"""How a cancel gets into running code: a signal to the main thread, and there an exception, but not just anywhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

AGAIN_S = 0.1
"""After this the agent gets a second SIGTERM: wake_main_thread has why. To our handler two are as one."""


class TurnCancelled(BaseException):
    """Raised in a function that does not look at `turn.cancelled`, so that its `finally` blocks run.

    A BaseException, like KeyboardInterrupt: an `except Exception` must not swallow it.
    """


class Shield:
    """Keeps a signal handler's action out of what the main thread must not leave half done.

    A handler that raises while a frame is being written would tear it, one that emits would wait for the lock that its
    own thread holds. So the handler calls `act`, and within `with shield:` the action waits for the end of the block.
    """

    def __init__(self) -> None:
        self._action: Callable[[], None] = lambda: None
        self._depth = 0
        self._waiting = False

    def guards(self, action: Callable[[], None]) -> None:
        """Sets the action; it may raise."""
        self._action = action

    def act(self) -> None:
        """To be called in the main thread."""
        if self._depth:
            self._waiting = True
        else:
            self._action()

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            self._depth -= 1
            if self._waiting and not self._depth:
                self._waiting = False
                self._action()


def wake_main_thread() -> None:
    """SIGTERM to the main thread, from any other: it also ends a sleep or a read that the main thread is in.

    Twice, `AGAIN_S` apart: Python only notes a signal that comes between its last look and the beginning of a system
    call, and acts on it when the call returns, which may be never. The second signal then interrupts the call.
    """
    main = threading.main_thread().ident or 0
    signal.pthread_kill(main, signal.SIGTERM)
    time.sleep(AGAIN_S)
    signal.pthread_kill(main, signal.SIGTERM)
