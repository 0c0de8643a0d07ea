"""A buffer is called as the parameters beside it are, whichever module leads the capture to it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.graph.nodes import InputNode
from sgc.graph.program import InputKind

DATA = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Its normalisation is within a submodule, which the guide calls without calling this module."""

    def __init__(self, *, affine: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=affine))


def buffers(net: Net, registered_as: str | None) -> set[str]:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def guide(x: Tensor) -> None:
        if registered_as is not None:
            pyro.module(registered_as, net)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(net.body(x), 1.0).to_event(1))

    pyro.clear_param_store()
    graph = sgc.compile(model, guide, backend="eager").initialize(DATA).graph
    return {node.key for node in graph.of_type(InputNode) if node.role is InputKind.BUFFER}


STATISTICS = ("num_batches_tracked", "running_mean", "running_var")


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("name", ["net", "the.net", "n"])
def test_of_a_registered_module(name: str, affine: bool) -> None:
    assert buffers(Net(affine=affine), name) == {f"buffer {name}.body.1.{part}" for part in STATISTICS}


def test_of_one_that_is_in_no_store() -> None:
    assert all(name.rpartition(".")[2] in STATISTICS for name in buffers(Net(), None))


def test_of_one_without_trained_parameters() -> None:
    net = Net(affine=False)
    net.body[0] = nn.Identity()
    assert len(buffers(net, "net")) == 3


def test_two_networks_of_one_class_are_told_apart() -> None:
    nets = {"first": Net(), "second": Net()}

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    def guide(x: Tensor) -> None:
        for name, net in nets.items():
            pyro.module(name, net)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(nets["first"].body(x), nets["second"].body(x).exp()).to_event(1))

    pyro.clear_param_store()
    graph = sgc.compile(model, guide, backend="eager").initialize(DATA).graph
    told = {node.key for node in graph.of_type(InputNode) if node.role is InputKind.BUFFER}
    assert told == {f"buffer {name}.body.1.{part}" for name in nets for part in STATISTICS}
