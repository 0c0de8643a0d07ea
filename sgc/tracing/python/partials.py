"""The numbers that a program asks of a ``functools.partial`` among its arguments, such as an annealed prior.

``svi.step(data, prior=partial(prior, step))`` passes another partial at each step. What the program depends on is not
``step`` but the results of its calls of ``prior``. They are recorded during a capture: where another partial, called in
the same way, gives the same numbers, eager Pyro would do the same with it, so that the compiled program holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyro.poutine.messenger import Messenger

from sgc.errors import CaptureError
from sgc.tracing import tracer

_NUMBERS = (bool, int, float, complex, str, bytes, type(None))


@dataclass
class CallRecord:
    """The calls of one partial, in order, with their results.

    ``complete`` is false where there is more to a call than its result: it was given or gave anything but numbers and
    texts, or used tensors or Pyro statements.
    """

    name: str
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = field(default_factory=list)
    complete: bool = True

    def miss(self, function: Callable[..., Any], same: Callable[[Any, Any], bool]) -> str | None:
        """Call ``function`` as the program did; what it does otherwise, None where all is the same."""
        with _Statements() as statements:
            for args, kwargs, expected in self.calls:
                shown = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in kwargs.items())])
                try:
                    result = function(*args, **kwargs)
                except Exception as error:  # eager Pyro would meet it; so will the prototype that follows
                    return f"{self.name}({shown}) was {expected!r}, raises {type(error).__name__}"
                if type(result) not in _NUMBERS or not same(result, expected):
                    return f"{self.name}({shown}) was {expected!r}, is {result!r}"
        return f"{self.name} makes a Pyro statement" if statements.seen else None


class _Statements(Messenger):
    """Notes whether a Pyro statement runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def _process_message(self, msg: Any) -> None:
        self.seen = True


class _Unread:
    """Stands for what a recorded partial holds. A program that reads it depends on more than the results of calls."""

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise CaptureError("the program looks into a partial among its arguments")

    __getattr__ = __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = __getitem__ = __call__ = _refuse
    __repr__ = __str__ = __format__ = __hash__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _refuse


_UNREAD = _Unread()


def recorded(function: functools.partial[Any], record: CallRecord) -> functools.partial[Any]:
    """A partial that does what ``function`` does and notes it; whoever looks into it gets an error."""
    calls = _Calls(function, record)
    return functools.partial(calls, *(_UNREAD for _ in function.args), **dict.fromkeys(function.keywords, _UNREAD))


class _Calls:
    def __init__(self, function: functools.partial[Any], record: CallRecord) -> None:
        self._function = function
        self._record = record

    def __getattr__(self, name: str) -> Any:
        raise CaptureError(f"the program reads {name} of a partial among its arguments")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        held = len(self._function.args)
        own, given = args[:held], args[held:]
        if len(own) != held or any(part is not _UNREAD for part in own):
            raise CaptureError("the program takes a partial among its arguments apart")
        kwargs = {name: value for name, value in kwargs.items() if value is not _UNREAD}
        before = len(tracer.current_tracer().graph.nodes)
        with _Statements() as statements:
            try:
                result = self._function(*given, **kwargs)
            except BaseException:
                self._record.complete = False
                raise
        plain = all(type(part) in _NUMBERS for part in (*given, *kwargs.values(), result))
        if not plain or statements.seen or len(tracer.current_tracer().graph.nodes) != before:
            self._record.complete = False
        self._record.calls.append((given, kwargs, result))
        return result
