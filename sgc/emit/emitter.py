"""Emits the fx module that computes loss and surrogate, as the graph's nodes say. It decides nothing itself.

Each node has the rule of its type, :meth:`~sgc.graph.nodes.Payload.compute`; here are only the order in which rules are
applied, and what they are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import networkx as nx
import torch
from torch import fx

from sgc.emit.safe_operands import with_safe_operands
from sgc.graph import keys
from sgc.graph.graph import StochasticGraph
from sgc.graph.meta_keys import ABOUT, SITE
from sgc.graph.nodes import BaselineNode, InputNode, Payload, SiteNode, Stage
from sgc.graph.program import Program


@dataclass(frozen=True)
class Emitted:
    """An fx module, and the names of its placeholders beyond the program's inputs.

    ``module(*inputs, *averages, *forced)`` returns ``(loss, surrogate_loss)``, or ``(loss,)`` alone, and last, if the
    program has checks, whether they hold; ``averages`` are the running averages of the baselines, written in place.
    """

    module: fx.GraphModule
    averages: tuple[str, ...]


def emit_surrogate(graph: StochasticGraph, *, loss_only: bool = False, forced: tuple[str, ...] = ()) -> Emitted:
    """Emit the module of the graph's objective, with as many runs of the program as the graph says, one after another.

    :param graph: a graph that has been through the passes.
    :param loss_only: leave out the surrogate and everything that only it needs.
    :param forced: latent sites whose samples are given as further inputs, for each run in turn, instead of being drawn;
        the draw itself still takes place, so that the random numbers of other sites are the same.
    """
    assert graph.program is not None
    builder = _Builder(graph, graph.program, (keys.LOSS,) if loss_only else (keys.LOSS, keys.SURROGATE_LOSS))
    builder.declare(forced)
    return builder.build("Loss" if loss_only else "Surrogate")


def emit_values(graph: StochasticGraph, nodes: tuple[str, ...], *, forced: tuple[str, ...] = ()) -> Emitted:
    """Emit the module of the values of some nodes: of all of them in the first run, then in the second, and so on.

    :param nodes: keys of nodes that each run has; there may be nodes that the passes did not add.
    :param forced: as for :func:`emit_surrogate`.
    """
    assert graph.program is not None
    builder = _Builder(graph, graph.program, nodes)
    builder.declare(forced)
    return builder.build("Values", of_every_run=True)


_SMALL = 256
"""Up to how many elements a check may have to be copied into a stack of checks."""

_MANY = 32
"""Up to how many checks of one shape are a chain of conjunctions."""


class _Builder:
    """Copies the program, run by run, and applies the rules of the nodes that the results need.

    :param results: the keys of the nodes that the module returns.
    """

    def __init__(self, graph: StochasticGraph, program: Program, results: tuple[str, ...]) -> None:
        self.graph = graph
        self.program = program
        self._results = results
        self._out = fx.Graph()
        self._inputs: dict[fx.Node, fx.Node] = {}
        self._forced: list[dict[fx.Node, fx.Node]] = []
        self._checks: dict[tuple[int, ...], list[fx.Node]] = {}
        self._payloads = self._needed()
        self._stages = self._staged()
        self.averages: dict[str, fx.Node] = {}
        self.runs: list[_Run] = []
        self.of_all_runs: dict[str, fx.Node] = {}

    def _needed(self) -> dict[str, Payload]:
        """The nodes to compute, each after those that it is computed from."""
        needed = set(self._results).union(*(nx.ancestors(self.graph, key) for key in self._results))
        captured = (SiteNode, InputNode)
        payloads = self.graph.of_type(Payload)
        return {node.key: node for node in payloads if node.key in needed and not isinstance(node, captured)}

    def _staged(self) -> dict[str, Stage]:
        stages: dict[str, Stage] = {}
        for key, payload in self._payloads.items():
            stages[key] = max([payload.stage(), *(stages[parent] for parent in payload.computed_from() or ())])
        return stages

    def declare(self, forced: tuple[str, ...]) -> None:
        for node in self.program.module.graph.nodes:
            if node.op == "placeholder":
                self._inputs[node] = self._out.node_copy(node)
        for payload in self._payloads.values():
            if isinstance(payload, BaselineNode) and payload.average is not None:
                placeholder = self._input(f"average_{payload.site}")
                ABOUT.put(placeholder, payload.key)
                self.averages[payload.key] = placeholder
        for _ in range(self.graph.particles.runs):
            self._forced.append({self._sample(site): self._input(f"forced_{site}") for site in forced})

    def _sample(self, site: str) -> fx.Node:
        value = self.program.site(site).value
        assert value is not None
        return self.program.node(value)

    def _input(self, name: str) -> fx.Node:
        """A placeholder for a site of this name; sites may differ in a dot, or in capitals, alone."""
        node = self._out.placeholder(_identifier(name))
        node.target = node.name
        return node

    def build(self, class_name: str, *, of_every_run: bool = False) -> Emitted:
        for forced in self._forced:
            run = _Run(self)
            run.copies = self._copy_of_program(forced)
            self.runs.append(run)
            self._compute(run, Stage.RUN)
        for run in self.runs:
            self._compute(run, Stage.RUNS)
        last = self.runs[-1]
        self._compute(last, Stage.PARTICLES)
        results = [run.value(key) for run in (self.runs if of_every_run else [last]) for key in self._results]
        if self._checks:
            # First by shape: one reduction then serves many checks.
            results.append(self._all([self._reduced(*shaped) for shaped in self._checks.items()]))
        self._out.output(tuple(results))
        self._out.lint()
        module = fx.GraphModule(self.program.module, self._out, class_name=class_name)
        return Emitted(module, tuple(self.averages))

    def _compute(self, run: _Run, stage: Stage) -> None:
        for key, payload in self._payloads.items():
            if self._stages[key] is stage:
                run.about = payload
                run.values[key] = payload.compute(run)

    def _copy_of_program(self, forced: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        """Append one run of the program; returns its nodes by those of the program."""
        copies = dict(self._inputs)
        for node in self.program.module.graph.nodes:
            if node.op == "output":
                continue
            if node.op != "placeholder":
                copied = self._out.node_copy(node, copies.__getitem__)
                ABOUT.put(copied, SITE.of(node) or "")
                copies[node] = copied
                if self.program.checks:
                    self._make_operands_safe(node, copied)
            if node in forced:
                # The draw may be written into later; so may its stand-in.
                copies[node] = self.call(torch.clone, forced[node], name="forced")
        for check in self.program.checks:
            same_shape = self._checks.setdefault(self.program.shape(check.node), [])
            same_shape.append(copies[self.program.node(check.node)])
        return copies

    def _make_operands_safe(self, node: fx.Node, copied: fx.Node) -> None:
        with self._out.inserting_before(copied):
            replaced = with_safe_operands(node, copied.args, partial(self.call, name="safe"))
        if replaced is not None:
            condition, copied.args = replaced
            self._checks.setdefault((), []).append(self.call(torch.all, condition, name="valid"))

    def _reduced(self, shape: tuple[int, ...], conditions: list[fx.Node]) -> fx.Node:
        if len(conditions) > _MANY and math.prod(shape) <= _SMALL:
            # A chain of conjunctions runs faster, but is as long as an unrolled program; batching shortens a stack.
            return self.call(torch.all, self.call(torch.stack, conditions, name="valid"), name="valid")
        return self.call(torch.all, self._all(conditions), name="valid")

    def _all(self, conditions: list[fx.Node]) -> fx.Node:
        total = conditions[0]
        for condition in conditions[1:]:
            total = self.call(torch.logical_and, total, condition, name="valid")
        return total

    def call(self, function: Callable[..., Any], *args: Any, name: str, about: str = "", **options: Any) -> fx.Node:
        node = self._out.create_node("call_function", function, args, options, name=_identifier(name))
        ABOUT.put(node, about)
        return node


class _Run:
    """One run of the program: what its nodes and the graph's are in the emitted module.

    It is the :class:`~sgc.graph.arithmetic.Arithmetic` of the rules; ``about`` is the node whose rule is at work.
    """

    def __init__(self, builder: _Builder) -> None:
        self._builder = builder
        self.copies: dict[fx.Node, fx.Node] = {}
        self.values: dict[str, fx.Node] = {}
        self.about: Payload
        self._signed: dict[str, fx.Node] = {}
        self._totals: dict[str, fx.Node] = {}

    def value(self, key: str) -> fx.Node:
        return self.values[key]

    def in_every_run(self, key: str) -> list[fx.Node]:
        return [run.values[key] for run in self._builder.runs]

    def signed(self, key: str) -> fx.Node:
        if not self.is_subtracted(key):
            return self.values[key]
        if key not in self._signed:
            self._signed[key] = self._builder.call(torch.neg, self.values[key], name=key, about=key)
        return self._signed[key]

    def is_subtracted(self, key: str) -> bool:
        return self._builder.graph.payload(key).subtracted

    def total(self, key: str) -> fx.Node:
        value = self.values[key]
        if self._builder.graph.payload(key).is_total:
            return value
        if value.name not in self._totals:  # computed once however many totals it enters
            self._totals[value.name] = self._builder.call(torch.sum, value, name=f"sum_{key}", about=key)
        return self._totals[value.name]

    def of_program(self, name: str) -> fx.Node:
        return self.copies[self._builder.program.node(name)]

    def average(self, key: str) -> fx.Node:
        return self._builder.averages[key]

    def once(self, name: str, make: Callable[[], fx.Node]) -> fx.Node:
        known = self._builder.of_all_runs
        if name not in known:
            known[name] = make()
        return known[name]

    def call(self, function: Callable[..., Any], *args: Any, name: str = "", **options: Any) -> fx.Node:
        about = self.about.key
        return self._builder.call(function, *args, name=name or about, about=about, **options)


def _identifier(name: str) -> str:
    text = "".join(char if char.isalnum() else "_" for char in name).strip("_").lower()
    return text if text and not text[0].isdigit() else f"n_{text}"
