"""What is said where nothing can be compiled: no compiler, one that fails, headers that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._inductor.cpp_builder import cpp_compiler_search
from torch._inductor.utils import fresh_cache

import sgc
from sgc.emit.backends.inductor_backend import Inductor
from sgc.emit.backends.registry import registered
from sgc.emit.inductor.compile_graph import compile_graph
from sgc.errors import BackendError
from sgc.native import library, processor
from sgc.native.library import shared_library

pytestmark = [pytest.mark.inductor, pytest.mark.cpu]


@pytest.fixture
def use_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Has Inductor use another compiler, and forget that there was one."""

    def forget() -> None:
        cpp_compiler_search.cache_clear()
        library.is_available.cache_clear()
        processor.forget()

    def use(name: str) -> None:
        monkeypatch.setenv("CXX", name)
        options.enter_context(inductor_config.patch({"cpp.cxx": (None, name)}))
        forget()

    with fresh_cache(), ExitStack() as options:
        yield use
    forget()


def failing(directory: Path, said: str) -> str:
    script = directory / "compiler"
    script.write_text(f'#!/bin/sh\ncase "$*" in *--version*) echo compiler 1.0;; *) echo "{said}" >&2; exit 1;; esac\n')
    script.chmod(0o755)
    return str(script)


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))))


def without_gradient(x: Tensor) -> None:
    with torch.no_grad():
        sgc.compile(model, guide)(x)


def steps(x: Tensor) -> None:
    svi = sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}))
    svi.step(x)  # the optimizer makes its state, in Python
    before = pyro.param("logit").item()
    try:
        for _ in range(2):
            with pytest.raises(BackendError):
                svi.step(x)
        svi.step(x)
    finally:
        assert pyro.param("logit").item() == before


def loss_and_gradients(x: Tensor) -> None:
    sgc.infer.TraceGraph_ELBO(backend="inductor").loss_and_grads(model, guide, x)


def package(x: Tensor) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "loss.pt2"
        path.write_text("the one before")
        try:
            sgc.package(sgc.compile(model, guide, backend="eager").initialize(x), path, x)
        finally:
            assert [each.read_text() for each in path.parent.iterdir()] == ["the one before"]


WAYS: list[Callable[[Tensor], Any]] = [
    lambda x: sgc.compile(model, guide)(x),
    without_gradient,
    steps,
    lambda x: sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.01})).run(3, x),
    loss_and_gradients,
    package,
    lambda x: shared_library('extern "C" int four() { return 4; }')(),
]


@pytest.mark.parametrize("way", WAYS)
def test_no_compiler(use_compiler: Callable[[str], None], way: Callable[[Tensor], Any]) -> None:
    """Every way in says the same, and how to get one."""
    use_compiler("/nowhere/g++")
    with pytest.raises(BackendError) as raised:
        way(torch.tensor(2.0))
    assert raised.value.problem == (
        "Inductor needs a C++ compiler and found none that works: the environment variable CXX is '/nowhere/g++'"
    )
    assert raised.value.remedy.startswith("install one (Debian, Ubuntu: apt-get install g++")
    assert raised.value.remedy.endswith('or use backend="eager", which needs no compiler')


@pytest.mark.parametrize("name", ["/bin/false", "not executable", "a directory"])
def test_no_compiler_by_that_name(use_compiler: Callable[[str], None], tmp_path: Path, name: str) -> None:
    (tmp_path / "not executable").write_text("#!/bin/sh\n")
    (tmp_path / "a directory").mkdir()
    use_compiler(str(tmp_path / name))
    with pytest.raises(BackendError, match="found none that works.*\\n.*install one"):
        shared_library('extern "C" int five() { return 5; }')()


FAILURES = {
    "program.cpp:3:1: error: no such thing": "it refuses what Inductor has written: .*report",
    "program.cpp:1:10: fatal error: Python.h: No such file or directory": "install what Python.h belongs to .*python3",
    "fatal error: 'cmath' file not found": "install what cmath belongs to",
    "compiler: fatal error: cannot execute cc1plus": "see that it works, install one .*CXX",
    "error writing to /tmp/x.s: No space left on device": "make room, set TORCHINDUCTOR_CACHE_DIR and TMPDIR",
    "": "see that it works",
}


@pytest.mark.parametrize("said", FAILURES)
def test_a_compiler_that_fails(use_compiler: Callable[[str], None], tmp_path: Path, said: str) -> None:
    """What it says is shown, by which compiler, and what to do about it."""
    compiler = failing(tmp_path, said)
    use_compiler(compiler)
    with (
        inductor_config.patch({"cpp.vec_isa_ok": True}),
        pytest.raises(BackendError, match=f"remedy: {FAILURES[said]}") as raised,
    ):
        shared_library('extern "C" int six() { return 6; }')()
    assert f"the C++ compiler {compiler} fails:\n{said or 'it says nothing'}" in str(raised.value)


def test_an_error_in_a_program(use_compiler: Callable[[str], None], tmp_path: Path) -> None:
    """It is not hidden by an error of what was left of the first attempt, and the program compiles afterwards."""
    x = torch.tensor(2.0)
    loss_module = sgc.compile(model, guide)
    with inductor_config.patch({"cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": True}):
        use_compiler(failing(tmp_path, "program.cpp:3:1: error: no such thing"))
        for _ in range(2):
            with pytest.raises(BackendError, match="fails:\\nprogram.cpp:3:1: error: no such thing"):
                loss_module(x)
        use_compiler("g++")
        assert loss_module(x).isfinite()


@pytest.mark.parametrize("part", ["library_of", "compile_graph", "native_program"])
def test_a_step_of_which_a_part_fails(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """None is taken, and none in part; once all can be compiled, it is taken as by Pyro."""
    x, losses, failing = torch.tensor(2.0), [], set[str]()

    def compile_or_fail(*arguments: Any, **named: Any) -> Any:
        return fail() if "compile_graph" in failing else compile_graph(*arguments, **named)

    with registered(Inductor(compile_or_fail)):
        elbo = sgc.infer.TraceGraph_ELBO(backend="inductor", rng="torch")
        for svi in (
            pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.TraceGraph_ELBO()),
            sgc.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), elbo),
        ):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            losses.append([svi.step(x)])
            if isinstance(svi, sgc.SVI):
                before, state = pyro.param("logit").item(), torch.get_rng_state()
                with monkeypatch.context() as patched:
                    failing.add(part)
                    if part != "compile_graph":
                        patched.setattr(f"sgc.emit.inductor.compiled_step.{part}", fail)
                    for _ in range(2):
                        with pytest.raises(BackendError, match="on purpose"):
                            svi.step(x)
                failing.clear()
                assert pyro.param("logit").item() == before
                assert torch.equal(torch.get_rng_state(), state)
            losses[-1] += [svi.step(x), svi.step(x), pyro.param("logit").item()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def fail(*arguments: Any, **named: Any) -> Any:
    raise BackendError("it fails on purpose")
