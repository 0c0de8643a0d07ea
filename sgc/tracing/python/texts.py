"""Texts of traced tensors, which have no values to be shown.

A text that the program goes on with (a key, a part of a name) is read as a number is. One that is for people's eyes
reads nothing: what ``print`` writes the prototype has written already, with the values.
"""

from __future__ import annotations

import builtins
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

from torch import Tensor

from sgc.tracing.source import belongs_to_user

_SHOWING = frozenset((logging.__file__, os.path.join(os.path.dirname(os.__file__), "pdb.py")))

REMEDY = "a message may show a tensor by print(x), print(f'{x}'), or by logging's own formatting: log.info('%s', x)"


def is_shown() -> bool:
    """Whether logging or a debugger asks for a text."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename in _SHOWING:
            return True
        frame = frame.f_back
    return False


def shown(tensor: Tensor) -> str:
    """What torch shows of a tensor without values."""
    return f"tensor(..., size={tuple(tensor.shape)}, dtype={tensor.dtype})"


@contextmanager
def printed_before() -> Iterator[None]:
    """Around a further run: the program prints nothing once more. What others print meanwhile is printed."""
    thread, write = threading.get_ident(), builtins.print

    def silent(*values: Any, **options: Any) -> None:
        if threading.get_ident() != thread or not belongs_to_user(sys._getframe(1)):
            write(*values, **options)

    with mock.patch.object(builtins, "print", silent):
        yield
