"""The one eager run of Pyro that precedes a capture.

It creates the parameters, runs Pyro's own validation with its own errors and warnings, finds the plate nesting
and the modules that take part. Whatever else it changes (random state, tensors, baseline averages) is put back,
also when it fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributions import Distribution

from sgc.config import Options
from sgc.errors import CaptureError
from sgc.graph.plan import SiteRequest
from sgc.tracing.error_notes import located
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.python.refusals import Refusing, refusals
from sgc.tracing.python.texts import printed_before
from sgc.tracing.reference.loss_of_objective import pyro_elbo, pyro_elbo_of_a_run
from sgc.tracing.reference.pyro_loss import PyroLoss
from sgc.tracing.site_options.site_requests import SiteRequests
from sgc.tracing.source import current_line
from sgc.tracing.state.baseline_averages import BASELINE_PREFIX, lent_averages
from sgc.tracing.state.external_reads import ExternalReads
from sgc.tracing.state.owners import ModuleWatch, is_scripted
from sgc.tracing.state.param_store import PYROS, Store, current_store
from sgc.tracing.state.random_state import random_state, restore_random_state, same_random_state
from sgc.tracing.state.run_differences import difference
from sgc.tracing.state.tracked_parameters import TrackedParameters
from sgc.tracing.state.transcript import Transcript
from sgc.tracing.state.writes import Written, undone_writes
from sgc.tracing.threads import here, ignored


@dataclass(frozen=True)
class Prototype:
    """The results of the eager run that every call of the program has in common.

    ``params`` are the names that it asked Pyro's param store for, in its order; ``store`` is where its parameters are.
    ``local`` are those of them that modules keep to themselves, by Pyro's setting ``module_local_params``.
    """

    max_plate_nesting: float
    params: tuple[str, ...]
    local: tuple[str, ...]
    store: Store


@dataclass(frozen=True)
class PrototypeRun(Prototype):
    """The eager run itself, for the capture that follows.

    ``failure`` is an error that Pyro raised after its traces were complete, while it combined costs and baselines.
    sgc's own passes will say more about it; it is raised only if they find nothing wrong. ``written`` is the memory
    that the program writes into; ``filled`` are buffers that held None before it ran, by the identities of their
    modules and their names; ``requests`` is what the latent sites ask for, ``enumerates`` whether one of them
    had all its values because it asks for them. ``began`` is the number that autograd gave to its first operation.
    """

    modules: tuple[nn.Module, ...]
    failure: Exception | None
    written: Written
    filled: dict[tuple[int, str], nn.Module]
    transcript: Transcript
    reads: ExternalReads
    requests: tuple[SiteRequest, ...]
    enumerates: bool
    began: int

    @property
    def prototype(self) -> Prototype:
        """What remains of it: it keeps no memory of the run alive."""
        return Prototype(self.max_plate_nesting, self.params, self.local, self.store)

    def empty_again(self) -> None:
        """Set the buffers that the run filled to None again, for a call that fails later."""
        _empty(self.filled)


def run_prototype(program: ProgramCall, store: Store = PYROS) -> PrototypeRun:
    """Run Pyro once as eager TraceGraph_ELBO would.

    The random state is left as it was, unless parameters were created from random numbers: then it is left
    as that creation left it, so that the first samples do not repeat the numbers of the initial parameters.

    :param store: where its parameters are; it is lent to Pyro by now.
    """
    callables = [part for part in (program.model, program.guide) if isinstance(part, nn.Module)]
    start, began = random_state(), torch._C._autograd._get_sequence_nr()  # there is no public way to tell what is older
    before = set(_parameter_ids(callables))
    elbo = pyro_elbo_of_a_run(program.options)
    reads = ExternalReads()
    try:
        # Outermost, so that it comes last: what it puts back was there before the program wrote anything.
        with (
            undone_writes() as written,
            ModuleWatch() as watch,
            preserved_state() as empty,
            poutine.trace(param_only=True) as asked,
            validated(program.options),
            refusals(),
            Refusing(),
            Transcript() as transcript,
            reads.noted(profiled=True),
            SiteRequests() as requests,
            TrackedParameters(store) as tracked,
        ):
            failure = _run(elbo, program, transcript, requests)
        tracked.unwrap()
    except BaseException:
        restore_random_state(start)
        raise
    roots = watch.roots(callables)
    _check_not_scripted([*callables, *roots])
    end = random_state()
    created = set(_parameter_ids([*callables, *roots])) - before
    restore_random_state(start)
    if created and not same_random_state(start, end):
        # Does the creation itself draw random numbers? A second run, now without creation, tells.
        transcript = _run_again(elbo, program, roots, reads)
        drew = not same_random_state(random_state(), end)
        restore_random_state(end if drew else start)
    params = tuple(name for name in asked.trace.nodes if not name.startswith(BASELINE_PREFIX))
    modules = (*callables, *roots)
    return PrototypeRun(
        elbo.max_plate_nesting,
        params,
        tuple(_local(asked.trace, params, store)),
        store,
        modules,
        failure,
        written,
        empty,
        transcript,
        reads,
        requests.requests,
        elbo.enumerates,
        began,
    )


def _local(asked: Trace, names: Sequence[str], store: Store) -> Iterator[str]:
    """The names whose tensors are not the store's, where Pyro's modules keep them to themselves."""
    if pyro.settings.get("module_local_params"):
        for name in names:
            value: Any = asked.nodes[name]["value"]
            own = value.unconstrained() if hasattr(value, "unconstrained") else value
            if own is not store.get(name):
                yield name


def refuse_changing(captured: Transcript, first: PrototypeRun, program: ProgramCall, *, keeps_state: bool) -> bool:
    """Refuse a program whose runs differ, for a compiled one would keep what it was in one of them.

    What the first run of all has made and keeps, later ones find: where it differs from the captured one, this is
    compared with a later one. Tensors that the capture has left in the program's objects were taken away again, so that
    two later ones are compared as well where the program ``keeps_state``.

    :returns: whether the program has run again.
    :raises CaptureError: with the line and the two values.
    """
    if difference(captured, first.transcript) is None:
        return False
    elbo = pyro_elbo_of_a_run(program.options, first.max_plate_nesting)
    elbo.enumerates = first.enumerates
    start = random_state()

    def again() -> Transcript:
        restore_random_state(start)
        return _run_again(elbo, program, first.modules, first.reads)

    try:
        later = again()
        error = difference(captured, later)
        if error is None and keeps_state:
            error = difference(again(), later)
    finally:
        restore_random_state(start)
    if error is not None:
        raise error
    return True


def _run_again(
    elbo: PyroLoss, program: ProgramCall, modules: Sequence[nn.Module], earlier: ExternalReads
) -> Transcript:
    with (
        undone_writes(),
        preserved_state(modules),
        warnings.catch_warnings(),
        validated(program.options),
        refusals(),
        Refusing(),
        Transcript() as transcript,
        ExternalReads(earlier).noted(profiled=False),
        printed_before(),
    ):
        warnings.simplefilter("ignore")
        _run(elbo, program, transcript)
    return transcript


def _check_not_scripted(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        for inner in module.modules():
            if is_scripted(inner):
                name = getattr(inner, "original_name", type(inner).__name__)
                raise CaptureError(
                    f"the module {name} is TorchScript, which a capture cannot look into",
                    remedy="use the module that it was made from",
                )


def run_validated(program: ProgramCall, max_plate_nesting: float) -> None:
    """Run Pyro once, with every particle, for the errors of its validation; tensors and averages are put back."""
    with undone_writes(), preserved_state(), warnings.catch_warnings(), validated(program.options):
        warnings.simplefilter("ignore")
        failure = _run(pyro_elbo(program.options, max_plate_nesting), program)
    if isinstance(failure, ValueError):
        raise failure


@contextmanager
def validated(options: Options, *, at_least: bool = True) -> Iterator[None]:
    """Pyro's validation of distributions as the options say, or as Pyro's switch if they say nothing.

    :param at_least: leave it on where the options do without, and the switch does not.
    """
    switch = Distribution._validate_args
    wanted = switch if options.validate is None else options.validate
    Distribution.set_default_validate_args(wanted or (at_least and switch))
    try:
        yield
    finally:
        Distribution.set_default_validate_args(switch)


def _run(
    elbo: PyroLoss,
    program: ProgramCall,
    transcript: Transcript | None = None,
    requests: SiteRequests | None = None,
) -> Exception | None:
    if transcript is not None:
        elbo.starting_anew = transcript.forget
    with located() as statements:
        runs = list(elbo._get_traces(program.model, program.guide, program.args, program.kwargs))
        for run, traces in enumerate(runs):
            if transcript is not None:
                transcript.note_sites(traces, run=run)
            if requests is not None:
                requests.note(*traces)
            try:
                elbo.value_and_surrogate(traces)
            except Exception as error:
                statements.locate(error)
                return error
    return None


def _parameter_ids(modules: list[nn.Module]) -> Iterator[int]:
    yield from map(id, current_store().tensors().values())
    for module in modules:
        yield from map(id, module.parameters())


@contextmanager
def preserved_state(
    modules: Sequence[nn.Module] = (), *, averages: dict[str, Tensor] | None = None, watch: bool = True
) -> Iterator[dict[tuple[int, str], nn.Module]]:
    """Put back module buffers and baseline averages after a run.

    It gives the buffers that are None when their modules run. These are put back if the run fails, and otherwise keep
    what it has filled them with.

    :param modules: modules whose buffers are put back.
    :param averages: the baseline averages that the run starts from; none by default.
    :param watch: put back the buffers of every other module that runs, too.
    """
    saved: dict[tuple[int, str], tuple[nn.Module, str, Tensor, Tensor, int | None]] = {}
    empty: dict[tuple[int, str], nn.Module] = {}

    def save(module: nn.Module, _inputs: object = None) -> None:
        for name, buffer in module._buffers.items():
            key = id(module), name
            if buffer is None and key not in saved:
                empty[key] = module
            elif buffer is not None and key not in saved and key not in empty:
                if nn.parameter.is_lazy(buffer):
                    raise _lazy(module)
                version = None if buffer.is_inference() else buffer._version
                saved[key] = (module, name, buffer, buffer.detach().clone(), version)

    for module in modules:
        for inner in module.modules():
            save(inner)
    handle = nn.modules.module.register_module_forward_pre_hook(here(save, ignored)) if watch else None
    try:
        with lent_averages(averages or {}):
            yield empty
    except BaseException:
        _empty(empty)
        raise
    finally:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for module, name, buffer, value, version in saved.values():
                if version is None or buffer._version != version or _differ(buffer, value):
                    buffer.copy_(value)  # only then: what autograd has kept of it, from another run, becomes invalid
                module._buffers[name] = buffer


def _differ(buffer: Tensor, value: Tensor) -> bool:
    """Whether a buffer was written through ``buffer.data``, of which its version does not tell."""
    return not isinstance(value, FakeTensor) and not torch.equal(buffer, value)


def _empty(buffers: dict[tuple[int, str], nn.Module]) -> None:
    for (_, name), module in buffers.items():
        module._buffers[name] = None


def _lazy(module: nn.Module) -> CaptureError:
    # A first run makes the buffers and writes into them, so that what they were is not known.
    return CaptureError(
        f"a {type(module).__name__} has buffers that are made in its first run",
        source=current_line(),
        remedy="run the module once on data of the right shape, in eval mode, before it is compiled",
    )
