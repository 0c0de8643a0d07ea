"""The whole of a training run's state, so that a run that is resumed takes the steps that it would have taken."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from sgc.errors import SgcError
from sgc.runtime.loss_module import LossModule
from sgc.tracing.state.random_state import plain_random_state, random_state, restore_random_state
from sgc.training.stepper import Stepper

_ENTRIES = ("loss_module", "optimizer", "started", "random")
_AVERAGES = "baselines."


def state_dict(stepper: Stepper) -> dict[str, Any]:
    """Parameters, buffers and baseline averages, the optimizer and its schedulers, and the random state.

    :raises sgc.errors.SgcError: if nothing has been captured yet, or the parameters are gone from Pyro's store.
    """
    loss_module = stepper.loss_module()
    if not loss_module.specializations:
        raise SgcError("there is no state to save yet", remedy="take a step first")
    loss_module._refresh()
    with loss_module.param_store_scope():  # Pyro's optimizers find the names of their parameters there
        return {
            "loss_module": {name: _copied(value) for name, value in loss_module.state_dict().items()},
            "optimizer": copy.deepcopy(stepper.optimizing.state_dict()),
            "started": stepper.started,
            "random": plain_random_state(),
        }


def load_state_dict(stepper: Stepper, state: dict[str, Any]) -> None:
    """Put everything back in place, in the very tensors that Pyro's store and the user's modules hold.

    :raises sgc.errors.SgcError: if the state is another program's or another optimizer's, is not complete, or nothing
        has been captured yet; nothing has changed then.
    """
    loss_module = stepper.loss_module()
    missing = [entry for entry in _ENTRIES if entry not in state]
    if missing:
        raise SgcError(
            f"this is no state of an SVI: it has no {', '.join(missing)}",
            remedy="pass what svi.state_dict() returned, the whole of it",
        )
    if not loss_module.specializations:
        raise SgcError("the parameters are not there yet", remedy="call initialize(*args) first, as for a step")
    loss_module._refresh()
    _check_tensors(loss_module, state["loss_module"])
    _check_random_state(state["random"])
    with loss_module.param_store_scope():
        stepper.optimizing.load_state_dict(copy.deepcopy(state["optimizer"]))
        loss_module.load_state_dict(state["loss_module"])
    stepper.started = state["started"]
    restore_random_state(state["random"])


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _check_tensors(loss_module: LossModule, values: dict[str, Any]) -> None:
    """Each saved tensor must have a place of its shape and dtype; averages may be of shapes that were not met yet."""
    own = loss_module.state_dict()
    saved_averages = {name.removeprefix(_AVERAGES): v for name, v in values.items() if name.startswith(_AVERAGES)}
    tree = loss_module.baselines
    has = [*_not_averages(values.keys() - own.keys()), *(_AVERAGES + n for n in tree.unknown(saved_averages))]
    lacks = [*_not_averages(own.keys() - values.keys()), *(_AVERAGES + n for n in tree.missing(saved_averages))]
    if has or lacks:
        parts = [f"{what} {', '.join(names)}" for what, names in (("it has", has), ("it lacks", lacks)) if names]
        raise SgcError(
            f"the saved state is another program's: {'; '.join(parts)}",
            remedy="load it into an SVI of the same model and guide, called with the same kind of arguments",
        )
    for name in _not_averages(own):
        for what in ("shape", "dtype"):
            one, other = getattr(own[name], what, None), getattr(values[name], what, None)
            if one != other:
                shown = (list(each) if what == "shape" and each is not None else each for each in (one, other))
                raise SgcError(
                    "{} has {} {}, and {} in the saved state".format(name, what, *shown),
                    remedy="load it into an SVI of the same model and guide, made with the same sizes and dtypes",
                )


def _not_averages(names: Any) -> list[str]:
    return sorted(name for name in names if not name.startswith(_AVERAGES))


def _check_random_state(saved: Any) -> None:
    """Put a saved random state back, and then the present one again."""
    present = random_state()
    try:
        restore_random_state(saved)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SgcError(
            f"the saved random state cannot be put back ({type(error).__name__}: {error})",
            remedy="pass what svi.state_dict() returned",
        ) from error
    finally:
        restore_random_state(present)
