"""Recurrent networks on packed sequences: the lengths are read, the numbers are Pyro's."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import sgc
from sgc.errors import DataDependenceError

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
SORTED, UNSORTED = torch.tensor([5, 4, 2]), torch.tensor([2, 5, 3])

KINDS: list[tuple[str, Callable[[], nn.Module]]] = [
    ("tanh", lambda: nn.RNN(4, 3, batch_first=True)),
    ("relu without biases", lambda: nn.RNN(4, 3, nonlinearity="relu", bias=False, batch_first=True)),
    ("bidirectional layers", lambda: nn.RNN(4, 3, num_layers=2, bidirectional=True, batch_first=True)),
    ("GRU", lambda: nn.GRU(4, 3, batch_first=True)),
    ("GRU with dropout", lambda: nn.GRU(4, 3, num_layers=3, dropout=0.5, bidirectional=True, batch_first=True)),
    ("LSTM", lambda: nn.LSTM(4, 3, batch_first=True)),
    ("LSTM, projected", lambda: nn.LSTM(4, 3, proj_size=2, num_layers=2, bidirectional=True, batch_first=True)),
    ("LSTM without biases", lambda: nn.LSTM(4, 3, proj_size=2, bias=False, batch_first=True)),
]


def prior(x: Tensor, *_: Any) -> None:
    with pyro.plate("rows", 3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def agrees(module: sgc.LossModule, guide: Callable[..., None], *args: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert module.verify(*args)
    pyro.set_rng_seed(1)
    loss = module(*args)
    pyro.set_rng_seed(1)
    assert loss.item() == pytest.approx(pyro.infer.TraceGraph_ELBO().loss(prior, guide, *args), rel=1e-5)
    loss.backward()


@pytest.mark.parametrize(
    ("make", "backend"),
    [pytest.param(make, "eager", id=name) for name, make in KINDS]
    + [
        pytest.param(make, "inductor", id=f"{name}, compiled")
        for name, make in KINDS
        if "dropout" in name or name == "LSTM"
    ],
)
def test_loss_and_gradients_are_pyros(make: Callable[[], nn.Module], backend: str) -> None:
    torch.manual_seed(0)
    net, states = make(), nn.Parameter(torch.zeros(()))

    def guide(x: Tensor, lengths: Tensor) -> None:
        pyro.module("net", net)
        packed = rnn.pack_padded_sequence(x + states, lengths, batch_first=True, enforce_sorted=False)
        output, last = net(packed)
        padded, found = rnn.pad_packed_sequence(output, batch_first=True, padding_value=0.1, total_length=6)
        last = last[0] + last[1].sum() if isinstance(last, tuple) else last
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(padded.sum((1, 2)) / found + last.sum((0, 2)), 1.0))

    module = sgc.compile(prior, guide, backend=backend, rng="torch")  # type: ignore[arg-type]
    agrees(module, guide, X, UNSORTED)
    if backend == "eager":
        for lengths in (SORTED, UNSORTED):
            agrees(module, guide, X, lengths)
        assert len(module.specializations) == 2
        assert "[5, 3, 2]" in module.guards() or "2, 5, 3" in module.guards()


@pytest.mark.parametrize("enforced", [True, False])
@pytest.mark.parametrize("lengths", [SORTED, [4, 4, 1], [1, 1, 1]], ids=str)
def test_lengths_in_any_form_and_initial_states(lengths: Any, enforced: bool) -> None:
    net, initial = nn.LSTM(4, 3), nn.Parameter(torch.full((1, 3, 3), 0.2))

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        first = pyro.param("first", initial)
        packed = rnn.pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=enforced)
        _, (last, cell) = net(packed, (first, first * 2.0))
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal((last + cell).sum((0, 2)), 1.0))

    agrees(sgc.compile(prior, guide, backend="eager"), guide, X)


def test_a_packed_sequence_among_the_arguments() -> None:
    net = nn.GRU(4, 3)

    def guide(x: rnn.PackedSequence) -> None:
        pyro.module("net", net)
        padded, lengths = rnn.pad_packed_sequence(net(x)[0])
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(padded.sum((0, 2)) * lengths, 1.0))

    module = sgc.compile(prior, guide, backend="eager")  # type: ignore[arg-type]
    for lengths, enforced in ((SORTED, True), (SORTED, False), (UNSORTED, False)):
        packed = rnn.pack_padded_sequence(X, lengths, batch_first=True, enforce_sorted=enforced)
        agrees(module, guide, packed)
    assert len(module.specializations) == 3


def test_sequences_that_are_packed_and_unpacked_by_torch() -> None:
    net = nn.RNN(4, 3)

    def guide(one: Tensor, other: Tensor, third: Tensor) -> None:
        pyro.module("net", net)
        packed = rnn.pack_sequence([one, other, third], enforce_sorted=False)
        parts = rnn.unpack_sequence(net(packed)[0])
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(torch.stack([part.sum() for part in parts]), 1.0))

    agrees(sgc.compile(prior, guide, backend="eager"), guide, X[0, :2], X[1], X[2, :3])


def test_a_step_of_sgc_svi_goes_as_pyros() -> None:
    def make() -> tuple[nn.Module, Callable[..., None]]:
        torch.manual_seed(0)
        net = nn.GRU(4, 3, batch_first=True)

        def guide(x: Tensor, lengths: Tensor) -> None:
            pyro.module("net", net)
            last = net(rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1]
            with pyro.plate("rows", 3):
                pyro.sample("z", dist.Normal(last.sum((0, 2)), 1.0))

        return net, guide

    losses = []
    for library in (pyro.infer, sgc.infer):
        pyro.clear_param_store()
        _, guide = make()
        options = {"backend": "eager"} if library is sgc.infer else {}
        svi = library.SVI(prior, guide, pyro.optim.Adam({"lr": 0.01}), library.TraceGraph_ELBO(**options))
        pyro.set_rng_seed(0)
        losses.append([svi.step(X, lengths) for lengths in (SORTED, UNSORTED, SORTED)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_lengths_that_are_sampled_are_an_error_with_the_line() -> None:
    net = nn.RNN(4, 3)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        extra = pyro.sample("extra", dist.Bernoulli(0.5)).long()
        packed = rnn.pack_padded_sequence(x.transpose(0, 1), 3 + extra.expand(3))
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(net(packed)[1].sum((0, 2)), 1.0))

    with pytest.raises(DataDependenceError) as caught:
        sgc.compile(lambda x: (pyro.sample("extra", dist.Bernoulli(0.5)), prior(x)), guide, backend="eager")(X)
    assert caught.value.site == "extra" and "pack_padded_sequence" in str(caught.value)
    assert "poutine.mask" in caught.value.remedy


@pytest.mark.parametrize(
    "read",
    [
        lambda n: X.split(n, 1)[0],
        lambda n: torch.chunk(X, n)[0],
        lambda n: torch.nn.functional.pad(X, (0, n)),
        lambda n: torch.zeros(n[None].long()[0], 2),
        lambda n: torch.ones(2, int(n), out=torch.zeros(2, int(n))),
    ],
)
def test_sizes_that_are_tensors(read: Callable[[Tensor], Tensor]) -> None:
    def guide(x: Tensor, n: Tensor) -> None:
        with pyro.plate("rows", 3):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(3)) + read(n).sum(), 1.0))

    module = sgc.compile(prior, guide, backend="eager")
    for n in (torch.tensor(3), torch.tensor(2)):
        agrees(module, guide, X, n)
