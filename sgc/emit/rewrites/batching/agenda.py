"""Schedules the nodes of a graph in groups that run as one operator.

The agenda of DyNet (Neubig, Goldberg and Dyer 2017, "On-the-fly Operation Batching in Dynamic Computation Graphs"):
among the signatures that have ready nodes take the one whose nodes have the lowest mean depth in the graph, and run
all its ready nodes as one group. One rule comes before it: a signature all of whose remaining nodes are ready is taken
at once, for no wait makes its group larger.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

from torch import fx

from sgc.config import Rng
from sgc.emit.rewrites.batching.operations import passed_on, predecessors, row_of
from sgc.emit.rewrites.batching.roles import SMALLEST, roles


class Agenda:
    """Schedules ``nodes``, given in a topological order, in time ``O(n log n)``.

    :param nodes: what to run; what they use and is not among them is there from the start.
    """

    def __init__(self, nodes: list[fx.Node], rng: Rng) -> None:
        self._position = {node: position for position, node in enumerate(nodes)}
        self._waits: dict[fx.Node, int] = {}
        self._users: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, before in predecessors(nodes, rng).items():
            inside = [other for other in before if other in self._position]
            self._waits[node] = len(inside)
            for other in inside:
                self._users[other].append(node)
        self._sign, chained = roles(nodes, rng)
        count = len(self._position)
        self._chained = chained
        self._ready: list[list[fx.Node]] = [[] for _ in range(count)]
        self._remaining = [0] * count
        self._mean = [0.0] * count
        depth = self._depths(nodes)
        for node, sign in self._sign.items():
            self._remaining[sign] += 1
            self._mean[sign] += (depth[node] - self._mean[sign]) / self._remaining[sign]
        self._heap: list[tuple[int, float, int, int, int]] = []
        self._rows: set[fx.Node] = set()  # nodes whose values are rows of something
        self._steps: list[list[fx.Node]] = []

    def steps(self) -> list[list[fx.Node]]:
        """The groups in order; a node that runs alone is a group of one."""
        self._start([node for node in self._position if self._waits[node] == 0])
        while self._heap:
            *_, sign, count = heapq.heappop(self._heap)
            group = self._ready[sign]
            if len(group) != count:
                continue  # it has grown and stands in the heap anew, or it has run
            self._ready[sign] = []
            self._remaining[sign] -= count
            if count < SMALLEST:
                self._steps += [[node] for node in group]
            else:
                self._steps.append(group)
                self._rows.update(group)
            self._start(self._released(group))
        assert sum(map(len, self._steps)) == len(self._position)
        return self._steps

    def _depths(self, nodes: list[fx.Node]) -> dict[fx.Node, int]:
        depth = dict.fromkeys(nodes, 0)
        for node in nodes:
            for user in self._users[node]:
                depth[user] = max(depth[user], depth[node] + 1)
        return depth

    def _start(self, nodes: list[fx.Node]) -> None:
        """Add ready nodes to the agenda; those that join no group run now."""
        changed: dict[int, None] = {}
        while nodes:
            alone = []
            for node in nodes:
                sign = self._sign.get(node)
                if sign is not None:
                    changed[sign] = None
                idle = self._needs_no_operator(node)
                if sign is None:
                    alone.append(node)
                elif idle:
                    self._remaining[sign] -= 1
                    alone.append(node)
                else:
                    self._ready[sign].append(node)
            self._steps += [[node] for node in alone]
            nodes = self._released(alone)
        for sign in changed:
            group = self._ready[sign]
            if group:
                rank = 0 if len(group) == self._remaining[sign] else 1 if sign in self._chained else 2
                first = self._position[group[0]]
                heapq.heappush(self._heap, (rank, self._mean[sign], first, sign, len(group)))

    def _released(self, nodes: list[fx.Node]) -> list[fx.Node]:
        """The nodes that waited for these and are ready now."""
        ready = []
        for node in nodes:
            for user in self._users[node]:
                self._waits[user] -= 1
                if self._waits[user] == 0:
                    ready.append(user)
        return ready

    def _needs_no_operator(self, node: fx.Node) -> bool:
        same = passed_on(node)
        if same is not None:
            if same in self._rows:
                self._rows.add(node)
            return True
        row = row_of(node)
        if row is None or row[0] in self._rows:
            return False
        self._rows.add(node)
        return True
