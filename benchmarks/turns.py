"""Takes turns between programs that are compared: seconds a call, over a while, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch


def turn(call: Callable[[], Any], seconds: float) -> float:
    """Seconds a call, over this time."""
    call()  # warms again, after the others' turns
    count, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        call()
        count += 1
    return taken / count


class Turns:
    """A process of its own, and so a param store of its own, that takes steps when it is asked to.

    :param make: a function of a module, which makes the step of ``args``.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        context.Process(target=_serve, args=(other, make, args), daemon=True).start()

    def take(self, seconds: float) -> float:
        """Seconds a step, over this time.

        :raises RuntimeError: if the step could not be made.
        """
        self._connection.send(seconds)
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return float(answer)

    def end(self) -> None:
        """End the process."""
        self._connection.send(None)


def _serve(connection: Connection, make: Callable[..., Callable[[], Any]], args: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        step = make(*args)
        step()
    except Exception as error:
        connection.recv()
        connection.send(f"{type(error).__name__}: {error}")
        raise
    while (seconds := connection.recv()) is not None:
        connection.send(turn(step, seconds))
