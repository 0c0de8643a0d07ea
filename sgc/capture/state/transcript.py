"""The Python values that one run of a program hands to torch and Pyro, and how two runs differ in them.

A capture burns Python values in. What a program takes from an iterator, a clock or a counter is another value in each
run, and would be frozen. The rehearsal and the capture are two runs of one program on the same tensors and random
numbers: the numbers, texts and tensors of its own making must be the same in both.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, fx
from torch.distributions import Distribution, Transform
from torch.overrides import TorchFunctionMode

from sgc.capture import tracer
from sgc.capture.source import belongs_to_user, is_of_sgc, is_parameter_store, is_tracing
from sgc.capture.values.reads import READS
from sgc.errors import CaptureError, SourceLine

_MEASURED = (int, float, complex)
_PLAIN = (bool, *_MEASURED, str, bytes)
_GETTERS = frozenset(("__get__", "__set__"))
_IN_PYTHON = READS | {"__hash__"}
"""What Python does with a tensor that a capture may have in the place of a number, or does by other functions."""

_REFLECTED = {"gt": "lt", "ge": "le"}
_COMPARISONS = frozenset(("lt", "le", "__eq__", "ne"))
"""Python asks these of the right operand first where its class is derived from the left one's, as in Pyro's traces."""
_NESTED = (list, tuple, set, frozenset)


@dataclass
class _Event:
    """A call of a torch function: the values that it was given, in order, and the newest node of a capture after it."""

    values: list[Any]
    source: SourceLine
    node: fx.Node | None = None


_Key = tuple[str, str, int, str, bool]
"""File, function and line of the program, the name of the torch function, and whether the line itself calls it."""


@dataclass
class _Site:
    """A sample statement: the values that make up its distribution, scale, mask, plates and options."""

    values: dict[str, Any]
    source: SourceLine | None


@dataclass
class _Literal:
    """A tensor that a capture takes for a literal of the program."""

    of: Tensor


class _Made:
    """A tensor that the run has computed, which may be gone by the time of the comparison."""

    __slots__ = ("of",)

    def __init__(self, of: weakref.ref[Tensor]) -> None:
        self.of = of


@dataclass
class Transcript(TorchFunctionMode):
    """Notes what a run of model and guide hands to torch functions while it is entered, and to sample statements.

    Tensors from outside are kept until the comparison, so that a tensor of another run is not taken for one of them.
    """

    sites: dict[str, _Site] = field(default_factory=dict)
    named_by_samples: bool = False
    _events: dict[_Key, list[_Event]] = field(default_factory=dict)
    _made: dict[int, weakref.ref[Tensor]] = field(default_factory=dict)
    _opaque: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        frame, direct = (None, False) if name in _GETTERS else _user_frame(sys._getframe(1))
        if frame is None:
            return func(*args, **(kwargs or {}))
        code = frame.f_code
        key = (
            code.co_filename,
            code.co_name,
            frame.f_lineno,
            _REFLECTED.get(name, name),
            direct and name not in _IN_PYTHON,
        )
        values = list(self._values((args, kwargs))) if name != "__deepcopy__" else []  # which is given identities
        source = SourceLine(code.co_filename, frame.f_lineno, code.co_name)
        event = _Event(values, source)
        self._events.setdefault(key, []).append(event)
        result = func(*args, **(kwargs or {}))
        if tracer.is_capturing():
            event.node = tracer.last_node()
        for part in result if type(result) in (list, tuple) else (result,):
            if isinstance(part, Tensor) and not tracer.is_fake(part):
                self._made[id(part)] = weakref.ref(part)
        return result

    def note_sites(
        self,
        traces: Iterable[Trace],
        sources: Mapping[str, SourceLine | None] | None = None,
        *,
        named_by_samples: bool = False,
    ) -> None:
        """Note the sample statements of a run.

        :param sources: the lines of the statements, where they are known.
        :param named_by_samples: whether the elements of a random subsample are in the names of sites, so that these are
            others in each run.
        """
        self.named_by_samples = named_by_samples
        self._opaque = {key[:2] for key, events in self._events.items() if any(map(_is_taken_back, events))}
        for kind, trace in zip(("model", "guide"), traces, strict=True):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
                    known = self.sites.setdefault(name, _Site({}, (sources or {}).get(name)))
                    known.values.update(self._statement(kind, site))

    def _statement(self, kind: str, site: Any) -> Iterator[tuple[str, Any]]:
        stack = [(frame.name, int(frame.size)) for frame in site["cond_indep_stack"]]
        parts = {"scale": site["scale"], "mask": site["mask"], "infer": site["infer"], "plates": stack}
        if site["is_observed"]:
            parts["value"] = site["value"]
        for part, value in parts.items():
            for position, found in enumerate(self._values(value)):
                yield f"{kind}.{part}.{position}", found
        yield from self._attributes(f"{kind}.fn", site["fn"])

    def _attributes(self, path: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
        """The attributes of a distribution or transform; what it computes when it is first asked may be lacking."""
        yield path, type(value).__name__
        for name, part in vars(value).items() if depth < 8 else ():
            for position, one in enumerate(part if isinstance(part, (list, tuple)) else (part,)):
                if isinstance(one, (Distribution, Transform)):
                    yield from self._attributes(f"{path}.{name}.{position}", one, depth + 1)
                elif name not in _VARYING:
                    for index, found in enumerate(self._values(one)):
                        yield f"{path}.{name}.{position}.{index}", found

    def _values(self, value: Any, depth: int = 0) -> Iterator[Any]:
        """The numbers, texts and tensors in what is given to a function or statement, in order."""
        if isinstance(value, Tensor):
            if tracer.is_fake(value):
                literal = tracer.literal_of(value)
                yield _TRACED if literal is None else _Literal(literal)
            elif tracer.unwrapped(value) is not value:
                yield _TRACED
            else:
                made = self._made.get(id(value))
                yield value if made is None or made() is not value else _Made(made)
        elif isinstance(value, _PLAIN):
            yield value
        elif isinstance(value, (np.ndarray, np.generic)):
            yield (value.dtype.str, value.shape, hash(value.tobytes())) if not value.dtype.hasobject else _TRACED
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

    # -- comparison

    def difference(self, other: Transcript) -> CaptureError | None:
        """What this run handed over that an eager one did not, as an error with the user's line; None if nothing."""
        for key, events in self._events.items():
            if key[:2] in self._opaque:
                continue
            earlier = other._events.get(key, [])
            *_, name, direct = key
            if len(events) == len(earlier):
                for one, two in zip(events, earlier, strict=True):
                    pair = _unlike(one.values, two.values)
                    if pair is not None and (name not in _COMPARISONS or _unlike(one.values, two.values[::-1])):
                        return _error(one.source, *pair)
            elif direct:
                return _error(events[0].source)
            else:
                known = [value for two in other._of_line(key) for value in two.values]
                for one in events:
                    new = (v for v in one.values if type(v) in _MEASURED and not any(_is_same(v, k) for k in known))
                    for value in new:
                        return _error(one.source, value)
        for key, earlier in other._events.items():
            if key[-1] and key not in self._events and key[:2] not in self._opaque and self._runs(key):
                return _error(earlier[0].source)
        if not self.named_by_samples:
            for sites, others in ((self.sites, other.sites), (other.sites, self.sites)):
                for name in (name for name in sites if name not in others):
                    return _error(sites[name].source, site=name)
        for name in (name for name in self.sites if name in other.sites):
            site, earlier_values = self.sites[name], other.sites[name].values
            for part in (part for part in site.values if part in earlier_values):
                if not _is_same(site.values[part], earlier_values[part]):
                    return _error(site.source, site.values[part], earlier_values[part], site=name)
        return None

    def _of_line(self, key: _Key) -> Iterator[_Event]:
        for other, events in self._events.items():
            if other[:3] == key[:3]:
                yield from events

    def _runs(self, key: _Key) -> bool:
        """Whether the function of a line has called torch at all in this run."""
        return any(other[:2] == key[:2] for other in self._events)


