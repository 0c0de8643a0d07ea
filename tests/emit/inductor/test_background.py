"""The process that compiles for another: what travels between them, and that none is left behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from sgc.emit.fx.lift_tensors import lift_tensors
from sgc.emit.fx.values_as_data import NotPlain
from sgc.emit.inductor.background.compile_request import Answer, CompileRequest, GraphRequest, answer_path
from sgc.emit.inductor.background.compiler_process import CompilerProcess
from sgc.emit.inductor.background.graph_as_data import graph_as_data, graph_of_data
from sgc.emit.inductor.background.precompiled import LoadedProgram
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.emit.inductor.workarounds.order_of_draws import WORKAROUND

pytestmark = [pytest.mark.cpu, pytest.mark.skipif(sys.platform == "win32", reason="steps wait there")]


def traced(function: Callable[..., Any], *examples: Tensor, tracing_mode: str = "fake") -> fx.GraphModule:
    return make_fx(function, tracing_mode=tracing_mode)(*examples)


def request_of(function: Callable[..., list[Tensor]], *examples: Tensor) -> CompileRequest:
    module, takes, attributes = lift_tensors(traced(function, *examples))
    everything = [*examples, *attributes]
    results = len(function(*examples))
    return CompileRequest((GraphRequest(module, [everything[i] for i in takes], "torch", False, results),))


def wait_until(is_so: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.05)


def is_alive(number: int) -> bool:
    """Whether a process is there; one that has ended, and that nobody has asked about, is not."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# -- graphs as data


def _plain(x: Tensor, y: Tensor) -> list[Tensor]:
    values, places = torch.sort(x, dim=-1)
    wide = torch.full((2, 3), float("inf"), dtype=torch.float64).clamp(max=-1.5)
    part = torch.cat([x[..., :2], y.transpose(0, 1)], -1) * (1 + 0.5j)
    return [values.to(torch.float64) + wide, places, part.abs(), torch.bernoulli(x.sigmoid()), torch.rand(2, 3)]


def _written(x: Tensor, y: Tensor) -> list[Tensor]:
    z = x.sum(0, keepdim=True).contiguous(memory_format=torch.contiguous_format)
    y.copy_(z[..., :2])
    return [z.mean(), (x > 0).all()]


@pytest.mark.parametrize("function", [_plain, _written])
def test_a_graph_comes_back_as_it_was(function: Callable[..., list[Tensor]]) -> None:
    examples = [torch.randn(2, 3), torch.randn(1, 2)]
    module, takes, attributes = lift_tensors(traced(function, *examples))
    inputs = [[*examples, *attributes][i] for i in takes]
    data = json.loads(json.dumps(graph_as_data(module)))
    back = graph_of_data(data, inputs)
    assert graph_as_data(back) == data
    for one, other in zip(module.graph.nodes, back.graph.nodes, strict=True):
        assert one.name == other.name and one.target == other.target
        if isinstance(one.meta.get("val"), Tensor):
            assert one.meta["val"].stride() == other.meta["val"].stride()
            assert one.meta["val"].dtype == other.meta["val"].dtype
    outcomes = []
    for each in (module, back):
        torch.manual_seed(0)
        copies = [tensor.clone() for tensor in inputs]
        outcomes.append([*each(*copies), *copies])
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


@torch.library.custom_op("sgc_test::doubled", mutates_args=())
def _doubled(x: Tensor) -> Tensor:
    return 2 * x


@_doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class _Halving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2


