"""What decides about CUDA graphs, with graphs that run on the CPU; tests/cuda has real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from sgc.emit.inductor import cuda_graphs
from sgc.emit.inductor.cuda_graphs import ReplayedCall, ReplayedStep, why_not_replayed

CPU = torch.device("cpu")


class Graph:
    """Does again what ``make`` did, on the memory of then, and writes the results where they were."""

    made = 0

    def __init__(self, make: Callable[[], list[Tensor]], device: torch.device) -> None:
        assert device == CPU
        Graph.made += 1
        self._make = make
        Recorded.dry = True  # a capture does nothing
        self.results = make()
        Recorded.dry = False

    def replay(self) -> None:
        for result, new in zip(self.results, self._make(), strict=True):
            result.copy_(new)

    def timed(self) -> float:
        self.replay()
        return 0.1


class Recorded:
    """A step ``(total, x) -> [total, even]`` that adds ``x`` to ``total``, and notes where its inputs lie."""

    dry = False

    def __init__(self) -> None:
        self.addresses: list[list[int]] = []

    def __call__(self, total: Tensor, x: Tensor) -> list[Tensor]:
        if Recorded.dry:
            return [torch.empty(()), torch.empty((), dtype=torch.bool)]
        self.addresses.append([total.data_ptr(), x.data_ptr()])
        total.add_(x.sum())
        return [total.clone(), total % 2 == 0]


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    Graph.made = 0
    monkeypatch.setattr(cuda_graphs, "_captured", Graph)


def test_many_steps_are_taken_in_one_graph() -> None:
    total, x = torch.zeros(()), torch.tensor([1.0])
    step = ReplayedStep(Recorded(), [total, x], [0], CPU)
    taken: list[int] = []
    losses: list[float] = []
    while len(losses) < 100:
        found, even = step([], 100 - len(losses))
        taken.append(len(found))
        losses += found.tolist()
        assert torch.equal(even, found % 2 == 0)
    assert losses == [float(number) for number in range(1, 101)]
    # As it is; the capture; eight that are timed; a graph of as many steps as take half a millisecond.
    assert taken == [1] * 10 + [5] * 18
    assert Graph.made == 2


def test_a_step_by_itself_gives_numbers() -> None:
    total, x = torch.zeros(()), torch.tensor([1.0])
    step = ReplayedStep(Recorded(), [total, x], [0], CPU)
    assert [step.once([]) for _ in range(3)] == [[1.0, True], [2.0, True], [3.0, True]]
    total.fill_(torch.nan)
    loss, valid = step.once([])
    assert loss != loss and not valid


def test_autograd_learns_of_what_is_written() -> None:
    total, x = torch.zeros(()), torch.tensor([1.0])
    step = ReplayedStep(Recorded(), [total, x], [0], CPU)
    for _ in range(3):
        before = total._version
        step([], 1)
        assert total._version > before


def test_what_stays_where_it_is_is_read_there() -> None:
    run, x = Recorded(), torch.tensor([1.0])
    step = ReplayedStep(run, [torch.zeros(()), None], [0], CPU)  # the call's tensors are the first inputs
    total = torch.zeros(())
    for number in range(1, 5):
        x.fill_(number)
        (found, _) = step([total, x], 1)
    assert found.item() == 10 and {x for _, x in run.addresses} == {x.data_ptr()}
    assert Graph.made == 1


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.t(), lambda x: x[:, :1].expand(2, 3), lambda x: x[:, ::2]])
def test_what_moves_is_copied(layout: Callable[[Tensor], Tensor]) -> None:
    """Into one place, whatever its strides; from then on nothing is captured anew."""
    run, total, expected = Recorded(), torch.zeros(()), 0.0
    step = ReplayedStep(run, [total, None], [0], CPU)
    kept = []
    for number in range(6):
        kept.append(layout(torch.arange(6.0).reshape(2, 3) + number))
        expected += kept[-1].sum().item()
        (found, _) = step([total, kept[-1]], 1)
        assert found.item() == expected
    assert Graph.made == 2
    assert len({x for _, x in run.addresses[2:]}) == 1


def test_no_history_is_kept_of_what_is_copied() -> None:
    step = ReplayedStep(Recorded(), [torch.zeros(()), None], [0], CPU)
    kept = [torch.ones(2, requires_grad=True) for _ in range(4)]
    for x in kept:
        step([torch.zeros(()), x], 1)
    (copy,) = step._places._copies.values()
    assert copy.grad_fn is None and not copy.requires_grad


def test_results_of_a_call_are_the_callers_own() -> None:
    call = ReplayedCall(lambda x: [x * 2, x.sum(), x > 1], [], CPU)
    x = torch.tensor([1.0, 2.0])
    results = []
    for number in range(4):
        x.fill_(number)
        results.append(call(x))
    for number, (doubled, total, large) in enumerate(results):
        assert doubled.tolist() == [2.0 * number] * 2 and total.item() == 2 * number
        assert large.tolist() == [number > 1] * 2
        assert doubled.shape == (2,) and total.shape == ()


def test_a_written_input_that_moves_is_captured_anew_and_some_day_no_more() -> None:
    call = ReplayedCall(Recorded(), [0], CPU)
    kept = []
    for number in range(14):
        kept.append(torch.tensor(float(number)))
        found, _ = call(kept[-1], torch.tensor(1.0))
        assert kept[-1].item() == found.item() == number + 1
    assert Graph.made == cuda_graphs._MOVES + 1


# -- what cannot be replayed


def traced(function: Callable[..., Any], *examples: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*examples)


def test_why_not() -> None:
    x = torch.ones(2)
    module = traced(lambda x: [x + 1], x)
    assert why_not_replayed(module, [x]) == "an input is on the cpu"
    # With no input there is only what the graph itself does.
    fixed = traced(lambda: [torch.full((), 2.0) * 3])
    assert why_not_replayed(fixed, []) is None
    assert why_not_replayed(traced(lambda: [torch.ones(2) * 3]), []) == "ones is on the cpu"
    assert why_not_replayed(traced(lambda: [torch.rand(())]), []) == "rand is on the cpu"
