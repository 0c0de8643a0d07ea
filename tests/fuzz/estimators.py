"""Draws an estimator for each latent site of a program, as the option ``estimators``, and compares with eager Pyro.

Some discrete sites that nothing in the guide reads are taken out of it, to be summed out of the model.
"""

from __future__ import annotations

import gc
import linecache
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.subsample_messenger import _Subsample

import sgc
from sgc.errors import SgcError
from sgc.tracing.site_options.site_requests import sampler_of
from tests.fuzz.compare import SECONDS, SEED, Refused, TooSlow, Verdict, flipped, fresh, limited, load, pyro_side, run
from tests.fuzz.objectives import OBJECTIVES
from tests.fuzz.scope import NESTING
from tests.fuzz.tree import Program, Statement, filled, mentions

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
        sites, _ = latent_sites(program)
    except Refused:
        return program
    guide = program.guide
    for name, fn in sites.items():
        sampler = sampler_of(fn)
        without = tuple(_without(guide, name))
        if sampler.enumerable and without != guide and draws.random() < 0.3:
            guide, asked[name] = without, "enumerate"
            continue
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
    return replace(program, guide=guide, options=(*program.options, (OPTION, asked))) if asked else program


def _without(guide: tuple[Statement, ...], name: str) -> Iterator[Statement]:
    """A guide without the statement of a site; the guide itself, if that is in a loop or something reads its value."""
    every = [statement for outer in guide for statement in outer.walk()]
    own = [statement for statement in every if statement.name == f'"{name}"' and "pyro.sample" in statement.header]
    others = "\n".join(filled(other.header, other.parts) for other in every if other not in own)
    if len(own) != 1 or (own[0].binds and mentions(others, own[0].binds)):
        yield from guide
        return
    for statement in guide:
        if statement not in own:
            yield replace(statement, body=tuple(_without_one(statement.body, own[0])))


def _without_one(statements: tuple[Statement, ...], gone: Statement) -> Iterator[Statement]:
    for statement in statements:
        if statement != gone:
            yield replace(statement, body=tuple(_without_one(statement.body, gone)))


def tidied(program: Program) -> Program:
    """The program without estimators for sites that it does not have (any more).

    :raises Refused: if eager Pyro cannot run it.
    """
    names, alone = latent_sites(program)

    def is_there(name: str, how: str) -> bool:
        return name in names or (name in alone and how == "enumerate")

    options = []
    for key, value in program.options:
        kept = {name: how for name, how in value.items() if is_there(name, how)} if isinstance(value, dict) else value
        options += [(key, kept)] if kept != {} else []
    return replace(program, options=tuple(options))


def latent_sites(program: Program) -> tuple[dict[str, Any], dict[str, Any]]:
    """The distributions of the latent sites, by name: those of the guide, and those of the model alone."""
    with fresh(program.double):
        try:
            names = load(program.source(functional=True), NAME).names
            trace = poutine.trace(names["guide"]).get_trace(*names["args"])
            model_trace = poutine.trace(poutine.replay(names["model"], trace=trace)).get_trace(*names["args"])
        except Exception as error:
            raise Refused(type(error).__name__, str(error)) from error
    alone = {name: site for name, site in model_trace.nodes.items() if name not in trace.nodes}
    return _latent(trace.nodes), _latent(alone)


def _latent(sites: Mapping[str, Any]) -> dict[str, Any]:
    sampled = {name: site for name, site in sites.items() if site["type"] == "sample"}
    return {
        name: site["fn"]
        for name, site in sampled.items()
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
    if not _is_finite(program):
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


def _is_finite(program: Program) -> bool:
    """Whether eager Pyro's numbers are, without the option.

    They are those of its ``TraceEnum_ELBO`` where a site is summed out of the model, for its ``TraceGraph_ELBO``
    refuses a discrete site that only the model has.
    """
    plain = replace(program, optimizer="", options=tuple(item for item in program.options if item[0] != OPTION))
    _, alone = latent_sites(program)
    summed_out = sorted(alone.keys() & dict(program.options).get(OPTION, {}))
    choice = OBJECTIVES["elbo"]
    if summed_out:
        choice = replace(OBJECTIVES["TraceEnum_ELBO"], enumerates=False)
        config = f'lambda site: {{"enumerate": "parallel"}} if site["name"] in {summed_out} else {{}}'
        asking = Statement(f"model = poutine.infer_config(model, config_fn={config})")
        plain = replace(plain, wrappers=(*plain.wrappers, asking))
    try:
        side = pyro_side(choice)
        theirs = run(plain.source(functional=True), NAME, side, double=program.double, evaluate=False)
    except Exception as error:
        raise Refused(type(error).__name__, str(error)) from error
    return theirs.is_finite()


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
            model = EnumMessenger()(poutine.infer_config(names["model"], config))
            model = poutine.replay(model, trace=guide_trace)
            poutine.trace(model).get_trace(*names["args"]).compute_log_prob()
            guide_trace.compute_log_prob()

        try:
            run_once()
        except Exception as error:
            return Verdict("Pyro refuses", type(error).__name__, str(error))
    return None
