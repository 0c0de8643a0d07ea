"""Sites of the model alone under ``objective="elbo"``: Pyro's numbers where it has them, training, files, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

import sgc
from sgc.graph.enumeration_nodes import MarginalCostNode
from tests.objectives import enumerated_programs as programs
from tests.objectives.enumerated_programs import Program, data, weights
from tests.saved.loaded_alike import loaded_alike
from tests.statistical import test_summed_out_of_the_model as exact


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield


def gradients() -> dict[str, Tensor]:
    """Those of all parameters of Pyro's store, which are then forgotten."""
    store = dict(pyro.get_param_store().named_parameters())
    taken = {name: p.grad.clone() for name, p in store.items() if p.grad is not None}
    for parameter in store.values():
        parameter.grad = None
    return taken


def assert_pyros(program: Program, seed: int = 3) -> None:
    model, guide, args, options = program
    options = {"max_plate_nesting": 2, **options}  # so that Pyro draws nothing to find it
    pyro.set_rng_seed(seed)
    theirs = TraceEnum_ELBO(**options).loss_and_grads(model, guide, *args)
    expected = gradients()
    module = sgc.compile(model, guide, backend="eager", **options)
    module.initialize(*args)
    pyro.set_rng_seed(seed)
    loss = module(*args)
    loss.backward()
    ours = gradients()
    assert float(loss) == pytest.approx(theirs, rel=1e-12)
    assert ours.keys() == expected.keys() and ours
    for name, gradient in expected.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-10, atol=1e-12), name
    assert module.verify(*args), module.verify(*args)


def two_markov_chains_of_rows() -> Program:
    """Five steps of two chains that are observed together, rows of a subsample, a pathwise gain above them."""

    def model(x: Tensor) -> None:
        gain = pyro.sample("gain", dist.Normal(1.0, 1.0))
        with pyro.plate("rows", 10, subsample=x):
            a = b = torch.tensor(0)
            for t in pyro.markov(range(5)):
                with poutine.mask(mask=x[:, t] < 1.5):
                    a = pyro.sample(f"a_{t}", dist.Categorical(weights("wa", 2, 2)[a]), infer=programs.PARALLEL)
                    b = pyro.sample(f"b_{t}", dist.Categorical(weights("wb", 3, 3)[b]), infer=programs.PARALLEL)
                    pyro.sample(f"x_{t}", dist.Normal(gain * a - 0.4 * b, 0.9), obs=x[:, t])

    def guide(x: Tensor) -> None:
        pyro.sample("gain", dist.Normal(pyro.param("m", torch.tensor(0.6)), 0.3))

    return model, guide, (data(4, 5),), {"max_plate_nesting": 1}


@pytest.mark.parametrize(
    "program",
    [
        programs.mixture,
        programs.mixture_of_a_subsample,
        programs.bayesian_mixture,
        programs.hidden_markov,
        programs.second_order,
        programs.plates_within,
        two_markov_chains_of_rows,
    ],
)
def test_without_score_functions_it_is_pyros_trace_enum(program: Callable[[], Program]) -> None:
    assert_pyros(program())


