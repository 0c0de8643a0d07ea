"""A state that an SVI cannot go on from is an error that names what differs, and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import SgcError
from tests.training.programs import DATA, GAUSSIAN, adam, fresh, gaussian_guide, gaussian_model, make_svi

Change = Callable[[dict[str, Any]], Any]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def stepped() -> Any:
    options = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "step_size": 1, "gamma": 0.5}
    return pyro.optim.StepLR(options)


def alike(one: Any, other: Any) -> bool:
    """Whether two states hold the same, to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, Tensor):
        return one.dtype is other.dtype and torch.equal(one, other)
    return bool((one == other).all()) if hasattr(one, "dtype") else bool(one == other)


def assert_refused(svi: sgc.SVI, state: Any, text: str) -> SgcError:
    before = copy.deepcopy(svi.state_dict())
    with pytest.raises(SgcError, match=text) as caught:
        svi.load_state_dict(state)
    assert caught.value.remedy
    assert alike(svi.state_dict(), before)
    svi.load_state_dict(before)
    svi.run(2, DATA)
    return caught.value


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        (adam, sgd, "the saved optimizer is torch's Adam, this one is torch's SGD"),
        (adam, lambda p: torch.optim.AdamW(p, lr=0.03), "is torch's Adam, this one is torch's AdamW"),
        (
            pyro.optim.Adam({"lr": 0.1}),
            pyro.optim.SGD({"lr": 0.1, "momentum": 0.9}),
            "is Pyro's Adam, this one is Pyro's SGD",
        ),
        (pyro.optim.ClippedAdam({"lr": 0.1}), sgd, "is Pyro's ClippedAdam, this one is torch's SGD"),
        (stepped(), pyro.optim.SGD({"lr": 0.1}), "is Pyro's StepLR of SGD, this one is Pyro's SGD"),
        (pyro.optim.SGD({"lr": 0.1}), stepped(), "is Pyro's SGD, this one is Pyro's StepLR of SGD"),
    ],
    ids=["Adam to SGD", "Adam to AdamW", "Pyro's", "Pyro's to torch's", "a schedule to none", "none to a schedule"],
)
@pytest.mark.parametrize("steps", [0, 2], ids=["at the start", "in training"])
def test_another_optimizers_state(theirs: Any, ours: Any, text: str, steps: int, uncompiled: None) -> None:
    svi = fresh(theirs, program=GAUSSIAN)
    svi.run(3, DATA)
    state = svi.state_dict()
    svi = fresh(ours, program=GAUSSIAN).initialize(DATA)
    svi.run(steps, DATA)
    error = assert_refused(svi, state, text)
    assert 'svi.loss_module.load_state_dict(state["loss_module"])' in error.remedy
    svi.loss_module.load_state_dict(state["loss_module"])  # what the remedy says
    assert torch.equal(pyro.get_param_store()._params["mean"], state["loss_module"]["param_store.mean"])


def _put(*path: Any, value: Any = None) -> Change:
    """Replace an entry of a state, or take it out."""

    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        if value is None:
            del state[path[-1]]
        else:
            state[path[-1]] = value

    return change


KEPT = ("optimizer", "state", 0)
TORCHS = {
    "no random state": (_put("random"), "no state of an SVI: it has no random"),
    "half a random state": (_put("random", "torch"), "random state cannot be put back .*KeyError"),
    "another generator's": (_put("random", "torch", value=torch.zeros(3)), "random state cannot be put back"),
    "an empty optimizer": (_put("optimizer", value={}), "state of the optimizer has no kind"),
    "no groups": (_put("optimizer", "param_groups"), "state of the optimizer has no param_groups"),
    "a scheduler's state": (
        _put("optimizer", value={"last_epoch": 3, "_last_lr": [0.1]}),
        "state of the optimizer has no kind",
    ),
    "half a moment": (_put(*KEPT, "exp_avg_sq"), "state of param_store.mean in Adam has no exp_avg_sq"),
    "no option": (_put("optimizer", "param_groups", 0, "betas"), "options of param_store.mean in Adam .*betas"),
    "another shape": (
        _put(*KEPT, "exp_avg", value=torch.zeros(3)),
        r"saved exp_avg of param_store.mean in Adam has shape \[3\], and this optimizer's \[\]",
    ),
    "no tensor": (_put("loss_module", "param_store.mean", value=0.5), "param_store.mean has shape .*None in the saved"),
    "a parameter of another shape": (
        _put("loss_module", "param_store.mean", value=torch.zeros(2)),
        r"param_store.mean has shape \[\], and \[2\] in the saved state",
    ),
    "a parameter of another dtype": (
        _put("loss_module", "param_store.mean", value=torch.tensor(0.1, dtype=torch.float64)),
        "param_store.mean has dtype torch.float32, and torch.float64 in the saved state",
    ),
    "no parameters": (_put("loss_module", value={}), "another program's: it lacks param_store.mean"),
}


@pytest.mark.parametrize("kind", TORCHS)
def test_a_state_that_is_not_whole(kind: str, uncompiled: None) -> None:
    change, text = TORCHS[kind]
    svi = fresh(program=GAUSSIAN)
    svi.run(3, DATA)
    state = svi.state_dict()
    change(state)
    svi.run(1, DATA)
    assert_refused(svi, state, text)


