"""Builds the :class:`Program` from a trace: inputs with their owners, sites with their fx nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from sgc.graph.effects import dependencies, drop_dead, is_random
from sgc.graph.enumerated_values import Enumerated, ExpectedCost, Marginal
from sgc.graph.enumeration_nodes import without_enumeration
from sgc.graph.program import (
    Baseline,
    Check,
    ClosedForm,
    Density,
    HidingMask,
    Plate,
    Program,
    Site,
    SiteKind,
    ValueGuard,
)
from sgc.graph.sizes import Size, formula_of, is_symbolic, shape_of, size_of
from sgc.tracing import tracer
from sgc.tracing.arguments import argument_names
from sgc.tracing.enumeration.asked_enumeration import values_dim
from sgc.tracing.inputs import declare_inputs
from sgc.tracing.prototype import PrototypeRun
from sgc.tracing.python.tensor_layouts import check_gradients
from sgc.tracing.recording import Recording, index_role
from sgc.tracing.sample_sites import samples
from sgc.tracing.site_recorder import Statement
from sgc.tracing.state.moving_inputs import MovingInputs
from sgc.tracing.state.owners import Owner, Ownership
from sgc.tracing.symbolic_sizes import SymbolicSizes
from sgc.tracing.values.checks import checks_of_calls
from sgc.tracing.values.slices import is_external
from sgc.tracing.values.validation import Requirement

_LITERAL = torch.ops.aten.lift_fresh_copy.default


@dataclass(frozen=True)
class Capture:
    """A program, and for each of its inputs who owns the tensor.

    ``sizes`` are those that differ from call to call; None if all are what they were in the captured call.
    """

    program: Program
    owners: dict[str, Owner]
    sizes: SymbolicSizes | None = None


def declare(
    module: fx.GraphModule,
    recording: Recording,
    positions: Sequence[int],
    prototype: PrototypeRun,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    moving: MovingInputs,
    sizes: SymbolicSizes | None = None,
) -> Capture:
    """Turn a traced module and what was recorded beside it into a program with declared inputs."""
    graph = module.graph
    check_gradients(graph)
    _normalise(graph)
    recording.requirements.extend(checks_of_calls(graph))
    # Reads by code that later became an opaque call are not part of the program.
    nodes = set(graph.nodes)
    reads = [read for read in recording.reads if nodes.issuperset(read.sources)]
    guarded = {node for read in reads for node in read.sources}
    checks = list(_checks(recording, graph))
    results = _results(graph, recording) | {("", node.name): node for node, _, _ in checks}
    _set_output(graph, results)
    drop_dead(graph, keep=guarded)
    roots = [(_root_name(root, i), root) for i, root in enumerate(prototype.modules)]
    ownership = Ownership(roots, prototype.store)
    inputs = declare_inputs(module, positions, argument_names(args, kwargs), ownership, guarded, moving)
    results = {key: inputs.placeholders.get(node, node) for key, node in results.items()}
    _set_output(graph, results)
    _let_go_of_lifted(module)
    graph.lint()
    module.recompile()
    names = {key: node.name for key, node in results.items()}
    program = Program(
        module=module,
        inputs=tuple(inputs.declared),
        sites=tuple(_sites(recording, names)),
        model_order=tuple(site["name"] for site in samples(recording.model_trace)),
        guide_order=tuple(site["name"] for site in samples(recording.guide_trace)),
        value_guards=tuple(
            ValueGuard(read.module, tuple(map(inputs.name_of, read.sources)), read.value, read.source) for read in reads
        ),
        checks=tuple(
            Check(
                names["", node.name],
                requirement.what,
                requirement.site,
                requirement.source,
                random,
                requirement.opaque,
                requirement.assumed,
                requirement.of_numbers,
            )
            for node, requirement, random in checks
        ),
        enumerates=recording.enumerates,
        marginals=tuple(
            Marginal(
                names[f"{position}", "marginal"],
                term.factors,
                term.eliminated,
                term.plates,
                len(term.tables),
                max(term.tables, key=math.prod, default=()),
            )
            for position, term in enumerate(recording.marginals)
        ),
        expected=tuple(
            ExpectedCost(names[f"{position}", "expected"], term.cost, term.weights)
            for position, term in enumerate(recording.expected)
        ),
    )
    return Capture(program, inputs.owners, sizes)


def _results(graph: fx.Graph, recording: Recording) -> dict[tuple[str, str], fx.Node]:
    """What was recorded of each site by its role: its densities, its value and its baseline."""
    outputs: Any = graph.output_node().args[0]
    results = {key: outputs[position] for key, position in recording.slots.items()}
    for name, statement in recording.recorder.statements.items():
        if statement.node is not None:
            results[name, "value"] = statement.node
    return results


def _set_output(graph: fx.Graph, results: dict[tuple[str, str], fx.Node]) -> None:
    graph.output_node().args = (tuple(dict.fromkeys(results.values())),)


def _checks(recording: Recording, graph: fx.Graph) -> Iterator[tuple[fx.Node, Requirement, bool]]:
    """The conditions of validity, and whether each depends on a draw.

    What follows from literals alone has held in the prototype, and will.
    """
    required = {requirement.node: requirement for requirement in recording.requirements}
    varying: set[fx.Node] = set()
    drawn: set[fx.Node] = set()
    for node, parents in dependencies(graph).items():
        if is_random(node) or not drawn.isdisjoint(parents):
            drawn.add(node)
        if node in drawn or node.op == "placeholder" or is_external(node) or not varying.isdisjoint(parents):
            varying.add(node)
        if node in required and node in varying:
            yield node, required[node], node in drawn


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


def _let_go_of_lifted(module: fx.GraphModule) -> None:
    """Drop tensors from the module that are inputs now, fetched from their owners."""
    kept = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in module._buffers.keys() - kept:
        del module._buffers[name]


def _root_name(module: torch.nn.Module, position: int) -> str:
    return f"{type(module).__name__}" if position == 0 else f"{type(module).__name__}_{position}"


def _sites(recording: Recording, slots: dict[tuple[str, str], str]) -> Iterator[Site]:
    model = {site["name"]: site for site in samples(recording.model_trace)}
    guide = {site["name"]: site for site in samples(recording.guide_trace)}
    for name, statement in recording.recorder.statements.items():
        if name in model or name in guide:
            baseline, masks = recording.baselines.get(name), recording.masks.get(name, ())
            site = _site(name, statement, model, guide, slots, baseline, masks, recording.values_in)
            if recording.enumerates:
                event_dims = (guide if name in guide else model)[name]["fn"].event_dim
                site = replace(site, shape=without_enumeration(site.shape, site.plates, event_dims))
            form = None
            if (name, "divergence") in slots:
                form = ClosedForm(slots[name, "divergence"], recording.weighted_alike[name], statement.in_model)
            yield replace(
                site,
                baseline_in_model=name in recording.model_baselines.names,
                observed_in_model=name in guide and name in model and model[name]["is_observed"],
                closed_form=form,
            )
        elif statement.subsample:
            yield _subsample_site(name, statement, slots.get((name, "value")))


def _subsample_site(name: str, statement: Statement, value: str | None) -> Site:
    tensor = statement.value
    return Site(
        name=name,
        kind=SiteKind.SUBSAMPLE,
        distribution="Subsample",
        shape=shape_of(tensor.shape) if tensor is not None else (),
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
    masks: Sequence[int],
    values_in: Mapping[int, dict[int, str]],
) -> Site:
    in_guide = name in guide
    site = guide[name] if in_guide else model[name]
    scale = site["scale"]
    deterministic = bool(site["infer"].get("_deterministic"))
    kind = SiteKind.DETERMINISTIC if deterministic else SiteKind.OBSERVED if site["is_observed"] else SiteKind.LATENT
    if baseline is not None and (name, "baseline") in slots:
        baseline = replace(baseline, value=slots[name, "baseline"])
    if baseline is not None and baseline.rows:
        rows = (replace(each, index=slots[name, index_role(each.plate)]) for each in baseline.rows)
        baseline = replace(baseline, rows=tuple(rows))
    value = site["value"]
    return Site(
        name=name,
        kind=kind,
        distribution=_describe(site["fn"]),
        shape=shape_of(value.shape) if isinstance(value, Tensor) else (),
        dtype=value.dtype if isinstance(value, Tensor) else None,
        plates=_plates(site),
        has_rsample=bool(getattr(site["fn"], "has_rsample", False)),
        value=slots.get((name, "value")),
        source=statement.source,
        model=Density(slots[name, "model.log_prob"], _plates(model[name]), values_in=_values_in(model[name], values_in))
        if name in model
        else None,
        guide=Density(
            slots[name, "guide.log_prob"],
            _plates(site),
            slots.get((name, "guide.score_function")),
            slots.get((name, "guide.entropy_term")),
            slots.get((name, "guide.masked_score_function")),
            tuple(
                HidingMask(slots.get((name, f"guide.mask{position}")), event_dims)
                for position, event_dims in enumerate(masks)
            ),
            slots.get((name, "guide.probability")),
            _values_in(site, values_in),
        )
        if in_guide
        else None,
        scale=_scale(scale),
        masked=site["mask"] is not None and site["mask"] is not True,
        opaque=statement.opaque,
        baseline=baseline,
        enumerated=_enumerated(site),
    )


def _values_in(site: Any, known: Mapping[int, dict[int, str]]) -> tuple[tuple[int, str], ...]:
    return tuple(sorted(known.get(id(site), {}).items()))


def _enumerated(site: Any) -> Enumerated | None:
    infer = site["infer"]
    dim, total = values_dim(infer), infer.get("_enum_total")
    if dim is not None:
        total = site["value"].shape[dim - site["fn"].event_dim]
    return None if total is None else Enumerated(int(total), dim, infer.get("num_samples") is not None)


def _plates(site: Any) -> tuple[Plate, ...]:
    stack = site["cond_indep_stack"]
    return tuple(
        Plate(
            frame.name,
            frame.dim,
            _plate_size(frame.size),
            frame.counter,
            None if frame.full_size is None else _plate_size(frame.full_size),
        )
        for frame in stack
    )


def _plate_size(size: Any) -> int:
    size = size_of(size)
    return size if isinstance(size, Size) else int(size)


def _scale(scale: Any) -> float | str:
    if isinstance(scale, (Tensor, tracer.Traced)):
        return "tensor"
    if is_symbolic(scale):
        formula = formula_of(scale)
        return formula if formula != "1" else 1.0
    return float(scale)


def _describe(fn: Any) -> str:
    """The name of a distribution without Pyro's wrappers."""
    name = type(fn).__name__
    while name in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
        name = type(fn).__name__
    return name