@pytest.mark.parametrize(
    "particles", [{"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}], ids=str
)
def test_particles_are_pyros(particles: dict[str, Any]) -> None:
    model, guide, args, options = two_markov_chains_of_rows()
    assert_pyros((model, guide, args, {**options, **particles}))


@pytest.mark.parametrize("program", exact.PROGRAMS[:4])
def test_the_loss_beside_a_score_function_is_pyros(program: Callable[[], exact.Program]) -> None:
    case = program()
    model, guide = poutine.scale(case.model, case.scale), poutine.scale(case.guide, case.scale)
    module = sgc.compile(model, guide, backend="eager", max_plate_nesting=2).initialize(*case.args)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        theirs = TraceEnum_ELBO(max_plate_nesting=2).loss(model, guide, *case.args)
        pyro.set_rng_seed(seed)
        assert float(module(*case.args).detach()) == pytest.approx(theirs, rel=1e-12)


def topics(words: Tensor) -> None:
    """Latent Dirichlet allocation with a genre of each document, in minibatches: the topics of words are summed out."""
    vocabulary = pyro.param("vocabulary", torch.softmax(data(3, 6) * 2, -1), constraint=dist.constraints.simplex)
    genres = pyro.param(
        "genres", torch.tensor([[4.0, 1.0, 1.0], [1.0, 1.0, 4.0]]), constraint=dist.constraints.positive
    )
    with pyro.plate("documents", 20, subsample=torch.arange(len(words)), dim=-2):
        genre = pyro.sample("genre", dist.Bernoulli(0.4))
        shares = pyro.sample("shares", dist.Dirichlet(genres[genre.long()]))
        with pyro.plate("words", words.shape[1], dim=-1):
            topic = pyro.sample("topic", dist.Categorical(shares), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Categorical(Vindex(vocabulary)[topic]), obs=words)


def guessed_topics(words: Tensor) -> None:
    counts = torch.nn.functional.one_hot(words, 6).sum(-2).to(torch.get_default_dtype())
    to_genre = pyro.param("to_genre", 0.1 * data(6))
    to_shares = pyro.param("to_shares", 0.1 * data(6, 3))
    with pyro.plate("documents", 20, subsample=torch.arange(len(words)), dim=-2):
        genre = pyro.sample("genre", dist.Bernoulli(logits=(counts @ to_genre)[:, None]))
        shares = torch.nn.functional.softplus((counts @ to_shares)[:, None] + 0.3 * genre[..., None]) + 0.5
        pyro.sample("shares", dist.Dirichlet(shares))


WORDS = torch.tensor([[0, 1, 1, 0, 2], [5, 4, 5, 3, 3], [0, 0, 5, 4, 1], [2, 2, 1, 0, 0]])

ASKED: list[dict[str, Any]] = [
    {"estimators": {"genre": "decaying average"}},
    {"estimators": {"genre": "decaying average per datum"}},
    {"estimators": {"genre": "leave-one-out"}, "num_particles": 3},
    {"estimators": {"genre": "leave-one-out"}, "num_particles": 3, "vectorize_particles": True},
    {"estimators": {"genre": "enumerate"}},
    {"estimators": {"*": "auto"}, "num_particles": 2},
]


@pytest.mark.parametrize("options", ASKED, ids=str)
def test_topics_of_words_below_genres_that_are_drawn(options: dict[str, Any]) -> None:
    pyro.set_rng_seed(0)
    module = sgc.compile(topics, guessed_topics, backend="eager", max_plate_nesting=2, **options)
    module.initialize(WORDS)
    assert module.graph.estimator("topic").value == "enumerated"
    assert module.verify(WORDS), module.verify(WORDS)


@pytest.mark.inductor
def test_it_is_compiled_trains_and_is_saved(tmp_path: Path) -> None:
    """Whole steps on Inductor; the file gives the same loss and the same text."""
    options: dict[str, Any] = {"estimators": {"genre": "decaying average"}, "max_plate_nesting": 2}
    module = sgc.compile(topics, guessed_topics, backend="inductor", rng="torch", **options).initialize(WORDS)
    assert module.verify(WORDS), module.verify(WORDS)
    pyro.set_rng_seed(0)
    elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", **options)
    result = sgc.SVI(topics, guessed_topics, pyro.optim.Adam({"lr": 0.03}), elbo).run(400, WORDS)
    assert result.losses[-50:].mean() < result.losses[:50].mean() - 1
    loaded = loaded_alike(module, tmp_path / "topics.sgc", WORDS)
    assert str(loaded.graph) == str(module.graph) and "log sum(topic)" in str(loaded.graph)


def test_the_ways_to_ask_are_the_same() -> None:
    def model(infer: dict[str, Any]) -> Callable[[], None]:
        def model() -> None:
            s = pyro.sample("s", dist.Bernoulli(0.3))
            c = pyro.sample("c", dist.Bernoulli(0.2 + 0.5 * s), infer=infer)
            pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(0.4))

        return model

    def guide() -> None:
        pyro.sample("s", dist.Bernoulli(pyro.param("p", torch.tensor(0.4))))

    plain = model({})
    ways: list[tuple[Callable[[], None], dict[str, Any]]] = [
        (model({"enumerate": "parallel"}), {}),
        (config_enumerate(plain), {}),
        (model({"estimator": "enumerate"}), {}),
        (plain, {"c": "enumerate"}),
        (plain, {"c*": "enumerate", "s": "score function"}),
    ]
    for asking, asked in ways:
        module = sgc.compile(asking, guide, backend="eager", estimators=asked).initialize()
        assert module.graph.is_asked("c") and module.graph.estimator("s").value == "score function"
        assert module.verify()
    every = sgc.compile(plain, guide, backend="eager", estimators={"*": "enumerate"}).initialize()
    assert {every.graph.estimator(name).value for name in ("s", "c")} == {"enumerated"}
    c = torch.tensor([0.0, 1.0])
    log_x = dist.Normal(c, 1.0).log_prob(torch.tensor(0.4)).exp()
    p = torch.tensor([0.7, 0.3])
    marginal = torch.stack([(torch.tensor([1 - on, on]) * log_x).sum().log() for on in (0.2, 0.7)])
    q = torch.tensor([0.6, 0.4])
    assert float(every()) == pytest.approx(float((q * (q.log() - p.log() - marginal)).sum()), rel=1e-12)


def test_what_is_printed_explained_and_drawn() -> None:
    case = exact.chain()
    module = case.compiled().initialize(*case.args)
    graph, text = module.graph, str(module.graph)
    (marginal,) = graph.of_type(MarginalCostNode)
    assert marginal.key == "log sum(state_0 … state_3)" and marginal.noun == "marginal cost"
    assert "gradient: exact, by enumeration: its 2 values side by side, summed out of the model" in text
    assert "times: log p(regime) - log q(regime) - log q(last) + log sum(state_0 … state_3)" in text.replace("\n", " ")
    assert "elbo: 1 log p term - 2 log q terms + 1 marginal cost" in text
    assert "surrogate: 2 cost terms + 2 score terms" in text
    assert "the log of the sum over state_0; state_1; state_2; state_3" in text
    explained = str(module.explain())
    assert "it is asked for" in explained and "4 of 4" in explained
    picture = graph.to_mermaid(highlight="regime")
    assert "log of the sum" in picture and "over state_0 and 3 more" in picture


def test_rows_of_any_number_and_the_terms_of_its_variance() -> None:
    """The sum has no score term, and no row in the report of variances."""
    case = exact.mixture()
    module = case.compiled()
    for rows in (2, 5, 3, 4):
        assert module(data(rows)).requires_grad
        assert module.verify(data(rows)), module.verify(data(rows))
    assert len(module.specializations) == 2
    report = module.gradient_variance(data(4), samples=50)
    assert {row.site for row in report.sites} <= {"s", "terms without a score function"}


def test_a_mask_that_is_drawn_hides_a_density_and_no_draw() -> None:
    """What is drawn below the mask does not depend on it, nor do the densities of that; ``verify`` says so, too."""

    def model() -> None:
        on = pyro.sample("on", dist.Bernoulli(0.3))
        z = pyro.sample("z", dist.Poisson(1.2))
        c = pyro.sample("c", dist.Bernoulli(torch.sigmoid(0.5 * z)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(c - z, 1.0), obs=torch.tensor(0.3))
        pyro.sample("y", dist.Normal(on, 1.0), obs=torch.tensor(0.3))

    def guide() -> None:
        on = pyro.sample("on", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))
        with poutine.mask(mask=on.bool()):
            pyro.sample("z", dist.Poisson(pyro.param("rate", torch.tensor(1.5))))

    module = sgc.compile(model, guide, backend="eager").initialize()
    assert module.graph.downstream_costs("on") == {"log p(on)", "log p(y)", "-log q(on)", "-log q(z)"}
    for seed in range(3):
        pyro.set_rng_seed(seed)
        assert module.verify(), module.verify()


@pytest.mark.parametrize("asked", [{"c": "enumerate"}, {"k": "enumerate", "c": "enumerate"}])
@pytest.mark.parametrize("rows", [3, 2])
def test_plates_in_one_dim_are_two(rows: int, asked: dict[str, Any]) -> None:
    """A score function in one of them is multiplied by the sum over the other; by ``verify`` too."""

    def model() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("first", 2):
            z = pyro.sample("z", dist.Bernoulli(0.4 + 0.2 * k))
        with pyro.plate("second", rows):
            c = pyro.sample("c", dist.Bernoulli(0.2 + 0.3 * z.mean(-1, keepdim=True)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=data(rows))

    def guide() -> None:
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.3))))
        with pyro.plate("first", 2):
            pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor([0.3, 0.6]))))

    module = sgc.compile(model, guide, backend="eager", estimators=asked).initialize()
    for _ in range(3):
        assert module.verify(), module.verify()


