"""The running averages are those that Pyro's store holds now, under the name that their shape has there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from sgc.graph.nodes import BaselineNode
from sgc.runtime.averages import Averages
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX

NAME = BASELINE_PREFIX + "z"


def averages(*shape: int) -> Averages:
    node = BaselineNode("baseline", shape, "z", None, NAME, 0.9, torch.float32, torch.device("cpu"))
    return Averages([node])


def held() -> dict[str, Tensor]:
    params: dict[str, Tensor] = pyro.get_param_store()._params
    return params


def test_each_shape_has_its_own() -> None:
    long, short = averages(3), averages(2)
    for _ in range(2):
        assert long.tensors()[0] is held()[NAME] and long.names() == [NAME]
        assert short.tensors()[0] is held()[NAME + "_2"] and short.names() == [NAME + "_2"]


CHANGES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "replaced": lambda: held().__setitem__(NAME, torch.ones(3)),
    "of another shape": lambda: held().__setitem__(NAME, torch.ones(4)),
    "resized": lambda: held()[NAME].resize_(5),
    "marked by Pyro": lambda: held()[NAME].requires_grad_(),
    "gone": lambda: held().pop(NAME),
    "cleared": pyro.clear_param_store,
}


@pytest.mark.parametrize("shape", [3, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_store_is_noticed(change: str, shape: int) -> None:
    averages(3).tensors()  # the first shape met has Pyro's name
    known = averages(shape)
    known.tensors()
    CHANGES[change]()
    (found,), (anew,) = known.tensors(), averages(shape).tensors()
    assert found is anew and found.shape == (shape,) and not found.requires_grad
