"""Modes of torch, of Pyro and of modules that a program may ask for in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pyro.nn.module
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import Distribution

from sgc.guards.base import Call, Guard
from sgc.guards.miss import Miss
from sgc.native import conditions
from sgc.native.conditions import Condition

_REMEDY = "switch modes seldom: each mode is compiled once, and up to cache_size are kept"


class ModeGuard(Guard):
    """Modes of each module and of torch: training, the default dtype and device, autocast, validation if it counts.

    And whether Pyro's modules keep their parameters to themselves, where there are any.
    """

    def __init__(self, modules: Sequence[nn.Module], *, follows_validation: bool) -> None:
        self._validation = Distribution._validate_args
        self._follows_validation = follows_validation
        self._modules = [inner for module in modules for inner in module.modules()]
        self._training = [module.training for module in self._modules]
        self._dtype = torch.get_default_dtype()
        self._device = _default_device()
        self._autocast = _autocast()
        self._has_pyros = any(isinstance(module, PyroModule) for module in self._modules)
        self._local = pyro.settings.get("module_local_params")

    @property
    def default_dtype(self) -> torch.dtype:
        """Torch's default dtype while the program was captured."""
        return self._dtype

    def conditions(self) -> list[Condition]:
        own = [
            conditions.is_same(conditions.entry(vars(module), "training"), training)
            for module, training in zip(self._modules, self._training, strict=True)
        ]
        own.append(conditions.is_same(conditions.result(torch.get_default_dtype), self._dtype))
        own += _same_default_device() if _default_device() == self._device else [conditions.NEVER]
        if self._follows_validation:
            own.append(conditions.is_same(conditions.attribute(Distribution, "_validate_args"), self._validation))
        if self._has_pyros:
            # Pyro's public way to ask is a function in Python, which takes longer than all other modes together.
            own.append(conditions.is_same(conditions.entry(vars(pyro.nn.module), "_MODULE_LOCAL_PARAMS"), self._local))
        if not self._autocast:
            # One look for all devices takes half as long as one for each, and only the private function takes it.
            return [*own, conditions.is_same(conditions.result(torch._C._is_any_autocast_enabled), False)]
        for device in _AUTOCAST:
            own.append(
                conditions.is_same(conditions.result(torch.is_autocast_enabled, device), device in self._autocast)
            )
        for device, dtype in self._autocast.items():
            own.append(conditions.is_same(conditions.result(torch.get_autocast_dtype, device), dtype))
        return own

    def miss(self, call: Call) -> Miss | None:
        for module, training in zip(self._modules, self._training, strict=True):
            if module.training is not training:
                name = type(module).__name__
                return _missed(f"{name} was in {_mode(training)} mode, is in {_mode(not training)} mode")
        if torch.get_default_dtype() is not self._dtype:
            return _missed(f"the default dtype was {self._dtype}, is {torch.get_default_dtype()}")
        if _default_device() != self._device:
            return _missed(f"the default device was {self._device}, is {_default_device()}")
        if Distribution._validate_args is not self._validation and self._follows_validation:
            was, now = _switched(self._validation), _switched(not self._validation)
            return _missed(f"Pyro's validation was {was}, is {now}")
        if self._has_pyros and pyro.settings.get("module_local_params") is not self._local:
            was, now = _switched(self._local), _switched(not self._local)
            return _missed(f"Pyro's setting module_local_params was {was}, is {now}")
        if _autocast() != self._autocast:
            return _missed(f"autocast was {_shown_autocast(self._autocast)}, is {_shown_autocast(_autocast())}")
        return None

    def describe(self) -> Iterator[str]:
        yield f"default dtype {self._dtype}"
        if self._follows_validation:
            yield f"Pyro's validation {_switched(self._validation)}"
        for mode in (True, False):
            modules = zip(self._modules, self._training, strict=True)
            classes = Counter(type(module).__name__ for module, training in modules if training is mode)
            if classes:
                counted = (f"{count} {name}" if count > 1 else name for name, count in classes.items())
                yield f"in {_mode(mode)} mode: {', '.join(counted)}"


def _missed(text: str) -> Miss:
    return Miss(text, text.partition(" was ")[0], _REMEDY)


def _default_device() -> torch.device:
    """The default device. To ask for it takes 6 us; torch sets it by a mode, so that mostly there is none."""
    return torch.get_default_device() if torch._C._len_torch_function_stack() else torch.device("cpu")


def _same_default_device() -> list[Condition]:
    """What is enough for the default device to be that of now: the same modes, and the same current device."""
    modes = [torch._C._get_function_stack_at(position) for position in range(torch._C._len_torch_function_stack())]
    own = [conditions.equals(conditions.result(torch._C._len_torch_function_stack), len(modes))]
    for position, mode in enumerate(modes):
        own.append(conditions.is_same(conditions.result(torch._C._get_function_stack_at, position), mode))
    if modes and torch.accelerator.is_available():
        # A default device without an index is the current one.
        index = torch.accelerator.current_device_index()
        own.append(conditions.equals(conditions.result(torch.accelerator.current_device_index), index))
    return own


_AUTOCAST = ("cpu", "cuda")


def _autocast() -> dict[str, torch.dtype]:
    """The devices on which autocast is on, and its dtype there."""
    return {device: torch.get_autocast_dtype(device) for device in _AUTOCAST if torch.is_autocast_enabled(device)}


def _shown_autocast(state: dict[str, torch.dtype]) -> str:
    return ", ".join(f"{dtype} on {device}" for device, dtype in state.items()) or "off"


def _switched(on: bool) -> str:
    return "on" if on else "off"


def _mode(training: bool) -> str:
    return "train" if training else "eval"
