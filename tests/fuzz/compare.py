"""Runs the source of a program by eager Pyro and by sgc from the same random state, and says where they differ."""

from __future__ import annotations

import gc
import linecache
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor, nn

import sgc
from sgc.errors import SgcError
from tests.fuzz.objectives import OBJECTIVES, ObjectiveChoice
from tests.fuzz.rewritten import run_rewritten
from tests.fuzz.tree import Program

SEED = 11
STEPS = 3
SECONDS = 120
BACKENDS = ("eager", "rewritten", "torchscript", "inductor")
"""``rewritten`` runs, operator by operator, what Inductor would be given to compile: no compiler is needed."""


@dataclass(frozen=True)
class Verdict:
    """What became of a program: ``agrees``, ``Pyro refuses``, ``not finite``, ``sgc refuses`` or ``fails``.

    ``kind`` is what the shrinking keeps: the kind of difference or the class of an error.
    """

    outcome: str
    kind: str = ""
    detail: str = ""


class Refused(Exception):
    """Pyro raises, or its numbers are not finite."""


class TooSlow(BaseException):
    """A side took longer than any small program does; not an Exception, lest somebody handles it."""


@dataclass
class Record:
    """The numbers of one side, by name, in the order in which they came."""

    values: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().clone()
        self.values[name] = value

    def is_finite(self) -> bool:
        return all(_finite(value) for value in self.values.values())


@dataclass
class Loaded:
    """A program that has been executed: its names, and the file name that its lines have."""

    names: dict[str, Any]

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {name: m for name, m in self.names.items() if isinstance(m, nn.Module)}


