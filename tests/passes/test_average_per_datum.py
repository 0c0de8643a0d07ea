"""A decaying average with a row for each datum: the rows that a step reads and moves on, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import sgc
import sgc.infer
from sgc.emit.backends.registry import registered
from tests.backends import RunGraphs
from tests.programs import Pair
from tests.subsampled import (
    AVERAGE,
    BETA,
    OPTIONS,
    PER_DATUM,
    RATINGS,
    PlainLoop,
    X,
    in_store,
    nested,
    over_rows,
)

N = len(X)


def stepped(module: Any, seed: int, *args: Any) -> Tensor:
    """The gradient in ``logits`` of a call from a seed."""
    leaf = pyro.get_param_store()._params["logits"]
    leaf.grad = None
    pyro.set_rng_seed(seed)
    module(*args).backward()
    assert leaf.grad is not None
    return leaf.grad.clone()


def compared(program: Pair, loop: PlainLoop, calls: list[tuple[Any, ...]], **options: Any) -> sgc.LossModule:
    """Whether gradients and the average are those of the plain loop, call by call."""
    module = sgc.compile(*program, **{"backend": "eager", **options}).initialize(*calls[0])
    for seed, args in enumerate(calls * 3):
        expected = loop.step(seed, *args)
        assert torch.allclose(stepped(module, seed, *args), expected, atol=1e-5)
        assert torch.allclose(in_store(), loop.average, atol=1e-5)
    kept = [name for name in pyro.get_param_store()._params if name.startswith(AVERAGE)]
    assert kept == [AVERAGE]  # one average for batches of all sizes
    return module


BATCHES: dict[str, list[Any]] = {
    "distinct": [torch.tensor([0, 4, 2]), torch.tensor([6, 1, 3])],
    "ragged": [torch.tensor([5, 0, 6]), torch.tensor([2, 4, 1]), torch.tensor([3])],
    "of several sizes": [torch.arange(4), torch.arange(2, 4), torch.arange(7).flip(0), torch.tensor([6, 2, 5, 0, 1])],
    "twice the same": [torch.tensor([3, 3, 1]), torch.tensor([1, 6, 1]), torch.tensor([2, 2, 2])],
    "from the end": [torch.tensor([-1, 0, 3]), torch.tensor([6, -7, 2]), torch.tensor([-1, 6, -1])],
    "of int32": [torch.tensor([4, 0], dtype=torch.int32)],
    "lists": [[0, 5], [5, 3]],
    "all in another order": [torch.tensor([6, 5, 4, 3, 2, 1, 0])],
    "not subsampled": [None],
    "both": [None, torch.tensor([2, 6])],
}


@pytest.mark.parametrize("name", BATCHES)
def test_rows_of_a_given_subsample(name: str) -> None:
    program = over_rows()
    loop = PlainLoop(program, {"data": 0}, N)
    compared(program, loop, [(index,) for index in BATCHES[name]])


@pytest.mark.parametrize("size", [1, 3, 7])
def test_rows_that_the_plate_draws(size: int) -> None:
    program = over_rows(size=size)
    module = compared(program, PlainLoop(program, {"data": 0}, N), [()] * 4)
    (site,) = (site for site in module.specializations[-1].capture.program.sites if site.name == "z")
    assert site.baseline is not None
    # A permutation has no row twice, and all rows in their order need no numbers.
    assert [rows.distinct for rows in site.baseline.rows] == ([True] if size < N else [])


def test_rows_that_the_program_computes() -> None:
    def model(start: Tensor) -> None:
        rows = torch.remainder(start + torch.arange(3) * 2, N)
        with pyro.plate("data", N, subsample=rows):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[rows])

    def guide(start: Tensor) -> None:
        rows = torch.remainder(start + torch.arange(3) * 2, N)
        logits = pyro.param("logits", torch.zeros(N))
        with pyro.plate("data", N, subsample=rows):
            pyro.sample("z", dist.Bernoulli(logits=logits[rows]), infer=PER_DATUM)

    loop = PlainLoop((model, guide), {"data": 0}, N)
    compared((model, guide), loop, [(torch.tensor(start),) for start in (0, 3, 6)])


def test_a_plate_that_was_made_before() -> None:
    """It is no statement of the program: its rows are those of its own handler."""
    plate = pyro.plate("data", N, subsample=torch.tensor([5, 2, 3]))

    def model() -> None:
        with plate as rows:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[rows])

    def guide() -> None:
        with plate as rows:
            logits = pyro.param("logits", torch.zeros(N))
            pyro.sample("z", dist.Bernoulli(logits=logits[rows]), infer=PER_DATUM)

    module = sgc.compile(model, guide, backend="eager").initialize()
    for _ in range(4):
        module().backward()
    average = in_store()
    assert average.shape == (N,) and set(average.nonzero().flatten().tolist()) == {5, 2, 3}
    assert module.verify()


@pytest.mark.parametrize("index", [None, torch.tensor([0])])
def test_a_plate_of_one_datum(index: Tensor | None) -> None:
    def model() -> None:
        with pyro.plate("data", 1, subsample=index):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[:1])

    def guide() -> None:
        with pyro.plate("data", 1, subsample=index):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(1))), infer=PER_DATUM)

    module = sgc.compile(model, guide, backend="eager").initialize()
    for _ in range(3):
        module().backward()
        assert module.verify() and not module.verify().reasons
    assert in_store().numel() == 1


PAIRS = [
    (torch.tensor([0, 3]), torch.tensor([1, 2, 0])),
    (torch.tensor([4, 1]), torch.tensor([3, 0, 2])),
    (torch.tensor([2]), torch.tensor([1, 1, 3, 0])),
]


def test_nested_plates_beside_one_that_is_whole() -> None:
    program = nested()
    module = compared(program, PlainLoop(program, {"users": 0, "items": 2}, *RATINGS.shape), list(PAIRS))
    baseline = module.graph.baseline("z")
    assert baseline is not None
    assert baseline.words() == "decaying average for each of 5 rows of 'users' x 4 rows of 'items' (beta 0.7)"


@pytest.mark.parametrize("users", [None, torch.tensor([3, 1])])
@pytest.mark.parametrize("items", [None, torch.tensor([2, 2, 0])])
def test_one_of_two_plates_is_subsampled(users: Tensor | None, items: Tensor | None) -> None:
    program = nested()
    loop = PlainLoop(program, {"users": 0, "items": 2}, *RATINGS.shape)
    module = compared(program, loop, [(users, items)])
    assert str(module.graph).count("rows of '") == (users is not None) + (items is not None)


@pytest.mark.parametrize("size", [None, 3])
def test_particles_one_after_another_move_it_on_in_turn(size: int | None) -> None:
    program = over_rows(size=size)
    args = () if size else (torch.tensor([3, 0, 3, 6]),)
    module = sgc.compile(*program, backend="eager", num_particles=3).initialize(*args)
    loop = PlainLoop(program, {"data": 0}, N)
    for seed in range(4):
        found = stepped(module, seed, *args)
        expected = [loop.step(seed, *args)]
        expected += [loop.move_on(*traced(program, *args)) for _ in range(2)]
        assert torch.allclose(found, torch.stack(expected).mean(0), atol=1e-5)
        assert torch.allclose(in_store(), loop.average, atol=1e-5)


def traced(program: Pair, *args: Any) -> tuple[Any, Any]:
    guide = pyro.poutine.trace(program[1]).get_trace(*args)
    return guide, pyro.poutine.trace(pyro.poutine.replay(program[0], trace=guide)).get_trace(*args)


def test_vectorized_particles_have_averages_of_their_own() -> None:
    program, index = over_rows(), torch.tensor([5, 1, 5, 0])
    module = sgc.compile(*program, backend="eager", num_particles=3, vectorize_particles=True).initialize(index)
    within = tuple(pyro.plate("particles", 3, dim=-2)(part) for part in program)
    loop = PlainLoop(within, {"data": 1}, 3, N)  # type: ignore[arg-type]
    for seed in range(4):
        expected = loop.step(seed, index) / 3
        assert torch.allclose(stepped(module, seed, index), expected, atol=1e-5)
        assert torch.allclose(in_store(), loop.average, atol=1e-5)


def beside_an_enumerated_site(infer: Any = PER_DATUM) -> Pair:
    def model(index: Tensor) -> None:
        kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        with pyro.plate("data", N, subsample=index):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.9])[kind]))
            pyro.sample("x", dist.Normal(z + kind, 1.0), obs=X[index])

    def guide(index: Tensor) -> None:
        kind = pyro.sample(
            "kind",
            dist.Categorical(logits=pyro.param("kinds", torch.zeros(3))),
            infer={"estimator": "enumerate"},
        )
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", N, subsample=index):
            pyro.sample("z", dist.Bernoulli(logits=logits[kind]), infer=infer)

    return model, guide


PROGRAMS: dict[str, tuple[Callable[[], Pair], list[tuple[Any, ...]], dict[str, Any]]] = {
    "given": (over_rows, [(index,) for index in BATCHES["distinct"]], {}),
    "ragged": (over_rows, [(index,) for index in BATCHES["of several sizes"]], {}),
    "twice the same": (over_rows, [(index,) for index in BATCHES["twice the same"]], {}),
    "drawn": (lambda: over_rows(size=3), [()], {}),
    "nested": (nested, list(PAIRS), {}),
    "two particles": (lambda: over_rows(size=3), [()], {"num_particles": 2}),
    "particles in a loop": (lambda: over_rows(size=3), [()], {"num_particles": 6}),
    "vectorized": (over_rows, [(BATCHES["distinct"][0],)], {"num_particles": 2, "vectorize_particles": True}),
    "enumerated": (
        beside_an_enumerated_site,
        [(index,) for index in BATCHES["ragged"] + BATCHES["distinct"]],
        {"max_plate_nesting": 1},
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_eager_pyro_with_such_an_average_has_the_same_gradient(name: str) -> None:
    make, calls, options = PROGRAMS[name]
    module = sgc.compile(*make(), backend="eager", **options)
    for _ in range(3):
        for args in calls:
            module(*args).backward()
            before = {name: value.clone() for name, value in module.state_dict().items()}
            report = module.verify(*args)
            assert report and all(row.within(1e-5) for row in (report.loss, *report.gradients)), str(report)
            assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def outcome(backend: str, name: str, **settings: Any) -> list[Tensor]:
    make, calls, options = PROGRAMS[name]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    module = sgc.compile(*make(), backend=backend, rng="torch", **options, **settings)
    losses = []
    for args in calls * 3:
        loss = module(*args)
        loss.backward()
        losses.append(loss.detach())
    store = pyro.get_param_store()._params
    gradients = [tensor.grad for tensor in store.values() if tensor.grad is not None]
    averages = [tensor.detach() for tensor_name, tensor in store.items() if tensor_name.startswith(AVERAGE)]
    assert len(averages) == 1 and averages[0].any() and gradients
    return [torch.stack(losses), *gradients, *averages]


@pytest.mark.parametrize("name", PROGRAMS)
def test_graphs_after_all_rewrites(name: str) -> None:
    expected = outcome("eager", name)
    with registered(RunGraphs(rewritten=True)):
        found = outcome("inductor", name)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(expected, found, strict=True))


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["ragged", "twice the same", "drawn", "nested", "two particles", "enumerated"])
def test_inductor(name: str) -> None:
    expected, found = outcome("eager", name), outcome("inductor", name)
    assert all(torch.allclose(one, other, atol=1e-4, rtol=1e-4) for one, other in zip(expected, found, strict=True))


def test_torchscript() -> None:
    expected, found = outcome("eager", "twice the same"), outcome("torchscript", "twice the same")
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(expected, found, strict=True))


def test_beside_a_network_their_sum_is_subtracted() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 1)

    def network(rows: Tensor) -> Tensor:
        result: Tensor = net(X[rows].unsqueeze(-1)).squeeze(-1)
        return result

    index = torch.tensor([2, 6, 0])
    options = {**OPTIONS, "nn_baseline": network, "nn_baseline_input": index}
    module = sgc.compile(*over_rows({"baseline": options}), backend="eager").initialize(index)
    for _ in range(3):
        module(index).backward()
    assert module.verify(index)
    assert "for each of 7 rows of 'data' (beta 0.7)" in str(module.graph)


def test_one_capture_serves_batches_of_all_sizes() -> None:
    module = sgc.compile(*over_rows(), backend="eager")
    for size in (2, 3, 5, 6):
        module(torch.arange(size)).backward()
        assert module.verify(torch.arange(size))
    assert len(module.specializations) == 2 and in_store().shape == (N,)
    assert "decaying average for each of 7 rows of 'data' (beta 0.7)" in str(module.graph)


# -- what it is called, and by whom it is asked for


def test_it_is_printed_and_drawn() -> None:
    module = sgc.compile(*over_rows(size=3), backend="eager").initialize()
    words = "decaying average for each of 7 rows of 'data' (beta 0.7)"
    assert f"minus the baseline: {words}" in str(module.graph)
    assert words in module.graph.to_dot() and "for each of 7 rows of" in module.graph.to_mermaid()
    assert words in str(module.explain())
    assert module.graph.has_edge("data", "rows of data (z)")


def test_the_option_estimators_asks_for_it() -> None:
    expected = outcome("eager", "given")
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    options = {"estimators": {"z": "decaying average per datum"}}
    index = BATCHES["distinct"]
    module = sgc.compile(*over_rows({"baseline": {"baseline_beta": BETA}}), backend="eager", rng="torch", **options)
    for batch in index * 3:
        module(batch).backward()
    assert torch.equal(in_store(), expected[-1])
    assert module.verify(index[0])


def test_the_option_at_a_site_with_an_average_by_place() -> None:
    """Eager Pyro as it is has that one, of another shape."""
    own = {"baseline": {"use_decaying_avg_baseline": True}}
    estimators = {"z": "decaying average per datum"}
    module = sgc.compile(*over_rows(own), backend="eager", estimators=estimators)  # type: ignore[arg-type]
    for batch in BATCHES["of several sizes"]:
        module(batch).backward()
        report = module.verify(batch)
        assert report and [row.name for row in report.gradients if row.by_design] == ["logits"]
    assert in_store().shape == (N,)


def test_the_same_from_pyros_classes() -> None:
    elbo = sgc.infer.TraceGraph_ELBO(backend="eager", estimators={"*": "decaying average per datum"})
    svi = sgc.SVI(*over_rows({}), lambda parameters: torch.optim.SGD(parameters, lr=0.0), elbo)
    for batch in BATCHES["ragged"]:
        svi.step(batch)
    assert in_store().shape == (N,) and in_store().all()


def test_switched_off_it_is_an_average_by_place() -> None:
    options = {**OPTIONS, "average_per_datum": False}
    module = sgc.compile(*over_rows({"baseline": options}), backend="eager")
    module(torch.tensor([0, 1])).backward()
    assert in_store().shape == (2,) and module.verify(torch.tensor([0, 1]))
