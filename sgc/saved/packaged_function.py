"""A function of a saved program as a module for ``torch.export``: it computes of arguments, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sgc.emit.differentiate import trace
from sgc.emit.rewrites.functionalise import functionalise
from sgc.emit.rewrites.singular_matrices import failures_are_nan
from sgc.saved.call_conditions import SavedRead
from sgc.saved.call_structure import leaves_of
from sgc.saved.loaded_loss import LoadedLoss, holder_of
from sgc.saved.saved_program import SavedProgram

Computation = Callable[[SavedProgram, list[Tensor]], tuple[Any, list[Tensor]]]
"""Takes the inputs and averages of a program, which it may write into; gives results, in containers, and whether the
call was valid, where that is known."""


def loss_alone(program: SavedProgram, tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """Minus the ELBO."""
    loss, *valid = program.loss.run(*tensors[: len(program.inputs)])
    return loss, valid


def loss_and_gradients(program: SavedProgram, tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """Minus the ELBO, the surrogate's gradients, and what the program has written into buffers and averages."""
    loss, *gradients = program.gradient.run(*tensors)
    valid = [gradients.pop()] if program.checks else []
    names = [*(declared.name for declared, _ in program.inputs), *program.averages]
    results = {
        "loss": loss,
        "gradients": {names[i]: gradient for i, gradient in zip(program.gradient.gradient_of, gradients, strict=True)},
        "written": {names[i]: tensors[i] for i in _written(program)},
    }
    return results, valid


def guide_sample(program: SavedProgram, tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """A draw of each latent site of the guide."""
    assert program.samples is not None
    values = program.samples(*tensors[: len(program.inputs)])
    return dict(zip(program.sampled, values, strict=True)), []


def _written(program: SavedProgram) -> list[int]:
    count = len(program.inputs)
    return [*program.written, *range(count, count + len(program.averages))]


def _not_valid(program: SavedProgram) -> str:
    shown = "; ".join(program.checks[:_MOST_SHOWN])
    more = len(program.checks) - _MOST_SHOWN
    return f"the call is not valid; what must hold: {shown}" + (f"; and {more} more" if more > 0 else "")


_MOST_SHOWN = 10


def _other_value(read: SavedRead) -> str:
    return f"a value computed from {read.names} is not what it was" + (
        f" (read at {read.source})" if read.source else ""
    )


class PackagedFunction(nn.Module):
    """What a program computes of the arguments of a call.

    Parameters, buffers and averages are the module's own, with the names that they have in the loss. What the program
    writes into is a copy. What holds in a valid call is asserted: of parameters and values, and of what Python read
    when the program was captured.

    :param loaded: the loss that the program is of.
    :param inputs: those of a call; tensors of other calls are like these.
    """

    def __init__(
        self, loaded: LoadedLoss, program: SavedProgram, inputs: Sequence[Tensor], compute: Computation
    ) -> None:
        super().__init__()
        for name in program.shown:
            self._show(name, loaded._shown(name))
        self._structure = program.structure
        self._places = [*(where for _, where in program.inputs), *program.averages]
        self._asserted: list[str] = []
        spec: list[TreeSpec] = []

        def step(*tensors: Tensor) -> list[Tensor]:
            own = list(tensors)
            for i in _written(program):
                own[i] = own[i].clone()
            results, valid = compute(program, own)
            flat, whole = tree_flatten(results)
            spec[:] = [whole]
            reads = [read.holds(read.module(*(tensors[i].clone() for i in read.inputs))[0]) for read in program.reads]
            self._asserted[:] = [_not_valid(program)] * len(valid) + [*map(_other_value, program.reads)]
            return [*(result.clone() for result in flat), *valid, *reads]

        with torch.no_grad():
            self.operators = trace(step, [*inputs, *(loaded._shown(name) for name in program.averages)])
        failures_are_nan(self.operators, validates=False)
        functionalise(self.operators)
        (self._results,) = spec

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The results, in containers.

        :raises RuntimeError: if the call is not valid.
        """
        leaves = leaves_of(self._structure, args, kwargs)
        tensors = [leaves[where] if isinstance(where, int) else self._shown(where) for where in self._places]
        results = list(self.operators(*tensors))
        for text in reversed(self._asserted):
            torch._assert_async(results.pop(), text)
        return tree_unflatten(results, self._results)

    def _show(self, name: str, tensor: Tensor) -> None:
        holder, last = holder_of(self, name)
        of_kind: dict[str, Any] = holder._parameters if isinstance(tensor, nn.Parameter) else holder._buffers
        of_kind[last] = tensor

    def _shown(self, name: str) -> Tensor:
        holder, last = holder_of(self, name)
        tensor = holder._parameters.get(last)
        shown = holder._buffers[last] if tensor is None else tensor
        assert shown is not None
        return shown
