"""Options of baselines: what is wrong is an error, what has no effect is a warning, what Pyro documents works."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
import sgc.infer
from sgc.errors import BaselineError, BaselineWarning

X = torch.tensor([0.4, -1.2, 0.9])
AVERAGE: dict[str, Any] = {"use_decaying_avg_baseline": True}


def model(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_with(options: Any, family: Callable[[Tensor], Any] = lambda q: dist.Bernoulli(logits=q)) -> Any:
    def guide(x: Tensor) -> None:
        q = pyro.param("q", torch.tensor([0.2, -0.3, 0.4]))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", family(q), infer={"baseline": options})

    return guide


def net(_: Any = None) -> nn.Module:
    return nn.Linear(3, 3)


def other_sizes(x: Tensor) -> Tensor:
    return x @ torch.ones(4, 3)


REFUSED: dict[str, tuple[Any, str]] = {
    "no dict": (True, "the baseline is True, not a dict of options"),
    "none": (None, "the baseline is None, not a dict"),
    "a network in its place": (net(), "the baseline is of type Linear, not a dict"),
    "unknown and no text": ({3: 4, "decay": 0.9}, "Unrecognized baseline options: 3, decay"),
    "beta of one": ({**AVERAGE, "baseline_beta": 1}, "baseline_beta is 1.0, which is not in [0, 1)"),
    "beta below zero": ({**AVERAGE, "baseline_beta": -0.2}, "baseline_beta is -0.2, which is not in"),
    "beta of nan": ({**AVERAGE, "baseline_beta": float("nan")}, "baseline_beta is nan, which is not in"),
    "a beta that is off": ({"baseline_beta": 2.0}, "baseline_beta is 2.0, which is not in"),
    "beta as text": ({**AVERAGE, "baseline_beta": "0.9"}, "baseline_beta is '0.9', not a number"),
    "beta of none": ({**AVERAGE, "baseline_beta": None}, "baseline_beta is None, not a number"),
    "beta of bool": ({**AVERAGE, "baseline_beta": True}, "baseline_beta is True, not a number"),
    "a beta for each row": ({**AVERAGE, "baseline_beta": torch.full((3,), 0.5)}, "is a tensor of torch.float32[3]"),
    "no bool": ({"use_decaying_avg_baseline": "no"}, "use_decaying_avg_baseline is 'no', not a bool"),
    "a bool of a tensor": ({"use_decaying_avg_baseline": torch.tensor(True)}, "is of type Tensor, not a bool"),
    "no input": ({"nn_baseline": net()}, "nn_baseline has no input"),
    "input of none": ({"nn_baseline": net(), "nn_baseline_input": None}, "nn_baseline has no input"),
    "input alone": ({**AVERAGE, "nn_baseline_input": X}, "nn_baseline_input has no network"),
    "a tensor as network": ({"nn_baseline": X, "nn_baseline_input": X}, "is of type Tensor, which cannot be called"),
    "both": ({"nn_baseline": net(), "nn_baseline_input": X, "baseline_value": X}, "simultaneously"),
    "of other sizes": ({"nn_baseline": other_sizes, "nn_baseline_input": X}, "nn_baseline fails on its input"),
    "of two inputs": ({"nn_baseline": lambda a, b: a, "nn_baseline_input": X}, "nn_baseline fails on its input"),
    "a tuple": ({"nn_baseline": lambda x: (x, x), "nn_baseline_input": X}, "nn_baseline returns of type tuple, not"),
    "nothing": ({"nn_baseline": lambda x: None, "nn_baseline_input": X}, "nn_baseline returns None, not a tensor"),
    "a text": ({"baseline_value": "mean"}, "baseline_value is 'mean', not a tensor"),
    "a list": ({"baseline_value": [0.1, 0.2, 0.3]}, "baseline_value is of type list, not a tensor"),
    "an array": ({"baseline_value": numpy.ones(3)}, "baseline_value is of type ndarray, not a tensor"),
    "a number alone": ({"baseline_value": 0.5}, "baseline_value is 0.5, not a tensor"),
    "a complex value": ({"baseline_value": X + 1j}, "baseline_value is a complex tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_an_error_and_changes_nothing(name: str) -> None:
    options, text = REFUSED[name]
    state = torch.get_rng_state()
    with pytest.raises(BaselineError) as caught:
        sgc.compile(model, guide_with(options), backend="eager")(X)
    error = caught.value
    assert text in error.problem and error.site == "z" and error.remedy
    assert error.source is not None and error.source.text.startswith('pyro.sample("z", family(q)')
    assert not pyro.get_param_store()._params and torch.equal(torch.get_rng_state(), state)


def run(elbo: Any, *program: Any) -> tuple[float, list[Tensor], dict[str, Tensor]]:
    pyro.set_rng_seed(1)
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaselineWarning)
        loss = elbo.loss_and_grads(*program, X)
    store = pyro.get_param_store()._params
    averages = {name: t.detach() for name, t in store.items() if name.startswith("__")}
    return float(loss), [store["q"].grad], averages


ACCEPTED: dict[str, Any] = {
    "empty": {},
    "switched off": {"use_decaying_avg_baseline": False},
    "a network switched off": {"nn_baseline": None, "nn_baseline_input": X, **AVERAGE},
    "ordered": OrderedDict(AVERAGE, baseline_beta=0.7),
    "beta of zero": {**AVERAGE, "baseline_beta": 0},
    "beta of numpy": {**AVERAGE, "baseline_beta": numpy.float32(0.75)},
    "beta of a tensor": {**AVERAGE, "baseline_beta": torch.tensor(0.75)},
    "a number beside an average": {**AVERAGE, "baseline_value": 0.5},
    "integers": {"baseline_value": torch.tensor([1, 2, 3])},
    "bools": {"baseline_value": torch.tensor([True, False, True])},
    "a function": {"nn_baseline": lambda inputs: inputs[0] + inputs[1], "nn_baseline_input": [X, 2 * X], **AVERAGE},
    "none of a value": {"baseline_value": None, **AVERAGE},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_pyro_takes_is_taken_and_means_the_same(name: str) -> None:
    program = model, guide_with(ACCEPTED[name])
    theirs = run(pyro.infer.TraceGraph_ELBO(), *program)
    ours = run(sgc.infer.TraceGraph_ELBO(backend="eager"), *program)
    assert ours[0] == pytest.approx(theirs[0]) and ours[2].keys() == theirs[2].keys()
    for mine, yours in zip([*ours[1], *ours[2].values()], [*theirs[1], *theirs[2].values()], strict=True):
        assert torch.allclose(mine, yours)


def test_any_mapping_is_a_dict() -> None:
    sgc.compile(model, guide_with(MappingProxyType(AVERAGE)), backend="eager")(X).backward()


def test_a_beta_that_is_an_argument_is_guarded() -> None:
    def guide(x: Tensor, beta: Tensor) -> None:
        guide_with({**AVERAGE, "baseline_beta": beta})(x)

    module = sgc.compile(lambda x, beta: model(x), guide, backend="eager")
    for beta, count in ((0.5, 1), (0.5, 1), (0.8, 2)):
        module(X, torch.tensor(beta))
        assert len(module.specializations) == count
    assert [s.graph.baseline("z").beta for s in module.specializations] == pytest.approx([0.5, 0.8])


def texts(*program: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sgc.compile(*program, backend="eager")(X)
    found = [warning for warning in caught if warning.category is BaselineWarning]
    assert all(warning.filename == __file__ for warning in found)
    return [str(warning.message) for warning in found]


def observed(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5), infer={"baseline": AVERAGE})
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, infer={"baseline": AVERAGE})


def relaxed(x: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def test_what_has_no_effect_is_warned_of() -> None:
    plain = guide_with({})
    normal = guide_with(AVERAGE, lambda q: dist.Normal(q, 1.0))
    assert texts(relaxed, normal) == [
        "at site 'z': the baseline has no effect, because the site is pathwise, without a score function: leave it out"
    ]
    assert texts(relaxed, guide_with({"baseline_value": X}, lambda q: dist.Normal(q, 1.0)))
    in_model = "the baseline of the model's statement has no effect, only the guide's has: give it there"
    assert texts(observed, plain) == [f"at site '{name}': {in_model}" for name in ("z", "x")]
    assert texts(observed, lambda x: pyro.poutine.infer_config(plain, lambda site: {"baseline": AVERAGE})(x)) == [
        f"at site 'x': {in_model}"
    ]
    (text,) = texts(model, guide_with({"baseline_beta": 0.5}))
    assert text.startswith("at site 'z': baseline_beta has no effect without a decaying average")
    hidden = texts(
        lambda x: pyro.poutine.mask(model, mask=False)(x),
        lambda x: pyro.poutine.mask(guide_with(AVERAGE), mask=torch.tensor(False))(x),
    )
    assert not hidden


def test_what_has_an_effect_is_not() -> None:
    assert not texts(model, guide_with({**AVERAGE, "baseline_beta": 0.5}))
    assert not texts(relaxed, guide_with({"use_decaying_avg_baseline": False}, lambda q: dist.Normal(q, 1.0)))
    assert not texts(relaxed, guide_with({}, lambda q: dist.Normal(q, 1.0)))


class CountingNet(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


@pytest.mark.parametrize(
    "prior", [lambda: dist.Normal(0.0, 1.0), lambda: dist.Normal(0.0, 1.0).has_rsample_(False), None]
)
def test_a_network_at_a_pathwise_site_runs_where_pyro_runs_it(prior: Any) -> None:
    """Pyro asks for it if the site is not reparameterised in the model; the two runs of a capture must not differ."""
    network = CountingNet(1, 1)
    options = {"baseline": {"nn_baseline": lambda x: network(x).squeeze(-1), "nn_baseline_input": torch.tensor([0.5])}}

    def model() -> None:
        if prior is not None:
            pyro.sample("z", prior())

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0), infer=options)

    pyro.set_rng_seed(0)
    pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide)
    asked = getattr(network, "calls", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the baseline may be idle, and the calls are counted
        report = sgc.compile(model, guide, backend="eager").verify()
    assert report.ok, str(report)
    assert (getattr(network, "calls", 0) > 0) is (asked > 0) is (prior is not None and not prior().has_rsample)


def test_a_network_that_only_a_capture_cannot_run_is_no_wrong_option() -> None:
    def network(x: Tensor) -> Tensor:
        if type(x) is not Tensor or torch._subclasses.fake_tensor.is_fake(x):
            raise TypeError("not a tensor with values")
        return x

    with pytest.raises(sgc.errors.CaptureError, match="ran once, but cannot be captured"):
        sgc.compile(model, guide_with({"nn_baseline": network, "nn_baseline_input": X}), backend="eager")(X)


def test_the_classes_under_pyros_names_ignore_it_as_pyro_does() -> None:
    def model() -> None:
        pyro.sample("h", dist.Normal(0.0, 1.0))

    def guide() -> None:
        options = {"use_decaying_avg_baseline": True}
        pyro.sample("h", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), infer={"baseline": options})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgc.infer.TraceGraph_ELBO(backend="eager").loss(model, guide)
    with pytest.warns(sgc.errors.BaselineWarning):
        sgc.compile(model, guide, backend="eager")()
