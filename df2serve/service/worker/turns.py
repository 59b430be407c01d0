"""One device, many images: each batch of tiles goes to the image that had the device least."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Condition
from typing import ParamSpec, TypeVar

__all__ = ["Turn", "Turns"]

P = ParamSpec("P")
T = TypeVar("T")


class Turns:
    """Lets one thread compute at a time.

    Whoever asks for the device gets it when it is free and nobody who waits has had it for a
    shorter time. Images that come later start at the time of the one served least, so that neither
    do they have to wait until a huge image is done, nor can many of them keep it from ending.
    """

    def __init__(self) -> None:
        """Start with a free device."""
        self._changed = Condition()
        self._present: set[Turn] = set()
        self._waiting: set[Turn] = set()
        self._holder: Turn | None = None

    def turn(self) -> Turn:
        """Return the place of one image; close it when the image is done."""
        with self._changed:
            turn = Turn(self, min((other.spent for other in self._present), default=0.0))
            self._present.add(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """Forget an image."""
        with self._changed:
            self._present.discard(turn)

    def take(self, turn: Turn) -> None:
        """Wait for the device."""
        with self._changed:
            self._waiting.add(turn)
            self._changed.wait_for(lambda: self._holder is None and self._is_next(turn))
            self._waiting.discard(turn)
            self._holder = turn

    def free(self) -> None:
        """Give the device to whoever is next."""
        with self._changed:
            self._holder = None
            self._changed.notify_all()

    def is_wanted(self, turn: Turn) -> bool:
        """Whether somebody waits who has had the device for a shorter time."""
        with self._changed:
            return any(other.spent < turn.spent for other in self._waiting)

    def _is_next(self, turn: Turn) -> bool:
        return min(self._waiting, key=lambda other: other.spent) is turn


class Turn(Executor):
    """The place of one image; as an executor it runs what it is given when it has the device."""

    def __init__(self, turns: Turns, spent: float) -> None:
        """Use :meth:`Turns.turn` instead."""
        self.spent = spent
        """Seconds for which it had the device, counted from those of the others at its start."""
        self.waited = 0.0
        """Seconds for which it waited."""
        self.used = 0.0
        """Seconds for which it had the device."""
        self._turns = turns
        self._since = 0.0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function in this thread, with the device."""
        future: Future[T] = Future()
        self._take()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the future raises it where it is asked
            future.set_exception(error)
        finally:
            self._free()
        return future

    def offer(self) -> None:
        """Let others have the device who had it for a shorter time; call it between batches."""
        self._count()
        if self._turns.is_wanted(self):
            self._turns.free()
            self._take()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as in Executor
        """Give up the place."""
        del wait, cancel_futures
        self._turns.leave(self)

    def _take(self) -> None:
        started = time.perf_counter()
        self._turns.take(self)
        self._since = time.perf_counter()
        self.waited += self._since - started

    def _count(self) -> None:
        now = time.perf_counter()
        self.spent += now - self._since
        self.used += now - self._since
        self._since = now

    def _free(self) -> None:
        self._count()
        self._turns.free()
