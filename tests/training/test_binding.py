"""Whatever is changed in an optimizer after a step was compiled for it is noticed before the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sgc.training.optimizers.members import Held


def make(count: int = 4) -> list[Optimizer]:
    """Two optimizers, of two groups and of one, that have made their state."""
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(count)]
    half = count // 2
    groups = [{"params": parameters[:1]}, {"params": parameters[1:half]}]
    optimizers: list[Optimizer] = [Adam(groups), Adam(parameters[half:])]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones(1)
        optimizer.step()
    return optimizers


def first(optimizers: list[Optimizer]) -> tuple[torch.Tensor, dict[Any, Any]]:
    return next(iter(optimizers[0].state.items()))


def move_a_parameter(optimizers: list[Optimizer]) -> None:
    one, other = optimizers[0].param_groups
    other["params"].insert(0, one["params"].pop())


def move_a_group(optimizers: list[Optimizer]) -> None:
    optimizers[1].param_groups.insert(0, optimizers[0].param_groups.pop())


def swap_states(optimizers: list[Optimizer]) -> None:
    state = optimizers[0].state
    one, other = state
    state[one], state[other] = state[other], state[one]


def move_a_state(optimizers: list[Optimizer]) -> None:
    """The last entry of one parameter's state becomes the first of the next one's."""
    one, other = optimizers[0].state.values()
    key, value = one.popitem()
    rest = dict(other)
    other.clear()
    other.update({f"other {key}": value, **rest})


CHANGES: dict[str, Callable[[list[Optimizer]], Any]] = {
    "a parameter in another group": move_a_parameter,
    "a group in another optimizer": move_a_group,
    "states swapped": swap_states,
    "an entry of a state in another": move_a_state,
    "another parameter": lambda o: o[0].param_groups[0]["params"].__setitem__(0, torch.zeros(1)),
    "a parameter more": lambda o: o[0].param_groups[0]["params"].append(torch.zeros(1)),
    "a parameter less": lambda o: o[0].param_groups[1]["params"].clear(),
    "another list of parameters": lambda o: o[0].param_groups[0].update(params=[torch.zeros(1)]),
    "a group more": lambda o: o[0].add_param_group({"params": [torch.zeros(1)]}),
    "another group": lambda o: o[0].param_groups.__setitem__(0, dict(o[0].param_groups[0])),
    "other groups": lambda o: setattr(o[0], "param_groups", [dict(group) for group in o[0].param_groups]),
    "another tensor in a state": lambda o: first(o)[1].update(exp_avg=torch.zeros(1)),
    "an entry more in a state": lambda o: first(o)[1].update(more=torch.zeros(1)),
    "an entry less in a state": lambda o: first(o)[1].pop("exp_avg"),
    "another state": lambda o: o[0].state.update({first(o)[0]: dict(first(o)[1])}),
    "a state less": lambda o: o[0].state.pop(first(o)[0]),
    "states cleared": lambda o: o[0].state.clear(),
    "other states": lambda o: setattr(o[0], "state", {}),
    "a checkpoint": lambda o: o[0].load_state_dict(o[0].state_dict()),
    "a hook before the step": lambda o: o[1].register_step_pre_hook(lambda *_: None),
    "a hook after the step": lambda o: o[1].register_step_post_hook(lambda *_: None),
    "a step of its own": lambda o: setattr(o[1], "step", lambda: None),
    "a step of its own over a scheduler's": lambda o: (StepLR(o[1], 1), setattr(o[1], "step", lambda: None)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    optimizers = make()
    held = Held(optimizers)
    assert held.hold()
    CHANGES[change](optimizers)
    assert not held.hold()


@pytest.mark.parametrize("register", [register_optimizer_step_pre_hook, register_optimizer_step_post_hook])
def test_a_hook_on_all_optimizers_is_noticed(register: Callable[[Any], Any]) -> None:
    held = Held(make())
    handle = register(lambda *_: None)
    assert not held.hold()
    handle.remove()
    assert held.hold()


def test_tensors_that_are_written_and_many_parameters_change_nothing() -> None:
    optimizers = make(1200)  # counts that Python makes anew each time
    held = Held(optimizers)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    assert held.hold()
