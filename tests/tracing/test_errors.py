"""What cannot be compiled is refused with the site, the user's own line and the remedy; and nothing is lost."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import (
    ArgumentError,
    BackendError,
    BaselineError,
    CaptureError,
    DataDependenceError,
    SgcError,
    SiteMismatchError,
)
from tests.programs import local_switches

X = torch.tensor([0.1, 0.9, -0.4])


def guide_of_z() -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))


def branch() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    if z > 0:
        pyro.sample("x", dist.Normal(1.0, 1.0), obs=torch.tensor(0.3))
    else:
        pyro.sample("x", dist.Normal(-1.0, 1.0), obs=torch.tensor(0.3))


def item() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z.item(), 1.0), obs=torch.tensor(0.3))


def as_float() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(float(z), 1.0), obs=torch.tensor(0.3))


def as_numpy() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(torch.as_tensor(z.numpy()), 1.0), obs=torch.tensor(0.3))


def loop() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    for i in range(int(z) + 1):
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=torch.tensor(0.3))


def name_of_a_site() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample(f"x_{z}", dist.Normal(z, 1.0), obs=torch.tensor(0.3))


def boolean_index() -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    picked = torch.arange(3.0)[torch.arange(3) < z]
    pyro.sample("x", dist.Normal(picked.sum(), 1.0), obs=torch.tensor(0.3))


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (branch, "if z > 0:"),
        (item, "z.item()"),
        (as_float, "float(z)"),
        (as_numpy, "z.numpy()"),
        (loop, "range(int(z) + 1)"),
        (name_of_a_site, 'f"x_{z}"'),
        (boolean_index, "[torch.arange(3) < z]"),
    ],
)
def test_reading_a_sample_names_site_line_and_remedy(model: Callable[[], None], line: str) -> None:
    with pytest.raises(DataDependenceError) as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    text = str(caught.value)
    assert caught.value.site == "z"
    assert line in text and "test_errors.py" in text
    assert "torch.where" in text


@pytest.mark.parametrize(
    "text",
    [
        lambda z, w: str(z),
        lambda z, w: repr([z]),
        lambda z, w: f"{z:.2f}",
        lambda z, w: str(w),
        lambda z, w: str(w * 2),
    ],
    ids=["str", "repr of a list", "format", "of a parameter", "of a product"],
)
def test_a_text_of_a_tensor_names_line_and_remedy(text: Callable[[Tensor, Tensor], str]) -> None:
    weight = torch.tensor(0.5, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(weight * len(text(z, weight)), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(DataDependenceError, match=r"text\(z, weight\)|test_errors.py") as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    assert "print(x)" in caught.value.remedy


@pytest.mark.parametrize("copied", [copy.copy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_by_memory_names_line_and_remedy(copied: Callable[[Tensor], Tensor]) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z * copied(x).sum(), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(CaptureError, match=r"copied\(x\)|dumps\(x\)") as caught:
        sgc.compile(model, lambda x: guide_of_z(), backend="eager")(X)
    assert "clone()" in caught.value.remedy


def test_reading_a_random_number_outside_of_any_site() -> None:
    def model() -> None:
        if torch.rand(()) > 0.5:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(DataDependenceError, match="outside of any site"):
        sgc.compile(model, guide_of_z, backend="eager")()


def test_a_failed_call_changes_nothing() -> None:
    pyro.param("kept", torch.tensor(1.0))
    state = torch.get_rng_state()
    before = dict(pyro.get_param_store()._params)
    with pytest.raises(DataDependenceError):
        sgc.compile(branch, guide_of_z, backend="eager")()
    assert torch.equal(torch.get_rng_state(), state)
    assert pyro.get_param_store()._params == before
    # Torch and Pyro work as before: the capture's patches are gone.
    pyro.infer.TraceGraph_ELBO().loss_and_grads(branch, guide_of_z)
    with pytest.raises(ValueError, match="constraint"):
        dist.Bernoulli(torch.tensor(2.0), validate_args=True)


def test_a_failed_respecialization_keeps_what_was_compiled() -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if x.shape[0] > 2 and z > 0:
            x = x + 1
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        guide_of_z()

    module = sgc.compile(model, guide, backend="eager")
    module(torch.zeros(2)).backward()
    parameter = next(module.parameters())
    gradient = parameter.grad
    with pytest.raises(DataDependenceError):
        module(torch.zeros(3))
    assert len(module.specializations) == 1
    assert next(module.parameters()) is parameter and parameter.grad is gradient
    assert torch.isfinite(module(torch.zeros(2)))


def test_torch_func_transform() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(torch.func.grad(torch.sin)(z), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(CaptureError, match=r"torch\.func"):
        sgc.compile(model, guide_of_z, backend="eager")()


def test_writing_to_the_param_store() -> None:
    def model() -> None:
        pyro.param("count", torch.tensor(0.0))
        pyro.get_param_store()["count"] = torch.tensor(1.0)
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(CaptureError, match="count") as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    assert 'pyro.get_param_store()["count"]' in str(caught.value)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (random.random, "random"),
        (np.random.rand, r"numpy\.random"),
        (random.Random(0).random, ".*draw"),
        (np.random.RandomState(0).rand, ".*draw"),
        ([np.random.default_rng(0)], r".*draw\[\.\.\.\]"),
    ],
)
def test_python_randomness(draw: Any, name: str) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample(
            "x", dist.Normal(z + (draw[0].random() if isinstance(draw, list) else draw()), 1.0), obs=torch.tensor(0.3)
        )

    with pytest.raises(CaptureError, match=f"draws from {name}"):
        sgc.compile(model, guide_of_z, backend="eager")()


def test_a_generator_among_the_arguments() -> None:
    def model(generator: np.random.Generator) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + generator.random(), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(CaptureError, match="draws from a Generator"):
        sgc.compile(model, lambda generator: guide_of_z(), backend="eager")(np.random.default_rng(0))


def seeded() -> Tensor:
    torch.manual_seed(3)
    return torch.rand(())


def forked() -> Tensor:
    with torch.random.fork_rng():
        return torch.rand(())


def put_back() -> Tensor:
    state = torch.get_rng_state()
    drawn = torch.rand(())
    torch.set_rng_state(state)
    return drawn


def seeded_by_pyro() -> Tensor:
    with pyro.poutine.seed(rng_seed=3):
        return torch.rand(())


def seeded_itself() -> Tensor:
    torch.default_generator.manual_seed(3)
    return torch.rand(())


@pytest.mark.parametrize("draw", [seeded, forked, put_back, seeded_by_pyro, seeded_itself])
def test_seeding(draw: Callable[[], Tensor]) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + draw(), 1.0), obs=torch.tensor(0.3))

    state = torch.get_rng_state()
    with pytest.raises(CaptureError, match="sets the state of torch's random generator"):
        sgc.compile(model, guide_of_z, backend="eager")()
    assert torch.equal(torch.get_rng_state(), state)


def test_scored_site_missing_from_the_guide() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("extra", dist.Bernoulli(0.2 + 0.5 * z))

    with (
        pytest.warns(UserWarning, match="Found vars in model but not guide"),
        pytest.raises(SiteMismatchError, match="in the model but not in the guide") as caught,
    ):
        sgc.compile(model, guide_of_z, backend="eager")()
    assert caught.value.site == "extra" and 'pyro.sample("extra"' in str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nn_basline": None}, "Unrecognized baseline options"),
        ({"nn_baseline": torch.nn.Identity(), "nn_baseline_input": X, "baseline_value": X}, "simultaneously"),
        ({"baseline_value": torch.zeros(2)}, "to be torch.Size"),
        ({"baseline_value": torch.tensor(0.5)}, "to be torch.Size"),
    ],
)
def test_bad_baseline(options: dict[str, Any], text: str) -> None:
    model, guide = local_switches({"baseline": options})
    with pytest.raises(BaselineError, match=text):
        sgc.compile(model, guide, backend="eager")(X)


def test_baseline_that_depends_on_its_own_sample() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor(0.1)), 0.3))
        with pyro.plate("data", x.shape[0]):
            options: dict[str, Any] = {"nn_baseline": torch.nn.Identity()}
            options["nn_baseline_input"] = pyro.sample("z", dist.Bernoulli(0.3), infer={"baseline": options})

    model, _ = local_switches()
    with pytest.raises(BaselineError, match="biases the gradient") as caught:
        sgc.compile(model, guide, backend="eager")(X)
    assert caught.value.site == "z"


def test_unknown_options() -> None:
    model, guide = local_switches()
    with pytest.raises(BackendError, match="inductor"):
        sgc.compile(model, guide, backend="cuda")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rng"):
        sgc.compile(model, guide, rng="numpy")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="num_particles"):
        sgc.compile(model, guide, num_particles=0)
    with pytest.raises(ArgumentError, match="max_plate_nesting"):
        sgc.compile(model, guide, max_plate_nesting=-1)
    with pytest.raises(ArgumentError, match="cache_size"):
        sgc.compile(model, guide, cache_size=0)
    with pytest.raises(ArgumentError, match="not callable"):
        sgc.compile(model, None)  # type: ignore[arg-type]


def test_nothing_captured_yet() -> None:
    module = sgc.compile(*local_switches())
    with pytest.raises(SgcError, match="initialize"):
        module.graph  # noqa: B018


def test_an_argument_without_readable_contents() -> None:
    class Slotted:
        __slots__ = ("x",)

        def __init__(self) -> None:
            self.x = X

    model, guide = local_switches()
    with pytest.raises(ArgumentError, match=r"args\[0\]"):
        sgc.compile(lambda s: model(s.x), lambda s: guide(s.x), backend="eager")(Slotted())


SPARSE, EYE = torch.eye(3).to_sparse(), torch.eye(3)
EMBEDDING = nn.Embedding(4, 2, sparse=True)


@pytest.mark.parametrize(
    ("mean", "argument", "text"),
    [
        (lambda x: (x @ torch.ones(3, 1)).sum(), SPARSE, r"args\[0\] is a tensor of layout torch.sparse_coo"),
        (lambda x: torch.sparse.mm(SPARSE, x).sum(), EYE, "layout torch.sparse_coo"),
        (lambda x: EMBEDDING(x.long()).sum(), EYE, "embedding is asked for a sparse gradient"),
        (torch.jit.trace(nn.Linear(3, 1), EYE), EYE, "the module Linear is TorchScript"),
    ],
    ids=["sparse argument", "sparse constant", "sparse gradient", "TorchScript"],
)
def test_what_has_no_strides_or_no_python(mean: Callable[[Tensor], Tensor], argument: Tensor, text: str) -> None:
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z * mean(x).sum(), 1.0), obs=torch.tensor(0.7))

    with pytest.raises(CaptureError, match=text):
        sgc.compile(model, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), backend="eager")(argument)


def test_pyro_own_errors_come_through() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Bernoulli(0.5))

    model, _ = local_switches()
    with pytest.raises(ValueError, match="event_dims disagree"):
        sgc.compile(model, guide, backend="eager")(X)


class Branching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x if x > 0 else x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_an_autograd_function_that_branches() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(Branching.apply(z), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(DataDependenceError, match=r"reads a value within an autograd\.Function") as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    assert "if x > 0" in str(caught.value)


def test_a_generator_of_torch() -> None:
    generator = torch.Generator()

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + torch.rand((), generator=generator), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(CaptureError, match=r"draws from a torch\.Generator") as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    assert "torch.rand((), generator=generator)" in str(caught.value)


@pytest.mark.parametrize("site", [None, "z"])
def test_an_operation_that_needs_values_names_the_site_that_they_depend_on(site: str | None) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        mean = torch.cov(torch.stack([X, X * z if site else X * X])).sum()
        pyro.sample("x", dist.Normal(z + mean, 1.0), obs=torch.tensor(0.3))

    with pytest.raises(DataDependenceError, match="cov needs values") as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    assert caught.value.site == site and "torch.cov" in str(caught.value)


@pytest.mark.parametrize(
    "read",
    [
        lambda z: {Tensor: z}[type(X * 1.0)],
        lambda z: z * len(f"{z.data_ptr()}"),
        lambda z: z * z.untyped_storage().nbytes() if z.untyped_storage()[0] < 256 else z,
    ],
    ids=["type", "memory", "bytes"],
)
def test_what_has_run_but_cannot_be_traced(read: Callable[[Tensor], Tensor]) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(read(z), 1.0), obs=torch.tensor(0.3))

    with pytest.raises(CaptureError, match="ran once, but cannot be captured") as caught:
        sgc.compile(model, guide_of_z, backend="eager")()
    assert "remedy" in str(caught.value) and "lambda z" in str(caught.value)
    assert not re.search("fake|functional|meta|proxy", caught.value.problem, re.IGNORECASE)


def test_a_lazy_module_whose_buffers_a_first_run_would_change() -> None:
    norm = torch.nn.LazyBatchNorm1d()

    def model() -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z + norm(X[:, None]).sum(), 1.0), obs=torch.tensor(0.3))

    module = sgc.compile(model, guide_of_z, backend="eager")
    with pytest.raises(CaptureError, match="made in its first run"):
        module()
    norm.eval()(X[:, None])
    assert module().isfinite()
