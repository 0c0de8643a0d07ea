"""``python -m sgc explain``: finds model, guide and arguments by their names, and prints what is made of them."""

from __future__ import annotations

import argparse
import difflib
import importlib
import keyword
import math
import re
import sys
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch

from sgc.api import compile
from sgc.errors import ArgumentError, SgcError
from sgc.guards.base import Call
from sgc.runtime.inspection.explanation import Explanation
from sgc.tracing.source import line_of

_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

_FAILED, _WRONG = 1, 2


class CommandError(Exception):
    """What is wrong with the command line, in words for whoever has written it."""


def explain(options: argparse.Namespace) -> int:
    """Run the command; the exit status.

    :param options: what :mod:`sgc.__main__` has parsed.
    """
    try:
        model, guide = (_callable(name) for name in (options.model, options.guide))
        call = _arguments(options.args)
        loss_module = compile(
            model,
            guide,
            num_particles=options.num_particles,
            vectorize_particles=options.vectorize_particles,
            max_plate_nesting=math.inf if options.max_plate_nesting is None else options.max_plate_nesting,
            backend="eager",
            objective=options.objective,
        )
    except CommandError as error:
        return _told(str(error), _WRONG)
    except ArgumentError as error:
        return _told(f"{type(error).__name__}: {error}", _WRONG)
    try:
        explanation = loss_module.initialize(*call.args, **call.kwargs).explain()
    except SgcError as error:
        return _told(f"{type(error).__name__}: {error}", _FAILED)
    except Exception as error:  # the user's program may raise anything
        hint = "" if options.args else "\n  model and guide were called without arguments: --args gives them"
        return _told(_located(error) + (hint if isinstance(error, TypeError) else ""), _FAILED)
    print(explanation)
    try:
        if options.html is not None:
            Path(options.html).write_text(_page(f"{options.model}, {options.guide}", explanation), encoding="utf-8")
        if options.draw is not None:
            loss_module.graph.draw(options.draw, unfold=options.unfold)
    except OSError as error:
        return _told(f"cannot write {error.filename}: {error.strerror}", _WRONG)
    except SgcError as error:
        return _told(f"{type(error).__name__}: {error}", _FAILED)
    return 0


def _told(text: str, status: int) -> int:
    print(f"python -m sgc explain: {text}", file=sys.stderr)
    return status


def _callable(target: str) -> Callable[..., Any]:
    thing = _named(target)
    if isinstance(thing, type):
        raise CommandError(f"{target} is a class: name an object of it, made in its module")
    if not callable(thing):
        raise CommandError(f"{target} is of type {type(thing).__name__}, which cannot be called")
    return thing


def _named(target: str) -> Any:
    """What ``package.module:name`` names."""
    if not _TARGET.fullmatch(target):
        head, _, last = target.rpartition(".")
        hint = f"; did you mean {head}:{last}?" if head and last.isidentifier() and ":" not in target else ""
        raise CommandError(f"{target!r} is not of the form package.module:name{hint}")
    module_name, _, path = target.partition(":")
    thing: Any = _module(module_name)
    names = path.split(".")
    for place, name in enumerate(names):
        whole = ".".join([f"{module_name}:{names[0]}", *names[1:place]]) if place else f"the module {module_name}"
        try:
            thing = getattr(thing, name)
        except AttributeError:
            close = difflib.get_close_matches(name, dir(thing), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CommandError(f"{whole} has no {name!r}{hint}") from None
    return thing


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            directory = Path.cwd()
            hint = f"; write {name.removesuffix('.py')}:name for the file {name}" if name.endswith(".py") else ""
            raise CommandError(
                f"there is no module {missing}, neither in {directory} nor on Python's path{hint}"
            ) from None
        raise CommandError(f"the module {name} cannot be imported: {_located(error)}") from None
    except SystemExit as error:
        raise CommandError(
            f"the module {name} ends the process when it is imported (status {error.code}): keep what a script does "
            "below if __name__ == '__main__'"
        ) from None
    except Exception as error:  # a module may raise anything
        raise CommandError(f"the module {name} cannot be imported: {_located(error)}") from None


def _arguments(text: str) -> Call:
    """The arguments that ``--args`` gives."""
    if _TARGET.fullmatch(text) and not keyword.iskeyword(text.partition(":")[0]):
        made = _callable(text)
        try:
            given = made()
        except Exception as error:  # it is the user's
            raise CommandError(f"--args: {text} raises {_located(error)}") from None
        if isinstance(given, Mapping):
            return Call((), dict(given))
        return Call(tuple(given) if isinstance(given, (tuple, list)) else (given,), {})
    try:
        call: Call = eval(f"_call({text}\n)", {"torch": torch, "_call": lambda *args, **kwargs: Call(args, kwargs)})
        return call
    except SyntaxError as error:
        raise CommandError(f"--args: {text!r} does not stand for the arguments of a call: {error.msg}") from None
    except Exception as error:  # it is the user's
        raise CommandError(f"--args: {text!r} raises {type(error).__name__}: {error}") from None


def _located(error: BaseException) -> str:
    """An error with the user's own line."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SgcError):
        return text
    if isinstance(error, SyntaxError):
        return (
            f"{type(error).__name__}: {error.msg}\n  --> {error.filename}:{error.lineno}: {(error.text or '').strip()}"
        )
    notes = [f"\n  {note}" for note in getattr(error, "__notes__", ())]
    line = line_of(error.__traceback__) if error.__traceback__ is not None else None
    return "".join([text, *notes, "" if line is None else f"\n  --> {line}"])


def _page(title: str, explanation: Explanation) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>\n'
        f'<body style="font-family:sans-serif">\n<h1>{escape(title)}</h1>\n{explanation.to_html()}\n</body></html>\n'
    )
