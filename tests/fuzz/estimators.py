"""Draws an estimator for each latent site of a program, as the option ``estimators``, and compares with eager Pyro."""

from __future__ import annotations

import gc
import linecache
import random
from dataclasses import replace
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.subsample_messenger import _Subsample

import sgc
from sgc.errors import SgcError
from sgc.tracing.site_requests import sampler_of
from tests.fuzz.compare import SECONDS, SEED, Refused, TooSlow, Verdict, flipped, fresh, limited, load, pyro_side, run
from tests.fuzz.objectives import OBJECTIVES
from tests.fuzz.scope import NESTING
from tests.fuzz.tree import Program

OPTION = "estimators"
SCORED = ("score function", "decaying average", "decaying average per datum")
NAME = "<program with estimators>"


def with_estimators(program: Program) -> Program:
    """The program with one of the estimators that each of its latent sites can have, or with nothing for it.

    What eager Pyro cannot run stays as it is.
    """
    draws = random.Random(f"estimators {program.seed}")
    scored = (*SCORED, "leave-one-out") if dict(program.options).get("num_particles", 1) > 1 else SCORED
    asked = {}
    try:
        sites = latent_sites(program)
    except Refused:
        return program
    for name, fn in sites.items():
        sampler = sampler_of(fn)
        can = (
            ["", *scored]
            if not sampler.has_rsample
            else ["", "", "partially pathwise" if sampler.has_score_function else "pathwise"]
        )
        if sampler.enumerable:
            can += ["enumerate"] * 4
        wanted = draws.choice(can)
        if wanted:
            asked[name] = wanted
    return replace(program, options=(*program.options, (OPTION, asked))) if asked else program


def tidied(program: Program) -> Program:
    """The program without estimators for sites that it does not have (any more).

    :raises Refused: if eager Pyro cannot run it.
    """
    names = latent_sites(program)
    options = []
    for key, value in program.options:
        kept = {name: how for name, how in value.items() if name in names} if isinstance(value, dict) else value
        options += [(key, kept)] if kept != {} else []
    return replace(program, options=tuple(options))


def latent_sites(program: Program) -> dict[str, Any]:
    """The distributions of the latent sites of the guide, by name."""
    with fresh(program.double):
        try:
            names = load(program.source(functional=True), NAME).names
            trace = poutine.trace(names["guide"]).get_trace(*names["args"])
        except Exception as error:
            raise Refused(type(error).__name__, str(error)) from error
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {
        name: site["fn"]
        for name, site in sites.items()
        if not site["is_observed"] and not isinstance(site["fn"], _Subsample)
    }


def compare_estimators(program: Program, backend: str) -> Verdict:
    """Run a program with its option ``estimators``, and ``verify`` it with each of its arguments.

    Eager Pyro comes first, without the option.
    """
    try:
        with limited(SECONDS):
            return _compare(tidied(program), backend)
    except Refused as error:
        return Verdict("Pyro refuses", *error.args)
    except TooSlow as error:
        return Verdict("fails", "slow", str(error))
    finally:
        linecache.cache.pop(NAME, None)
        pyro.clear_param_store()
        gc.collect()


def _compare(program: Program, backend: str) -> Verdict:
    plain = replace(program, optimizer="", options=tuple(item for item in program.options if item[0] != OPTION))
    try:
        side = pyro_side(OBJECTIVES["elbo"])
        theirs = run(plain.source(functional=True), NAME, side, double=program.double, evaluate=False)
    except Exception as error:
        raise Refused(type(error).__name__, str(error)) from error
    if not theirs.is_finite():
        return Verdict("not finite")
    with fresh(program.double):
        names = load(program.source(), NAME).names
        module = sgc.compile(names["model"], names["guide"], backend=backend, rng="torch", **names["options"])
        for number, args in enumerate((names["args"], *names.get("others", [flipped(names["args"])]))):
            pyro.set_rng_seed(SEED + number)
            try:
                loss = module(*args)  # what it learns from a call, the comparison of the next one has
                if loss.requires_grad:
                    loss.backward()
                verification = module.verify(*args)
            except SgcError as error:
                return Verdict("sgc refuses", type(error).__name__, str(error))
            except Exception as error:
                refused = _breaks_with_all_values(program)
                return refused or Verdict("fails", f"raises {type(error).__name__}", str(error))
            if not verification:
                return Verdict("fails", "differs", f"call {number}\n{verification}")
    return Verdict("agrees")


def _breaks_with_all_values(program: Program) -> Verdict | None:
    """What eager Pyro raises where the sites have all their values that are to be enumerated.

    Such a program takes another meaning of a batch for granted: it indexes a table that has batch dims, say.
    """
    asked = dict(program.options).get(OPTION, {})
    with fresh(program.double):
        names = load(program.source(functional=True), NAME).names

        def config(site: Any) -> dict[str, str]:
            return {"enumerate": "parallel"} if asked.get(site["name"]) == "enumerate" else {}

        def run_once() -> None:
            guide = poutine.infer_config(names["guide"], config)
            guide_trace = poutine.trace(EnumMessenger(first_available_dim=-1 - NESTING)(guide)).get_trace(
                *names["args"]
            )
            model = poutine.replay(EnumMessenger()(names["model"]), trace=guide_trace)
            poutine.trace(model).get_trace(*names["args"]).compute_log_prob()
            guide_trace.compute_log_prob()

        try:
            run_once()
        except Exception as error:
            return Verdict("Pyro refuses", type(error).__name__, str(error))
    return None
