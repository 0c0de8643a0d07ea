"""Whether the saved state of an optimizer is one that another can go on from: of its class, and complete."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sgc.errors import SgcError
from sgc.training.optimizers.members import unhooked_step

_PARAMETERS_ALONE = 'svi.loss_module.load_state_dict(state["loss_module"]) takes over the parameters alone'


def check_entries(saved: Any, entries: tuple[str, ...], of: str) -> None:
    """Refuse what is no state, or not the whole of one.

    :param of: whose state, in words.
    :raises SgcError: if an entry is missing.
    """
    missing = [entry for entry in entries if not isinstance(saved, dict) or entry not in saved]
    if missing:
        raise SgcError(
            f"the saved state of {of} has no {', '.join(missing)}",
            remedy="pass what svi.state_dict() returned, the whole of it",
        )


def check_kind(saved: str, own: str) -> None:
    """Refuse the state of an optimizer of another class: its numbers mean something else.

    :param saved: the library and the class, such as "torch's Adam".
    :raises SgcError: which names both.
    """
    if saved != own:
        raise SgcError(
            f"the saved optimizer is {saved}, this one is {own}",
            remedy=f"make the SVI with the optimizer that was saved; {_PARAMETERS_ALONE}",
        )


def check_names(saved: list[list[str]], own: list[list[str]]) -> None:
    """Refuse the state of an optimizer that has other parameters, or has them in other groups.

    :param saved: the names of each group's parameters, in any order.
    :raises SgcError: which names those that only one of the two has, or the groups of both.
    """
    if [sorted(group) for group in saved] == [sorted(group) for group in own]:
        return
    theirs, ours = ({name for group in groups for name in group} for groups in (saved, own))
    only = (("the saved one alone has", theirs - ours), ("this one alone has", ours - theirs))
    parts = [f"{whose} {', '.join(sorted(names))}" for whose, names in only if names]
    if not parts:
        parts = [f"{whose} has the groups {_grouped(groups)}" for whose, groups in (("it", saved), ("this one", own))]
    raise SgcError(
        f"the saved optimizer has other {'parameters' if theirs != ours else 'groups of parameters'}: "
        + "; ".join(parts),
        remedy="load into an SVI whose optimizer has the same groups of parameters, and that has been "
        "initialized for the same kinds of arguments",
    )


def _grouped(groups: list[list[str]]) -> str:
    return " and ".join(f"({', '.join(sorted(group))})" for group in groups)


def check_state(optimizer: Optimizer, name: str, parameter: Tensor, options: dict[str, Any], saved: Any) -> None:
    """Refuse the saved state of a parameter that lacks what the optimizer keeps, or has it in other shapes or dtypes.

    What an optimizer keeps is seen by stepping one of its class for a few elements of the parameter. That is not done
    with classes that are neither torch's nor Pyro's, whose Python may do anything, and those that ask for more than
    gradients.

    :param options: of the saved group.
    :raises SgcError: which names the parameter and what is wrong with its state.
    """
    kind = type(optimizer)
    if kind.__module__.partition(".")[0] not in ("torch", "pyro") or kind in (
        torch.optim.LBFGS,
        torch.optim.SparseAdam,
    ):
        return
    whose = f"of {name} in {kind.__qualname__}"
    few, expected = _kept_for(kind, parameter, options, whose)
    check_entries(saved, tuple(expected), f"the state {whose}")
    for key, value in expected.items():
        if isinstance(value, Tensor) and value.shape == few.shape:
            given = getattr(saved[key], "shape", torch.Size())
            if given != parameter.shape:
                raise _unlike(f"{key} {whose}", "shape", list(given), list(parameter.shape))
            # One without dimensions may be a count, which is kept in various dtypes.
            if value.dim() and saved[key].dtype != value.dtype:
                raise _unlike(f"{key} {whose}", "dtype", saved[key].dtype, value.dtype)


def _unlike(what: str, aspect: str, given: Any, wanted: Any) -> SgcError:
    return SgcError(
        f"the saved {what} has {aspect} {given}, and this optimizer's {wanted}",
        remedy="pass what svi.state_dict() returned for the same parameters",
    )


def _kept_for(
    kind: type[Optimizer], parameter: Tensor, options: dict[str, Any], whose: str
) -> tuple[Tensor, dict[str, Any]]:
    """A few elements of the parameter, and what an optimizer of these options keeps for them after a step."""
    few = parameter.detach()[tuple(slice(2) for _ in parameter.shape)].clone().requires_grad_()
    few.grad = torch.zeros_like(few)
    accepted = inspect.signature(kind).parameters
    given = {key: copy.deepcopy(value) for key, value in options.items() if key in accepted and key != "params"}
    try:
        made = kind([few], **given)
        made.__setstate__({"state": made.state, "param_groups": [{**copy.deepcopy(options), "params": [few]}]})
        unhooked_step(made)(made)
    except Exception as error:
        raise SgcError(
            f"the saved options {whose} are not those of such an optimizer ({type(error).__name__}: {error})",
            remedy="pass what svi.state_dict() returned, the whole of it",
        ) from error
    return few, dict(made.state[few])


def not_taken(kind: str, error: Exception) -> SgcError:
    """What to raise where the optimizer itself refuses a saved state."""
    return SgcError(
        f"the saved state of {kind} cannot be loaded ({type(error).__name__}: {error})",
        remedy=f"pass what svi.state_dict() returned, the whole of it; {_PARAMETERS_ALONE}",
    )