OF_MEAN = ("optimizer", "states", "mean")
PYROS = {
    "no scheduler": (stepped, _put(*OF_MEAN, "scheduler"), "state of the scheduler of mean has no scheduler"),
    "no groups": (stepped, _put(*OF_MEAN, "optimizer", "param_groups"), "the optimizer of mean has no param_groups"),
    "nothing": (lambda: pyro.optim.Adam({"lr": 0.1}), _put("optimizer", "states"), "the optimizer has no states"),
    "half a moment": (
        lambda: pyro.optim.ClippedAdam({"lr": 0.1}),
        _put(*OF_MEAN, "state", 0, "exp_avg"),
        "state of mean in ClippedAdam has no exp_avg",
    ),
    "two groups": (
        lambda: pyro.optim.SGD({"lr": 0.1}),
        lambda state: state["optimizer"]["states"]["mean"]["param_groups"].append({"params": [1], "lr": 0.1}),
        "SGD of mean cannot be loaded .*different number of parameter groups|options of mean",
    ),
}


@pytest.mark.parametrize("kind", PYROS)
def test_a_state_of_pyros_optimizer_that_is_not_whole(kind: str, uncompiled: None) -> None:
    make, change, text = PYROS[kind]
    svi = fresh(make(), program=GAUSSIAN)
    svi.run(3, DATA)
    state = svi.state_dict()
    change(state)
    svi.run(1, DATA)
    assert_refused(svi, state, text)


class Two(nn.Module):
    """A guide of two parameters, of some size and dtype."""

    def __init__(self, size: int = 3, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(size, dtype=dtype))
        self.spread = nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, data: Tensor) -> None:
        pyro.sample("loc", dist.Normal(self.mean.sum().float(), self.spread.float().exp().sum()))


def _of(guide: Two, groups: list[list[nn.Parameter]]) -> sgc.SVI:
    optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=0.01, momentum=0.9)
    return make_svi(optimizer, program=(gaussian_model, guide)).initialize(DATA)


def test_other_groups_of_the_same_parameters(uncompiled: None) -> None:
    one, other = Two(), Two()
    svi = _of(one, [[one.mean, one.spread]])
    svi.run(2, DATA)
    text = r"other groups of parameters: it has the groups \(guide.mean, guide.spread\); this one has the groups"
    assert_refused(_of(other, [[other.mean], [other.spread]]), svi.state_dict(), text)


def test_another_number_of_parameters(uncompiled: None) -> None:
    one, other = Two(), Two()
    svi = _of(one, [[one.mean, one.spread]])
    svi.run(2, DATA)
    text = "other parameters: the saved one alone has guide.spread"
    assert_refused(_of(other, [[other.mean]]), svi.state_dict(), text)


@pytest.mark.parametrize(
    ("size", "dtype", "text"),
    [
        (4, torch.float32, r"has shape \[4\], and \[3\]"),
        (3, torch.float64, "has dtype torch.float64, and torch.float32"),
    ],
)
def test_parameters_of_another_size_or_dtype(size: int, dtype: torch.dtype, text: str, uncompiled: None) -> None:
    one, other = Two(), Two(size, dtype)
    svi = _of(one, [[one.mean, one.spread]])
    svi.run(2, DATA)
    assert_refused(_of(other, [[other.mean, other.spread]]), svi.state_dict(), f"guide.mean {text}")


@pytest.mark.parametrize(
    ("make", "of_class"),
    [
        (lambda p: torch.optim.Adagrad(p, lr=0.1), "Adagrad"),
        (lambda p: torch.optim.SGD(p, lr=0.001, momentum=0.9), "SGD"),
        (lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True), "Adam"),
        (lambda p: torch.optim.Rprop(p, lr=0.1), "Rprop"),
        (lambda p: torch.optim.Adafactor(p, lr=0.1), "Adafactor"),
    ],
)
@pytest.mark.filterwarnings("ignore::sgc.errors.StandInWarning")
def test_every_class_takes_its_own_state_and_no_half_of_it(make: Any, of_class: str, uncompiled: None) -> None:
    guide = Two()
    svi = fresh(make, program=(gaussian_model, guide))
    svi.run(3, DATA)
    state = svi.state_dict()
    losses = svi.run(3, DATA).losses
    svi.load_state_dict(state)
    assert torch.equal(svi.run(3, DATA).losses, losses)
    (key, *_) = (key for key, value in state["optimizer"]["state"][0].items() if isinstance(value, Tensor))
    del state["optimizer"]["state"][0][key]
    assert_refused(svi, state, f"state of guide.mean in {of_class} has no {key}")


def test_an_average_of_nobody(uncompiled: None) -> None:
    svi = fresh()
    svi.run(2, DATA)
    state = svi.state_dict()
    state["loss_module"]["baselines.nobody"] = torch.zeros(3)
    assert_refused(svi, state, "another program's: it has baselines.nobody")
    for name in [name for name in state["loss_module"] if name.startswith("baselines.")]:
        del state["loss_module"][name]
    assert_refused(svi, state, "another program's: it lacks baselines.")


def test_parameters_that_are_gone_are_not_saved_as_they_were(uncompiled: None) -> None:
    svi = fresh(program=(gaussian_model, gaussian_guide))
    svi.run(2, DATA)
    pyro.clear_param_store()
    with pytest.raises(SgcError, match="the parameters are gone from Pyro's store"):
        svi.state_dict()
