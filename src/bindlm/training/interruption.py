"""Ctrl-C and SIGTERM end training after the step that runs, with everything saved; a second Ctrl-C ends it now."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SAME_PRESS_SECONDS = 0.5
"""A launcher such as torchrun passes Ctrl-C on to processes that have had it from the terminal already."""


class Interruption:
    """Whether somebody asked training to stop.

    Attributes:
        is_requested: set by the first signal.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._first_time = 0.0
        self._before: dict[int, Any] = {}

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle a signal: the first asks, a later Ctrl-C does what it did before training.

        Raises:
            KeyboardInterrupt: this is a second Ctrl-C, and Python's own handler was there before.
        """
        now = time.monotonic()
        if not self.is_requested:
            self.is_requested, self._first_time = True, now
        elif number == signal.SIGINT and now - self._first_time > _SAME_PRESS_SECONDS:
            self.restore()
            signal.raise_signal(signal.SIGINT)

    def listen(self) -> None:
        """Take over SIGINT and SIGTERM, where this is the main thread; a signal that is ignored stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers, and signals reach it alone
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before is not None and before != signal.SIG_IGN:  # nohup, or a shell's background job
                signal.signal(number, self.receive)
                self._before[number] = before

    def restore(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, before in self._before.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, before)
        self._before.clear()


@contextmanager
def listening() -> Iterator[Interruption]:
    """Ctrl-C and SIGTERM become requests while the block runs; the handlers of before are back afterwards.

    Example:
        >>> with listening() as interruption:
        ...     while not interruption.is_requested:
        ...         step()
    """
    interruption = Interruption()
    interruption.listen()
    try:
        yield interruption
    finally:
        interruption.restore()
