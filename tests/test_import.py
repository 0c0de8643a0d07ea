"""``import sgc`` imports nothing else; what is public is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sgc


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_takes_no_time() -> None:
    """Said by the modules that it loads: no torch, no Pyro, no compiler."""
    assert (
        run(
            "import sys; b = set(sys.modules); import sgc; print({m.split('.')[0] for m in set(sys.modules) - b} - "
            "set(sys.stdlib_module_names))"
        )
        == "{'sgc'}\n"
    )


def test_inductor_is_imported_by_the_first_compilation() -> None:
    program = "import sys, sgc; sgc.SVI, sgc.compile; print('torch._inductor.compile_fx' in sys.modules)"
    assert run(program) == "False\n"


PROGRAM = """
import sys, pyro, pyro.distributions as dist, torch, sgc

def model(x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

def guide(x):
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))))

def imported(*names):
    return [name for name in names if f"torch.{name}" in sys.modules]

loss_module = sgc.compile(model, guide, backend="eager")
svi = sgc.SVI(model, guide, torch.optim.Adam, sgc.infer.TraceGraph_ELBO(backend="eager"))
"""


def test_dynamo_is_not_imported_before_a_program_is_captured() -> None:
    """Torch's own fake tensors import it."""
    assert run(f"{PROGRAM}\nprint(imported('_dynamo', '_inductor'))") == "[]\n"


def test_on_the_eager_backend_nothing_that_generates_code_is_imported() -> None:
    steps = "loss_module(torch.tensor(2.0)).backward()\nsvi.step(torch.tensor(2.0))\nsvi.run(2, torch.tensor(2.0))"
    names = "'_inductor.compile_fx', '_inductor.scheduler', '_inductor.codecache', '_functorch.aot_autograd'"
    assert run(f"{PROGRAM}\n{steps}\nprint(imported({names}))") == "[]\n"


@pytest.mark.parametrize("first", ["sgc.compile", "sgc.LossModule", "sgc.SVI", "sgc.infer"])
def test_capture_is_a_function_whatever_is_imported_before(first: str) -> None:
    """No folder has the name of something public."""
    assert run(f"import sgc; {first}; print(sgc.capture.__module__, callable(sgc.capture))") == "sgc.api True\n"
    assert not {path.stem for path in Path(sgc.__file__).parent.iterdir()} & ({*sgc.__all__} - {"errors", "infer"})


def test_public_names() -> None:
    assert set(sgc.__all__) <= set(dir(sgc))
    names: dict[str, object] = {}
    exec("from sgc import *", names)
    assert names["SVI"] is sgc.SVI and names["infer"] is sgc.infer and set(sgc.__all__) <= names.keys()
    with pytest.raises(AttributeError, match="module 'sgc' has no attribute 'svi'"):
        sgc.svi  # type: ignore[attr-defined]  # noqa: B018
