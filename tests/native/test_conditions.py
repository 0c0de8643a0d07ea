"""The conditions that stand for the guards answer as they do, in Python and in C++, whatever is changed meanwhile."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

import sgc
from sgc.guards.base import Call
from sgc.guards.snapshots import note, still_holds
from sgc.native import conditions
from sgc.runtime.specializing.specialization import Specialization

NUMBER, NOTHING, FLAG, ZERO, BIG = 1.0, None, True, 0.0, 10**6
LIST, DICT, NESTED, SET, ARRAY = [1.0, 2.0], {"a": 1.0}, [[1.0], [2.0]], {1.0}, np.array([1.0])
ARRAYS, TUPLE, ROWS = {"a": np.array([1.0]), "b": 2.0}, (np.array([1.0]), 2.0), ([1.0], 2.0)
HANDLES: list[Any] = []
GLOBALS = {name: value for name, value in globals().items() if name.isupper()}


class Settings:
    scale = 1.0

    def __init__(self) -> None:
        self.own = 1.0


class Slotted:
    __slots__ = ("empty", "own")

    def __init__(self) -> None:
        self.own = 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.ones(2))
        self.tied = self.weight
        self.register_buffer("shift", torch.zeros(2))
        self.beta = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x) * self.weight + self.shift * self.tied) * self.beta


class Program:
    """A model that depends on something of every kind, and what a test may change."""

    def __init__(self, native: bool) -> None:
        self.net, self.settings, self.constant, self.uncalled = Net(), Settings(), torch.zeros(2), nn.Linear(2, 2)
        uncalled, self.slotted = self.uncalled, Slotted()
        slotted = self.slotted
        net, settings, constant, captured = self.net, self.settings, self.constant, 1.0

        def helper(x: Any, factor: float = 1.0, *, offset: float = 0.0) -> Any:
            return x * factor + offset

        def model(x: Tensor, weight: float = 1.0, other: Any = None) -> None:
            loc = (
                net(x).sum()
                + uncalled.weight.sum()
                + constant.sum()
                + captured * settings.own * settings.scale * weight
            )
            loc = loc + getattr(slotted, "own", 0.0) + getattr(slotted, "empty", 0.0)
            loc = loc + NUMBER * float(FLAG) + ZERO + BIG + (0 if NOTHING is None else 1)
            loc = helper(loc + sum(LIST) + sum(DICT.values()) + sum(map(sum, NESTED)) + len(SET) + float(ARRAY.sum()))
            loc = loc + float(ARRAYS["a"].sum()) + ARRAYS["b"] + float(TUPLE[0].sum()) + TUPLE[1] + sum(ROWS[0])
            if isinstance(other, Tensor):
                loc = loc + other.sum()
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + loc, 1e3), obs=torch.tensor(0.3))

        def guide(*args: Any, **kwargs: Any) -> None:
            scale = pyro.param("scale", torch.tensor([0.1, 0.1]), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor([0.5, 0.5])).sum(), scale.sum()))

        def set_captured(value: Any) -> None:
            nonlocal captured
            captured = value

        def delete_captured() -> None:
            nonlocal captured
            del captured

        self.model, self.guide, self.helper = model, guide, helper
        self.set_captured, self.delete_captured = set_captured, delete_captured
        self.x = torch.ones(2)
        self.arguments: tuple[Any, ...] = (self.x,)
        self.module = sgc.compile(model, guide, backend="eager").initialize(self.x)
        self.native = native
        if native:
            self.found.watch_natively()

    @property
    def found(self) -> Specialization:
        return self.module.specializations[0]

    def answers(self) -> tuple[bool, bool]:
        """What the conditions say with the guards behind them, and what the guards say one by one."""
        call = Call(self.arguments, {})
        return self.found.inputs_of(call) is not None, self.found.miss(call) is None


def holding(groups: Any, *, native: bool) -> Callable[[Any], bool]:
    """A function that says whether groups hold for a call."""
    inputs_of = conditions.watch(groups, native=native)
    return lambda call: inputs_of(call) is not None


def store(name: str) -> Tensor:
    return pyro.get_param_store()._params[name]


def replace_in_store(name: str, tensor: Tensor) -> None:
    pyro.get_param_store()._params[name] = tensor


def set_global(name: str, value: Any) -> Callable[[Program], None]:
    return lambda _: globals().__setitem__(name, value)


def data(tensor: Tensor, new: Tensor) -> None:
    tensor.data = new


BREAKING: dict[str, Callable[[Program], Any]] = {
    # A tensor that stays the same object.
    "argument resized": lambda p: p.x.resize_(3),
    "argument grown by a dimension": lambda p: p.x.unsqueeze_(0),
    "argument's memory replaced": lambda p: p.x.set_(torch.ones(4)),
    "argument's data of another shape": lambda p: data(p.x, torch.ones(3)),
    "argument's data of another dtype": lambda p: data(p.x, torch.ones(2, dtype=torch.float64)),
    "argument's data strided": lambda p: data(p.x, torch.ones(2, 2)[:, 0]),
    "argument requires a gradient": lambda p: p.x.requires_grad_(),
    "parameter's data of another shape": lambda p: data(store("loc"), torch.ones(3)),
    "parameter's data strided": lambda p: data(store("loc"), torch.ones(2, 2)[:, 0]),
    "parameter frozen": lambda p: store("loc").requires_grad_(False),
    "weight frozen": lambda p: p.net.inner.weight.requires_grad_(False),
    "weight transposed in place": lambda p: data(p.net.inner.weight, torch.ones(2, 2).t()),
    "buffer resized": lambda p: p.net.shift.resize_(3),
    "constant requires a gradient": lambda p: p.constant.requires_grad_(),
    # A tensor replaced by another.
    "parameter of another shape": lambda p: replace_in_store("loc", torch.ones(3, requires_grad=True)),
    "parameter of another dtype": lambda p: replace_in_store(
        "loc", torch.ones(2, dtype=torch.float64).requires_grad_()
    ),
    "parameter gone": lambda p: pyro.get_param_store()._params.pop("loc"),
    "store cleared": lambda p: pyro.clear_param_store(),
    "constraint": lambda p: pyro.get_param_store()._constraints.update(scale=constraints.real),
    "constraint gone": lambda p: pyro.get_param_store()._constraints.pop("scale"),
    "weight of another shape": lambda p: setattr(p.net.inner, "bias", nn.Parameter(torch.zeros(1))),
    "weight gone": lambda p: setattr(p.net.inner, "bias", None),
    # Arguments.
    "argument a number": lambda p: setattr(p, "arguments", (1.0,)),
    "argument nothing": lambda p: setattr(p, "arguments", (None,)),
    "argument a list": lambda p: setattr(p, "arguments", ([torch.ones(2)],)),
    "one argument more": lambda p: setattr(p, "arguments", (p.x, 1.0)),
    "argument sparse": lambda p: setattr(p, "arguments", (torch.ones(2).to_sparse(),)),
    # Names.
    "global": set_global("NUMBER", 2.0),
    "global of another type": set_global("NUMBER", 1),
    "global None": set_global("NUMBER", None),
    "global that was None": set_global("NOTHING", 1.0),
    "global that was True": set_global("FLAG", 1),
    "global's sign of zero": set_global("ZERO", -0.0),
    "global deleted": lambda p: globals().pop("NUMBER"),
    "list": lambda p: LIST.__setitem__(0, 5.0),
    "list's type of a number": lambda p: LIST.__setitem__(0, 1),
    "list longer": lambda p: LIST.append(1.0),
    "list rebound": set_global("LIST", [1.0, 3.0]),
    "list now a tuple": set_global("LIST", (1.0, 2.0)),
    "dict's value": lambda p: DICT.update(a=2.0),
    "dict's keys": lambda p: DICT.update(b=0.0),
    "nested list": lambda p: NESTED[0].append(1.0),
    "set": lambda p: SET.add(7.0),
    "array": lambda p: ARRAY.fill(3.0),
    "array in a dict": lambda p: ARRAYS["a"].fill(3.0),  # type: ignore[attr-defined]
    "array in a dict, of another shape": lambda p: setattr(ARRAYS["a"], "shape", (1, 1)),
    "array in a dict, of another dtype": lambda p: setattr(ARRAYS["a"], "dtype", np.int64),
    "array in a dict, rebound": lambda p: ARRAYS.update(a=np.array([2.0])),
    "dict's value beside an array": lambda p: ARRAYS.update(b=3.0),
    "array in a tuple": lambda p: TUPLE[0].fill(3.0),
    "tuple rebound": set_global("TUPLE", (np.array([1.0]), 3.0)),
    "closure": lambda p: p.set_captured(2.0),
    "closure emptied": lambda p: p.delete_captured(),
    "attribute": lambda p: setattr(p.settings, "own", 2.0),
    "attribute deleted": lambda p: delattr(p.settings, "own"),
    "slot": lambda p: setattr(p.slotted, "own", 2.0),
    "slot deleted": lambda p: delattr(p.slotted, "own"),
    "slot filled": lambda p: setattr(p.slotted, "empty", 2.0),
    "class attribute": lambda p: setattr(Settings, "scale", 2.0),
    "module's attribute": lambda p: setattr(p.net, "beta", 2.0),
    "method": lambda p: setattr(Net, "forward", lambda self, x: self.inner(x)),
    "code": lambda p: setattr(p.helper, "__code__", (lambda x, factor=1.0, *, offset=0.0: x).__code__),
    "defaults": lambda p: setattr(p.helper, "__defaults__", (2.0,)),
    "keyword defaults": lambda p: setattr(p.helper, "__kwdefaults__", {"offset": 1.0}),
    "keyword default": lambda p: p.helper.__kwdefaults__.update(offset=1.0),
    # What modules are made of.
    "submodule": lambda p: setattr(p.net, "inner", nn.Linear(2, 2)),
    "submodule more": lambda p: p.net.add_module("more", nn.Tanh()),
    "buffer more": lambda p: p.net.register_buffer("more", torch.ones(2)),
    "hook": lambda p: p.net.inner.register_forward_hook(lambda *_: None),
    "hook before": lambda p: p.net.inner.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda p: p.net.inner.register_full_backward_hook(lambda *_: None),
    "global hook": lambda p: HANDLES.append(torch_modules.register_module_forward_hook(lambda *_: None)),
    "tied": lambda p: setattr(p.net.inner, "bias", p.net.weight),
    "untied": lambda p: setattr(p.net, "tied", nn.Parameter(torch.ones(2))),
    "untied at its owner": lambda p: setattr(p.net, "weight", nn.Parameter(torch.ones(2))),
    "uncalled module's weight": lambda p: setattr(p.uncalled, "weight", nn.Parameter(torch.ones(2, 2))),
    # Modes.
    "inner mode": lambda p: p.net.inner.eval(),
    "default dtype": lambda p: torch.set_default_dtype(torch.float64),
    "autocast": lambda p: torch.set_autocast_enabled("cpu", True),
}

HARMLESS: dict[str, Callable[[Program], Any]] = {
    "nothing": lambda p: None,
    "argument written": lambda p: p.x.fill_(3.0),
    "another argument": lambda p: setattr(p, "arguments", (torch.rand(2),)),
    "an nn.Parameter as the argument": lambda p: setattr(p, "arguments", (nn.Parameter(torch.ones(2), False),)),
    "parameter's data of the same kind": lambda p: data(store("loc"), torch.ones(2)),
    "another parameter": lambda p: replace_in_store("loc", torch.ones(2, requires_grad=True)),
    "a Parameter in the store": lambda p: replace_in_store("loc", nn.Parameter(torch.ones(2))),
    "another buffer": lambda p: setattr(p.net, "shift", torch.ones(2)),
    "both of a tied weight": lambda p: vars(p.net)["_parameters"].update(
        dict.fromkeys(("weight", "tied"), nn.Parameter(torch.ones(2)))
    ),
    "an unused weight": lambda p: setattr(p.uncalled, "bias", nn.Parameter(torch.ones(2))),
    "another weight": lambda p: setattr(p.net.inner, "bias", nn.Parameter(torch.ones(2))),
    "an equal constraint": lambda p: pyro.get_param_store()._constraints.update(scale=constraints.greater_than(0.0)),
    "an equal global": set_global("BIG", int("1000000")),
    "an equal list": set_global("LIST", [1.0, 2.0]),
    "an equal nested list": set_global("NESTED", [[1.0], [2.0]]),
    "an equal array": set_global("ARRAY", np.array([1.0])),
    "an equal array in a dict": lambda p: ARRAYS.update(a=np.array([1.0])),
    "an equal tuple": set_global("TUPLE", (np.array([1.0]), 2.0)),
    "an equal closure": lambda p: p.set_captured(float("1.0")),
    "an equal attribute": lambda p: setattr(p.settings, "own", float("1.0")),
}


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.inductor)], ids=["Python", "C++"])
def program(request: pytest.FixtureRequest) -> Any:
    method, beta = Net.forward, Settings.scale
    yield Program(request.param)
    globals().update(GLOBALS)
    LIST[:], NESTED[:] = [1.0, 2.0], [[1.0], [2.0]]
    DICT.clear(), SET.clear(), ARRAY.fill(1.0), TUPLE[0].fill(1.0)
    ARRAYS.update(a=np.array([1.0]), b=2.0)
    DICT["a"] = 1.0
    SET.add(1.0)
    for handle in HANDLES:
        handle.remove()
    HANDLES.clear()
    Net.forward, Settings.scale = method, beta  # type: ignore[method-assign]
    torch.set_autocast_enabled("cpu", False)


@pytest.mark.parametrize("change", BREAKING)
def test_what_the_guards_notice_the_conditions_notice(program: Program, change: str) -> None:
    assert program.answers() == (True, True)
    BREAKING[change](program)
    assert program.answers() == (False, False)


@pytest.mark.parametrize("change", BREAKING)
def test_also_if_it_is_first_asked_after_the_change(program: Program, change: str) -> None:
    BREAKING[change](program)
    assert program.answers() == (False, False)


@pytest.mark.parametrize("change", HARMLESS)
def test_what_the_guards_let_pass_passes(program: Program, change: str) -> None:
    HARMLESS[change](program)
    assert program.answers() == (True, True)
    assert program.module(*program.arguments).isfinite()
    assert len(program.module.specializations) == 1


def test_back_and_forth(program: Program) -> None:
    """What was noted of a dictionary is not taken for what it holds now, nor that of another one."""
    store, first = pyro.get_param_store(), pyro.get_param_store()._params
    second = {**first, "loc": torch.ones(3, requires_grad=True)}
    for _ in range(2):
        for value, expected in ((2.0, False), (NUMBER, True)):
            set_global("NUMBER", value)(program)
            assert program.answers() == (expected, expected)
        for value, expected in ((2.0, False), (1.0, True)):
            DICT["a"] = value
            assert program.answers() == (expected, expected)
        for params, expected in ((second, False), (first, True)):
            store._params = params
            assert program.answers() == (expected, expected)


def test_what_an_equal_tuple_holds_changes(program: Program) -> None:
    equal = ([1.0], 2.0)
    set_global("ROWS", equal)(program)
    assert program.answers() == (True, True)
    assert program.answers() == (True, True)
    equal[0][0] = 3.0
    assert program.answers() == (False, False)


def test_a_dictionary_that_changes_at_every_call(program: Program) -> None:
    """As the globals of a loop do; what matters among them is still noticed."""
    for step in range(4):
        for value, expected in ((GLOBALS["NUMBER"], True), (2.0, False)):
            globals()["_loop_variable"] = step
            program.net._forward_hooks.clear()
            set_global("NUMBER", value)(program)
            assert program.answers() == (expected, expected)
        set_global("NUMBER", GLOBALS["NUMBER"])(program)
        if step == 2:
            program.net.register_forward_hook(lambda *_: None)
            assert program.answers() == (False, False)


def test_a_parameter_becomes_nested(program: Program) -> None:
    assert program.answers() == (True, True)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], requires_grad=True)
    replace_in_store("loc", nested)
    alone = conditions.watch(program.found.groups(), native=program.native)
    for inputs_of in (program.found.inputs_of, alone):
        with pytest.raises(RuntimeError):
            inputs_of(Call(program.arguments, {}))


def test_the_tensors_of_a_call_are_those_of_now(program: Program) -> None:
    replace_in_store("loc", new := torch.ones(2, requires_grad=True))
    program.net.inner.bias = nn.Parameter(torch.ones(2))
    x = torch.rand(2)
    for call in (Call((x,), {}), Call((nn.Parameter(x, False),), {})):  # by the conditions, and by the guards
        inputs = program.found.inputs_of(call)
        assert inputs is not None
        fetched = dict(zip((declared.name for declared in program.found.inputs), inputs, strict=True))
        assert fetched["loc"] is new and fetched["args[0]"] is call.args[0]
        assert any(tensor is program.net.inner.bias for tensor in inputs)


def test_one_tensor_twice(program: Program) -> None:
    x = torch.ones(2)
    for _ in range(3):
        program.module(x, other=x)
        program.module(x, other=torch.ones(2))
    assert len(program.module.specializations) == 3  # with ``other=None``


def test_keywords_in_any_order_and_by_position(program: Program) -> None:
    losses = []
    for args, kwargs in (
        ((program.x, 3.0, torch.tensor(5.0)), {}),
        ((program.x,), {"weight": 3.0, "other": torch.tensor(5.0)}),
        ((program.x,), {"other": torch.tensor(5.0), "weight": 3.0}),
        ((), {"other": torch.tensor(5.0), "weight": 3.0, "x": program.x}),
    ):
        for _ in range(2):
            pyro.set_rng_seed(0)
            losses.append(program.module(*args, **kwargs).item())
    assert len(set(losses)) == 1


def test_a_container_that_is_written_into_between_two_calls() -> None:
    def model(batch: dict[str, Any]) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, batch["scale"]), obs=batch["x"].sum())

    def guide(batch: dict[str, Any]) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))

    module = sgc.compile(model, guide, backend="eager")
    batch: dict[str, Any] = {"x": torch.ones(2), "scale": 1.0}

    for change in ({}, {"x": torch.full((2,), 3.0)}, {"scale": 2.0}, {"x": torch.ones(3)}, {"scale": 1.0}):
        batch.update(change)
        for _ in range(2):
            pyro.set_rng_seed(0)
            expected = pyro.infer.TraceGraph_ELBO().loss(model, guide, batch)
            pyro.set_rng_seed(0)
            assert module(batch).item() == pytest.approx(expected)
    assert len(module.specializations) == 3


def test_a_nested_tensor_is_an_error_and_not_the_end_of_the_process(program: Program) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(RuntimeError):
        program.module(nested)


@pytest.mark.inductor
def test_the_usual_case_asks_no_guard(program: Program) -> None:
    alone = tuple((group, None) for group, _ in program.found.groups())
    call = Call(program.arguments, {})
    for native in (False, True):
        inputs = conditions.watch(alone, native=native)(call)
        assert inputs and all(isinstance(tensor, Tensor) for tensor in inputs)


MIXED = {"sizes": [[2, 3], (4, [5])], "arrays": {"a": np.ones(2)}, "list": [1.0, None]}


def knotted() -> list[Any]:
    """A list that is a part of itself."""
    value: list[Any] = [1]
    value.append(value)
    return value


@pytest.mark.inductor
@pytest.mark.parametrize(
    "value",
    [
        LIST,
        DICT,
        ARRAY,
        ARRAYS,
        TUPLE,
        [],
        {"a": (1, (2,))},
        (1, np.ones((2, 3))),
        OrderedDict(),
        NESTED,
        MIXED,
        knotted(),
    ],
)
def test_the_usual_case_is_told_without_taking_values_apart(value: Any) -> None:
    def decide(_: Any) -> bool:
        raise AssertionError("asked")

    asked = [
        (kind, read, (*objects, decide))
        for kind, read, (*objects, _) in still_holds(conditions.fixed(value), note(value))
        if len(objects) == 3  # that of a condition on what a container holds
    ]
    assert len(asked) == len(still_holds(conditions.fixed(value), note(value)))
    for native in (False, True):
        holds = holding(((tuple(asked), None),), native=native)
        assert holds(None) and holds(None)


@pytest.mark.inductor
@pytest.mark.parametrize("native", [False, True])
def test_what_containers_in_containers_hold(native: bool) -> None:
    value: Any = copy.deepcopy(MIXED)
    noted = note(value)
    holds = holding(((tuple(still_holds(conditions.fixed(value), noted)), None),), native=native)
    for change, undo in (
        (lambda: value["sizes"][1][1].append(6), lambda: value["sizes"][1][1].pop()),
        (lambda: value["sizes"][0].reverse(), lambda: value["sizes"][0].reverse()),
        (lambda: value["arrays"]["a"].fill(2.0), lambda: value["arrays"]["a"].fill(1.0)),
        (lambda: value["list"].__setitem__(0, -1.0), lambda: value["list"].__setitem__(0, 1.0)),
        (lambda: value.__setitem__("more", 1), lambda: value.pop("more")),
    ):
        assert holds(None)
        change()
        assert not holds(None)
        undo()
        assert holds(None)
    value["sizes"] = copy.deepcopy(value["sizes"])  # equal
    assert holds(None)
    value["list"] = [1.0, 0]
    assert not holds(None)


def test_what_has_changed_since_it_was_noted_does_not_hold() -> None:
    value = [[1], [2]]
    noted = note(value)
    value[0][0] = 3
    holds = holding(((tuple(still_holds(conditions.fixed(value), noted)), None),), native=False)
    assert not holds(None)
    value[0][0] = 1
    assert holds(None)


def test_odd_names() -> None:
    odd = type("a net, of [odd] names", (Net,), {})()

    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(odd(x).sum(), pyro.param('a "b" \n', torch.tensor(1.0))), obs=torch.tensor(0.0))

    module = sgc.compile(model, lambda x: None, backend="eager")
    for _ in range(2):
        module(torch.ones(2))
    assert len(module.specializations) == 1


def test_a_rebound_global_between_two_identical_calls_changes_the_loss(program: Program) -> None:
    def loss() -> float:
        pyro.set_rng_seed(0)
        return program.module(program.x).item()

    first = loss()
    assert loss() == first
    globals()["NUMBER"] = 1e4
    assert loss() != first
    globals()["NUMBER"] = 1.0
    assert loss() == first
    assert len(program.module.specializations) == 2


def test_modes_of_torch_do_not_see_attributes_that_are_asked() -> None:
    """A default device is such a mode, and takes a microsecond for each; of functions that are called it is asked."""

    class Seen(torch.overrides.TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(getattr(getattr(func, "__self__", None), "__name__", func.__name__))
            return func(*args, **(kwargs or {}))

    tensor = torch.zeros(2, requires_grad=True)
    hooks = conditions.is_same(conditions.attribute(tensor, "_backward_hooks"), None)
    device = conditions.equals(conditions.result(torch.get_default_device), torch.device("meta"))
    python, native = (holding([((hooks, device, hooks), None)], native=native) for native in (False, True))
    call = Call((), {})
    with torch.device("meta"), Seen() as seen:
        assert python(call) and "_backward_hooks" in seen.names
        seen.names.clear()
        assert native(call) and "_backward_hooks" not in seen.names
        torch.zeros(1)
        assert "zeros" in seen.names
    assert not python(call) and not native(call)  # the device is another one
    tensor.register_hook(lambda gradient: None)
    with torch.device("meta"):
        assert not python(call) and not native(call)
