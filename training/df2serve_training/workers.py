"""Folds side by side: one process per device, which is given the next fold when it is done."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

import torch

from df2serve.errors import BackendError, Df2ServeError
from df2serve_training.history import StepReport
from df2serve_training.members import Training, train_member

__all__ = ["train_side_by_side"]

_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class _Done:
    """What a worker says after each member."""


@dataclass
class _Worker:
    """A process as its parent sees it."""

    process: SpawnProcess
    connection: Connection
    device: torch.device
    fold: int

    def receive(self) -> StepReport | _Done:
        """Return what the worker says next; raise what went wrong in it."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join(_PATIENCE_SECONDS)
            text = (
                f"the process that trained member {self.fold} on {self.device} ended with code "
                f"{self.process.exitcode}; the same command goes on (-9 often means that memory "
                "ran out: name fewer devices then)"
            )
            raise BackendError(text) from error
        if isinstance(message, Exception):
            raise message
        return cast("StepReport | _Done", message)

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self.process.terminate()
        self.process.join(_PATIENCE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def train_side_by_side(
    training: Training,
    folds: Sequence[int],
    *,
    devices: Sequence[torch.device],
    listener: Callable[[StepReport], None],
) -> None:
    """Train members in processes of their own; they share nothing but files.

    The first error ends all of them, and so does an interruption; what they have saved remains.

    Args:
        training: what members share; images are read from their files again.
        folds: of the members to train.
        devices: one process for each; those of the processor share its threads.
        listener: called with the reports of all members.

    Raises:
        BackendError: a process was ended from outside.
    """
    waiting = list(reversed(folds))
    shared = training.without_pixels()
    workers = []
    try:
        for device, threads in _threads(devices[: len(folds)]):
            workers.append(_start(shared, waiting.pop(), device, threads))
        busy = {worker.connection: worker for worker in workers}
        while busy:
            for ready in wait(list(busy)):
                worker = busy[cast("Connection", ready)]
                message = worker.receive()
                if isinstance(message, StepReport):
                    listener(message)
                elif waiting:
                    worker.fold = waiting.pop()
                    worker.connection.send(worker.fold)
                else:
                    del busy[worker.connection]
    finally:
        for worker in workers:
            worker.end()


def _threads(devices: Sequence[torch.device]) -> list[tuple[torch.device, int | None]]:
    """Return devices with the threads of each; those beside the processor take what they want."""
    sharing = sum(device.type == "cpu" for device in devices)
    share = max(1, torch.get_num_threads() // max(1, sharing))
    return [(device, share if device.type == "cpu" else None) for device in devices]


def _start(training: Training, fold: int, device: torch.device, threads: int | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_work, args=(training, device, threads, theirs), name=f"training on {device}"
    )
    process.daemon = True
    process.start()
    theirs.close()
    ours.send(fold)
    return _Worker(process, ours, device, fold)


def _work(
    training: Training, device: torch.device, threads: int | None, connection: Connection
) -> None:
    """Train the members that the parent names, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    fold = None
    try:
        while True:
            fold = connection.recv()
            train_member(training, fold, device=device, listener=connection.send)
            connection.send(_Done())
    except Exception as error:  # noqa: BLE001 - the parent raises it
        with suppress(OSError):
            connection.send(_told(error, f"member {fold} on {device}"))


def _end_with_parent() -> None:
    """Leave no process behind that goes on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _told(error: Exception, place: str) -> Exception:
    """Return an error as it travels: what is not ours keeps its traceback as a note."""
    error.add_note(place)
    if not isinstance(error, Df2ServeError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever a foreign class does
        return BackendError(f"{type(error).__name__}: {error} ({place})")
    return error
