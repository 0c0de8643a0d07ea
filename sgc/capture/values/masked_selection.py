"""A selection by a mask that depends on a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgc.errors import DataDependenceError


class MaskedSelection:
    """``tensor[mask]`` with a mask that depends on a sample, so that its length is unknown.

    All that it can be used for is ``other[mask] = tensor[mask]``, the idiom of Pyro's splines. Any other use
    raises the error that names the site.
    """

    def __init__(self, tensor: Tensor, mask: Tensor, error: DataDependenceError) -> None:
        self.__dict__.update(_tensor=tensor, _mask=mask, _error=error)

    def write_to(self, target: Tensor, mask: Any) -> None:
        """``target[mask] = tensor[mask]``, for any number of true entries."""
        if mask is not self._mask or target.shape != self._tensor.shape:
            raise self._error
        shaped = mask.reshape(mask.shape + (1,) * (target.dim() - mask.dim()))
        target.copy_(torch.where(shaped, self._tensor, target))

    def __getattr__(self, name: str) -> Any:
        raise self._error

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise self._error

    __torch_function__ = __len__ = __iter__ = __getitem__ = __bool__ = __float__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __matmul__ = __rmatmul__ = _refuse
