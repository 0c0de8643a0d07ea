"""A package computes, where neither sgc nor Pyro can be imported, what the loss computes that was saved."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import sgc
from sgc.errors import ArgumentError, BackendError, InvalidValueError, SavedProgramError
from sgc.saved import packaging
from tests.reference.zoo import ZOO
from tests.saved.test_saved_programs import assert_same, made

pytestmark = pytest.mark.cpu

ROOT = Path(sgc.__file__).parents[1]
DATA = torch.tensor([0.5, -0.25, 1.0, 0.75])
WITHOUT = """
import sys
sys.modules["sgc"] = sys.modules["pyro"] = None
import torch
from torch._inductor.package import load_package
"""


class Decoder(nn.Module):
    """A mixture of two decoders; batch norm writes into its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, data: Tensor, kind: str) -> None:
        pyro.module("decoder", self)
        shift = pyro.param("shift", torch.tensor(0.5))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            switch = pyro.sample("switch", dist.Bernoulli(0.4))
            mean = self.net(z.unsqueeze(-1)).squeeze(-1) + shift * switch
            pyro.sample("x", {"normal": dist.Normal, "laplace": dist.Laplace}[kind](mean, 0.5), obs=data)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 2)
        self.baseline = nn.Linear(4, 4)

    def forward(self, data: Tensor, kind: str) -> None:
        pyro.module("encoder", self)
        loc, log_scale = self.net(data.unsqueeze(-1)).unbind(-1)
        torch.rand(3)  # draws that nobody reads
        torch.empty(2).exponential_()
        baseline = {"nn_baseline": self.baseline, "nn_baseline_input": data, "use_decaying_avg_baseline": True}
        with pyro.plate("data", len(data)):
            logits = pyro.param("logits", torch.zeros(4))
            pyro.sample("switch", dist.Bernoulli(logits=logits), infer={"baseline": baseline})
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


@dataclass(frozen=True)
class Packaged:
    """A package, and the loss that it was made of."""

    package: Path
    saved: Path


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    folder = tmp_path_factory.mktemp("package")
    module = sgc.compile(Decoder(), Encoder(), backend="eager").initialize(DATA, "normal")
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(DATA, "normal").backward()
        optimizer.step()
    sgc.save(module, folder / "loss.sgc")
    random, state = torch.get_rng_state(), {name: value.clone() for name, value in module.state_dict().items()}
    sgc.package(module, folder / "loss.pt2", DATA, "normal")
    assert torch._inductor.config.aot_inductor.metadata == {}  # what stays there is taken for an option of the user's
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(dict(module.state_dict()), state)
    assert sorted(path.name for path in folder.iterdir()) == ["loss.pt2", "loss.sgc"]
    return Packaged(folder / "loss.pt2", folder / "loss.sgc")


def run(program: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + program, *map(str, arguments)]
    folder = arguments[0].parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done


def of_the_saved_loss(path: Path, change: dict[str, Tensor]) -> dict[str, Any]:
    """What each model of the package should give and leave of the random state."""
    outcomes: dict[str, Any] = {}

    def seeded(name: str, compute: Callable[[sgc.LoadedLoss], Any]) -> None:
        loaded = sgc.load(path)
        loaded.load_state_dict(change, strict=False)
        torch.manual_seed(1)
        outcomes[name] = compute(loaded), torch.get_rng_state()

    def loss(loaded: sgc.LoadedLoss) -> Tensor:
        with torch.no_grad():
            return loaded(DATA, "normal")

    def gradient(loaded: sgc.LoadedLoss) -> dict[str, Any]:
        value = loaded(DATA, "normal")
        value.backward()
        return {
            "loss": value.detach(),
            "gradients": {name: p.grad for name, p in loaded.named_parameters()},
            "written": dict(loaded.named_buffers()),
        }

    seeded("loss", loss)
    seeded("gradient", gradient)
    seeded("sample", lambda loaded: loaded.sample(DATA, "normal"))
    return outcomes


TRAINED = {"param_store.shift": torch.tensor(2.0), "param_store.logits": torch.tensor([1.0, -1.0, 0.0, 2.0])}


