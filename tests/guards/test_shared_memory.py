"""Programs that write into memory that other inputs are views of: as eager Pyro, or an error, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import CaptureError
from sgc.graph.aliasing import copies, shared

Arguments = Callable[[int], tuple[Tensor, ...]]
"""The arguments of the call of a number: shared memory in those of odd numbers."""

BACKENDS = [pytest.param("inductor", marks=pytest.mark.inductor), "torchscript", "eager"]


def guide(*args: Tensor) -> None:
    pyro.param("unused", torch.tensor(0.3))


def observe(loc: Tensor, value: Tensor) -> None:
    pyro.sample("x", dist.Normal(loc, 1.0), obs=value)


def writing(x: Tensor, y: Tensor) -> None:
    x.add_(1.0)  # writes
    observe(y.sum(), x.sum())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> None:
        self.count.add_(1.0)  # writes
        observe(x.sum(), self.count.sum())


class Holder:
    tensor = torch.zeros(4)


def _of_arguments(first: slice, second: slice) -> tuple[Any, Arguments]:
    def arguments(number: int) -> tuple[Tensor, ...]:
        x = torch.arange(6.0)
        return x[first], (x if number % 2 else torch.arange(6.0))[second]

    return writing, arguments


def _of_a_buffer() -> tuple[Any, Arguments]:
    net = Counting()

    def arguments(number: int) -> tuple[Tensor, ...]:
        net.count.zero_()
        return ((net.count if number % 2 else torch.zeros(4))[1:3],)

    return net, arguments


def _the_buffer_itself() -> tuple[Any, Arguments]:
    net = Counting()

    def arguments(number: int) -> tuple[Tensor, ...]:
        net.count.zero_()
        return (net.count if number % 2 else torch.zeros(4),)

    return net, arguments


def _of_a_parameter() -> tuple[Any, Arguments]:
    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.ones(4))
        with torch.no_grad():
            w.clamp_(max=0.5)  # writes
        observe(w.sum(), x.sum())

    def arguments(number: int) -> tuple[Tensor, ...]:
        w = pyro.param("w", torch.ones(4)).detach().fill_(1.0)
        return ((w if number % 2 else torch.ones(4))[:2],)

    return model, arguments


def _of_a_tensor_that_moves() -> tuple[Any, Arguments]:
    holder = Holder()

    def model(x: Tensor) -> None:
        holder.tensor.add_(1.0)  # writes
        observe(x.sum(), holder.tensor.sum())

    def arguments(number: int) -> tuple[Tensor, ...]:
        holder.tensor = torch.zeros(4)
        return ((holder.tensor if number % 2 else torch.zeros(4))[1:3],)

    return model, arguments


def _of_integers() -> tuple[Any, Arguments]:
    """The same bytes as numbers of another kind."""

    def model(x: Tensor, y: Tensor) -> None:
        x.add_(1.0)  # writes
        observe(y.sum().float() / 2**30, x.sum())

    def arguments(number: int) -> tuple[Tensor, ...]:
        x = torch.arange(4.0)
        return x, (x if number % 2 else torch.arange(4.0))[1:].view(torch.int32)

    return model, arguments


SHARED = {
    "two arguments": lambda: _of_arguments(slice(0, 4), slice(2, 6)),
    "a part": lambda: _of_arguments(slice(0, 6), slice(1, 3)),
    "a part with gaps": lambda: _of_arguments(slice(0, 3), slice(0, 6, 2)),
    "a buffer": _of_a_buffer,
    "the buffer itself": _the_buffer_itself,
    "a parameter": _of_a_parameter,
    "a tensor that moves": _of_a_tensor_that_moves,
    "integers": _of_integers,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", SHARED.values(), ids=SHARED)
def test_a_view_of_what_is_written(make: Callable[[], tuple[Any, Arguments]], backend: str) -> None:
    model, arguments = make()
    elbo = pyro.infer.TraceGraph_ELBO()
    expected = [elbo.loss(model, guide, *arguments(number)) for number in range(4)]
    assert expected[0] != expected[1] or make is SHARED["a part with gaps"] or len(arguments(0)) == 2
    module = sgc.compile(model, guide, backend=backend)
    for number in range(4):
        if number % 2 and backend != "eager":
            args = arguments(number)
            before = [arg.clone() for arg in args]
            with pytest.raises(CaptureError, match="lies in the same memory") as raised:
                module(*args)
            assert raised.value.source is not None
            assert raised.value.source.text.endswith("# writes")
            assert "clone one of them" in raised.value.remedy
            assert all(map(torch.equal, args, before))
        else:
            assert float(module(*arguments(number))) == pytest.approx(expected[number], rel=1e-6)


def _rows_and_columns() -> tuple[Any, Arguments]:
    def arguments(number: int) -> tuple[Tensor, ...]:
        x = torch.arange(12.0).reshape(4, 3)
        return x[:, :2], (x if number % 2 else x.clone())[:, 2]

    return writing, arguments


def _of_every_other_element() -> tuple[Any, Arguments]:
    def arguments(number: int) -> tuple[Tensor, ...]:
        x = torch.arange(6.0)
        return x[::2], (x if number % 2 else x.clone())[1::2]

    return writing, arguments


DISJOINT = {
    "pieces": lambda: _of_arguments(slice(0, 3), slice(3, 6)),
    "columns": _rows_and_columns,
    "every other element": _of_every_other_element,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", DISJOINT.values(), ids=DISJOINT)
def test_pieces_without_common_elements_are_one_program(
    make: Callable[[], tuple[Any, Arguments]], backend: str
) -> None:
    model, arguments = make()
    elbo = pyro.infer.TraceGraph_ELBO()
    module = sgc.compile(model, guide, backend=backend)
    for number in range(4):
        expected = elbo.loss(model, guide, *arguments(number))
        assert float(module(*arguments(number))) == pytest.approx(expected, rel=1e-6)
    assert len(module.specializations) == 1


@pytest.mark.parametrize("backend", ["torchscript", "eager"])
def test_what_is_only_read_may_share_memory(backend: str) -> None:
    def model(x: Tensor, y: Tensor, z: Tensor) -> None:
        z.add_(1.0)
        observe(x.sum() + y.sum(), z.sum())

    module = sgc.compile(model, guide, backend=backend)
    for number in range(4):
        x = torch.arange(4.0)
        y = x[1:3] if number % 2 else torch.arange(2.0)
        expected = pyro.infer.TraceGraph_ELBO().loss(model, guide, x, y, torch.ones(2))
        assert float(module(x, y, torch.ones(2))) == pytest.approx(expected)
    assert len(module.specializations) == 1


def test_a_branch_on_a_view_of_what_is_written() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        x.add_(1.0)
        observe(x.sum() if y.sum() > 4 else 2 * x.sum(), torch.tensor(0.0))

    module = sgc.compile(model, guide, backend="eager")
    for number in range(4):

        def arguments(number: int = number) -> tuple[Tensor, Tensor]:
            x = torch.tensor([1.0, 2.0, 1.0, 1.0])
            return x, (x if number % 2 else x.clone())[1:3]

        expected = pyro.infer.TraceGraph_ELBO().loss(model, guide, *arguments())
        assert float(module(*arguments())) == pytest.approx(expected)
    assert len(module.specializations) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_of_any_size(backend: str) -> None:
    module = sgc.compile(writing, guide, backend=backend)
    for size in (4, 5, 6, 7, 9):
        for first in (3, 2, 3):

            def arguments(size: int = size, first: int = first) -> tuple[Tensor, Tensor]:
                x = torch.arange(2.0 * size)
                return x[:size], x[size + first - 3 :]

            expected = pyro.infer.TraceGraph_ELBO().loss(writing, guide, *arguments())
            if first == 3 or backend == "eager":
                assert float(module(*arguments())) == pytest.approx(expected, rel=1e-5)
            else:
                with pytest.raises(CaptureError, match="lies in the same memory"):
                    module(*arguments())


def test_two_arrays_of_one_memory_are_refused_on_every_backend() -> None:
    array = np.zeros(6, dtype=np.float32)
    module = sgc.compile(writing, guide, backend="eager")
    with pytest.raises(CaptureError, match=r"writes into args\[0\], and args\[1\] lies in the same memory"):
        module(torch.from_numpy(array[:4]), torch.from_numpy(array[2:]))
    assert not array.any()


def test_the_miss_says_why() -> None:
    module = sgc.compile(writing, guide, backend="eager")
    x = torch.zeros(4)
    for y in (torch.zeros(2), x[1:3], torch.zeros(2)):
        module(x, y)
    assert "the program writes into args[0], and args[1] lies in the same memory" in str(module.misses())
    assert len(module.specializations) == 2


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (slice(0, 3), slice(3, 6), False),
        (slice(0, 4), slice(3, 6), True),
        (slice(0, 6, 2), slice(1, 6, 2), False),
        (slice(0, 6, 2), slice(1, 6, 3), True),
        (slice(0, 0), slice(0, 6), False),
    ],
)
def test_common_elements(one: slice, other: slice, common: bool) -> None:
    x = torch.arange(6.0)
    pair: list[Tensor | None] = [x[one], x[other]]
    assert shared(pair, [0]) == shared(pair, [1]) == ([(0, 1)] if common else [])
    assert shared([*pair, None], []) == []


def test_copies_share_memory_as_what_they_are_of() -> None:
    x, other = torch.arange(6.0), torch.ones(2)
    whole, part, single = copies([x, x[2:4], other])
    whole.add_(1.0)
    assert part.tolist() == [3.0, 4.0]
    assert x.tolist() == list(range(6))
    assert single.data_ptr() != other.data_ptr()
