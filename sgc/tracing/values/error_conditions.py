"""Conditions under which torch functions do not raise, where compiled code no longer checks the data.

``one_hot`` looks at its classes in its own code, which fake tensors replace by arithmetic. Inductor draws from
probabilities without looking at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sgc.tracing.source import is_in_library

_Condition = Callable[..., Tensor | None]


def condition_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """A tensor that is true everywhere unless the call raises; None if compiled code checks by itself."""
    rule = _RULES.get(func)
    return None if rule is None else rule(*args, **kwargs)


def _classes(tensor: Tensor, num_classes: int = -1) -> Tensor | None:
    return (tensor >= 0) & (tensor < num_classes) if num_classes > 0 else None


def _probabilities(input: Tensor, *others: Any, **options: Any) -> Tensor | None:
    # A distribution has checked its parameters.
    return None if others or options or is_in_library() else (input >= 0) & (input <= 1)


_RULES: dict[Callable[..., Any], _Condition] = {
    one_hot: _classes,
    torch.bernoulli: _probabilities,
    Tensor.bernoulli: _probabilities,
}

CHECKING = frozenset(_RULES)
"""The functions that have such conditions."""
