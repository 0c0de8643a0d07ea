"""Callables made anew for each call, and the state around a program: equal ones hit, others are never served stale."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import RespecializationWarning

SCALE = 1.0
FACTOR: Any = None


def guide(*args: Any, **kwargs: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.1))


def observe(loc: Any) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + loc, 1.0), obs=torch.tensor(0.3))


def calls(f: Callable[[Tensor], Any]) -> None:
    observe(f(torch.tensor(0.7)))


def agrees(module: sgc.LossModule, model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    pyro.set_rng_seed(1)
    ours = module(*args, **kwargs).item()
    pyro.set_rng_seed(1)
    theirs = pyro.infer.TraceGraph_ELBO().loss_and_grads(model, guide, *args, **kwargs)
    assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)


def scaled(a: Any, x: Tensor, b: Any = 0.0) -> Any:
    return a * x * SCALE + b


def worded(text: str, x: Tensor) -> Tensor:
    return len(text) * x


class Scaler:
    def __init__(self, a: float) -> None:
        self.a = a

    def apply(self, x: Tensor) -> Tensor:
        return self.a * x


def closure(a: Any) -> Callable[[Tensor], Any]:
    return lambda x: a * x


def nested(a: Any) -> Callable[[Tensor], Any]:
    inner = closure(a)

    def outer(x: Tensor) -> Any:
        return inner(x) if x.dim() == 0 else outer(x[0])

    return outer


def default(a: Any) -> Callable[[Tensor], Any]:
    def f(x: Tensor, a: Any = a) -> Any:
        return a * x

    return f


def keyword(a: Any) -> Callable[[Tensor], Any]:
    def f(x: Tensor, *, a: Any = a) -> Any:
        return a * x

    return f


def attribute(a: Any) -> Callable[[Tensor], Any]:
    def f(x: Tensor) -> Any:
        return f.a * x  # type: ignore[attr-defined]

    f.a = a  # type: ignore[attr-defined]
    return f


def in_a_list(a: Any) -> Callable[[Tensor], Any]:
    return closure_of([{"a": (a, 1.0)}])


def closure_of(values: Any) -> Callable[[Tensor], Any]:
    return lambda x: values[0]["a"][0] * x


FAMILIES: list[Callable[[Any], Callable[[Tensor], Any]]] = [
    lambda a: partial(scaled, a),
    lambda a: partial(scaled, 1.0, b=a),
    lambda a: partial(partial(scaled, b=a), 2.0),
    lambda a: partial(lambda x, y: x * y, a),
    closure,
    nested,
    default,
    keyword,
    attribute,
    in_a_list,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_made_anew(family: Callable[[Any], Callable[[Tensor], Any]]) -> None:
    module = sgc.compile(calls, guide, backend="eager")
    for a in (0.5, 0.5, 2.0, 0.5, 2.0):
        agrees(module, calls, family(a))
    assert len(module.specializations) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_types_and_signs_are_told_apart(family: Callable[[Any], Callable[[Tensor], Any]]) -> None:
    def model(f: Callable[[Tensor], Any]) -> None:
        found = f(torch.tensor(2))  # the type of the number decides that of the result
        observe(torch.as_tensor(found).is_floating_point() + math.copysign(1.0, float(found)))

    module = sgc.compile(model, guide, backend="eager")
    for a in (1, 1.0, True, 0.0, -0.0):
        agrees(module, model, family(a))
    assert len(module.specializations) in (3, 4, 5)  # of a float that moves nothing is guarded, or its sign


@pytest.mark.parametrize("family", FAMILIES[4:])
def test_closed_over_tensors_are_known_by_identity(family: Callable[[Any], Callable[[Tensor], Any]]) -> None:
    module = sgc.compile(calls, guide, backend="eager")
    one, other = torch.tensor(0.5), torch.tensor(2.0)
    for a in (one, one, other, one):
        agrees(module, calls, family(a))
    assert len(module.specializations) == 2
    one.fill_(7.0)  # in place: the same tensor, read anew
    agrees(module, calls, family(one))
    assert len(module.specializations) == 2


def test_tensors_in_a_partial_are_inputs() -> None:
    module = sgc.compile(calls, guide, backend="eager")
    for a in (0.5, 2.0, 3.0):
        agrees(module, calls, partial(scaled, torch.tensor(a), b=torch.tensor(-a)))
        agrees(module, calls, f=partial(partial(scaled, torch.tensor(a)), b=1.0))
    assert len(module.specializations) == 2
    assert "kwargs['f'].args[0]: torch.float32[]" in module.guards()
    agrees(module, calls, f=partial(partial(scaled, torch.tensor(1.0)), b=2.0))
    assert "kwargs['f'].keywords['b'] was 1.0, is 2.0" in str(module.misses())
    weight = torch.tensor(0.5, requires_grad=True)
    module(partial(scaled, weight)).backward()
    expected = torch.autograd.functional.jacobian(
        lambda w: 0.5 * (0.3 - w * 0.7 - pyro.param("loc").detach()) ** 2, torch.tensor(0.5)
    )
    assert weight.grad is not None and (weight.grad - expected).abs() < 0.3  # z varies by 0.1 around loc


def test_bound_methods() -> None:
    module = sgc.compile(calls, guide, backend="eager")
    scaler = Scaler(0.5)
    agrees(module, calls, scaler.apply)
    agrees(module, calls, scaler.apply)
    assert len(module.specializations) == 1
    scaler.a = 2.0
    agrees(module, calls, scaler.apply)
    agrees(module, calls, Scaler(3.0).apply)  # another object
    agrees(module, calls, torch.tensor(4.0).mul)
    agrees(module, calls, torch.tensor(5.0).mul)
    assert len(module.specializations) == 5


def test_what_the_first_callable_holds_may_change_later() -> None:
    module = sgc.compile(calls, guide, backend="eager")
    box = [0.5]
    agrees(module, calls, lambda x: box[0] * x)
    box[0] = 2.0  # what was captured has changed with it, what was noted has not
    agrees(module, calls, lambda x: box[0] * x)
    first = partial(scaled, b=[0.5][0])
    agrees(module, calls, partial(first, 1.0))
    made = partial(scaled, 1.0, b=0.5)
    agrees(module, calls, made)
    made.keywords["b"] = 3.0
    agrees(module, calls, made)
    agrees(module, calls, partial(scaled, 1.0, b=3.0))
    agrees(module, calls, partial(scaled, 1.0, b=0.5))


def test_a_loop_variable_in_one_cell() -> None:
    def loop(module: sgc.LossModule) -> None:
        for i in range(3):
            agrees(module, calls, lambda x: i * x)  # noqa: B023 (that is the point)

    loop(sgc.compile(calls, guide, backend="eager"))


def test_the_same_code_with_other_globals() -> None:
    code = "def f(x):\n    return G * x\n"
    made: list[Callable[[Tensor], Any]] = []
    for g in (0.5, 2.0):
        namespace: dict[str, Any] = {"G": g}
        exec(code, namespace)
        made.append(namespace["f"])
    module = sgc.compile(calls, guide, backend="eager")
    for f in made:
        agrees(module, calls, f)
    assert len(module.specializations) == 2


def test_a_global_function_replaced_by_an_equal_one_and_by_another() -> None:
    def model() -> None:
        observe(FACTOR(torch.tensor(0.7)))

    module = sgc.compile(model, guide, backend="eager")
    try:
        for a in (0.5, 0.5, 2.0):
            globals()["FACTOR"] = partial(closure(a))
            agrees(module, model)
        assert len(module.specializations) == 2
    finally:
        globals()["FACTOR"] = None


def test_the_message_names_the_argument_and_the_number() -> None:
    module = sgc.compile(calls, guide, backend="eager")
    module(f=partial(scaled, 3))
    module(f=partial(scaled, 4))
    assert "kwargs['f'].args[0] was 3, is 4" in str(module.misses())
    with pytest.warns(RespecializationWarning) as caught:
        for i in range(5):
            module(f=partial(worded, "x" * i))
    assert "4 times: kwargs['f']" in str(caught[-1].message) and "was 'x', is 'xx'" in str(caught[-1].message)


class Config:
    scale = 1.0

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def shifted(self) -> float:
        return self.beta + SCALE


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._beta = 1.0
        self.config = Config(1.0)
        self.activation: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        return self.helper(self.activation(x))

    def helper(self, x: Tensor) -> Tensor:
        return self._beta * self.config.beta * SCALE * x


def changes() -> list[tuple[Callable[..., Any], Callable[[], None]]]:
    """A model, and a change around it that eager Pyro would follow."""
    numbers: Any = {"a": [1.0, 2.0]}
    weights = [torch.tensor(1.0), torch.tensor(2.0)]
    array = np.array([1.0, 2.0])
    config, net, chosen = Config(1.0), Net(), {1.0, 2.0}
    namespace = type("namespace", (), {"beta": 1.0})
    defaults = [1.0]

    def with_default(x: Any = defaults) -> Any:
        return x[0]

    def rebind() -> None:
        nonlocal config
        config = Config(5.0)

    def swap_code() -> None:
        with_default.__code__ = (lambda x=None: 9.0).__code__

    return [
        (lambda: observe(numbers["a"][0]), lambda: numbers["a"].__setitem__(0, 3.0)),
        (lambda: observe(torch.tensor(numbers["a"]).dtype == torch.float32), lambda: numbers.update(a=[1, 2])),
        (lambda: observe(weights[0]), lambda: weights.__setitem__(0, torch.tensor(4.0))),
        (lambda: observe(float(array[0])), lambda: array.__setitem__(0, 3.0)),
        (lambda: observe(config.beta), rebind),
        (lambda: observe(config.shifted() + config.scale), lambda: setattr(Config, "scale", 2.0)),
        (lambda: observe(net(torch.tensor(0.7))), lambda: setattr(net, "_beta", 2.0)),
        (lambda: observe(net(torch.tensor(0.7))), lambda: setattr(net.config, "beta", 2.0)),
        (lambda: observe(net(torch.tensor(0.7))), lambda: setattr(net, "activation", torch.exp)),
        (lambda: observe(net(torch.tensor(0.7))), lambda: globals().update(SCALE=3.0)),
        (lambda: observe(config.shifted()), lambda: globals().update(SCALE=4.0)),
        (lambda: observe(float(len(chosen))), lambda: chosen.add(3.0)),
        (lambda: observe(namespace.beta), lambda: setattr(namespace, "beta", 2.0)),  # type: ignore[attr-defined]
        (lambda: observe(with_default()), lambda: defaults.__setitem__(0, 2.0)),
        (lambda: observe(with_default()), swap_code),
        (partial(lambda c: observe(c["a"]), {"a": 1.0}), lambda: None),
    ]


@pytest.mark.parametrize("position", range(len(changes()) - 1))
def test_state_around_a_program(position: int) -> None:
    model, change = changes()[position]
    module = sgc.compile(model, guide, backend="eager")
    try:
        agrees(module, model)
        agrees(module, model)
        assert len(module.specializations) == 1
        change()
        agrees(module, model)
        assert len(module.specializations) == 2
    finally:
        globals()["SCALE"] = Config.scale = 1.0


def test_a_partial_as_the_model() -> None:
    options = {"a": 1.0}
    model = partial(lambda c, x: observe(c["a"] * x * SCALE), options)
    module = sgc.compile(model, guide, backend="eager")
    try:
        agrees(module, model, 2.0)
        options["a"] = 3.0
        agrees(module, model, 2.0)
        globals()["SCALE"] = 2.0
        agrees(module, model, 2.0)
        assert len(module.specializations) == 3
    finally:
        globals()["SCALE"] = 1.0


def test_an_attribute_is_no_global() -> None:
    def model(x: Tensor) -> None:
        observe(x.FACTOR if hasattr(x, "FACTOR") else x.sum())

    module = sgc.compile(model, guide, backend="eager")
    try:
        for step in range(3):
            globals()["FACTOR"] = step
            agrees(module, model, torch.tensor(0.5))
        assert len(module.specializations) == 1
    finally:
        globals()["FACTOR"] = None


def prior(step: int, t: int) -> float:
    return max(0.5 - 0.1 * (step // 4), 0.2) / (t + 1)


def asks(p: Callable[[int], float]) -> None:
    observe(p(0) + 2 * p(1))


def prior_of_numpy(step: int, t: int) -> float:
    return max(float(np.subtract(0.5, 0.1 * (step // 4))), 0.2) / (t + 1)


def test_a_partial_whose_results_stay_the_same() -> None:
    module = sgc.compile(asks, guide, backend="eager")
    for step in range(24):
        agrees(module, asks, partial(prior, step))
    assert len(module.specializations) == 2  # the step is an input
    module = sgc.compile(asks, guide, backend="eager")
    for step in range(24):
        agrees(module, asks, partial(prior_of_numpy, step))
    # It is not where numpy computes with it. Steps 0 to 3 have one result, 4 to 7 another, and so on down to 0.2; the
    # calls are recorded from step 1 on.
    assert len(module.specializations) == 5
    assert "args[0](0) was 0.3, is 0.2" in str(module.misses())


def test_a_partial_of_another_function_is_not_asked() -> None:
    asked: list[int] = []

    def counts(step: int, t: int) -> float:
        asked.append(step)
        return prior(0, t)

    module = sgc.compile(asks, guide, backend="eager")
    for step in range(3):
        module(partial(prior, step))
    module(partial(counts, 7))
    assert set(asked) == {7} and len(module.specializations) == 3


def looks_at_args(p: Any) -> None:
    observe(p(t=0) + p.args[0])


def looks_at_keywords(p: Any) -> None:
    observe(p(t=0) + p.keywords.get("step", 9))


def looks_at_the_text(p: Any) -> None:
    observe(p(t=0) + len(repr(p)))


def looks_at_the_function(p: Any) -> None:
    observe(p.func(p.args[0] if p.args else p.keywords["step"], t=0))


def looks_at_the_signature(p: Any) -> None:
    import inspect

    observe(p(t=0) + len(inspect.signature(p).parameters))


def partial_of_it(p: Any) -> None:
    observe(partial(p, t=0)() + partial(p, t=1)())


@pytest.mark.parametrize(
    "model",
    [looks_at_args, looks_at_keywords, looks_at_the_text, looks_at_the_function, looks_at_the_signature, partial_of_it],
)
def test_a_program_that_looks_into_a_partial(model: Callable[[Any], None]) -> None:
    module = sgc.compile(model, guide, backend="eager")
    for step in (0, 1, 2, 11, 3, 12):
        agrees(module, model, partial(prior, step))
        if model is not looks_at_args:
            agrees(module, model, partial(prior, step=step))


def with_a_site(step: int, t: int) -> float:
    if step == 4:
        pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.tensor(3.0))
    return 0.5


def with_a_tensor(step: int, t: int) -> float:
    return float(torch.tensor(step) > 3)


def with_a_parameter(step: int, t: int) -> float:
    pyro.param("unused", torch.tensor(0.0))
    return 0.5 + (step > 3)


def gives_a_tensor(step: int, t: int) -> Any:
    return torch.tensor(0.5) if step < 4 else 0.7


def changes_its_type(step: int, t: int) -> Any:
    return (1, True, 1.0, 0.0, -0.0, 3)[step]


def fails_now_and_then(step: int, t: int) -> float:
    if step == 4:
        raise KeyError(step)
    return 0.5


def forgiving(p: Callable[[int], Any]) -> None:
    try:
        found = p(1)
    except KeyError:
        found = 2.0
    observe(torch.as_tensor(found).is_floating_point() + math.copysign(1.0, found) + found)


@pytest.mark.parametrize(
    "function",
    [with_a_site, with_a_tensor, with_a_parameter, gives_a_tensor, changes_its_type, fails_now_and_then],
)
def test_partials_that_are_more_than_their_results(function: Callable[..., Any]) -> None:
    module = sgc.compile(forgiving, guide, backend="eager")
    for step in (0, 1, 2, 3, 4, 5, 4, 3, 0):
        agrees(module, forgiving, partial(function, step))


def test_a_partial_that_changes_at_each_step_says_which_number() -> None:
    def anneal(step: int, t: int) -> float:
        return float(np.divide(1.0, step + 1))

    def anneal_tensor(step: Tensor, t: int) -> Any:
        return 1.0 / (step + 1)

    module = sgc.compile(asks, guide, backend="eager")
    with pytest.warns(RespecializationWarning, match=r"args\[0\]\(0\) was 0.25, is 0.2") as caught:
        for step in range(5):
            agrees(module, asks, partial(anneal, step))
    assert "pass values that change from call to call as tensors" in str(caught[-1].message)
    module = sgc.compile(asks, guide, backend="eager")
    for step in range(5):
        agrees(module, asks, partial(anneal_tensor, torch.tensor(float(step))))
    assert len(module.specializations) == 1


def test_classes_of_libraries_are_not_searched() -> None:
    import unittest
    from types import SimpleNamespace

    class Case(unittest.TestCase):
        options = SimpleNamespace(beta=1.0)

        def model(self) -> None:
            observe(self.options.beta)

    case = Case()
    module = sgc.compile(case.model, guide, backend="eager")
    agrees(module, case.model)
    assert "TestCase" not in module.guards() and len(module.guards().splitlines()) < 40
    case.options.beta = 2.0
    agrees(module, case.model)
    assert len(module.specializations) == 2
