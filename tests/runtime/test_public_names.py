"""What ``dir`` shows of a loss module, an ELBO and an SVI is for users: documented, and nothing besides."""

from __future__ import annotations

import inspect
from pathlib import Path

import pyro.infer
import pyro.optim
import pytest
from torch import nn

import sgc
import sgc.infer
from sgc.infer.compiled import CompiledELBO
from sgc.runtime.loss_module import LossModule
from tests.programs import local_switches

DOCS = Path(sgc.__file__).parent.parent / "docs"


def own_names(thing: object, base: object) -> set[str]:
    """The names that ``thing`` adds to those of what it is derived from."""
    return {name for name in set(dir(thing)) - set(dir(base)) if not name.startswith("_")}


@pytest.mark.parametrize("made_by", ["sgc.compile", "an ELBO"])
def test_a_loss_module_shows_what_its_docstring_and_its_docstrings_say(made_by: str) -> None:
    model, guide = local_switches()
    module = sgc.compile(model, guide) if made_by == "sgc.compile" else sgc.infer.TraceGraph_ELBO()(model, guide)
    shown = own_names(module, nn.Module())
    assert shown == {
        *(
            "initialize",
            "verify",
            "gradient_variance",
            "choice",
            "graph",
            "module",
            "code",
            "specializations",
            "guards",
            "explain",
            "misses",
            "profile",
            "stages",
            "specialization_for",
            "options",
        ),
        "param_store_scope",
        *("networks", "param_store", "closed_over", "baselines"),
    }
    for name in shown:
        member = getattr(LossModule, name, None)
        text = inspect.getdoc(LossModule) if member is None else inspect.getdoc(member)
        assert text and (member is not None or f"``{name}``" in text), name


def test_the_loss_module_of_an_elbo_has_no_names_of_its_own() -> None:
    assert not {name for name in vars(CompiledELBO) if not name.startswith("_")} - {"forward"}


def test_the_classes_of_infer_show_what_the_docs_say() -> None:
    model, guide = local_switches()
    elbo = sgc.infer.TraceGraph_ELBO()
    shown = own_names(elbo, pyro.infer.TraceGraph_ELBO())
    assert shown == {"backend", "rng", "dynamic", "validate", "wait", "estimators", "compiled", "differentiable_loss"}
    optim = pyro.optim.Adam({"lr": 0.1})
    theirs = pyro.infer.SVI(model, guide, optim, pyro.infer.TraceGraph_ELBO())
    shown = own_names(sgc.SVI(model, guide, optim, elbo), theirs)
    own = {"loss_module", "initialize", "result", "profile", "stepper", "optimizer", "state_dict", "load_state_dict"}
    assert shown == own
    text = "".join(page.read_text() for page in DOCS.glob("*.md"))
    assert [name for name in sorted(shown) if name not in text] == []


@pytest.mark.parametrize("name", ["Predictive", "NUTS", "config_enumerate"])
def test_what_sgc_infer_does_not_have_is_said_to_be_in_pyro_infer(name: str) -> None:
    with pytest.raises(ImportError, match=f"does not compile it: from pyro.infer import {name}"):
        exec(f"from sgc.infer import {name}")
    with pytest.raises(ImportError, match="cannot import name 'Predictively'"):
        exec("from sgc.infer import Predictively")
    assert not hasattr(sgc.infer, "Predictively")
