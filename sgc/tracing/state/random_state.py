"""The state of the random generators: torch's on the CPU and on the accelerator, Python's and numpy's.

And what a program may not do with them, because a compiled program would not do it again: seed torch's, draw from
Python's or numpy's.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any
from unittest import mock

import numpy as np
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from sgc.errors import CaptureError
from sgc.tracing.source import current_line

_CPU = torch.device("cpu")


def random_state() -> dict[str, Any]:
    """The state of every generator that a Pyro program may draw from.

    Under the name of the accelerator's type (``"cuda"``) is a state for each such device, unless the accelerator was
    not used yet: asking would make it start up, for nothing where the program is on the CPU.
    """
    state = get_rng_state()
    accelerator = _accelerator()
    if accelerator is not None:
        state[accelerator.type] = [device_random_state(device) for device in _devices(accelerator)]
    return state


def plain_random_state() -> dict[str, Any]:
    """As :func:`random_state`, of tensors and plain values: ``torch.load`` reads it with ``weights_only=True``."""
    state = random_state()
    name, key, *others = state["numpy"]
    return state | {"numpy": (name, torch.from_numpy(key.astype(np.int64)), *others)}


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` returned, or :func:`plain_random_state`.

    A checkpoint may bring one from a machine with other devices.
    """
    name, key, *others = state["numpy"]
    key = key.cpu().numpy().astype(np.uint32) if isinstance(key, Tensor) else key
    set_rng_state(state | {"torch": state["torch"].cpu(), "numpy": (name, key, *others)})
    accelerator = _accelerator()
    if accelerator is None:
        return
    devices = _devices(accelerator)
    if accelerator.type in state:
        for device, known in zip(devices, state[accelerator.type], strict=False):
            set_device_random_state(known, device)
    else:
        # The accelerator has started up since, so nothing had been drawn on it before.
        for generator in _generators(accelerator):
            generator.manual_seed(generator.initial_seed())


def torch_random_state() -> dict[torch.device, Tensor]:
    """The state of torch's generators alone; it can be asked for, and put back, within :func:`no_seeding` too."""
    accelerator = _accelerator()
    devices = [] if accelerator is None else _devices(accelerator)
    return {_CPU: torch.default_generator.get_state(), **{device: device_random_state(device) for device in devices}}


def restore_torch_random_state(state: dict[torch.device, Tensor]) -> None:
    """Restore what :func:`torch_random_state` returned."""
    for device, known in state.items():
        if device == _CPU:
            torch.default_generator.set_state(known)
        else:
            set_device_random_state(known, device)


def same_random_state(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether nothing was drawn between two states."""
    kinds = (one.keys() | other.keys()) - {"torch", "random", "numpy"}
    return (
        torch.equal(one["torch"], other["torch"])
        and one["random"] == other["random"]
        and _same_numpy(one, other)
        and all(
            len(one.get(kind, ())) == len(other.get(kind, ()))
            and all(torch.equal(a, b) for a, b in zip(one[kind], other[kind], strict=True))
            for kind in kinds
        )
    )


def _same_numpy(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool((one["numpy"][1] == other["numpy"][1]).all()) and one["numpy"][2:] == other["numpy"][2:]


def device_random_state(device: torch.device) -> Tensor:
    """The state of torch's generator on one device."""
    if device.type == "cpu":
        return torch.get_rng_state()
    module: Any = torch.get_device_module(device)
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def set_device_random_state(state: Tensor, device: torch.device) -> None:
    """Restore what :func:`device_random_state` returned."""
    if device.type == "cpu":
        torch.set_rng_state(state.cpu())
    elif device.type == "mps":
        torch.mps.set_rng_state(state.cpu())
    else:
        module: Any = torch.get_device_module(device)
        module.set_rng_state(state.cpu(), device)


def _accelerator() -> torch.device | None:
    """The accelerator of this process, if there is one and it has started up."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return None
    module: Any = torch.get_device_module(accelerator)
    started = getattr(module, "is_initialized", None) or getattr(module, "is_available", None)
    return accelerator if started is None or started() else None


def _devices(accelerator: torch.device) -> list[torch.device]:
    return [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]


def _generators(accelerator: torch.device) -> tuple[torch.Generator, ...]:
    return getattr(torch.get_device_module(accelerator), "default_generators", ())


class _Unseeded:
    """torch's generator on the CPU as ``torch.random`` sees it during a capture: its state can be read, not set.

    Other threads may set it.
    """

    def __init__(self) -> None:
        self._thread, self._generator = get_ident(), torch.default_generator

    def __getattr__(self, name: str) -> Any:
        if name != "get_state" and get_ident() == self._thread:
            return self._refuse
        return getattr(self._generator, name)

    def _refuse(self, *args: Any) -> Any:
        raise _seeded()


@contextmanager
def no_seeding(*, strictly: bool) -> Iterator[None]:
    """Refuse what seeds torch's generators or puts back a state, which leaves none of the draws that a graph holds.

    :param strictly: refuse the methods of ``torch.default_generator`` too, which other threads cannot draw from then.
    """
    unseeded = _Unseeded()
    with ExitStack() as stack:
        for holder in (torch.random, torch) if strictly else (torch.random,):
            stack.enter_context(mock.patch.object(holder, "default_generator", unseeded))
        yield


def drawn_between(before: dict[str, Any], after: dict[str, Any]) -> CaptureError | None:
    """The error for a program that has drawn from Python's or numpy's generators, or has moved torch's."""
    drawn = ["random"] * (before["random"] != after["random"])
    drawn += ["numpy.random"] * (not _same_numpy(before, after))
    if drawn:
        return drawn_from(" and ".join(drawn))
    return None if same_random_state(before, after) else _seeded()


def torchs_on_cpu_alone_moved(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether between two states nothing was drawn from other generators than torch's on the CPU."""
    return same_random_state(before, {**after, "torch": before["torch"]})


def drawn_from(generators: str) -> CaptureError:
    """The error for numbers drawn by Python or numpy, which would be the same at each call of a compiled program."""
    return CaptureError(
        f"the program draws from {generators}, which a compiled program would not do again",
        remedy="draw with torch (torch.rand, pyro.sample), or pass the number as a tensor argument",
    )


def _seeded() -> CaptureError:
    return CaptureError(
        "the program sets the state of torch's random generator (manual_seed, fork_rng, set_rng_state, poutine.seed), "
        "which a compiled program would not do again",
        source=current_line(),
        remedy="seed outside of model and guide, or pass the numbers as a tensor argument",
    )


def state_of(generator: Any) -> Hashable:
    """The state of one of Python's or numpy's generators, for comparison with a later one; None for anything else."""
    if isinstance(generator, random.Random):
        return None if isinstance(generator, random.SystemRandom) else generator.getstate()
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return str(generator.get_state()[1:]), generator.get_state()[1].tobytes()  # type: ignore[index]
    return None
