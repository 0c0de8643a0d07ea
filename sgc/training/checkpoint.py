"""The whole of a training run's state, so that a run that is resumed takes the steps that it would have taken."""

from __future__ import annotations

import copy
from typing import Any

import torch

from sgc.capturing.randomness import random_state, restore_random_state
from sgc.errors import SgcError
from sgc.run.loss import LossModule
from sgc.training.step import Stepper


def state_dict(stepper: Stepper) -> dict[str, Any]:
    """Parameters, buffers and baseline averages, the optimizer and its schedulers, and the random state.

    :raises sgc.errors.SgcError: if nothing has been captured yet.
    """
    loss_module = stepper.loss_module()
    if not loss_module.specializations:
        raise SgcError("there is no state to save yet", remedy="take a step first")
    return {
        "loss_module": {name: value.clone() for name, value in loss_module.state_dict().items()},
        "optimizer": copy.deepcopy(stepper.optimizing.state_dict()),
        "started": stepper.started,
        "random": random_state(),
    }


def load_state_dict(stepper: Stepper, state: dict[str, Any]) -> None:
    """Put everything back in place, in the very tensors that Pyro's store and the user's modules hold.

    :raises sgc.errors.SgcError: if the state is another program's, or nothing has been captured yet.
    """
    loss_module = stepper.loss_module()
    if not {"loss_module", "optimizer", "started", "random"} <= state.keys():
        raise SgcError("this is no state of an SVI", remedy="pass what state_dict() returned")
    if not loss_module.specializations:
        raise SgcError("the parameters are not there yet", remedy="call initialize(*args) first, as for a step")
    loss_module._refresh()
    own = _own_tensors(loss_module, state["loss_module"])
    stepper.optimizing.load_state_dict(copy.deepcopy(state["optimizer"]))
    with torch.no_grad():
        for name, value in state["loss_module"].items():
            own[name].copy_(value)
    stepper.started = state["started"]
    restore_random_state(state["random"])


def _own_tensors(loss_module: LossModule, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors to be written into; each saved one has a place there."""
    own = loss_module.state_dict()
    missing, unknown = sorted(values.keys() - own.keys()), sorted(own.keys() - values.keys())
    if missing or unknown:
        raise SgcError(
            "the saved state is another program's: "
            + "; ".join(
                f"{what} {', '.join(names)}" for what, names in (("it has", missing), ("it lacks", unknown)) if names
            ),
            remedy="load it into an SVI of the same model and guide, called with the same kind of arguments",
        )
    for name, value in values.items():
        if own[name].shape != value.shape:
            raise SgcError(f"{name} has shape {list(own[name].shape)}, and {list(value.shape)} in the saved state")
    return own
