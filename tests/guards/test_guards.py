"""A guard that no longer holds leads to a new specialization, never to a stale answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import RespecializationWarning
from sgc.guards.base import Call

BETA = 1.0
DATA = torch.tensor([0.2, 0.4])


def guide(*args: Any, **kwargs: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.1))


def agrees_with_pyro(module: sgc.LossModule, model: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    pyro.set_rng_seed(1)
    ours = module(*args, **kwargs).item()
    pyro.set_rng_seed(1)
    theirs = pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, *args, **kwargs)
    return ours == pytest.approx(theirs, rel=1e-5)


def observe(loc: Any, x: Any) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + loc, 1.0), obs=torch.as_tensor(x, dtype=torch.get_default_dtype()))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((torch.tensor(0.1),), (torch.tensor([0.1]),)),  # shape
        ((torch.tensor(0.1),), (torch.tensor(0.1, dtype=torch.float64),)),  # dtype
        ((torch.tensor(0.1),), (torch.tensor(0.1, requires_grad=True),)),  # requires_grad
        ((1.0,), (2.0,)),  # a number
        ((1,), (True,)),  # its type
        ((torch.tensor(1.0),), (1.0,)),  # tensor or number
        ((np.array(0.3),), (np.array(0.4),)),  # an array
    ],
)
def test_arguments(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    def model(loc: Any) -> None:
        observe(torch.as_tensor(loc).sum().to(torch.float32), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    for args in (first, second, first):
        assert agrees_with_pyro(module, model, *args)
    assert len(module.specializations) == 2


def test_keywords_strings_and_none() -> None:
    def model(loc: Any = None, *, kind: str = "plain", **extra: Tensor) -> None:
        shift = 0.0 if loc is None else loc
        observe(shift + (1.0 if kind == "shifted" else 0.0) + sum(extra.values(), torch.tensor(0.0)), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    calls: list[dict[str, Any]] = [
        {},
        {"kind": "shifted"},
        {"loc": torch.tensor(0.4)},
        {"a": torch.tensor(0.1), "b": torch.tensor(0.2)},
        {"b": torch.tensor(0.2)},
    ]
    for kwargs in [*calls, *calls]:
        assert agrees_with_pyro(module, model, **kwargs)
    assert len(module.specializations) == len(calls)


def test_strides() -> None:
    def model(x: Tensor) -> None:
        observe((x * torch.arange(6.0).reshape(2, 3)).sum(), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    assert agrees_with_pyro(module, model, torch.randn(2, 3))
    assert agrees_with_pyro(module, model, torch.randn(3, 2).t())
    assert "stride" in str(module.misses())


def test_a_global_number_and_a_global_tensor() -> None:
    def model() -> None:
        observe(BETA * DATA.sum(), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    assert agrees_with_pyro(module, model)
    try:
        globals()["BETA"] = 3.0
        assert agrees_with_pyro(module, model)
        assert "BETA was 1.0, is 3.0" in str(module.misses())
        globals()["DATA"] = torch.tensor([5.0, 6.0])
        assert agrees_with_pyro(module, model)
        assert "DATA" in str(module.misses())
        DATA.fill_(1.0)  # in place: the same tensor, read anew at each call
        assert agrees_with_pyro(module, model)
        assert len(module.specializations) == 3
    finally:
        globals().update(BETA=1.0, DATA=torch.tensor([0.2, 0.4]))


def test_a_closure_and_an_attribute() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.beta = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.beta * x

    net, offset = Net(), 0.5

    def model() -> None:
        observe(net(torch.tensor(0.7)) + offset, 0.3)

    module = sgc.compile(model, guide, backend="eager")
    assert agrees_with_pyro(module, model)
    net.beta = 4.0  # annealed between calls
    assert agrees_with_pyro(module, model)
    offset = -2.0
    assert agrees_with_pyro(module, model)
    assert len(module.specializations) == 3


def test_an_object_among_the_arguments() -> None:
    @dataclass
    class Batch:
        x: Tensor
        weight: float

    def model(batch: Batch) -> None:
        observe(batch.weight * batch.x.sum(), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    batch = Batch(torch.tensor([1.0, 2.0]), 0.5)
    assert agrees_with_pyro(module, model, batch)
    assert agrees_with_pyro(module, model, batch)
    assert len(module.specializations) == 1
    batch.weight = 2.0
    assert agrees_with_pyro(module, model, batch)
    assert agrees_with_pyro(module, model, Batch(torch.tensor([3.0, 2.0]), 0.5))
    assert len(module.specializations) == 3


def test_a_value_read_from_an_input_is_guarded() -> None:
    def model(lengths: Tensor) -> None:
        for t in range(int(lengths.max())):
            pyro.sample(f"x_{t}", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1 * t))
        if lengths.sum() > 4:
            observe(1.0, 0.3)
        else:
            observe(0.0, 0.3)

    module = sgc.compile(model, guide, backend="eager")
    for lengths in ([1, 2], [2, 1], [3, 3], [2, 2]):
        assert agrees_with_pyro(module, model, torch.tensor(lengths))
    assert len(module.specializations) == 2
    assert "lengths.max()" in module.guards()


def test_a_boolean_mask_of_the_data() -> None:
    def model(x: Tensor) -> None:
        observe(x[x > 0].sum(), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    for values in ([1.0, -1.0, 2.0], [3.0, -2.0, 0.5], [1.0, 1.0, 1.0]):
        assert agrees_with_pyro(module, model, torch.tensor(values))
    assert len(module.specializations) == 2


def test_a_dict_reordered_is_the_same_call() -> None:
    def model(batch: dict[str, Tensor]) -> None:
        observe(batch["a"] - batch["b"], 0.3)

    module = sgc.compile(model, guide, backend="eager")
    a, b = torch.tensor(1.0), torch.tensor(2.0)
    assert agrees_with_pyro(module, model, {"a": a, "b": b})
    assert agrees_with_pyro(module, model, {"b": b, "a": a})


def test_the_default_dtype() -> None:
    def model() -> None:
        observe(torch.ones(()), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    assert agrees_with_pyro(module, model)
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    assert agrees_with_pyro(module, model)
    assert len(module.specializations) == 2


@pytest.mark.cpu
@pytest.mark.parametrize("native", [False, True])
def test_the_default_device(native: bool) -> None:
    """One that is set to where tensors are made anyway compiles nothing; another one is noticed, in any thread."""

    def model(x: Tensor) -> None:
        observe(x.sum(), 0.3)

    module = sgc.compile(model, guide, backend="eager")
    module(DATA)
    (made,) = module.specializations
    if native:
        made.watch_natively()
    call = Call((DATA,), {})
    assert made.inputs_of(call) is not None
    with torch.device("cpu"):
        assert made.inputs_of(call) is not None
        module(DATA)
        with torch.device("meta"):
            assert made.inputs_of(call) is None
            assert made.miss(call) == "the default device was cpu, is meta"
            with ThreadPoolExecutor(1) as other:
                assert other.submit(made.inputs_of, call).result() is not None  # torch sets it for a thread
    assert module.specializations == (made,)


def test_autocast_on_a_cpu() -> None:
    net = nn.Linear(64, 64).requires_grad_(False)

    def model(x: Tensor) -> None:
        observe(net(x).float().sum(), 0.3)

    module, x = sgc.compile(model, guide, backend="eager"), torch.randn(64)
    assert agrees_with_pyro(module, model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert agrees_with_pyro(module, model, x)
        assert "autocast was off, is torch.bfloat16 on cpu" in str(module.misses())
    with torch.autocast("cpu", dtype=torch.float16):
        assert agrees_with_pyro(module, model, x)
    assert agrees_with_pyro(module, model, x)
    assert len(module.specializations) == 3


def test_the_cache_is_bounded_and_says_when_it_thrashes() -> None:
    def model(name: str, data: Tensor) -> None:
        observe(float(name) + sum(data[i] for i in range(len(data))), 0.3)

    module = sgc.compile(model, guide, backend="eager", cache_size=3)
    with pytest.warns(
        RespecializationWarning, match=r"2 times: the shape of args\[1\] was \[2\], is \[3\].*few shapes"
    ):
        for name, rows in (("0", 1), ("1", 1), ("1", 2), ("0", 2), ("0", 3)):
            module(name, torch.ones(rows))
    assert len(module.specializations) == 3
    assert next(iter(module.specializations[-1].describe())) == "args[0] == '0'"
    worst, other = module.misses()
    assert (worst.about, worst.count, worst.latest) == ("args[0]", 2, "args[0] was '1', is '0'")
    assert (other.about, other.count) == ("the shape of args[1]", 2) and "few shapes" in other.remedy
    assert str(module.misses()).splitlines() == [str(worst), str(other)]


def test_effect_handlers_around_the_call() -> None:
    def model() -> None:
        observe(0.5, 0.3)

    module = sgc.compile(model, guide, backend="eager")
    assert agrees_with_pyro(module, model)
    with pyro.poutine.scale(scale=0.1):
        assert agrees_with_pyro(module, model)
    with pyro.poutine.trace() as outer:
        assert module() is not None
    assert not outer.trace.nodes  # what a capture does is nobody's business
    assert agrees_with_pyro(module, model)
    assert len(module.specializations) == 2


def test_guards_print() -> None:
    def model(x: Tensor, scale: float) -> None:
        observe(scale * BETA * x.sum(), 0.3)

    module = sgc.compile(model, guide, backend="eager").initialize(torch.zeros(2), 0.5)
    text = module.guards()
    assert "args[0]: torch.float32[2]" in text and "args[1] == 0.5" in text
    assert "BETA == 1.0" in text and "loc: torch.float32[]" in text
