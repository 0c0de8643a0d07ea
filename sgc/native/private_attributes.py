"""Replaces private attributes of torch for a while, and says so where there are none.

torch has no public way to have these programs generated otherwise; each user of this says why it needs one. An
attribute that a release of torch does not have is told in the words of what would replace it, not as an
``AttributeError`` from the depths of a compilation.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from sgc.errors import BackendError, WorkaroundWarning

Replacements = Mapping[str, Callable[[Any], Any]]
"""By path, what is to be in place of an attribute, made of what is there."""


class MissingAttribute(Exception):
    """torch has no attribute of this path."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"torch {torch.__version__} has no {path.replace(':', '.')}")


def private(path: str) -> Any:
    """An attribute of torch, by a path like ``"torch._inductor.scheduler:Scheduler.codegen"``.

    :raises MissingAttribute: if there is none.
    """
    module, _, names = path.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for name in names.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise MissingAttribute(path) from error
    return value


@contextmanager
def replaced(replacements: Replacements) -> Iterator[None]:
    """While this is entered, private attributes of torch are what is given.

    Static and class methods are given, and wanted, as the functions that they are made of.

    :raises MissingAttribute: before anything is replaced, if there is one that torch does not have.
    """
    made = [(*_place(path), make) for path, make in replacements.items()]
    with ExitStack() as stack:
        for owner, name, make in made:
            held = inspect.getattr_static(owner, name)
            kind = type(held) if isinstance(held, (staticmethod, classmethod)) else None
            value = make(held.__func__) if kind is not None else make(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, value if kind is None else kind(value)))
        yield


def _place(path: str) -> tuple[Any, str]:
    private(path)
    owner, separator, name = path.rpartition(".") if "." in path.partition(":")[2] else path.rpartition(":")
    return (private(owner) if separator == "." else importlib.import_module(owner)), name


@contextmanager
def entered(name: str, patch: AbstractContextManager[None], *, right_without: bool) -> Iterator[None]:
    """A workaround or tuning that replaces attributes, where torch has them.

    :param right_without: whether results are right without it: then it is skipped with a
        :class:`~sgc.errors.WorkaroundWarning`.
    :raises sgc.errors.BackendError: if it cannot be skipped; the text names it and the release of torch.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(patch)
        except MissingAttribute as missing:
            if not right_without:
                raise BackendError(
                    f"the workaround {name!r} of a defect of torch cannot be applied: {missing}; without it results "
                    "may be wrong",
                    remedy='install a release of torch that sgc was tested with (2.11 to 2.14), or use backend="eager"',
                ) from missing
            text = f"{name!r} is left out: {missing}. Results are right without it; please report it"
            warnings.warn(text, WorkaroundWarning, stacklevel=3)
        yield
