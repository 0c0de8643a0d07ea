"""How far an iterator, a generator function's run or an open file has come: to see that a program takes items of it."""

from __future__ import annotations

import io
import operator
import types
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

_DEEPEST = 4
_STEPPING = (zip, map, filter, enumerate)


def progress(value: Any, depth: int = 0) -> Hashable:
    """Something that is another once items have been taken; None of what is no iterator, or of a kind without a place.

    An iterator that a class of the user's defines is what its attributes are.
    """
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        if frame is None:
            return "ended"
        return frame.f_lasti, tuple(_shown(part, depth) for part in frame.f_locals.values())
    if isinstance(value, io.IOBase):
        return _place(value)
    if isinstance(value, _BaseDataLoaderIter):  # private to torch; there is no other name for what iter(loader) gives
        return value._num_yielded
    if not isinstance(value, Iterator) or isinstance(value, Tensor):
        return None
    if isinstance(value, _STEPPING) or type(value).__module__ == "itertools":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of itertools' copies, from Python 3.12 on
            return tuple(_shown(part, depth) for part in _flat(value.__reduce__()))
    remaining = operator.length_hint(value, -1)
    return remaining if remaining >= 0 and type(value).__module__ == "builtins" else None


def _place(file: io.IOBase) -> Hashable:
    """Where an open file is read; None of one that is written, which is a program's output."""
    if file.closed or not file.readable() or file.writable() or not file.seekable():
        return None
    try:
        return file.tell()
    except OSError:  # a text whose lines are being taken: where what is read ahead ends
        return getattr(file, "buffer", file).tell()


def _flat(value: Any) -> Iterator[Any]:
    for part in value:
        if isinstance(part, tuple):
            yield from _flat(part)
        else:
            yield part


def _shown(part: Any, depth: int) -> Hashable:
    """A number or text as it is, an iterator by its progress, anything else by its identity."""
    if isinstance(part, (int, float, str, bytes, type(None))):
        return part
    inner = progress(part, depth + 1) if depth < _DEEPEST else None
    return inner if inner is not None else id(part)
