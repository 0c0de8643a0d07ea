"""What a loaded loss says of calls that the file has no program for, and of those that are not valid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import constraints

import sgc
from sgc.errors import ArgumentError, InvalidValueError, SavedProgramError


def guide(*args: Any, **kwargs: Any) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.5))


def rows(batch: dict[str, Tensor], offset: float, kind: str = "normal") -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    likelihood = {"normal": dist.Normal, "laplace": dist.Laplace}[kind]
    with pyro.plate("rows", len(batch["x"])):
        pyro.sample("x", likelihood(z + offset, 1.0), obs=batch["x"])


@pytest.fixture
def loaded_of(tmp_path: Path) -> Callable[..., sgc.LoadedLoss]:
    def loaded(module: sgc.LossModule) -> sgc.LoadedLoss:
        sgc.save(module, tmp_path / "loss.sgc")
        return sgc.load(tmp_path / "loss.sgc")

    return loaded


def batch(*shape: int) -> dict[str, Tensor]:
    return {"x": torch.linspace(-1.0, 1.0, 3).repeat(20)[: shape[0]] if shape else torch.tensor(1.0)}


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("args[0]['x'] is float32[4]; the program was saved for float32[3]", (batch(4), 0.5), {}),
    ("args[0]['x'] is float32[]; the program was saved for float32[3]", (batch(), 0.5), {}),
    ("args[0]['x'] is float64[3]; the program was saved for float32[3]", ({"x": batch(3)["x"].double()}, 0.5), {}),
    ("args[0]['x'] is a list; the program was saved for float32[3]", ({"x": [1.0]}, 0.5), {}),
    ("args[0] is a Tensor; the program was saved for a dict with the keys ['x']", (batch(3)["x"], 0.5), {}),
    ("args[0] is a dict of 2; the program was saved for a dict with the keys ['x']", (batch(3) | {"y": 1}, 0.5), {}),
    ("args[1] is 0.6; the program was saved for 0.5", (batch(3), 0.6), {}),
    ("called with 1 argument; the program was saved for 2 arguments", (batch(3),), {}),
    ("called with 2 arguments, kind=; the program was saved for 2 arguments", (batch(3), 0.5), {"kind": "normal"}),
    ("args[0]['x'] requires a gradient", ({"x": batch(3)["x"].requires_grad_()}, 0.5), {}),
]


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that several tests load."""
    path = tmp_path_factory.mktemp("saved") / "loss.sgc"
    with pyro.get_param_store().scope():
        sgc.save(sgc.compile(rows, guide, backend="eager").initialize(batch(3), 0.5), path)
    return path


@pytest.mark.parametrize(("said", "args", "kwargs"), CALLS, ids=range(len(CALLS)))
def test_another_call_is_an_error_that_names_what_differs(said: str, args: Any, kwargs: Any, saved_once: Path) -> None:
    loaded = sgc.load(saved_once)
    before = torch.get_rng_state()
    with pytest.raises(ArgumentError) as caught:
        loaded(*args, **kwargs)
    assert said in str(caught.value)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded(batch(3), 0.5).isfinite()
    assert loaded.calls() == "args[0]['x']: float32[3], args[1]: 0.5"


