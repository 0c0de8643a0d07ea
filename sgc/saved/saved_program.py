"""One program of a file: which calls it is for, the inputs of a call, and what it computes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sgc.emit.fx.values_as_data import of_torch
from sgc.errors import ArgumentError
from sgc.graph.aliasing import copies
from sgc.runtime.particles import Repeated
from sgc.saved.call_conditions import SavedNumber, SavedSizes, SavedTensor, input_of, leaf_of, read_of
from sgc.saved.call_structure import check_structure, leaves_of
from sgc.saved.fx_as_data import module_of_data
from sgc.saved.graph_nodes_as_data import SavedGraph, graph_of_data
from sgc.saved.tensor_bytes import is_dense

_MOST_REPEATS = 10**6
"""How often a program is run in a call at most: once for each particle."""


@dataclass
class Run:
    """A callable that gives the loss, the gradients of some inputs and, if there are checks, whether they all hold.

    ``separate`` is for :class:`sgc.runtime.autograd.Loss`.
    """

    run: Callable[..., Any]
    gradient_of: tuple[int, ...]
    separate: bool | None = None


class SavedProgram:
    """A program of a file.

    :param data: what the file notes of it.
    :param tensors: those of the file.
    :raises ValueError: if the data are none.
    """

    def __init__(self, data: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        self.structure = data["arguments"]
        self.leaves = tuple(map(leaf_of, data["leaves"]))
        self._strides = [leaf.get("strides") for leaf in data["leaves"]]
        if check_structure(self.structure) != len(self.leaves):
            raise ValueError("other leaves than the arguments have")
        self.inputs = [input_of(each, self.leaves) for each in data["inputs"]]
        self.averages = tuple(map(str, data["averages"]))
        self.checks = tuple(map(str, data["checks"]))
        self.repeats = int(data["repeats"])
        self._default_dtype: torch.dtype = of_torch(data["default_dtype"])
        if not 1 <= self.repeats <= _MOST_REPEATS:
            raise ValueError(f"a program that is run {self.repeats} times in a call")
        count, validates = len(self.inputs), bool(self.checks)
        gradient_of = tuple(data["gradient_of"])
        total = count + len(self.averages)
        if not all(type(i) is int and 0 <= i < count for i in (*gradient_of, *data["written"])):
            raise ValueError("the gradient of an input that is not there")
        self.written = tuple(data["written"])
        self._sizes = None if data["sizes"] is None else SavedSizes.of(data["sizes"], len(self.leaves))
        self.reads = [read_of(each, tensors, self.inputs) for each in data["reads"]]
        self.module = module_of_data(data["gradient"], tensors, total, 1 + len(gradient_of) + validates)
        self._loss = module_of_data(data["loss"], tensors, count, 1 + validates)
        self._validity = module_of_data(data["validity"], tensors, count, len(self.checks)) if validates else None
        self.sampled = tuple(map(str, data["sampled"]))
        self.samples = module_of_data(data["samples"], tensors, count, len(self.sampled)) if self.sampled else None
        self.gradient = Run(self._run(self.module), gradient_of)
        self.loss = Run(self._run(self._loss), ())
        self.graph: SavedGraph = graph_of_data(data["graph"])

    def _run(self, module: fx.GraphModule) -> Callable[..., Any]:
        if self.repeats == 1:
            return module
        return Repeated(module, self.repeats, self._written_of if self.checks else None)

    def _written_of(self, tensors: list[Tensor]) -> list[Tensor]:
        return [*(tensors[i] for i in self.written), *tensors[len(self.inputs) :]]

    @property
    def shown(self) -> list[str]:
        """The names of the parameters, buffers and constants that it uses."""
        return [*(each for _, each in self.inputs if isinstance(each, str)), *self.averages]

    def inputs_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], shown: Callable[[str], Tensor]) -> list[Tensor]:
        """The inputs of a call.

        :param shown: the parameter, buffer or constant of a name.
        :raises sgc.errors.ArgumentError: if the program is not for such a call; the text names what differs.
        """
        if torch.get_default_dtype() is not self._default_dtype:
            raise ArgumentError(
                f"the default dtype is {torch.get_default_dtype()}; the program was saved under {self._default_dtype}",
                remedy=f"call torch.set_default_dtype({self._default_dtype})",
            )
        values = leaves_of(self.structure, args, kwargs)
        made: list[Tensor | None] = []
        for leaf, value in zip(self.leaves, values, strict=True):
            if isinstance(leaf, SavedNumber):
                made.append(leaf.tensor(value))
            else:
                leaf.refuse_other(value)
                made.append(value if isinstance(leaf, SavedTensor) else None)
        strides = (
            self._strides
            if self._sizes is None
            else [self._sizes.strides_of(values).get(i, each) for i, each in enumerate(self._strides)]
        )
        inputs: list[Tensor] = []
        for position, (declared, where) in enumerate(self.inputs):
            if isinstance(where, str):
                tensor = shown(where)
                declared.refuse_other(tensor)
            else:
                own = made[where]
                assert own is not None
                tensor = self._laid_out(position, declared.name, own, strides[where])
            inputs.append(tensor)
        for read in self.reads:
            read.refuse_other(inputs)
        return inputs

    def _laid_out(self, position: int, name: str, tensor: Tensor, strides: Sequence[int] | None) -> Tensor:
        """A tensor as it lay in memory where the program was saved: operators may rely on it."""
        if strides is None or tensor.stride() == tuple(strides):
            return tensor
        if position in self.written:
            raise ArgumentError(
                f"{name}, which is written into, has the strides {list(tensor.stride())}; the program was saved for "
                f"{list(strides)}",
                remedy="pass a tensor that lies in memory as before",
            )
        if not is_dense(tensor.shape, strides):
            return tensor.contiguous()
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

    def sample(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """A draw of each latent site of the guide."""
        if self.samples is None:
            return {}
        with torch.no_grad(), without_autocast(inputs):
            return {name: value.clone() for name, value in zip(self.sampled, self.samples(*inputs), strict=True)}

    def broken_checks(self, inputs: Sequence[Tensor]) -> list[str]:
        """Which checks of parameters and values fail for these inputs, from the present random state on."""
        assert self._validity is not None
        with torch.no_grad(), without_autocast(inputs):
            holds = self._validity(*copies(list(inputs)))
        return [text for text, each in zip(self.checks, holds, strict=True) if not each]

    def __str__(self) -> str:
        return ", ".join(f"{leaf.name}: {leaf}" for leaf in self.leaves)


@contextmanager
def without_autocast(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Compute as was captured: what autocast was in force then stands in the graph."""
    with ExitStack() as stack:
        for kind in {"cpu", *(tensor.device.type for tensor in tensors)}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
