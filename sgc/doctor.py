"""Says how sgc fares on this machine: ``python -m sgc.doctor``.

It prints the versions, the C++ compiler, the directory where programs are kept and the workarounds of torch that are
active, and tries one small program and two steps of its training on each backend. The exit status is 1 if one fails.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, fx
from torch.distributions import constraints

import sgc
from sgc.emit.backends.registry import names
from sgc.emit.inductor.workarounds.all_workarounds import WORKAROUNDS
from sgc.emit.inductor.workarounds.workaround import Workaround
from sgc.native.compiler_errors import has_compiler
from sgc.native.private_attributes import MissingAttribute, private
from sgc.native.switches import is_on, switched_off


def main() -> int:
    """Print the report; the exit status."""
    for title, lines in (
        ("versions", _versions()),
        ("compiler", _compiler()),
        ("programs are kept in", _directory()),
        (f"workarounds on torch {torch.__version__}", _workarounds()),
    ):
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")
    print("one small program on each backend, compared with Pyro:")
    failures = 0
    for backend in names():
        start = time.perf_counter()
        failure = _failure(backend)
        print(f"  {backend:12s} {'failed' if failure else 'ok':6s} {time.perf_counter() - start:6.1f} s", flush=True)
        for line in failure.splitlines():
            print(f"    {line}")
        failures += bool(failure)
    print("all backends work" if not failures else f"{failures} of {len(names())} backends cannot be used here")
    return min(failures, 1)


def _versions() -> Iterator[str]:
    yield f"sgc {sgc.__version__}, Python {platform.python_version()} on {platform.platform()}"
    yield ", ".join(f"{name} {_version(name)}" for name in ("torch", "pyro-ppl", "networkx", "numpy"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    yield f"GPU: {gpu}; threads of torch: {torch.get_num_threads()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed as a package)"


def _compiler() -> Iterator[str]:
    if not has_compiler():
        chosen = os.environ.get("CXX")
        yield f"none that starts{f': the environment variable CXX is {chosen!r}' if chosen else ''}"
        yield 'backend="inductor", the default, needs one on a CPU (Debian, Ubuntu: apt-get install g++; macOS:'
        yield 'xcode-select --install); backend="eager" needs none'
        return
    try:
        compiler = private("torch._inductor.cpp_builder:get_cpp_compiler")()
    except MissingAttribute as missing:
        yield f"there is one; {missing}, so nothing more is known of it"
        return
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    yield f"{compiler}: {said.splitlines()[0] if said.strip() else 'says no version'}"


def _directory() -> Iterator[str]:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    place = cache_dir()
    allowed = os.access(place, os.W_OK)
    yield place if allowed else f"{place}, which cannot be written: set TORCHINDUCTOR_CACHE_DIR to a directory that can"


def _workarounds() -> Iterator[str]:
    for workaround in WORKAROUNDS:
        yield f"{workaround.name:22s} {_state(workaround)}"
        yield f"    {workaround.defect}"
        yield f"    {workaround.reported}"
    others = sorted({*switched_off()} - {workaround.name for workaround in WORKAROUNDS})
    if others:
        yield f"switched off besides: {', '.join(others)}"


def _state(workaround: Workaround) -> str:
    if not workaround.is_needed:
        return f"not needed: mended in torch {workaround.mended}"
    if not is_on(workaround.name):
        return "switched off"
    if not torch.cuda.is_available() and all(program.device == "cuda" for program in workaround.programs):
        return "not needed: there is no GPU"
    try:
        if workaround.patch is not None:
            empty = fx.symbolic_trace(_nothing)
            if workaround.rewrite is not None:
                workaround.rewrite(empty)
            with workaround.patch(empty):
                pass
    except MissingAttribute as missing:
        return f"CANNOT BE APPLIED: {missing}"
    release = ".".join(torch.__version__.split(".")[:2])
    return "active" if release in workaround.seen else f"active, though not seen to be needed on torch {release}"


def _nothing() -> list[Tensor]:
    return []


def _model(data: Tensor) -> None:
    fairness = pyro.sample("fairness", dist.Beta(10.0, 10.0))
    with pyro.plate("tosses", len(data)):
        pyro.sample("x", dist.Bernoulli(fairness), obs=data)


def _guide(data: Tensor) -> None:
    heads = pyro.param("heads", torch.tensor(12.0), constraint=constraints.positive)
    tails = pyro.param("tails", torch.tensor(12.0), constraint=constraints.positive)
    pyro.sample("fairness", dist.Beta(heads, tails))


def _failure(backend: str) -> str:
    """What is wrong with a backend; empty if it computes what Pyro computes."""
    data = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    with warnings.catch_warnings(), pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            module = sgc.compile(_model, _guide, backend=backend, rng="torch", wait=True).initialize(data)
            pyro.set_rng_seed(0)
            loss = module(data)
            loss.backward()
        except Exception as error:  # of any kind: it is reported
            return f"{type(error).__name__}: {error}"
        ours = [loss.detach(), *(parameter.grad for parameter in module.parameters())]
        module.zero_grad()
        pyro.set_rng_seed(0)
        theirs = torch.tensor(TraceGraph_ELBO().loss_and_grads(_model, _guide, data))
        expected = [theirs, *(parameter.grad for parameter in module.parameters())]
        try:  # the first step is not compiled as a whole, the second is
            elbo = sgc.infer.TraceGraph_ELBO(backend=backend, wait=True)
            sgc.SVI(_model, _guide, torch.optim.Adam, elbo).run(2, data)
        except Exception as error:
            return f"a training step fails: {type(error).__name__}: {error}"
    try:
        torch.testing.assert_close(ours, expected)
    except AssertionError as error:
        return f"the numbers are not Pyro's: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