def test_numbers_that_changed_before_saving_are_inputs(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    module = sgc.compile(rows, guide, backend="eager")
    for offset in (0.5, 0.6):
        module(batch(3), offset)
    loaded = loaded_of(module)
    for offset in (0.5, -2.0, 3):
        torch.manual_seed(1)
        expected = module(batch(3), float(offset))
        torch.manual_seed(1)
        assert torch.equal(loaded(batch(3), offset), expected)
    with pytest.raises(ArgumentError, match=r"args\[1\] is 'a'; the program was saved for any float"):
        loaded(batch(3), "a")


def test_sizes_that_differed_before_saving_may_be_any(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    module = sgc.compile(rows, guide, backend="eager")
    for size in (4, 7):
        module(batch(size), 0.5)
    loaded = loaded_of(module)
    assert len(loaded.calls().splitlines()) == 2
    for size in (4, 7, 31):
        torch.manual_seed(1)
        expected = module(batch(size), 0.5)
        torch.manual_seed(1)
        ours = loaded(batch(size), 0.5)
        assert torch.equal(ours, expected)
        ours.backward()
    with pytest.raises(ArgumentError, match="of the sizes \\[1\\] it is not true that each is at least 2"):
        loaded(batch(1), 0.5)


def test_a_condition_on_sizes_is_asked(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    def halves(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        middle = len(x) // 2
        if len(x) > 5:
            middle += 1
        with pyro.plate("left", middle):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:middle])

    module = sgc.compile(halves, guide, backend="eager")
    for size in (6, 8):
        module(torch.ones(size))
    loaded = loaded_of(module)
    torch.manual_seed(1)
    expected = module(torch.ones(12))
    torch.manual_seed(1)
    assert torch.equal(loaded(torch.ones(12)), expected)
    with pytest.raises(ArgumentError, match="of the sizes"):
        loaded(torch.ones(4))


def test_every_specialization_that_differs_in_arguments_is_saved(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    module = sgc.compile(rows, guide, backend="eager")
    module(batch(3), 0.5, "normal")
    module(batch(3), 0.5, "laplace")
    loaded = loaded_of(module)
    for kind in ("normal", "laplace"):
        torch.manual_seed(1)
        expected = module(batch(3), 0.5, kind)
        torch.manual_seed(1)
        assert torch.equal(loaded(batch(3), 0.5, kind), expected)
        assert f"observed {kind.capitalize()}" in str(loaded.graph)
    with pytest.raises(ArgumentError, match=r"args\[2\] is 'cauchy'") as caught:
        loaded(batch(3), 0.5, "cauchy")
    assert caught.value.__notes__ == ["none of the 2 programs in the file is for these arguments"]


def test_the_mode_at_the_time_of_saving_is_saved(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    dropout = nn.Dropout(0.5)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(dropout(x) * z, 1.0).to_event(1), obs=x)

    module = sgc.compile(model, guide, backend="eager")
    module(torch.ones(5))
    dropout.eval()
    module(torch.ones(5))
    loaded = loaded_of(module)
    assert len(loaded.calls().splitlines()) == 1
    torch.manual_seed(1)
    expected = module(torch.ones(5))
    torch.manual_seed(1)
    assert torch.equal(loaded(torch.ones(5)), expected)


def test_what_python_read_must_be_the_same(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    def model(lengths: Tensor, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in range(int(lengths.max())):
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    loaded = loaded_of(sgc.compile(model, guide, backend="eager").initialize(torch.tensor([1, 2]), torch.ones(4)))
    assert loaded(torch.tensor([2, 0]), torch.zeros(4)).isfinite()
    with pytest.raises(
        ArgumentError, match=r"a value computed from args\[0\] is 3; the program was saved for 2 \(read"
    ):
        loaded(torch.tensor([2, 3]), torch.zeros(4))


def test_an_invalid_value_is_an_error_that_changes_nothing(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    def model(scale: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(z, scale), obs=torch.tensor(1.0))

    def averaging(scale: Tensor) -> None:
        q = pyro.param("q", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("z", dist.Bernoulli(q), infer={"baseline": {"use_decaying_avg_baseline": True}})

    loaded = loaded_of(sgc.compile(model, averaging, backend="eager").initialize(torch.tensor(1.0)))
    loaded(torch.tensor(2.0)).backward()
    state = {name: value.clone() for name, value in loaded.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(InvalidValueError, match="scale") as caught:
        loaded(torch.tensor(-1.0))
    assert 'pyro.sample("x"' in str(caught.value) and 'pyro.sample("z"' not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_parameters_of_another_kind_are_an_error(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    loaded = loaded_of(sgc.compile(rows, guide, backend="eager").initialize(batch(3), 0.5))
    loaded.double()
    with pytest.raises(ArgumentError, match=r"param_store.loc is float64\[\]; the program was saved for float32\[\]"):
        loaded(batch(3), 0.5)
    assert loaded.float()(batch(3), 0.5).isfinite()


def test_modes_of_torch_do_not_change_what_is_computed(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    net = nn.Linear(3, 2)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(net(x) * z, 1.0).to_event(1), obs=torch.ones(2))

    module = sgc.compile(model, guide, backend="eager").initialize(torch.ones(3))
    loaded = loaded_of(module)
    torch.manual_seed(1)
    expected = module(torch.ones(3))
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loaded(torch.ones(3)), expected)
    torch.set_default_dtype(torch.float64)
    with pytest.raises(
        ArgumentError, match=r"the default dtype is torch.float64; the program was saved under torch.fl"
    ):
        loaded(torch.ones(3, dtype=torch.float32))


def test_what_was_captured_under_autocast_computes_so(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    net = nn.Linear(3, 2)

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(net(x).float() * z, 1.0).to_event(1), obs=torch.ones(2))

    module = sgc.compile(model, guide, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        expected = module(torch.linspace(0, 1, 3))
        loaded = loaded_of(module)
    torch.manual_seed(1)
    assert torch.equal(loaded(torch.linspace(0, 1, 3)), expected)


def test_another_branch_than_was_assumed_is_an_error(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        scale = 1.0 if z < 3.0 else 2.0
        pyro.sample("x", dist.Normal(z, scale), obs=torch.tensor(1.0))

    loaded = loaded_of(sgc.compile(model, guide, backend="eager", dynamic="speculate").initialize())
    assert loaded().isfinite()
    with torch.no_grad():
        dict(loaded.named_parameters())["param_store.loc"].fill_(30.0)
    with pytest.raises(
        InvalidValueError, match="it takes another branch on a sample than the program in the file"
    ) as no:
        loaded()
    assert "scale = 1.0 if z < 3.0 else 2.0" in str(no.value)


def test_copies_of_loss_modules_and_of_loaded_ones(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    module = sgc.compile(rows, guide, backend="eager").initialize(batch(3), 0.5)
    own = copy.deepcopy(module).initialize(batch(3), 0.5)
    with torch.no_grad():
        pyro.param("loc").fill_(5.0)
    loaded = loaded_of(own)
    (parameter,) = loaded.parameters()
    assert parameter.item() == pytest.approx(0.2)
    other = copy.deepcopy(loaded)
    with torch.no_grad():
        parameter.fill_(1.0)
    assert [p.item() for p in other.parameters()] == pytest.approx([0.2])
    torch.manual_seed(1)
    expected = own(batch(3), 0.5)
    torch.manual_seed(1)
    assert torch.equal(other(batch(3), 0.5), expected)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def test_named_tuples_are_told_by_the_name_of_their_class(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    def model(pair: Any) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * pair.x, 1.0).to_event(1), obs=pair.y)

    class Other(NamedTuple):
        x: Tensor
        y: Tensor

    loaded = loaded_of(sgc.compile(model, guide, backend="eager").initialize(Pair(torch.ones(2), torch.ones(2))))
    assert loaded(Pair(torch.zeros(2), torch.ones(2))).isfinite()
    for other in (Other(torch.ones(2), torch.ones(2)), (torch.ones(2), torch.ones(2)), torch.ones(2)):
        with pytest.raises(ArgumentError, match=r"args\[0\] is a .*; the program was saved for a Pair of 2"):
            loaded(other)


def test_constants_are_shown_and_may_be_changed(loaded_of: Callable[..., sgc.LoadedLoss]) -> None:
    data = torch.tensor([1.0, 2.0])

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=data)

    module = sgc.compile(model, guide, backend="eager").initialize()
    loaded = loaded_of(module)
    ((name, constant),) = ((n, b) for n, b in loaded.named_buffers() if n.startswith("constants."))
    assert torch.equal(constant, data) and name not in loaded.state_dict()
    assert list(loaded.state_dict()) == list(module.state_dict())
    constant.fill_(7.0)
    torch.manual_seed(1)
    changed = loaded()
    data.fill_(7.0)
    torch.manual_seed(1)
    assert torch.equal(changed, module())


def test_what_is_no_loss_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"sgc.save takes a loss module or an SVI, not a Linear"):
        sgc.save(nn.Linear(1, 1), tmp_path / "loss.sgc")  # type: ignore[arg-type]
    module = sgc.compile(rows, guide, backend="eager")
    with pytest.raises(sgc.errors.SgcError, match="nothing has been captured yet"):
        sgc.save(module, tmp_path / "loss.sgc")
    module.initialize(batch(3), 0.5)
    with pytest.raises(ArgumentError, match="the optimizer to be saved is a dict"):
        sgc.save(module, tmp_path / "loss.sgc", optimizer={})  # type: ignore[arg-type]
    svi = sgc.SVI(rows, guide, pyro.optim.Adam({"lr": 0.1}), sgc.infer.TraceGraph_ELBO(backend="eager"))
    svi.step(batch(3), 0.5)
    with pytest.raises(ArgumentError, match="an optimizer of pyro.optim has one of torch's for each parameter"):
        sgc.save(svi, tmp_path / "loss.sgc")
    assert not list(tmp_path.iterdir())
    sgc.save(svi.loss_module, tmp_path / "loss.sgc")
    assert sgc.load(tmp_path / "loss.sgc").optimizer_state is None


def test_arguments_that_no_file_holds_are_named(tmp_path: Path) -> None:
    def model(likelihood: Any, x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", likelihood(z, 1.0), obs=x)

    module = sgc.compile(model, guide, backend="eager").initialize(dist.Normal, torch.tensor(1.0))
    with pytest.raises(SavedProgramError, match=r"args\[0\] is a .*, which no file holds"):
        sgc.save(module, tmp_path / "loss.sgc")


def test_an_operator_of_the_users_own_is_named(tmp_path: Path) -> None:
    @torch.library.custom_op("saved_tests::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return 2 * x

    double.register_fake(torch.empty_like)
    double.register_autograd(lambda ctx, gradient: 2 * gradient)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(double(z), 1.0), obs=torch.tensor(1.0))

    with pytest.raises(SavedProgramError, match=r"a call of saved_tests\.double\.default, which no file holds"):
        sgc.save(sgc.compile(model, guide, backend="eager").initialize(), tmp_path / "loss.sgc")


def test_tensors_that_share_memory_with_a_parameter_are_refused(tmp_path: Path) -> None:
    weights = nn.Parameter(torch.ones(3))
    view = weights.detach()[:2]

    def model() -> None:
        z = pyro.sample("z", dist.Normal(weights.sum(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([2]).to_event(1), obs=view)

    module = sgc.compile(model, guide, backend="eager").initialize()
    with pytest.raises(SavedProgramError, match="share memory that is trained or written"):
        sgc.save(module, tmp_path / "loss.sgc")