def _is_taken_back(event: _Event) -> bool:
    """Whether a call was of a function that could not be traced, and so became one opaque node."""
    return event.node is not None and tracer.is_erased(event.node)


class _Traced:
    """Stands for a value that a capture computes, which may be anything in another run."""


_TRACED = _Traced()

_VARYING = frozenset(("_validate_args", "_cached_x_y", "_inv"))
"""Attributes of a distribution or transform that are not the program's."""


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


def _unlike(values: list[Any], others: list[Any]) -> tuple[Any, ...] | None:
    """The first two values that are not the same, or nothing of both where there are more of one."""
    if len(values) != len(others):
        return ()
    return next(((one, two) for one, two in zip(values, others, strict=True) if not _is_same(one, two)), None)


def _is_same(value: Any, earlier: Any) -> bool:
    if value is earlier or value is _TRACED or earlier is _TRACED or isinstance(value, _Made):
        return True
    if isinstance(value, _Literal):
        # What a torch function has made of numbers is what these are.
        return not isinstance(earlier, Tensor) or _is_same_tensor(value.of, earlier)
    if isinstance(earlier, _Made):
        earlier = earlier.of()
    if isinstance(value, Tensor):
        return value is earlier or (isinstance(earlier, Tensor) and _is_same_tensor(value, earlier))
    if isinstance(earlier, Tensor):
        return False
    return type(value) is type(earlier) and bool(value == earlier or (value != value and earlier != earlier))


def _is_same_tensor(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype or one.device != two.device or one.layout != two.layout:
        return False
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return torch.equal(one, two) or bool(((one == two) | ((one != one) & (two != two))).all())


def _error(source: SourceLine | None, *values: Any, site: str | None = None) -> CaptureError:
    shown = [str(v.tolist() if isinstance(v, Tensor) and v.numel() <= 4 else v)[:80] for v in values]
    what = f": {shown[0]} in one, {shown[1]} in the next" if len(shown) == 2 else ""
    return CaptureError(
        f"two runs of the program with the same arguments and random numbers differ here{what}; a compiled program "
        "would keep what it was first",
        site=site,
        source=source,
        remedy="take what changes from call to call (a batch, a counter, a clock, a number drawn by numpy) outside of "
        "model and guide and pass it as an argument, as a tensor; or keep it in a buffer of an nn.Module",
    )