@pytest.mark.inductor
def test_torch_alone_computes_what_was_saved_and_takes_other_parameters(packaged: Packaged) -> None:
    """The loss, each gradient, what is written, a draw of each site; the random numbers are the same ones."""
    program = """
trained, outcomes = torch.load(sys.argv[2]), []
for change in ({}, trained):
    outcomes.append({})
    for name in ("loss", "gradient", "sample"):
        model = load_package(sys.argv[1], name)
        names = {*model.get_constant_fqns()}
        model.load_constants({n: t for n, t in change.items() if n in names}, check_full_update=False)
        for _ in range(2):  # it changes nothing
            torch.manual_seed(1)
            outcomes[-1][name] = model(torch.tensor([0.5, -0.25, 1.0, 0.75]), "normal"), torch.get_rng_state()
torch.save(outcomes, sys.argv[3])
"""
    changes, given = packaged.package.with_name("changes.pt"), packaged.package.with_name("given.pt")
    torch.save(TRAINED, changes)
    run(program, packaged.package, changes, given)
    for change, outcomes in zip(({}, TRAINED), torch.load(given), strict=True):
        expected = of_the_saved_loss(packaged.saved, change)
        assert outcomes.keys() == expected.keys()
        for name, (results, random) in outcomes.items():
            assert torch.equal(random, expected[name][1]), name
            torch.testing.assert_close(results, expected[name][0], msg=lambda text, name=name: f"{name}: {text}")
        written = expected["gradient"][0]["written"]
        assert any("running_mean" in name for name in written) and any("baselines" in name for name in written)


@pytest.mark.inductor
def test_a_call_that_is_not_valid_raises(packaged: Packaged) -> None:
    """So does one with other tensors than the package is for, where torch is told to ask."""
    program = """
for name in ("loss", "gradient"):
    model = load_package(sys.argv[1], name)
    for logit in (float("nan"), 0.0):
        model.load_constants({"param_store.logits": torch.full((4,), logit)}, check_full_update=False)
        for data in (torch.zeros(4), torch.zeros(4, dtype=torch.float64), torch.zeros(5), torch.zeros(8)[::2]):
            try:
                model(data, "normal")
                print("runs")
            except RuntimeError:
                print("raises")
"""
    done = run(program, packaged.package, AOTI_RUNTIME_CHECK_INPUTS="1")
    assert done.stdout.split() == ([*["raises"] * 4, "runs", *["raises"] * 3]) * 2
    told = done.stderr  # before torch 2.13 not in the error
    assert len(re.findall(r"the call is not valid; what must hold: .*logits of Bernoulli", told)) == 2, told
    assert [told.count(f"unmatched {what}") for what in ("dtype", "dim value", "stride value")] == [4, 4, 4]


@pytest.mark.inductor
@pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="its command is for g++ on Linux")
def test_a_program_in_cpp_runs_it(packaged: Packaged, tmp_path: Path) -> None:
    source = ROOT / "examples" / "run_package.cpp"
    (command,) = re.findall(r"^//     (g\+\+ .*\\\n)//     (.*)$", source.read_text(), re.MULTILINE)
    folder = str(Path(torch.__file__).parent)
    words = "".join(command).replace("\\\n", " ").replace("$torch", folder).replace("run_package.cpp", str(source))
    subprocess.run(words.split(), cwd=tmp_path, check=True)
    numbers = [str(number) for number in DATA.tolist()]
    done = subprocess.run(
        ["./run_package", str(packaged.package), *numbers], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    begins = [lines.index(model) for model in ("loss", "gradient", "sample")]
    expected = of_the_saved_loss(packaged.saved, {})
    assert float(lines[begins[0] + 1]) == pytest.approx(expected["loss"][0].item(), rel=1e-4)
    drawn = [[float(number) for number in line.split()] for line in lines[begins[2] + 1 :]]
    for numbers_of_site, value in zip(drawn, expected["sample"][0].values(), strict=True):
        assert numbers_of_site == pytest.approx(value.tolist(), rel=1e-4)


# -- what is refused, and leaves no file


def model(data: Tensor, scale: float = 1.0) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("x", dist.Normal(loc, scale), obs=data)


def guide(data: Tensor, scale: float = 1.0) -> None:
    pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.5)), pyro.param("scale", torch.tensor(1.0))))


def small() -> sgc.LossModule:
    return sgc.compile(model, guide, backend="eager").initialize(DATA)


def opaque(data: Tensor) -> None:
    pyro.sample("angle", dist.VonMises(pyro.param("m", torch.tensor(0.0)), 1.0))


def not_positive() -> sgc.LossModule:
    module = small()
    pyro.param("scale").data.fill_(-1.0)
    return module


def with_parameters(*names: str) -> Callable[[], sgc.LossModule]:
    def model(data: Tensor) -> None:
        loc = sum(pyro.param(name, torch.tensor(0.5)) for name in names)
        pyro.sample("x", dist.Normal(loc, 1.0).expand([4]).to_event(1), obs=data)

    return lambda: sgc.compile(model, lambda data: None, backend="eager").initialize(DATA)


