"""Emits the fx module that computes loss and surrogate, as the graph's nodes say. It decides nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from sgc.emit.safe_operands import harmless
from sgc.graph.graph import StochasticGraph
from sgc.graph.meta_keys import ABOUT, SITE
from sgc.graph.nodes import (
    BaselineInputNode,
    BaselineNode,
    CostNode,
    DownstreamCostNode,
    PartialSumNode,
    ScorePartNode,
    SurrogateTermNode,
    TotalNode,
)
from sgc.graph.program import Program


@dataclass(frozen=True)
class Emitted:
    """An fx module, and the names of its placeholders beyond the program's inputs.

    ``module(*inputs, *averages, *forced)`` returns ``(loss, surrogate_loss)``, or ``(loss,)`` alone, and last, if the
    program has checks, whether they hold; ``averages`` are the running averages of the baselines, written in place.
    """

    module: fx.GraphModule
    averages: tuple[str, ...]


def emit_surrogate(
    graph: StochasticGraph,
    runs: int = 1,
    particles: int = 1,
    *,
    loss_only: bool = False,
    forced: tuple[str, ...] = (),
) -> Emitted:
    """Emit the module of ``runs`` independent runs of the program.

    :param graph: a graph that has been through the passes.
    :param runs: how often the program is repeated, one run after another as in Pyro.
    :param particles: the number of particles that the sum of all runs is divided by.
    :param loss_only: leave out the surrogate and everything that only it needs.
    :param forced: latent sites whose samples are given as further inputs instead of being drawn; the
        draw itself still takes place, so that the random numbers of other sites are the same.
    """
    assert graph.program is not None
    builder = _Builder(graph, graph.program, loss_only=loss_only)
    builder.declare(forced)
    elbos, surrogates = [], []
    for _ in range(runs):
        elbo, surrogate = builder.run()
        elbos.append(elbo)
        surrogates.append(surrogate)
    return builder.finish(elbos, surrogates, particles)


_SMALL = 256
"""Up to how many elements a check may have to be copied into a stack of checks."""

_MANY = 32
"""Up to how many checks of one shape are a chain of conjunctions."""


class _Builder:
    """Copies the program and appends the arithmetic of the graph's nodes, a method for each type of node."""

    def __init__(self, graph: StochasticGraph, program: Program, *, loss_only: bool) -> None:
        self._graph = graph
        self._program = program
        self._loss_only = loss_only
        self._out = fx.Graph()
        self._inputs: dict[fx.Node, fx.Node] = {}
        self._averages: dict[str, fx.Node] = {}
        self._forced: dict[fx.Node, fx.Node] = {}
        self._values: dict[str, fx.Node] = {}
        self._copies: dict[fx.Node, fx.Node] = {}
        self._checks: dict[tuple[int, ...], list[fx.Node]] = {}

    def declare(self, forced: tuple[str, ...]) -> None:
        for node in self._program.module.graph.nodes:
            if node.op == "placeholder":
                self._inputs[node] = self._out.node_copy(node)
        if not self._loss_only:
            for baseline in self._graph.of_type(BaselineNode):
                if baseline.average is not None:
                    placeholder = self._input(f"average_{baseline.site}")
                    ABOUT.put(placeholder, baseline.key)
                    self._averages[baseline.key] = placeholder
        for site in forced:
            value = self._program.site(site).value
            assert value is not None
            self._forced[self._program.node(value)] = self._input(f"forced_{site}")

    def _input(self, name: str) -> fx.Node:
        """A placeholder for a site of this name; sites may differ in a dot, or in capitals, alone."""
        node = self._out.placeholder(_identifier(name))
        node.target = node.name
        return node

    def run(self) -> tuple[fx.Node, fx.Node | None]:
        """Append one run of the program; returns its ELBO and surrogate."""
        self._values = {}
        self._copies = dict(self._inputs)
        for node in self._program.module.graph.nodes:
            if node.op == "output":
                continue
            if node.op != "placeholder":
                copied = self._out.node_copy(node, lambda argument: self._copies[argument])
                ABOUT.put(copied, SITE.of(node) or "")
                self._copies[node] = copied
                if self._program.checks:
                    self._keep_from_harm(node, copied)
            if node in self._forced:
                # The draw may be written into later; so may its stand-in.
                self._copies[node] = self._call(torch.clone, self._forced[node], name="forced")
        for check in self._program.checks:
            same_shape = self._checks.setdefault(self._program.shape(check.node), [])
            same_shape.append(self._copies[self._program.node(check.node)])
        for payload in self._graph.of_type(CostNode):
            self._values[payload.key] = self._copies[self._program.node(payload.fx)]
        total = self._graph.payload("elbo")
        assert isinstance(total, TotalNode)
        elbo = self._total(total, self._cost_total)
        if self._loss_only:
            return elbo, None
        for part in self._graph.of_type(ScorePartNode):
            self._values[part.key] = self._copies[self._program.node(part.fx)]
        for learned in self._graph.of_type(BaselineInputNode):
            self._values[learned.key] = self._copies[self._program.node(learned.fx)]
        for addends in self._graph.of_type(PartialSumNode):
            self._values[addends.key] = self._partial_sum(addends)
        for downstream in self._graph.of_type(DownstreamCostNode):
            self._values[downstream.key] = self._downstream(downstream)
        for baseline in self._graph.of_type(BaselineNode):
            self._values[baseline.key] = self._baseline(baseline)
        surrogate = self._graph.payload("surrogate")
        assert isinstance(surrogate, TotalNode)
        return elbo, self._total(surrogate, self._surrogate_term)

    def _keep_from_harm(self, node: fx.Node, copied: fx.Node) -> None:
        with self._out.inserting_before(copied):
            found = harmless(node, copied.args, partial(self._call, name="harmless"))
        if found is not None:
            condition, copied.args = found
            self._checks.setdefault((), []).append(self._call(torch.all, condition, name="valid"))

    def finish(self, elbos: list[fx.Node], surrogates: list[fx.Node | None], particles: int) -> Emitted:
        loss = self._call(torch.neg, self._mean(elbos, particles), name="loss")
        results = [loss]
        if not self._loss_only:
            mean = self._mean([node for node in surrogates if node is not None], particles)
            results.append(self._call(torch.neg, mean, name="surrogate_loss"))
        if self._checks:
            # First by shape: one reduction then serves many checks.
            results.append(self._all([self._reduced(*shaped) for shaped in self._checks.items()]))
        self._out.output(tuple(results))
        self._out.lint()
        root = self._program.module
        module = fx.GraphModule(root, self._out, class_name="Loss" if self._loss_only else "Surrogate")
        return Emitted(module, tuple(self._averages))

    # -- one method for each type of node

    def _signed(self, key: str) -> fx.Node:
        """A cost with its sign in the ELBO, negated once at most."""
        payload = self._graph.payload(key)
        if not isinstance(payload, CostNode) or payload.sign > 0:
            return self._values[key]
        name = f"signed {key}"
        if name not in self._values:
            self._values[name] = self._call(torch.neg, self._values[key], name=key, about=key)
        return self._values[name]

    def _partial_sum(self, node: PartialSumNode) -> fx.Node:
        total = self._signed(node.addends[0])
        for addend in node.addends[1:]:
            total = self._call(torch.add, total, self._signed(addend), name=node.key, about=node.key)
        return total

    def _downstream(self, node: DownstreamCostNode) -> fx.Node:
        total: fx.Node | None = None
        for term in node.terms:
            value = self._signed(term.addend)
            for dim in term.dims:
                value = self._call(torch.sum, value, dim, True, name=node.key, about=node.key)
            for _ in range(term.leading_ones):
                value = self._call(torch.squeeze, value, 0, name=node.key, about=node.key)
            total = value if total is None else self._call(torch.add, total, value, name=node.key, about=node.key)
        assert total is not None
        return total

    def _baseline(self, node: BaselineNode) -> fx.Node:
        total: fx.Node | None = None
        if node.average is not None:
            average = self._averages[node.key]
            cost = self._call(torch.detach, self._values[f"downstream({node.site})"], name=node.key, about=node.key)
            old = self._call(torch.clone, average, name="average", about=node.key)
            fresh = self._call(torch.mul, cost, 1 - node.beta, name="average", about=node.key)
            kept = self._call(torch.mul, old, node.beta, name="average", about=node.key)
            new = self._call(torch.add, fresh, kept, name="average", about=node.key)
            self._call(torch.ops.aten.copy_.default, average, new, name="update", about=node.key)
            total = old
        if node.learned is not None:
            learned = self._values[node.learned]
            total = learned if total is None else self._call(torch.add, total, learned, name=node.key, about=node.key)
        assert total is not None
        return total

    def _cost_total(self, key: str) -> tuple[fx.Node, int]:
        payload = self._graph.payload(key)
        assert isinstance(payload, CostNode)
        return self._sum(self._values[key], payload.key), payload.sign

    def _surrogate_term(self, key: str) -> tuple[fx.Node, int]:
        term = self._graph.payload(key)
        assert isinstance(term, SurrogateTermNode)
        if term.role == "cost":
            return self._cost_total(term.operands[0])
        if term.role == "entropy":
            return self._sum(self._values[term.operands[0]], term.key), -1
        if term.role == "score":
            score, cost, *baseline = (self._values[operand] for operand in term.operands)
            if baseline:
                cost = self._call(torch.sub, cost, baseline[0], name=term.key, about=term.key)
            cost = self._call(torch.detach, cost, name=term.key, about=term.key)
            product = self._call(torch.mul, score, cost, name=term.key, about=term.key)
            return self._sum(product, term.key), +1
        cost, baseline_value = (self._values[operand] for operand in term.operands)
        cost = self._call(torch.detach, cost, name=term.key, about=term.key)
        error = self._call(torch.sub, cost, baseline_value, name=term.key, about=term.key)
        squared = self._call(torch.pow, error, 2.0, name=term.key, about=term.key)
        return self._sum(squared, term.key), -1

    def _sum(self, value: fx.Node, about: str) -> fx.Node:
        """A scalar sum, computed once however many totals it enters."""
        name = f"sum {value.name}"
        if name not in self._values:
            self._values[name] = self._call(torch.sum, value, name=f"sum_{about}", about=about)
        return self._values[name]

    def _total(self, node: TotalNode, term: Callable[[str], tuple[fx.Node, int]]) -> fx.Node:
        total: fx.Node | None = None
        for key in node.operands:
            value, sign = term(key)
            if total is None:
                total = value if sign > 0 else self._call(torch.neg, value, name=node.key, about=node.key)
            else:
                combine = torch.add if sign > 0 else torch.sub
                total = self._call(combine, total, value, name=node.key, about=node.key)
        if total is None:
            total = self._call(torch.zeros, (), name=node.key, about=node.key)
        return total

    def _mean(self, values: list[fx.Node], particles: int) -> fx.Node:
        total = values[0]
        for value in values[1:]:
            total = self._call(torch.add, total, value, name="particles")
        return self._call(torch.div, total, particles, name="particles") if particles > 1 else total

    def _reduced(self, shape: tuple[int, ...], conditions: list[fx.Node]) -> fx.Node:
        if len(conditions) > _MANY and math.prod(shape) <= _SMALL:
            # A chain of conjunctions runs faster, but is as long as an unrolled program; batching shortens a stack.
            return self._call(torch.all, self._call(torch.stack, conditions, name="valid"), name="valid")
        return self._call(torch.all, self._all(conditions), name="valid")

    def _all(self, conditions: list[fx.Node]) -> fx.Node:
        total = conditions[0]
        for condition in conditions[1:]:
            total = self._call(torch.logical_and, total, condition, name="valid")
        return total

    def _call(self, function: Callable[..., Any], *args: Any, name: str, about: str = "") -> fx.Node:
        node = self._out.create_node("call_function", function, args, {}, name=_identifier(name))
        ABOUT.put(node, about)
        return node


def _identifier(name: str) -> str:
    text = "".join(char if char.isalnum() else "_" for char in name).strip("_").lower()
    return text if text and not text[0].isdigit() else f"n_{text}"
