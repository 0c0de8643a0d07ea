"""Compares the captured run of a program with an eager one: what each passes to torch and Pyro."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sgc.errors import CaptureError, SourceLine
from sgc.tracing.state.transcript import MEASURED, TRACED, Event, Literal, Made, Transcript

_COMPARISONS = frozenset(("lt", "le", "__eq__", "ne"))
"""Python asks these of the right operand first where its class is derived from the left one's, as in Pyro's traces."""


def difference(captured: Transcript, eager: Transcript) -> CaptureError | None:
    """The first difference between the runs, as an error with the user's line; None if there is none."""
    return next(_differences(captured, eager), None)


def _differences(captured: Transcript, eager: Transcript) -> Iterator[CaptureError]:
    yield from _of_calls(captured, eager)
    if not captured.named_by_samples:
        for sites, others in ((captured.sites, eager.sites), (eager.sites, captured.sites)):
            yield from (_error(sites[key].source, site=key[1]) for key in sites if key not in others)
    yield from _of_statements(captured, eager)


def _of_calls(captured: Transcript, eager: Transcript) -> Iterator[CaptureError]:
    known = _numbers_of_lines(eager)
    for call, events in captured.events.items():
        earlier = eager.events.get(call, [])
        if call.function in captured.opaque:
            continue
        if len(events) == len(earlier):
            yield from _of_values(events, earlier, either_order=call.name in _COMPARISONS)
        elif call.is_direct:
            yield _error(events[0].source)
        else:
            # A library may call torch another number of times under a capture; what the program gave it is the same.
            for event in events:
                for value in event.values:
                    if type(value) in MEASURED and known[call.line].isdisjoint((TRACED, _number(value))):
                        yield _error(event.source, value)
    ran = {call.function for call in captured.events} - captured.opaque
    for call, earlier in eager.events.items():
        if call.is_direct and call.function in ran and call not in captured.events:
            yield _error(earlier[0].source)


def _of_values(events: list[Event], earlier: list[Event], *, either_order: bool) -> Iterator[CaptureError]:
    for one, two in zip(events, earlier, strict=True):
        unlike = _unlike(one.values, two.values)
        if unlike is not None and not (either_order and not _unlike(one.values, two.values[::-1])):
            yield _error(one.source, *unlike)


def _of_statements(captured: Transcript, eager: Transcript) -> Iterator[CaptureError]:
    for key in (key for key in captured.sites if key in eager.sites):
        site, earlier = captured.sites[key], eager.sites[key].values
        for part, value in site.values.items():
            if part in earlier and not _is_same(value, earlier[part]):
                yield _error(site.source, value, earlier[part], site=key[1])


def _numbers_of_lines(transcript: Transcript) -> dict[tuple[str, str, int], set[Any]]:
    """The numbers that each line of the program passed, and ``TRACED`` if it passed a traced tensor."""
    numbers: dict[tuple[str, str, int], set[Any]] = defaultdict(set)
    for call, events in transcript.events.items():
        values = (value for event in events for value in event.values)
        numbers[call.line].update(
            TRACED if value is TRACED else _number(value)
            for value in values
            if value is TRACED or type(value) in MEASURED
        )
    return numbers


def _number(value: Any) -> tuple[type, Any]:
    """Equal of numbers of one type that are the same, as two NaN are."""
    return type(value), value if value == value else None


def _unlike(values: list[Any], others: list[Any]) -> tuple[Any, ...] | None:
    """The first two values that are not the same, or nothing of both where there are more of one."""
    if len(values) != len(others):
        return ()
    return next(((one, two) for one, two in zip(values, others, strict=True) if not _is_same(one, two)), None)


def _is_same(value: Any, earlier: Any) -> bool:
    if value is earlier or value is TRACED or earlier is TRACED or isinstance(value, Made):
        return True
    if isinstance(value, Literal):
        # What a torch function has made of numbers is what these are.
        return not isinstance(earlier, Tensor) or _is_same_tensor(value.of, earlier)
    if isinstance(earlier, Made):
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