REFUSED = {
    "an operator of the user's": (lambda x: [torch.ops.sgc_test.doubled(x)], "sgc_test.doubled"),
    "a size that is a symbol": (lambda x: [x.reshape(-1)[: x.shape[0]]], "a size that is not known"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_another_process_does_not_know_is_refused(what: str) -> None:
    function, said = REFUSED[what]
    module = traced(function, torch.randn(3, 2), tracing_mode="symbolic" if "symbol" in what else "fake")
    with pytest.raises(NotPlain, match=said):
        graph_as_data(module)


def test_a_module_that_looks_up_tensors_is_refused() -> None:
    module = traced(lambda x: [x + torch.tensor([1.0, 2.0])], torch.randn(2))
    with pytest.raises(NotPlain, match="get_attr"):
        graph_as_data(module)


def test_the_same_request_has_the_same_text_in_another_process(tmp_path: Path) -> None:
    script = tmp_path / "text.py"
    script.write_text(
        "import torch\n"
        "from tests.emit.inductor.test_background import _plain, request_of\n"
        "torch.set_num_threads(1)\n"
        "print(request_of(_plain, torch.zeros(2, 3), torch.zeros(1, 2)).as_text())\n"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = request_of(_plain, torch.zeros(2, 3), torch.ones(1, 2)).as_text()
    finally:
        torch.set_num_threads(threads)
    assert ran(script).stdout.strip().splitlines()[-1] == here
    other = request_of(lambda x, y: [x + y.sum()], torch.zeros(2, 3), torch.ones(1, 2)).as_text()
    assert answer_path(other) != answer_path(here)


# -- the process


@pytest.fixture
def process() -> Iterator[CompilerProcess]:
    made = CompilerProcess()
    yield made
    made.end()


def ran(script: Path, *, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), **variables}
    command = [sys.executable, str(script)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=check, timeout=300)


@pytest.mark.inductor
def test_it_compiles(process: CompilerProcess) -> None:
    request = request_of(lambda x, y: [x * y.sum() + torch.tensor([1.0, 2.0, 3.0])], torch.ones(2, 3), torch.ones(1, 2))
    text = request.as_text()
    answer_path(text).unlink(missing_ok=True)
    asked = process.submit(text)
    assert not asked.is_done() and process.number is not None
    wait_until(asked.is_done)
    assert not asked.failure and asked.answer is not None
    (path,) = asked.answer.programs
    assert path is not None
    x, y = torch.randn(2, 3), torch.randn(1, 2)
    (result,) = LoadedProgram(path)(x, y, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(result, x * y.sum() + torch.tensor([1.0, 2.0, 3.0]))
    again = CompilerProcess()
    assert again.submit(text).is_done() and again.number is None, "no process is started for what is there"


def test_it_says_why_it_fails(process: CompilerProcess) -> None:
    asked = process.submit("[]")
    wait_until(asked.is_done)
    assert asked.answer is None and "TypeError" in asked.failure
    number = process.number
    later = process.submit("{}")
    wait_until(later.is_done)
    assert "KeyError" in later.failure and process.number == number, "it goes on after that"


def test_an_end_of_the_process_is_noticed_and_another_one_started(process: CompilerProcess) -> None:
    asked = process.submit("{}")
    number = process.number
    assert number is not None
    os.kill(number, signal.SIGKILL)
    wait_until(asked.is_done)
    assert "has ended, with status -9" in asked.failure
    later = process.submit("{}")
    assert process.number not in (None, number)
    wait_until(later.is_done)
    assert "KeyError" in later.failure


def test_a_damaged_answer_is_asked_for_anew(process: CompilerProcess) -> None:
    place = answer_path("{}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text('{"programs": ["/nowhere.so"], "functions": null, "native": "/nowhere.so"}')
    assert Answer.read(place) is None
    asked = process.submit("{}")
    assert not place.exists()
    wait_until(asked.is_done)
    assert "KeyError" in asked.failure


_STARTS_ONE = """
import os, sys, time
from sgc.emit.inductor.background.compiler_process import compiler
compiler().submit("{}")
print(compiler().number, flush=True)
"""

_ENDINGS = {
    "at its end": "",
    "by an error": "raise ValueError('mine')",
    "by a signal": "os.kill(os.getpid(), 9)",
    "with a child that has all that is open": "os.fork() and os.kill(os.getpid(), 9); time.sleep(8)",
}


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked up there")
@pytest.mark.parametrize("ending", _ENDINGS)
def test_it_ends_with_the_process_that_has_started_it(ending: str, tmp_path: Path) -> None:
    script = tmp_path / "starts_one.py"
    script.write_text(f"{_STARTS_ONE}\n{_ENDINGS[ending]}\n")
    output = tmp_path / "output"
    with output.open("w") as file:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        subprocess.run([sys.executable, str(script)], env=environment, stdout=file, stderr=file, timeout=120)
    number = int(output.read_text().splitlines()[0])
    wait_until(lambda: not is_alive(number), 5.0)


@pytest.mark.inductor
def test_a_script_needs_no_guard_and_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "trains.py"
    script.write_text(
        """
import sys, time
import pyro, pyro.distributions as dist, torch
import sgc

print("imported", flush=True)

def model(data):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 0.75), obs=data)

def guide(data):
    pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))

pyro.set_rng_seed(0)
svi = sgc.SVI(model, guide, lambda p: torch.optim.Adam(p, lr=0.1), wait=False)
data, began, uncompiled = torch.tensor(3.0), time.monotonic(), 0
for step in range(1_000_000):
    svi.step(data)
    uncompiled += svi.stepper.runs_uncompiled()
    if step and not svi.stepper.runs_uncompiled() or time.monotonic() > began + 200:
        break
    time.sleep(0.01)
svi.run(2000, data)
print("compiled" if not svi.stepper.runs_uncompiled() else "never", uncompiled, float(pyro.param("mean")))
"""
    )
    first, second = (ran(script, SGC_WAIT="0", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2))
    for one in (first, second):
        assert one.stdout.count("imported") == 1
        assert one.stdout.splitlines()[-1].startswith("compiled")
    uncompiled = [int(one.stdout.split()[-2]) for one in (first, second)]
    assert uncompiled[0] > 0 and uncompiled[1] == 0, "what was compiled once is there from the start"


# -- the order of draws


@pytest.mark.inductor
def test_draws_are_taken_in_the_order_of_the_graph() -> None:
    (program,) = WORKAROUND.programs
    inputs = program.inputs()
    module = traced(program.function, *inputs)
    run = compile_graph(module, inputs, "fast", ordered=True)
    torch.manual_seed(0)
    expected = module(*inputs)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    torch.testing.assert_close(list(run(*inputs)), list(expected))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("error")  # a file that is left open is warned about when it is collected
def test_nothing_of_a_process_is_left_open() -> None:
    process = CompilerProcess()
    for text in ("one", "two"):
        asked = process.submit(text)
        process.end()
        while not asked.is_done():
            time.sleep(0.01)
        assert asked.answer is None and asked.failure
        del asked
        gc.collect()
    assert process.number is None
