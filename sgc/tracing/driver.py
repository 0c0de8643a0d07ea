"""Runs a model and guide once, under Pyro's own handlers and torch's tracer, and returns the program."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor
from torch.distributions import Distribution

from sgc.errors import CaptureError, DataDependenceError, SgcError
from sgc.graph.plan import ENUMERATING, Plan
from sgc.tracing import tracer
from sgc.tracing.arguments import flatten, unflatten
from sgc.tracing.declare import Capture, declare
from sgc.tracing.error_notes import original
from sgc.tracing.leaves.autograd_functions import functions_as_leaves
from sgc.tracing.leaves.opaque_calls import rejection_as_leaves
from sgc.tracing.program_call import ProgramCall
from sgc.tracing.prototype import PrototypeRun, preserved_state
from sgc.tracing.python.partials import CallRecord, recorded
from sgc.tracing.python.refusals import refusals
from sgc.tracing.python.sequential_plates import subsamples_as_tensors
from sgc.tracing.python.texts import printed_before
from sgc.tracing.recording import Recording
from sgc.tracing.reference.loss_of_objective import in_a_plate_of_particles
from sgc.tracing.site_options.estimator_option import EstimatorOption
from sgc.tracing.site_recorder import densities_as_leaves
from sgc.tracing.source import current_line, line_of
from sgc.tracing.state.buffers import preserved_attributes, rebound_buffers
from sgc.tracing.state.external_reads import ExternalReads
from sgc.tracing.state.moving_inputs import NOTHING_MOVES, MovingInputs
from sgc.tracing.state.random_state import (
    drawn_between,
    no_seeding,
    random_state,
    restore_random_state,
    same_random_state,
    torchs_on_cpu_alone_moved,
)
from sgc.tracing.state.transcript import Transcript
from sgc.tracing.symbolic_sizes import Sized, SymbolicSizes, symbols_in_python
from sgc.tracing.threads import replaced_here
from sgc.tracing.values.reads import DATA_DEPENDENT, Reads
from sgc.tracing.values.torch_functions import AnsweredFunctions
from sgc.tracing.values.validation import checks_as_nodes


def capture_program(
    program: ProgramCall,
    prototype: PrototypeRun,
    plan: Plan,
    records: Mapping[int, CallRecord] | None = None,
    moving: MovingInputs = NOTHING_MOVES,
) -> tuple[Capture, Transcript]:
    """Trace one evaluation of every site's log density; with what the captured run handed to torch and Pyro.

    :param plan: what was decided for the sites.
    :param moving: tensors and numbers that are inputs, wherever they are.
    :param records: for the positions of some partials among the leaves of the arguments, where to record their calls.
    :raises DataDependenceError: if the program's structure depends on a sample.
    :raises BaselineError: if the baseline options of a site are unrecognised, wrong or contradict one another.
    """
    states: list[dict[str, Any]] = []
    for attempt in range(_ATTEMPTS):
        alone = threading.active_count() == 1
        captured, before, after = _attempt(program, prototype, plan, records, moving, attempt > 0)
        error = drawn_between(before, after)
        if error is None or (attempt and torchs_on_cpu_alone_moved(before, after)):
            return captured
        states.append(after)
        if alone and threading.active_count() == 1:
            raise error
    assert error is not None
    if all(same_random_state(states[0], state) for state in states):
        raise error  # what the program draws is the same each time
    meanwhile = "where another thread has drawn meanwhile, call initialize(*args) before it does"
    raise CaptureError(error.problem, source=error.source, remedy=f"{error.remedy}; {meanwhile}")


_ATTEMPTS = 3
"""How often a program is captured that seems to draw, where it may be another thread that does.