def load(source: str, name: str) -> Loaded:
    """Execute a source so that errors and sgc's messages show its lines."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": "fuzzed"}
    exec(compile(source, name, "exec"), names)
    return Loaded(names)


def flipped(tree: Any) -> Any:
    """The same data in another order: they keep shape and support."""
    if isinstance(tree, Tensor):
        if tree.dim() >= 2 and tree.shape[-1] == tree.shape[-2] == 2:
            return tree.flip(0) if tree.dim() > 2 else tree
        return tree.flatten().flip(0).reshape(tree.shape)
    if isinstance(tree, dict):
        return {key: flipped(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(flipped(value) for value in tree)
    return tree


@contextmanager
def fresh(double: bool) -> Iterator[None]:
    """An empty store, a fixed seed, and float32; whatever the program sets is put back."""
    torch.set_default_dtype(torch.float64 if double else torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        pyro.clear_param_store()


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Of the processor's time: others may be at work on the machine."""

    def late(*_: Any) -> None:
        raise TooSlow(f"not done after {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


Side = tuple[Callable[..., Any], Callable[..., Any]]
"""How a side makes its losses and its SVI."""


def run(source: str, name: str, side: Side, *, double: bool, evaluate: bool) -> Record:
    """Two losses with gradients, one without to ``evaluate``, and some steps of training if there is an optimizer."""
    loss_of, svi_of = side
    record = Record()
    with fresh(double):
        loaded = load(source, name)
        names = loaded.names
        loss_and_grads, loss = loss_of(names["model"], names["guide"], names["options"])
        for number, args in enumerate((names["args"], *names.get("others", [flipped(names["args"])]))):
            _clear_gradients(loaded)
            pyro.set_rng_seed(SEED + number)
            record.add(f"loss {number}", float(loss_and_grads(*args)))
            _state(record, loaded, f" {number}", gradients=True)
        if evaluate:
            pyro.set_rng_seed(SEED + 2)
            with torch.no_grad():
                record.add("loss without gradient", float(loss(*names["args"])))
            _state(record, loaded, " after it", gradients=False)
    if "optimizer" not in names:
        return record
    with fresh(double):
        loaded = load(source, name)
        names = loaded.names
        svi = svi_of(names["model"], names["guide"], names["optimizer"], names["options"])
        for number in range(STEPS):
            calls = [names["args"], *names.get("others", [flipped(names["args"])])]
            args = calls[number % len(calls)]
            pyro.set_rng_seed(SEED + number)
            record.add(f"step loss {number}", svi.step(*args))
        _state(record, loaded, " trained", gradients=False)
    return record


def _clear_gradients(loaded: Loaded) -> None:
    for _, tensor in _parameters(loaded):
        tensor.grad = None


def _parameters(loaded: Loaded) -> Iterator[tuple[str, Tensor]]:
    seen = set()
    for name, tensor in pyro.get_param_store()._params.items():
        seen.add(id(tensor))
        yield name, tensor
    for owner, module in loaded.modules.items():
        for name, tensor in module.named_parameters():
            if id(tensor) not in seen:
                yield f"{owner}.{name}", tensor


def _state(record: Record, loaded: Loaded, when: str, *, gradients: bool) -> None:
    for name, tensor in _parameters(loaded):
        if "__baseline_avg" in name:
            record.add(f"average {name.rpartition('_')[2]}{when}", tensor)
            continue
        record.add(f"parameter {name}{when}", tensor)
        if gradients:
            record.add(f"gradient {name}{when}", tensor.grad)
    for owner, module in loaded.modules.items():
        for name, buffer in module.named_buffers():
            record.add(f"buffer {owner}.{name}{when}", buffer)
    record.add(f"random state{when}", torch.get_rng_state())


# -- the two sides


def pyro_side(objective: ObjectiveChoice) -> Side:
    def loss_of(model: Any, guide: Any, options: dict[str, Any]) -> Any:
        elbo = objective.theirs(**objective.every_option(options))
        program = objective.program(model), objective.program(guide)

        def loss_and_grads(*args: Any) -> Any:
            if objective is OBJECTIVES["elbo"] or not hasattr(elbo, "differentiable_loss"):
                return elbo.loss_and_grads(*program, *args)
            # The other classes compute no gradient where the program has no parameter of Pyro's.
            loss = elbo.differentiable_loss(*program, *args)
            if isinstance(loss, Tensor) and loss.requires_grad:
                loss.backward()
            return loss

        return loss_and_grads, (lambda *args: elbo.loss(*program, *args))

    def svi_of(model: Any, guide: Any, optimizer: Any, options: dict[str, Any]) -> Any:
        elbo = objective.theirs(**objective.every_option(options))
        return pyro.infer.SVI(objective.program(model), objective.program(guide), optimizer, elbo)

    return loss_of, svi_of


def sgc_side(backend: str, objective: ObjectiveChoice) -> Side:
    chosen: Any = "inductor" if backend == "rewritten" else backend

    def loss_of(model: Any, guide: Any, options: dict[str, Any]) -> Any:
        program = objective.program(model), objective.program(guide)
        every = {**objective.every_option(options), **objective.keywords}
        module = sgc.compile(*program, backend=chosen, rng="torch", **every)

        def loss_and_grads(*args: Any) -> Tensor:
            loss = module(*args)
            if loss.requires_grad:
                loss.backward()
            return loss

        return loss_and_grads, module

    def svi_of(model: Any, guide: Any, optimizer: Any, options: dict[str, Any]) -> Any:
        elbo = objective.ours(backend=chosen, rng="torch", **objective.every_option(options))
        return sgc.SVI(objective.program(model), objective.program(guide), optimizer, elbo)

    return loss_of, svi_of


# -- the comparison


def compare(program: Program, backend: str, objective: str = "elbo") -> Verdict:
    """Run a program on both sides; what is left behind of it is cleared."""
    name = f"<program {program.seed}>"
    try:
        with limited(SECONDS):
            return _compare(program, backend, OBJECTIVES[objective], name)
    except TooSlow as error:
        return Verdict("fails", "slow", str(error))
    finally:
        linecache.cache.pop(name, None)
        pyro.clear_param_store()
        gc.collect()


def _compare(program: Program, backend: str, objective: ObjectiveChoice, name: str) -> Verdict:
    how = {"double": program.double, "evaluate": program.seed % 3 == 0}
    theirs_side = pyro_side(objective)
    try:
        theirs = run(program.source(functional=True), name, theirs_side, **how)
    except Exception as error:
        return Verdict("Pyro refuses", type(error).__name__, str(error))
    if not theirs.is_finite():
        return Verdict("not finite")
    source = program.source()
    if source != program.source(functional=True):
        try:
            run(source, name, theirs_side, **how)
        except Exception as error:
            return Verdict("Pyro refuses", type(error).__name__, str(error))
    try:
        with run_rewritten(backend == "rewritten"):
            ours = run(source, name, sgc_side(backend, objective), **how)
    except SgcError as error:
        return Verdict("sgc refuses", type(error).__name__, str(error))
    except Exception as error:
        return Verdict("fails", f"raises {type(error).__name__}", str(error))
    relative = (1e-9 if program.double else 1e-5) * (1 if backend == "eager" else 30)
    return differences(ours, theirs, relative, gradients=not program.differs)


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return value is None or math.isfinite(value)


def differences(ours: Record, theirs: Record, relative: float, *, gradients: bool = True) -> Verdict:
    """The first difference between two records; without ``gradients`` what follows from them is left out."""
    names = [name for name in theirs.values if gradients or not _follows_from_gradients(name)]
    for name in names:
        if name not in ours.values:
            return Verdict("fails", f"no {name.split()[0]}", f"sgc has no {name}")
        mine, yours = ours.values[name], theirs.values[name]
        if not equal(mine, yours, relative):
            return Verdict("fails", f"wrong {name.split()[0]}", f"{name}: {_shown(mine)}, Pyro {_shown(yours)}")
    more = [name for name in ours.values if name not in theirs.values]
    return Verdict("fails", "more", f"sgc has {more[0]} besides") if more else Verdict("agrees")


def _follows_from_gradients(name: str) -> bool:
    return name.startswith(("gradient", "step loss")) or name.endswith(" trained")


def equal(mine: Any, yours: Any, relative: float) -> bool:
    if mine is None or yours is None:
        return mine is yours
    mine, yours = torch.as_tensor(mine), torch.as_tensor(yours)
    if mine.shape != yours.shape or mine.dtype != yours.dtype:
        return False
    if not yours.is_floating_point():
        return torch.equal(mine, yours)
    scale = max(1.0, float(yours.abs().max())) if yours.numel() else 1.0
    return bool(((mine - yours).abs() <= relative * scale).all())


def _shown(value: Any) -> str:
    text = str(value.tolist() if isinstance(value, Tensor) else value)
    return text if len(text) < 80 else text[:77] + "..."