def test_a_random_subsample_in_the_names_of_sites() -> None:
    """What is summed out has other names at each call."""

    def model() -> None:
        for i in pyro.plate("p", 5, subsample_size=3):
            s = pyro.sample(f"s{i}", dist.Bernoulli(0.4))
            c = pyro.sample(f"c{i}", dist.Bernoulli(0.2 + 0.5 * s), infer={"enumerate": "parallel"})
            pyro.sample(f"x{i}", dist.Normal(c * pyro.param("gain", torch.tensor(1.3)), 1.0), obs=torch.tensor(0.5))

    def guide() -> None:
        for i in pyro.plate("p", 5, subsample_size=3):
            pyro.sample(f"s{i}", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.1))))

    module = sgc.compile(model, guide, backend="eager").initialize()
    assert len(list(module.graph.of_type(MarginalCostNode))) == 3
    for _ in range(3):
        module().backward()
    assert module.verify()


def test_closed_forms_beside_it_are_of_sites_that_are_no_factors() -> None:
    """``log p(z | c)`` is a factor of the sum over c, and KL(q(z) || p(z | c)) is of a value of c."""

    def model() -> None:
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Bernoulli(torch.sigmoid(u)), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(2 * c, 1.0))

    def guide() -> None:
        pyro.sample("u", dist.Normal(pyro.param("m", torch.tensor(0.3)), 1.0))
        pyro.sample("z", dist.Normal(pyro.param("n", torch.tensor(0.5)), 0.7))

    module = sgc.compile(model, guide, backend="eager", analytic_kl=True).initialize()
    assert "-KL(q(u) || p(u))" in module.graph and "-KL(q(z) || p(z))" not in module.graph
    assert module.verify()
