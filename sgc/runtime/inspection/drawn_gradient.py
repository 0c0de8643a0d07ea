"""One draw of the gradient, beside training: for those who watch it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sgc.errors import SgcError
from sgc.graph.aliasing import copies
from sgc.graph.program import InputKind
from sgc.guards.base import Call
from sgc.runtime.specializing.choosing import Choosing
from sgc.runtime.specializing.specialization import Specialization
from sgc.runtime.turns import capturing
from sgc.tracing.state.random_state import random_state, restore_random_state


class InvalidDrawError(SgcError):
    """A draw at which the program fails a check, or takes another branch than it was captured with."""


@contextmanager
def beside_training(loss_module: Choosing, call: Call) -> Iterator[tuple[Specialization, list[Tensor]]]:
    """The specialization of a call that was made, and its inputs; other threads wait.

    :raises sgc.errors.SgcError: if eager Pyro makes that call, or none is valid any more.
    """
    with capturing(), loss_module._store.lent():
        matched = None if loss_module._eager_only else loss_module._match(call)
        if matched is None:
            raise SgcError("this call is made by eager Pyro, or would be compiled anew")
        yield matched


def parameter_leaves(specialization: Specialization, tensors: list[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Copies of all inputs of the emitted module, and those of them that are trained, by name.

    What the program writes into is copied too, so that it is as before the call.

    :param tensors: the program's inputs.
    """
    everything = copies(specialization.with_averages(tensors))
    leaves = {
        declared.name: everything[position].requires_grad_()
        for position, declared in enumerate(specialization.inputs)
        if declared.kind is InputKind.PARAMETER and tensors[position].requires_grad
    }
    return everything, leaves


def valid_results(specialization: Specialization, results: Iterable[Tensor]) -> list[Tensor]:
    """What an emitted module has returned, without whether it was valid.

    :raises InvalidDrawError: if it was not.
    """
    values = list(results)
    if specialization.checks and not bool(values.pop()):
        if specialization.tally is not None:
            raise InvalidDrawError(
                "a branch on a sample goes another way than the compiled program assumes, or a check of Pyro's "
                "validation fails",
                remedy="write the choice with tensors (torch.where), so that there is one program",
            )
        raise InvalidDrawError(
            "at these arguments the program fails a check of Pyro's validation",
            remedy="call loss_module(*args), which says which one",
        )
    return values


def drawn_gradient(specialization: Specialization, tensors: list[Tensor]) -> dict[str, Tensor]:
    """The surrogate's gradient by parameter, drawn from the present random state, which is put back.

    Nothing changes: not the parameters, their gradients, the averages, the buffers.

    :raises sgc.errors.SgcError: if a branch on a sample has gone another way than assumed, or a check of Pyro's
        validation fails.
    """
    state = random_state()
    total: dict[str, Tensor] = {}
    try:
        everything, leaves = parameter_leaves(specialization, tensors)
        for _ in range(specialization.repeats):
            with torch.enable_grad():
                results = specialization.emitted.module(*everything)
            _, surrogate = valid_results(specialization, results)
            parts = torch.autograd.grad(surrogate, [*leaves.values()], allow_unused=True) if leaves else ()
            for name, part in zip(leaves, parts, strict=True):
                if part is not None:
                    total[name] = total.get(name, 0.0) + part / specialization.repeats
    finally:
        restore_random_state(state)
    return total
