"""The Python values that one run of a program passes to torch and Pyro.

A capture burns Python values in. What a program takes from an iterator, a clock or a counter is another value in each
run, and would be frozen. The prototype and the capture are two runs of one program on the same tensors and random
numbers: the numbers, texts and tensors of its own making must be the same in both
(:mod:`sgc.tracing.state.run_differences`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, fx
from torch.distributions import Distribution, Transform
from torch.overrides import TorchFunctionMode

from sgc.errors import SourceLine
from sgc.graph.sizes import is_symbolic, size_of
from sgc.tracing import tracer
from sgc.tracing.source import belongs_to_user, is_of_sgc, is_parameter_store, is_pyro, is_tracing
from sgc.tracing.values.reads import READS

MEASURED = (int, float, complex)
_PLAIN = (bool, *MEASURED, str, bytes)
_GETTERS = frozenset(("__get__", "__set__"))
_IN_PYTHON = READS | {"__hash__"}
"""Functions that Python calls on a tensor by itself; a capture may call others, or none."""

_REFLECTED = {"gt": "lt", "ge": "le"}
_NESTED = (list, tuple, set, frozenset)


@dataclass
class Event:
    """A call of a torch function: the values that it was given, in order, and the newest node of a capture after it."""

    values: list[Any]
    source: SourceLine
    node: fx.Node | None = None


class Call(NamedTuple):
    """A line of the program, the torch function that is called there, and whether by the line itself."""

    file: str
    code: str
    number: int
    name: str
    is_direct: bool

    @property
    def function(self) -> tuple[str, str]:
        """The function that the line is in."""
        return self.file, self.code

    @property
    def line(self) -> tuple[str, str, int]:
        return self.file, self.code, self.number


@dataclass
class Statement:
    """A sample statement: the values that make up its distribution, scale, mask, plates and options."""

    values: dict[str, Any]
    source: SourceLine | None


class _Traced:
    """Stands for a value that a capture computes, which may be anything in another run."""


TRACED = _Traced()


@dataclass
class Literal:
    """A tensor that a capture takes for a literal of the program."""

    of: Tensor


class Made:
    """A tensor that the run has computed, which may be gone by the time of the comparison."""

    __slots__ = ("of",)

    def __init__(self, of: weakref.ref[Tensor]) -> None:
        self.of = of


@dataclass
class Transcript(TorchFunctionMode):
    """Notes what a run of model and guide hands to torch functions while it is entered, and to sample statements.

    Tensors from outside are kept until the comparison, so that a tensor of another run is not taken for one of them.
    """

    sites: dict[tuple[int, str], Statement] = field(default_factory=dict)
    """By run and name: sites that are enumerated one value after another make several runs of one."""
    named_by_samples: bool = False
    events: dict[Call, list[Event]] = field(default_factory=dict)
    _made: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    opaque: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        frame, direct = (None, False) if name in _GETTERS else _user_frame(sys._getframe(1))
        if frame is None or name.startswith("sym_"):  # what torch makes of a size, which is a number in another run
            return func(*args, **(kwargs or {}))
        if name == "_set_grad_enabled" and is_pyro():  # a draw without gradients puts back what was there before
            return func(*args, **(kwargs or {}))
        code = frame.f_code
        direct = direct and name not in _IN_PYTHON
        call = Call(code.co_filename, code.co_name, frame.f_lineno, _REFLECTED.get(name, name), direct)
        values = list(self._values((args, kwargs))) if name != "__deepcopy__" else []  # which is given identities
        source = SourceLine(code.co_filename, frame.f_lineno, code.co_name)
        event = Event(values, source)
        self.events.setdefault(call, []).append(event)
        try:
            result = func(*args, **(kwargs or {}))
        except Exception:
            self._drop(call, event)  # what could not be traced becomes an opaque node, or the capture fails
            raise
        if tracer.is_capturing():
            event.node = tracer.last_node()
        for part in result if type(result) in (list, tuple) else (result,):
            if isinstance(part, Tensor) and not tracer.is_fake(part):
                self._made[id(part)] = weakref.ref(part)
        return result

    def _drop(self, call: Call, event: Event) -> None:
        others = [other for other in self.events.pop(call, ()) if other is not event]
        if others:
            self.events[call] = others

    def forget(self) -> None:
        """Forget what was noted: it was not the run that counts."""
        self.events.clear()
        self._made.clear()

    def note_sites(
        self,
        traces: Iterable[Trace],
        sources: Mapping[str, SourceLine | None] | None = None,
        *,
        run: int = 0,
        named_by_samples: bool = False,
    ) -> None:
        """Note the sample statements of a run.

        :param run: which of several it is.
        :param sources: the lines of the statements, where they are known.
        :param named_by_samples: whether the elements of a random subsample are in the names of sites, so that these are
            others in each run.
        """
        self.named_by_samples = named_by_samples
        self.opaque = {call.function for call, events in self.events.items() if any(map(_is_taken_back, events))}
        for kind, trace in zip(("model", "guide"), traces, strict=True):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
                    known = self.sites.setdefault((run, name), Statement({}, (sources or {}).get(name)))
                    known.values.update(self._statement(kind, site))

    def _statement(self, kind: str, site: Any) -> Iterator[tuple[str, Any]]:
        stack = [(frame.name, int(size_of(frame.size))) for frame in site["cond_indep_stack"]]
        # Pyro's own entries say in which dims sites are enumerated, and under which symbols: it follows from the rest.
        infer = {key: value for key, value in site["infer"].items() if not str(key).startswith("_")}
        parts = {"scale": site["scale"], "mask": site["mask"], "infer": infer, "plates": stack}
        if site["is_observed"]:
            parts["value"] = site["value"]
        for part, value in parts.items():
            for position, one in enumerate(self._values(value)):
                yield f"{kind}.{part}.{position}", one
        yield from self._attributes(f"{kind}.fn", site["fn"])

    def _attributes(self, path: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
        """The attributes of a distribution or transform; what it computes when it is first asked may be lacking."""
        yield path, type(value).__name__
        for name, part in vars(value).items() if depth < 8 else ():
            for position, one in enumerate(part if isinstance(part, (list, tuple)) else (part,)):
                if isinstance(one, (Distribution, Transform)):
                    yield from self._attributes(f"{path}.{name}.{position}", one, depth + 1)
                elif name not in _VARYING:
                    for index, plain in enumerate(self._values(one)):
                        yield f"{path}.{name}.{position}.{index}", plain

    def _values(self, value: Any, depth: int = 0) -> Iterator[Any]:
        """The numbers, texts and tensors in what is given to a function or statement, in order."""
        if isinstance(value, Tensor):
            if tracer.is_fake(value):
                literal = tracer.literal_of(value)
                yield TRACED if literal is None else Literal(literal)
            elif tracer.unwrapped(value) is not value:
                yield TRACED
            else:
                made = self._made.get(id(value))
                yield value if made is None or made() is not value else Made(made)
        elif is_symbolic(value):
            yield TRACED
        elif isinstance(value, tracer.Traced):
            yield from self._values(value.value, depth)
        elif isinstance(value, _PLAIN):
            yield float(value) if isinstance(value, np.float64) else value
        elif isinstance(value, (np.ndarray, np.generic)):
            yield (value.dtype.str, value.shape, hash(value.tobytes())) if not value.dtype.hasobject else TRACED
        elif depth > 8:
            return
        elif isinstance(value, _NESTED):
            for part in value:
                yield from self._values(part, depth + 1)
        elif isinstance(value, dict):
            for key, part in value.items():
                if isinstance(key, _PLAIN):
                    yield key
                yield from self._values(part, depth + 1)
        elif isinstance(value, slice):
            yield from self._values((value.start, value.stop, value.step), depth + 1)


def _is_taken_back(event: Event) -> bool:
    """Whether a call was of a function that could not be traced, and so became one opaque node."""
    return event.node is not None and tracer.is_erased(event.node)


_VARYING = frozenset(("_validate_args", "_cached_x_y", "_inv"))
"""Attributes of distributions and transforms that differ between runs of the same program."""


def _user_frame(frame: FrameType | None) -> tuple[FrameType | None, bool]:
    """The program's innermost frame, and whether it has called torch itself; None for what sgc or Pyro computes."""
    direct = True
    while frame is not None:
        if belongs_to_user(frame):
            return frame, direct and not is_parameter_store(frame.f_back)
        if is_of_sgc(frame) or is_tracing(frame):
            return None, False
        frame, direct = frame.f_back, False
    return None, False
