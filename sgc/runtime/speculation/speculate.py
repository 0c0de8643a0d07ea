"""Calls of a program that assumes which way its branches on samples go, and eager Pyro's where they do not.

What is assumed is checked with the program at each call, and a call for which it is false writes nothing. Pyro makes
that call, from the random state before it: with the numbers with which the assumption was false. Other numbers would
make the outcomes for which it is false too rare.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import detach_provenance
from pyro.poutine import runtime
from torch import Tensor, nn

from sgc.errors import SgcError, StandInWarning
from sgc.guards.handlers import unobserved
from sgc.runtime.averages import put_in_store
from sgc.runtime.eager_loss import eager_loss
from sgc.runtime.restore_on_error import saved, state_restored_on_error
from sgc.runtime.speculation.branches import first_failed
from sgc.runtime.speculation.tally import Tally
from sgc.runtime.turns import capturing
from sgc.runtime.validity import Trial
from sgc.tracing.prototype import validated
from sgc.tracing.reference.loss_of_objective import pyro_elbo
from sgc.tracing.source import warn
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX, lent_averages, present_averages
from sgc.tracing.state.writes import undone_writes

if TYPE_CHECKING:
    from sgc.runtime.loss_module import LossModule


def speculate(loss_module: LossModule, trial: Trial, run: Callable[[], Tensor]) -> Tensor:
    """The loss of a call that assumes which way branches go; eager Pyro's where that is false.

    :param run: makes the call with the compiled program.
    """
    specialization = trial.specialization
    assert specialization.tally is not None
    specialization.tally.calls += 1
    restore = saved(specialization.written(trial.inputs + specialization.averages()))
    failure: Exception | None = None
    try:
        loss = run()
    except Exception as error:  # on the captured branch, which may be the wrong one
        failure = error
        restore()
    trial.params = specialization.prototype.params
    if failure is not None or not trial.valid:
        loss = loss_by_pyro(loss_module, trial, failure)
    else:
        tell_parameters(loss_module, trial.params)
    loss_module._warn_if_nan(loss.detach())
    return loss


def loss_by_pyro(loss_module: LossModule, trial: Trial, failure: Exception | None = None) -> Tensor:
    """Eager Pyro's loss for a call that the compiled program could not make.

    :param failure: what that has raised; None if it was not valid.
    :raises Exception: Pyro's own, or ``failure`` where all branches go as assumed; nothing has changed then.
    """
    trial.before.restore()
    failed, tally = first_failed(trial.specialization, trial.inputs), trial.specialization.tally
    trial.before.restore()
    if failed is None and failure is not None:
        loss_module._explain(trial)
        raise failure
    with state_restored_on_error():  # a warning may be made an error
        if failed is not None and tally is not None:
            tally.note(failed)
            if tally.is_unusual:
                _capture_again(loss_module, trial, tally)
        with capturing(), loss_module.param_store_scope():
            loss = run_pyro(trial, *loss_module._program, loss_module._modules_of())
    loss_module._show_asked(trial.params)
    loss_module.baselines.show_names(trial.averages)
    tell_parameters(loss_module, trial.params)
    return loss


def _capture_again(loss_module: LossModule, trial: Trial, tally: Tally) -> None:
    """Capture the branches that a call takes, for the calls from now on; the present ones remain if that cannot be.

    The random state is the one before that call.
    """
    try:
        again = loss_module._capture_again(trial.call)
    except SgcError as error:
        tally.give_up()
        warn(
            "the usual branches of this program cannot be captured, so that eager Pyro goes on making the calls that "
            f"take them: {error}",
            StandInWarning,
        )
        return
    if again.tally is not None:
        again.tally.captures = tally.captures + 1


def tell_parameters(loss_module: LossModule, names: Sequence[str]) -> None:
    """Show outer handlers the parameters that a call has asked for: ``SVI`` finds those to train by a trace."""
    if runtime.am_i_wrapped():
        loss_module._forget_replaced()  # SVI finds those that took the place of others
        with torch.no_grad(), loss_module.param_store_scope():
            for name in names:
                pyro.param(name)


def run_pyro(
    trial: Trial, model: Callable[..., Any], guide: Callable[..., Any], modules: Sequence[nn.Module]
) -> Tensor:
    """Eager Pyro's loss for a call, from the random state before it, with the gradient of its surrogate.

    The averages of baselines are written in place, as a compiled program does; those of sites on other branches are put
    into the param store.

    :raises Exception: Pyro's own; nothing has changed then.
    """
    specialization, call, options = trial.specialization, trial.call, trial.specialization.options
    nodes = specialization.baselines.nodes
    averages = {BASELINE_PREFIX + node.site: t for node, t in zip(nodes, specialization.averages(), strict=True)}
    others = {name: t for name, t in present_averages().items() if name not in averages}
    trial.before.restore()
    elbo = pyro_elbo(options, specialization.prototype.max_plate_nesting)
    with (
        state_restored_on_error(),
        unobserved(),
        undone_writes(on_error_only=True),
        _bound_again(modules),
        validated(options, at_least=False),
        warnings.catch_warnings(),
        lent_averages(others | averages) as after,
        poutine.trace(param_only=True) as asked,
    ):
        warnings.simplefilter("ignore")  # the prototype has given them
        before = present_averages()
        loss = eager_loss(elbo, model, guide, call.args, call.kwargs)
    trial.params = tuple(asked.trace.nodes)
    if torch.is_grad_enabled():
        with torch.no_grad():
            for name, average in averages.items():
                average.copy_(after.pop(name))
        if not loss.isnan():
            # Those of branches that were not captured: Pyro puts another tensor there.
            changed = {name: t for name, t in after.items() if t is not before.get(name)}
            for name, average in changed.items():
                put_in_store(specialization.prototype.store, name, detach_provenance(average))
            trial.averages = tuple(changed)
    return loss


@contextmanager
def _bound_again(modules: Sequence[nn.Module]) -> Iterator[None]:
    """After an error the modules have the very buffers that they had."""
    kept = [(inner._buffers, dict(inner._buffers)) for module in modules for inner in module.modules()]
    try:
        yield
    except BaseException:
        for buffers, before in kept:
            buffers.update(before)
        raise