REFUSED: dict[str, tuple[Callable[[], Any], str, tuple[Any, ...], type[Exception], str]] = {
    "another suffix": (small, "loss.sgc", (DATA,), ArgumentError, r"end in \.pt2"),
    "no directory": (small, "missing/loss.pt2", (DATA,), FileNotFoundError, "no such directory"),
    "another size": (small, "loss.pt2", (DATA[:2],), ArgumentError, r"args\[0\] is float32\[2\]"),
    "no arguments": (small, "loss.pt2", (), ArgumentError, "called with 0 arguments"),
    "a call that is not valid": (not_positive, "loss.pt2", (DATA,), InvalidValueError, "loc.*scale"),
    "an opaque call": (
        lambda: sgc.compile(opaque, opaque, backend="eager").initialize(DATA),
        "loss.pt2",
        (DATA,),
        SavedProgramError,
        "a call of Python",
    ),
    **{
        f"a parameter that is called {names[0]}": (
            with_parameters(*names),
            "loss.pt2",
            (DATA,),
            SavedProgramError,
            f"param_store.{names[0]} is no name that torch.export can give",
        )
        for names in (("lambda",), ("half",), ("net.type",), ("net", "net.weight"))
    },
    "something else": (lambda: nn.Linear(1, 1), "loss.pt2", (DATA,), ArgumentError, "not a Linear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packaged_is_named_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    make, path, args, kind, text = REFUSED[name]
    with pytest.raises(kind, match=text):
        sgc.package(make(), tmp_path / path, *args)
    assert not list(tmp_path.iterdir())


# -- what torch.export makes, run operator by operator

Run = Callable[..., Any]


def as_it_is(run: Run) -> Run:
    return run


def drawing_once_more(run: Run) -> Run:
    def drawn(*args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return run(*args, **kwargs)

    return drawn


def rounding_otherwise(run: Run) -> Run:
    return lambda *args, **kwargs: tree_map(lambda value: value * (1 + 1e-6), run(*args, **kwargs))


def giving_other_values(run: Run) -> Run:
    return lambda *args, **kwargs: tree_map(lambda value: value + 0.01, run(*args, **kwargs))


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Run], Run]], dict[str, Run]]:
    """A package has what was exported in the place of what AOTInductor makes of it, changed as is said."""

    def start(change: Callable[[Run], Run]) -> dict[str, Run]:
        models: dict[str, Run] = {}

        def compiled(exported: torch.export.ExportedProgram, directory: Path) -> list[str]:
            models[directory.name] = change(exported.module())
            return []

        monkeypatch.setattr(packaging, "compile_ahead_of_time", compiled)
        monkeypatch.setattr("torch._inductor.package.package.package_aoti", lambda path, files: Path(path).touch())
        monkeypatch.setattr("torch._inductor.package.package.load_package", lambda path, name: models[name])
        return models

    return start


@pytest.mark.parametrize("change", [drawing_once_more, giving_other_values])
def test_what_gives_other_values_is_refused(change: Callable[[Run], Run], uncompiled: Any, tmp_path: Path) -> None:
    uncompiled(change)
    with pytest.raises(BackendError, match="the loss that AOTInductor .* gives other values"):
        sgc.package(small(), tmp_path / "loss.pt2", DATA)
    assert not list(tmp_path.iterdir())


def test_what_rounds_otherwise_is_not_refused(uncompiled: Any, tmp_path: Path) -> None:
    uncompiled(rounding_otherwise)
    sgc.package(small(), tmp_path / "loss.pt2", DATA)
    assert (tmp_path / "loss.pt2").exists()


