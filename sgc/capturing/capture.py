"""Runs a model and guide once, under Pyro's own handlers and torch's tracer, and returns the program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import detach, is_identically_zero
from pyro.infer import TraceGraph_ELBO
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch.distributions import Distribution
from torch.utils._pytree import tree_flatten, tree_unflatten

from sgc.capturing import tracer
from sgc.capturing.handlers import DATA_DEPENDENT, SiteRecorder, Statement, score_parts
from sgc.capturing.functions import functions_as_leaves
from sgc.capturing.parameters import ArgumentOwner, FixedOwner, Owner, Ownership, is_trainable
from sgc.capturing.reads import ReadGuard, Reads
from sgc.capturing.rehearsal import Rehearsal, preserved_state, pyro_elbo, random_state, restore_random_state
from sgc.capturing.source import current_line, line_of
from sgc.config import Options
from sgc.errors import BaselineError, CaptureError, DataDependenceError, SgcError
from sgc.graph.effects import ancestors, dependencies, is_effect
from sgc.graph.program import (
    Baseline,
    Density,
    Input,
    InputKind,
    Plate,
    Program,
    Site,
    SiteKind,
    ValueGuard,
)


@dataclass(frozen=True)
class Capture:
    """A program and, for each of its inputs, who owns the tensor."""

    program: Program
    owners: dict[str, Owner]


def capture_program(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Options,
    rehearsal: Rehearsal,
) -> Capture:
    """Trace one evaluation of every site's log density.

    :raises DataDependenceError: if the program's structure depends on a sample.
    :raises BaselineError: if the baseline options of a site are unrecognised or contradict one another.
    """
    leaves, spec = tree_flatten((args, kwargs))
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [leaves[i] for i in positions]
    elbo = pyro_elbo(options, rehearsal.max_plate_nesting)
    recording = _Recording()

    def run(*traced: Tensor) -> list[Tensor]:
        filled = list(leaves)
        for position, tensor in zip(positions, traced, strict=True):
            filled[position] = tensor
        placeholders = [node for node in tracer.current_tracer().graph.nodes if node.op == "placeholder"]
        concrete = {node.name: t for node, t in zip(placeholders, tensors, strict=True)}
        traced_args, traced_kwargs = tree_unflatten(filled, spec)
        with Reads(concrete) as reads, functions_as_leaves():
            recording.run(elbo, model, guide, traced_args, traced_kwargs)
        recording.reads = reads.guards
        return recording.outputs

    before = random_state()
    with _capture_context(rehearsal):
        try:
            module = tracer.trace(run, tensors, pre_dispatch=True)
        except SgcError as error:
            raise _original(error)  # noqa: B904 (it has a cause of its own)
        except DATA_DEPENDENT as error:
            raise _data_dependence(error, recording) from error
        finally:
            restore_random_state(before)
    return _declare(module, recording, positions, rehearsal, args, kwargs)


@contextmanager
def _capture_context(rehearsal: Rehearsal) -> Iterator[None]:
    """Pyro's checks branch on data and are made in the rehearsal; here they are off, even where asked for."""
    init, validate = Distribution.__init__, Distribution._validate_sample

    def unvalidated(
        self: Distribution, batch_shape: Any = torch.Size(), event_shape: Any = torch.Size(), validate_args: Any = None
    ) -> None:
        init(self, batch_shape, event_shape, validate_args=False)

    def read_only(self: ParamStoreDict, name: str, value: Tensor) -> None:
        raise CaptureError(
            f"the program writes to the param store entry '{name}', which a compiled program would not do again",
            source=current_line(),
            remedy="keep such state in a buffer of an nn.Module and write into it in place",
        )

    with ExitStack() as stack:
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(preserved_state(rehearsal.modules, watch=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the rehearsal has given every warning
        store_set = ParamStoreDict.__setitem__
        ParamStoreDict.__setitem__ = read_only  # type: ignore[method-assign]
        Distribution.__init__ = unvalidated  # type: ignore[method-assign]
        Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
        try:
            yield
        finally:
            ParamStoreDict.__setitem__ = store_set  # type: ignore[method-assign]
            Distribution.__init__, Distribution._validate_sample = init, validate  # type: ignore[method-assign]


def _original(error: BaseException) -> BaseException:
    """The error as sgc raised it: Pyro's handlers raise another of the same class that has only its text."""
    while isinstance(error.__cause__, SgcError):
        error = error.__cause__
    return error


def _data_dependence(error: BaseException, recording: _Recording) -> DataDependenceError:
    known = list(recording.recorder.statements)
    return DataDependenceError(
        f"the program reads a value that is known only at run time ({type(error).__name__}); "
        f"the sites sampled before it: {', '.join(known) or 'none'}",
        site=known[-1] if known else None,
        source=line_of(error.__traceback__),
        remedy="give operations whose result's shape depends on values (nonzero, masked_select, unique) a fixed "
        "size, or replace them by torch.where or poutine.mask",
    )


class _Recording:
    """Runs Pyro's traces while fx records, and collects what the program must output."""

    def __init__(self) -> None:
        self.recorder = SiteRecorder()
        self.reads: list[ReadGuard] = []
        self.outputs: list[Tensor] = []
        self.model_trace: Trace
        self.guide_trace: Trace
        self.slots: dict[tuple[str, str], int] = {}
        self.baselines: dict[str, Baseline] = {}

    def run(
        self,
        elbo: TraceGraph_ELBO,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        if elbo.vectorize_particles:
            model, guide = elbo._vectorized_num_particles(model), elbo._vectorized_num_particles(guide)
        with self.recorder:
            self.model_trace, self.guide_trace = _traces(model, guide, args, kwargs)
        for site in _samples(self.model_trace):
            self._output(site["name"], "model.log_prob", score_parts(site, in_guide=False).log_prob)
        for site in _samples(self.guide_trace):
            name, parts = site["name"], score_parts(site, in_guide=True)
            self._output(name, "guide.log_prob", parts.log_prob)
            for role in ("score_function", "entropy_term"):
                term = getattr(parts, role)
                if not is_identically_zero(term):
                    self._output(name, f"guide.{role}", term)
        for site in _samples(self.guide_trace):
            if "baseline" in site["infer"] and not site["is_observed"]:
                self._baseline(site)

    def _output(self, name: str, role: str, value: Any) -> None:
        self.slots[name, role] = len(self.outputs)
        self.outputs.append(value if isinstance(value, Tensor) else torch.as_tensor(value))

    def _baseline(self, site: Any) -> None:
        """Evaluate the user's baseline; what becomes of it is decided by the baseline pass."""
        name = site["name"]
        source = self.recorder.statements[name].source
        options = dict(site["infer"]["baseline"])
        network = options.pop("nn_baseline", None)
        network_input = options.pop("nn_baseline_input", None)
        decaying = options.pop("use_decaying_avg_baseline", False)
        beta = options.pop("baseline_beta", 0.90)
        value = options.pop("baseline_value", None)
        known = "nn_baseline, nn_baseline_input, use_decaying_avg_baseline, baseline_beta, baseline_value"
        if options:
            raise BaselineError(
                f"Unrecognized baseline options: {', '.join(sorted(options))}",
                site=name,
                source=source,
                remedy=f"the options are {known}",
            )
        if network is not None and value is not None:
            raise BaselineError(
                "cannot use baseline_value and nn_baseline simultaneously",
                site=name,
                source=source,
                remedy="give one of them; use_decaying_avg_baseline may be combined with either",
            )
        kind = "nn_baseline" if network is not None else "baseline_value" if value is not None else None
        if network is not None:
            value = network(detach(network_input))
        if value is not None:
            self._output(name, "baseline", value)
        self.baselines[name] = Baseline(
            kind=kind,
            value=None,
            value_shape=None if value is None else tuple(value.shape) if isinstance(value, Tensor) else (),
            decaying_average=bool(decaying),
            beta=float(beta),
        )


def _traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Trace, Trace]:
    """The traces of model and guide, as ``pyro.infer.enum.get_importance_trace`` makes them."""
    messenger = poutine.unwrap(guide)
    if isinstance(messenger, poutine.messenger.Messenger):
        guide(*args, **kwargs)
        model_trace, guide_trace = messenger.get_traces()
    else:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def _samples(trace: Trace) -> list[Any]:
    return [site for site in trace.nodes.values() if site["type"] == "sample"]


# ---------------------------------------------------------------------------------------------------------------
# From what was recorded to the declared program


def _declare(
    module: fx.GraphModule,
    recording: _Recording,
    positions: Sequence[int],
    rehearsal: Rehearsal,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Capture:
    graph = module.graph
    _normalise(graph)
    output = next(node for node in graph.nodes if node.op == "output")
    slots = {key: output.args[0][index] for key, index in recording.slots.items()}
    for name, statement in recording.recorder.statements.items():
        if statement.node is not None:
            slots[name, "value"] = statement.node
    output.args = (tuple(dict.fromkeys(slots.values())),)
    # A read made in code that then became one opaque node is no part of the program.
    nodes = set(graph.nodes)
    reads = [read for read in recording.reads if nodes.issuperset(read.sources)]
    guarded = {node for read in reads for node in read.sources}
    _drop_dead(graph, keep=guarded)
    inputs, owners, lifted = _lift(module, positions, rehearsal, args, kwargs, guarded)
    slots = {key: lifted.get(node, node) for key, node in slots.items()}
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(dict.fromkeys(slots.values())),)
    graph.lint()
    module.recompile()
    by_node = {declared.node: declared.name for declared in inputs}
    guards = tuple(
        ValueGuard(
            read.module,
            tuple(by_node[lifted.get(node, node).name] for node in read.sources),
            read.value,
            read.source,
        )
        for read in reads
    )
    program = Program(
        module=module,
        inputs=tuple(inputs),
        sites=tuple(_sites(recording, {key: node.name for key, node in slots.items()})),
        model_order=tuple(site["name"] for site in _samples(recording.model_trace)),
        guide_order=tuple(site["name"] for site in _samples(recording.guide_trace)),
        value_guards=guards,
    )
    return Capture(program, owners)


def _normalise(graph: fx.Graph) -> None:
    """Make the in-place detach of a fresh literal an ordinary one, drop grad-mode switches that change nothing, and
    unwrap what ``torch.func`` wrapped.
    """
    grad_mode = True
    for node in list(graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            if node.args[0] is grad_mode:
                graph.erase_node(node)
                continue
            grad_mode = node.args[0]
        if node.target is torch.ops.aten.detach_.default and node.args[0].op == "call_function":
            if node.args[0].target is torch.ops.aten.lift_fresh_copy.default:
                node.target = torch.ops.aten.detach.default
        if "val" in node.meta:
            node.meta["val"] = tracer.unwrapped(node.meta["val"])


def _drop_dead(graph: fx.Graph, keep: set[fx.Node]) -> None:
    """Remove what nothing uses and has no effect."""
    live = ancestors((node for node in graph.nodes if is_effect(node) or node in keep), dependencies(graph))
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)


def _lift(
    module: fx.GraphModule,
    positions: Sequence[int],
    rehearsal: Rehearsal,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    guarded: set[fx.Node],
) -> tuple[list[Input], dict[str, Owner], dict[fx.Node, fx.Node]]:
    """Turn every tensor that the program met into a declared input; literals of its own stay constants."""
    graph = module.graph
    roots = [(_root_name(root, i), root) for i, root in enumerate(rehearsal.modules)]
    ownership = Ownership(roots)
    inputs: list[Input] = []
    owners: dict[str, Owner] = {}
    renamed: dict[fx.Node, fx.Node] = {}
    lifted: dict[int, fx.Node] = {}
    paths = argument_names(args, kwargs)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    arguments = zip(placeholders, positions, strict=True)
    for node, position in arguments:
        tensor = node.meta["val"]
        inputs.append(_input(paths[position], InputKind.DATA, node, tensor))
        owners[paths[position]] = ArgumentOwner(position)
    fakes = detect_fake_mode([node.meta["val"] for node in graph.nodes if "val" in node.meta])
    last = placeholders[-1] if placeholders else None
    literal = torch.ops.aten.lift_fresh_copy.default
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if node.users and all(user.target is literal for user in node.users) and node not in guarded:
            continue
        tensor = getattr(module, node.target)
        if tracer.is_fake(tensor):
            raise CaptureError(
                "a tensor was computed where the capture cannot follow (inside a torch.func transform, or on "
                "another thread)",
                remedy="write the derivative or the batched computation out with ordinary tensor operations",
            )
        if id(tensor) not in lifted:
            owned = ownership.of(tensor)
            if owned is not None:
                kind = InputKind.BUFFER if owned.is_buffer else InputKind.PARAMETER
                name, owner = owned.name, owned.owner
            else:
                kind = InputKind.PARAMETER if tensor.requires_grad and tensor.is_leaf else InputKind.CONSTANT
                name, owner = f"closed_over_{len(lifted)}", FixedOwner(tensor)
            name = _unused(name, owners)
            with graph.inserting_after(last) if last is not None else graph.inserting_before(next(iter(graph.nodes))):
                placeholder = graph.placeholder("".join(c if c.isalnum() else "_" for c in name))
            placeholder.meta["val"] = fakes.from_tensor(tensor, static_shapes=True) if fakes else tensor
            last = lifted[id(tensor)] = placeholder
            inputs.append(_input(name, kind, placeholder, tensor))
            owners[name] = owner
        node.replace_all_uses_with(lifted[id(tensor)])
        renamed[node] = lifted[id(tensor)]
        graph.erase_node(node)
    return inputs, owners, renamed


def _input(name: str, kind: InputKind, node: fx.Node, tensor: Tensor) -> Input:
    node.meta["sgc"] = name
    return Input(
        name, kind, node.name, tuple(tensor.shape), tensor.dtype, tensor.device, is_trainable(tensor)
    )


def _unused(name: str, taken: dict[str, Any]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _root_name(module: torch.nn.Module, position: int) -> str:
    return f"{type(module).__name__}" if position == 0 else f"{type(module).__name__}_{position}"


def argument_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A readable name for each leaf of the arguments, such as ``args[0]['x']``."""
    with_paths, _ = torch.utils._pytree.tree_flatten_with_path((args, kwargs))
    names = []
    for path, _leaf in with_paths:
        first, *rest = (torch.utils._pytree.keystr((entry,)) for entry in path)
        root = "args" if first == "[0]" else "kwargs"
        names.append(root + "".join(rest))
    return names


def _sites(recording: _Recording, slots: dict[tuple[str, str], str]) -> Iterator[Site]:
    model = {site["name"]: site for site in _samples(recording.model_trace)}
    guide = {site["name"]: site for site in _samples(recording.guide_trace)}
    for name, statement in recording.recorder.statements.items():
        if name in model or name in guide:
            yield _site(name, statement, model, guide, slots, recording.baselines.get(name))
        elif statement.subsample:
            yield _subsample_site(name, statement, slots.get((name, "value")))


def _subsample_site(name: str, statement: Statement, value: str | None) -> Site:
    tensor = statement.value
    return Site(
        name=name,
        kind=SiteKind.SUBSAMPLE,
        distribution="Subsample",
        shape=tuple(tensor.shape) if tensor is not None else (),
        dtype=tensor.dtype if tensor is not None else None,
        plates=(),
        has_rsample=False,
        value=value,
        source=statement.source,
    )


def _site(
    name: str,
    statement: Statement,
    model: dict[str, Any],
    guide: dict[str, Any],
    slots: dict[tuple[str, str], str],
    baseline: Baseline | None,
) -> Site:
    in_guide = name in guide
    site = guide[name] if in_guide else model[name]
    scale = site["scale"]
    deterministic = bool(site["infer"].get("_deterministic"))
    kind = (
        SiteKind.DETERMINISTIC if deterministic else SiteKind.OBSERVED if site["is_observed"] else SiteKind.LATENT
    )
    if baseline is not None and (name, "baseline") in slots:
        baseline = Baseline(**{**vars(baseline), "value": slots[name, "baseline"]})
    value = site["value"]
    return Site(
        name=name,
        kind=kind,
        distribution=_describe(site["fn"]),
        shape=tuple(value.shape) if isinstance(value, Tensor) else (),
        dtype=value.dtype if isinstance(value, Tensor) else None,
        plates=_plates(site),
        has_rsample=bool(getattr(site["fn"], "has_rsample", False)),
        value=slots.get((name, "value")),
        source=statement.source,
        model=Density(slots[name, "model.log_prob"], _plates(model[name])) if name in model else None,
        guide=Density(
            slots[name, "guide.log_prob"],
            _plates(site),
            slots.get((name, "guide.score_function")),
            slots.get((name, "guide.entropy_term")),
        )
        if in_guide
        else None,
        scale="tensor" if isinstance(scale, Tensor) else float(scale),
        masked=site["mask"] is not None and site["mask"] is not True,
        opaque=statement.opaque,
        auxiliary=bool(site["infer"].get("is_auxiliary")),
        baseline=baseline,
    )


def _plates(site: Any) -> tuple[Plate, ...]:
    stack = site["cond_indep_stack"]
    return tuple(Plate(frame.name, frame.dim, int(frame.size), frame.counter) for frame in stack)


def _describe(fn: Any) -> str:
    """The name of a distribution, seen through Pyro's wrappers."""
    name = type(fn).__name__
    while name in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
        name = type(fn).__name__
    return name


