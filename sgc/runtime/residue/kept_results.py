"""Refuses programs that compute with what an earlier run has left: results that depend on parameters as they were then.

Eager Pyro goes on with the result of the run before (gpytorch's memos, of which some are cleared in the midst of a run
only). A compiled program would for ever go on with that of its first run. A result is told from a tensor that was there
before by the number that autograd has given to the operation behind it.
"""

from __future__ import annotations

from sgc.errors import CaptureError
from sgc.guards.base import Call
from sgc.runtime.residue.leaked_tensors import LeakedTensors
from sgc.tracing.declare import Capture
from sgc.tracing.state.owners import FixedOwner
from sgc.tracing.state.places import PlaceOwner


def refuse_kept_results(captured: Capture, call: Call, began: int, objects: LeakedTensors) -> None:
    """Refuse a captured program among whose inputs is a result of the eager run before.

    :param began: the number of autograd's that the eager run began with.
    :param objects: what can be reached from the program's objects.
    :raises CaptureError: with the place.
    """
    for owner in captured.owners.values():
        if isinstance(owner, PlaceOwner):
            tensor = owner.fetch_of(call.leaves)
        else:
            tensor = owner.fetch() if isinstance(owner, FixedOwner) else None
        if tensor is None or tensor.grad_fn is None:
            continue
        made_by = tensor.grad_fn
        if made_by._sequence_nr() >= began:
            where = objects.label_of(tensor)
            raise CaptureError(
                "the program computes with what an earlier run of it has left"
                + (f" in {where}" if where is not None else "")
                + f" (a result of {made_by.name()}), of the parameters as they were then",
                remedy="compute it anew in each run: clear such a cache at the start of the guide (with gpytorch: "
                "self.variational_strategy._clear_cache()), or detach() what is kept",
            )