PROGRAMS = [
    *("baseline_in_a_subsampled_plate", "trees_of_tensors", "plain_values", "keyword_tensors", "input_with_gradient"),
    *("integer_and_boolean_tensors", "double_precision", "strided_inputs", "own_randomness"),
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_exported_for_all_kinds_of_arguments(name: str, uncompiled: Any, tmp_path: Path) -> None:
    models = uncompiled(as_it_is)
    (entry,) = (entry for entry in ZOO if entry.name == name)
    case = entry.make()
    module = made(case).initialize(*case.args, **case.kwargs)
    sgc.save(module, tmp_path / "loss.sgc")
    sgc.package(module, tmp_path / "loss.pt2", *case.args, **case.kwargs)
    loaded = sgc.load(tmp_path / "loss.sgc")
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    torch.manual_seed(3)
    given = models["gradient"](*case.args, **case.kwargs)
    torch.manual_seed(3)
    loss = loaded(*case.args, **case.kwargs)
    loss.backward()
    torch.testing.assert_close(given["loss"], loss.detach())
    trained = {name: p.grad for name, p in loaded.named_parameters() if p.grad is not None}
    assert_same({name: given["gradients"].get(name) for name in trained}, trained)
    changed = {name: value for name, value in loaded.state_dict().items() if not torch.equal(value, before[name])}
    assert_same({name: given["written"].get(name) for name in changed}, changed)


def test_the_loss_of_an_svi_and_a_loaded_one_are_packaged(uncompiled: Any, tmp_path: Path) -> None:
    """Whatever its optimizer is."""
    models = uncompiled(as_it_is)
    svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), sgc.infer.TraceGraph_ELBO(backend="eager"))
    svi.step(DATA)
    sgc.save(svi.loss_module, tmp_path / "loss.sgc")
    for loss in (svi, sgc.load(tmp_path / "loss.sgc")):
        models.clear()
        sgc.package(loss, tmp_path / "loss.pt2", DATA)
        torch.manual_seed(1)
        given = models["loss"](DATA).item()
        torch.manual_seed(1)
        assert given == pytest.approx(svi.evaluate_loss(DATA), rel=1e-5)


def test_a_number_that_is_an_input_is_a_tensor_of_the_package(uncompiled: Any, tmp_path: Path) -> None:
    models = uncompiled(as_it_is)
    module = small()
    for scale in (1.0, 2.0, 3.0):
        module(DATA, scale=scale)
    sgc.package(module, tmp_path / "loss.pt2", DATA, scale=3.0)
    torch.manual_seed(1)
    given = models["loss"](DATA, scale=torch.tensor(5.0, dtype=torch.float64))
    torch.manual_seed(1)
    assert given.item() == pytest.approx(module(DATA, scale=5.0).item())


def test_the_arguments_choose_the_program_and_its_sizes(uncompiled: Any, tmp_path: Path) -> None:
    """Of several versions, one of them for any size."""
    models = uncompiled(as_it_is)
    module = small()
    for data, scale in ((DATA[:2], 1.0), (DATA[:3], 1.0), (DATA, 1)):
        module(data, scale)
    for data, scale in ((DATA[:3], 1.0), (DATA.repeat(2), 1.0), (DATA, 1)):
        models.clear()
        sgc.package(module, tmp_path / "loss.pt2", data, scale)
        torch.manual_seed(1)
        given = models["loss"](data, scale).item()
        torch.manual_seed(1)
        assert given == pytest.approx(module(data, scale).item(), rel=1e-5)
    with pytest.raises(ArgumentError, match=r"args.1. is 2\.0"):
        sgc.package(module, tmp_path / "loss.pt2", DATA, 2.0)


def test_a_value_that_python_read_is_asserted(uncompiled: Any, tmp_path: Path) -> None:
    """Another branch would be another program."""
    models = uncompiled(as_it_is)

    def branching(data: Tensor) -> None:
        model(data, 1.0 if data.sum() > 0 else 2.0)

    module = sgc.compile(branching, guide, backend="eager").initialize(DATA)
    sgc.package(module, tmp_path / "loss.pt2", DATA)
    for run in models.values():
        run(DATA)
        with pytest.raises(RuntimeError, match=r"a value computed from args.0. is not what it was .*test_packages.py"):
            run(-DATA)


def test_other_names_are_exported(uncompiled: Any, tmp_path: Path) -> None:
    names = ["a-b c", "größe.x", "0", "self", "torch", "args_0"]
    models = uncompiled(as_it_is)
    sgc.package(with_parameters(*names)(), tmp_path / "loss.pt2", DATA)
    assert models["gradient"](DATA)["gradients"].keys() == {f"param_store.{name}" for name in names}


@pytest.mark.parametrize("particles", [3, 6])
def test_particles_that_are_run_one_after_another_are_unrolled(particles: int, uncompiled: Any, tmp_path: Path) -> None:
    models = uncompiled(as_it_is)
    module = sgc.compile(model, guide, backend="eager", num_particles=particles).initialize(DATA)
    sgc.package(module, tmp_path / "loss.pt2", DATA)
    torch.manual_seed(1)
    given = models["loss"](DATA)
    torch.manual_seed(1)
    with torch.no_grad():
        assert given.item() == pytest.approx(module(DATA).item())
