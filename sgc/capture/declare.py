"""From what was recorded to the declared program: inputs with their owners, sites with their fx nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode

from sgc.capture import tracer
from sgc.capture.arguments import argument_names
from sgc.capture.prototype import Rehearsal
from sgc.capture.python.tensor_layouts import check_gradients, check_layout
from sgc.capture.recording import Recording, samples
from sgc.capture.site_recorder import Statement
from sgc.capture.state.owners import ArgumentOwner, FixedOwner, Owner, Ownership, is_trainable
from sgc.capture.state.transcript import Transcript
from sgc.capture.values.checks import checks_of_calls
from sgc.capture.values.validation import Requirement
from sgc.errors import CaptureError
from sgc.graph.effects import dependencies, drop_dead, is_random
from sgc.graph.program import (
    Baseline,
    Check,
    Density,
    HidingMask,
    Input,
    InputKind,
    Plate,
    Program,
    Site,
    SiteKind,
    ValueGuard,
)

_LITERAL = torch.ops.aten.lift_fresh_copy.default


@dataclass(frozen=True)
class Capture:
    """A program, for each of its inputs who owns the tensor, and what the captured run handed to torch and Pyro."""

    program: Program
    owners: dict[str, Owner]
    transcript: Transcript


def declare(
    module: fx.GraphModule,
    recording: Recording,
    positions: Sequence[int],
    rehearsal: Rehearsal,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Capture:
    """Turn a traced module and what was recorded beside it into a program with declared inputs."""
    graph = module.graph
    check_gradients(graph)
    _normalise(graph)
    recording.requirements.extend(checks_of_calls(graph))
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
    checks = list(_checks(recording, graph))
    slots |= {("", node.name): node for node, _, _ in checks}
    output.args = (tuple(dict.fromkeys(slots.values())),)
    drop_dead(graph, keep=guarded)
    inputs, owners, lifted = _lift(module, positions, rehearsal, args, kwargs, guarded)
    slots = {key: lifted.get(node, node) for key, node in slots.items()}
    output = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(dict.fromkeys(slots.values())),)
    _let_go_of_lifted(module)
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
        model_order=tuple(site["name"] for site in samples(recording.model_trace)),
        guide_order=tuple(site["name"] for site in samples(recording.guide_trace)),
        value_guards=guards,
        checks=tuple(
            Check(
                slots["", node.name].name,
                requirement.what,
                requirement.site,
                requirement.source,
                random,
                requirement.opaque,
                requirement.assumed,
            )
            for node, requirement, random in checks
        ),
    )
    return Capture(program, owners, recording.transcript)


def _checks(recording: Recording, graph: fx.Graph) -> Iterator[tuple[fx.Node, Requirement, bool]]:
    """The conditions of validity, and whether each depends on a draw.

    What follows from literals alone has held in the rehearsal, and will.
    """
    required = {requirement.node: requirement for requirement in recording.requirements}
    varying: set[fx.Node] = set()
    drawn: set[fx.Node] = set()
    for node, parents in dependencies(graph).items():
        if is_random(node) or not drawn.isdisjoint(parents):
            drawn.add(node)
        if node in drawn or node.op == "placeholder" or _is_owned(node) or not varying.isdisjoint(parents):
            varying.add(node)
        if node in required and node in varying:
            yield node, required[node], node in drawn


def _is_owned(node: fx.Node) -> bool:
    """Whether a node reads a tensor of the user's, and not a literal of the program."""
    return node.op == "get_attr" and not (node.users and all(user.target is _LITERAL for user in node.users))


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
    ownership = Ownership(roots, rehearsal.store)
    inputs: list[Input] = []
    owners: dict[str, Owner] = {}
    renamed: dict[fx.Node, fx.Node] = {}
    lifted: dict[int, fx.Node] = {}
    paths = argument_names(args, kwargs)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    arguments = zip(placeholders, positions, strict=True)
    for node, position in arguments:
        tensor = node.meta["val"]
        check_layout(paths[position], tensor)
        inputs.append(_input(paths[position], InputKind.DATA, node, tensor))
        owners[paths[position]] = ArgumentOwner(position)
    fakes = detect_fake_mode([node.meta["val"] for node in graph.nodes if "val" in node.meta])
    last = placeholders[-1] if placeholders else None
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        if not _is_owned(node) and node not in guarded:
            continue
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"an operator is given a {type(tensor).__name__}, which no graph holds")
        if tracer.is_fake(tensor):
            raise CaptureError(
                "a tensor was computed where the capture cannot follow: in a derivative of a module "
                "(torch.autograd.grad, torch.autograd.functional), in a torch.func transform, or on another thread",
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
            check_layout(name, tensor)
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


def _let_go_of_lifted(module: fx.GraphModule) -> None:
    """What has become an input is fetched from its owner; the module need not keep the tensor that it was."""
    kept = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in module._buffers.keys() - kept:
        del module._buffers[name]


def _input(name: str, kind: InputKind, node: fx.Node, tensor: Tensor) -> Input:
    node.meta["sgc"] = name
    return Input(name, kind, node.name, tuple(tensor.shape), tensor.dtype, tensor.device, is_trainable(tensor))


def _unused(name: str, taken: dict[str, Any]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _root_name(module: torch.nn.Module, position: int) -> str:
    return f"{type(module).__name__}" if position == 0 else f"{type(module).__name__}_{position}"


def _sites(recording: Recording, slots: dict[tuple[str, str], str]) -> Iterator[Site]:
    model = {site["name"]: site for site in samples(recording.model_trace)}
    guide = {site["name"]: site for site in samples(recording.guide_trace)}
    for name, statement in recording.recorder.statements.items():
        if name in model or name in guide:
            baseline, masks = recording.baselines.get(name), recording.masks.get(name, ())
            site = _site(name, statement, model, guide, slots, baseline, masks)
            yield replace(site, baseline_in_model=name in recording.model_baselines.names)
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
    masks: Sequence[int],
) -> Site:
    in_guide = name in guide
    site = guide[name] if in_guide else model[name]
    scale = site["scale"]
    deterministic = bool(site["infer"].get("_deterministic"))
    kind = SiteKind.DETERMINISTIC if deterministic else SiteKind.OBSERVED if site["is_observed"] else SiteKind.LATENT
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
            slots.get((name, "guide.masked_score_function")),
            tuple(
                HidingMask(slots.get((name, f"guide.mask{position}")), event_dims)
                for position, event_dims in enumerate(masks)
            ),
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
    return tuple(
        Plate(
            frame.name,
            frame.dim,
            int(frame.size),
            frame.counter,
            None if frame.full_size is None else int(frame.full_size),
        )
        for frame in stack
    )


def _describe(fn: Any) -> str:
    """The name of a distribution, seen through Pyro's wrappers."""
    name = type(fn).__name__
    while name in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
        name = type(fn).__name__
    return name
