"""What a workload is: one piece of mathematics, written in Pyro, in NumPyro and by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Values = dict[str, np.ndarray]
Program = tuple[Callable[..., Any], Callable[..., Any]]
"""A model and a guide, which take the workload's data."""


class Workload(ABC):
    """The data, the parameters' first values, and three programs that compute the same loss from them.

    Each program starts from ``values``, so that the losses of all of them have one mean.
    """

    data: tuple[np.ndarray, ...]
    """What model and guide are called with; float32 and int64."""
    values: Values
    """The first value of each parameter, as the model or the guide gives it to ``param``."""
    positive: dict[str, Literal["exp", "softplus"]] = {}
    """The parameters that must be positive, and the function that makes them so."""
    discrete: bool = False
    """Whether a latent variable has no pathwise gradient, so that NumPyro needs its TraceGraph_ELBO."""

    @abstractmethod
    def pyro(self) -> Program:
        """Model and guide for Pyro; those that sgc compiles."""

    @abstractmethod
    def numpyro(self) -> Program:
        """Model and guide for NumPyro, which this function imports."""

    @abstractmethod
    def by_hand(self, params: dict[str, Tensor], *data: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the surrogate loss in plain torch, vectorised; parameters unconstrained, named as in ``values``.

        The gradient of the surrogate is the estimator that Pyro's TraceGraph_ELBO uses.
        """

    def unconstrained(self) -> Values:
        """The first values for ``by_hand``."""
        inverse = {"exp": np.log, "softplus": lambda value: np.log(np.expm1(value))}
        return {
            name: np.asarray(inverse[self.positive[name]](value) if name in self.positive else value, np.float32)
            for name, value in self.values.items()
        }

    def constrain(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """For ``by_hand``: positive what must be positive."""
        function = {"exp": torch.exp, "softplus": torch.nn.functional.softplus}
        return {name: function[self.positive[name]](p) if name in self.positive else p for name, p in params.items()}

    def gradients_by_hand(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pyro's or NumPyro's gradients of unconstrained parameters, under the names of ``by_hand``.

        Names that ``by_hand`` does not have are left out by whoever compares.
        """
        return {name.replace("$$$", "."): gradient for name, gradient in gradients.items()}