From the second time on every way to move torch's generator on the CPU is refused: if it moves, that was another thread.
"""


def _attempt(
    program: ProgramCall,
    prototype: PrototypeRun,
    plan: Plan,
    records: Mapping[int, CallRecord] | None,
    moving: MovingInputs,
    strictly: bool,
) -> tuple[tuple[Capture, Transcript], dict[str, Any], dict[str, Any]]:
    """A capture, and the random states before and after it."""
    leaves, structure = flatten((program.args, program.kwargs))
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [*(leaves[i] for i in positions), *moving.tensors(leaves)]
    sizes = SymbolicSizes.of(leaves, moving.sizes) if moving.sizes else None
    examples = tensors
    if sizes is not None:
        where: list[Sized] = [*positions, *moving.places]
        examples = list(map(sizes.examples.get, where, tensors))
    options, nesting = program.options, prototype.max_plate_nesting
    model, guide = (in_a_plate_of_particles(part, options, nesting) for part in (program.model, program.guide))
    option = EstimatorOption.of(options)
    model, guide = (model, guide) if option is None else option.of_both(model, guide)
    checked = None if options.validate is False else options.validate or Distribution._validate_args
    recording = Recording(plan, failed_before=prototype.failure is not None)

    def run(*traced: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for position, tensor in zip(positions, traced[: len(positions)], strict=True):
            filled[position] = tensor
        for position, record in (records or {}).items():
            filled[position] = recorded(leaves[position], record)
        placeholders = [node for node in tracer.current_tracer().graph.nodes if node.op == "placeholder"]
        concrete = {node.name: t for node, t in zip(placeholders, tensors, strict=True)}
        reads = Reads(concrete, written.before)
        with (
            AnsweredFunctions(reads),
            moving.traced(filled, traced[len(positions) :], reads) as filled,
            refusals(),
            symbols_in_python() if sizes is not None else nullcontext(),
            printed_before(),
            no_seeding(strictly=strictly),
            functions_as_leaves(),
            rejection_as_leaves(),
            densities_as_leaves(),
            subsamples_as_tensors(reads.names),
            rebound_buffers(prototype.modules, prototype.filled),
            checks_as_nodes(reads, checked, speculate=options.speculate) as requirements,
            recording.transcript,
            ExternalReads(prototype.reads).noted(profiled=False),
        ):
            traced_args, traced_kwargs = unflatten(filled, structure)
            recording.requirements = requirements.conditions
            if reads.speculation is not None:
                recording.recorder.attempting = reads.speculation.suspended
            if options.objective in ENUMERATING:
                recording.run_enumerated(model, guide, traced_args, traced_kwargs, -1 - int(nesting))
            else:
                first_dim = -1 - int(nesting) if plan.enumerates else None
                recording.run(model, guide, traced_args, traced_kwargs, first_dim)
            recording.note_sites(named_by_samples=bool(reads.names))
        recording.reads = reads.guards
        return recording.outputs

    before = random_state()
    with preserved_attributes(prototype.modules), _capture_context(prototype), prototype.written.again() as written:
        try:
            module = tracer.trace(run, examples, pre_dispatch=True)
            after = random_state()
        except SgcError as error:
            raise original(error)  # noqa: B904 (it has a cause of its own)
        except DATA_DEPENDENT as error:
            raise _data_dependence(error, recording) from error
        except Exception as error:
            raise _untraceable(error) from error
        finally:
            restore_random_state(before)
    captured = declare(module, recording, positions, prototype, program.args, program.kwargs, moving, sizes)
    return (captured, recording.transcript), before, after


@contextmanager
def _capture_context(prototype: PrototypeRun) -> Iterator[None]:
    """Pyro's own checks of traces and warnings are the prototype's; those of distributions become nodes."""

    def read_only(self: ParamStoreDict, name: str, value: Tensor) -> None:
        raise CaptureError(
            f"the program writes to the param store entry '{name}', which a compiled program would not do again",
            source=current_line(),
            remedy="keep such state in a buffer of an nn.Module and write into it in place",
        )

    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(preserved_state(prototype.modules, watch=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the prototype has given every warning
        stack.enter_context(replaced_here(ParamStoreDict, "__setitem__", read_only))
        yield


def _data_dependence(error: BaseException, recording: Recording) -> DataDependenceError:
    known = list(recording.recorder.statements)
    return DataDependenceError(
        "the program reads a value that is known only at run time; "
        f"the sites sampled before it: {', '.join(known) or 'none'}",
        source=line_of(error.__traceback__),
        remedy="give operations whose result's shape depends on values (nonzero, masked_select, unique) a fixed "
        "size, or replace them by torch.where or poutine.mask",
    )


def _untraceable(error: Exception) -> CaptureError:
    """For what Python and torch do with tensors that have values, as the prototype has shown, and with no others."""
    text = _in_words_of_the_user(str(error).strip().partition("\n")[0])
    return CaptureError(
        f"the program ran once, but cannot be captured: {type(error).__name__}{': ' * bool(text)}{text}",
        source=line_of(error.__traceback__),
        remedy="what needs the values of tensors can be computed of the data beforehand and passed as an argument; "
        "numbers can be read by int(), float() or tolist()",
    )


def _in_words_of_the_user(text: str) -> str:
    """An error's text, in which a tensor of a capture is a tensor; nothing where it speaks of how torch traces."""
    text = _TRACED.sub("torch.Tensor", text)
    return "" if _INTERNAL.search(text) else text


_TRACED = re.compile(r"\b(torch\._subclasses\.fake_tensor\.)?FakeTensor\b")
_INTERNAL = re.compile(
    r"fake|proxy|\bsym(int|node|bool|float)|functorch|'meta'|__torch_dispatch__|\bFX\b", re.IGNORECASE
)
