"""A call that was not valid writes nothing; that is appended to the graph, whose other nodes stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from sgc.emit.differentiate import trace
from sgc.emit.rollback import rolled_back_if_invalid, written_inputs

X, Y = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 0.25, 4.0])


def step(x: Tensor, y: Tensor, limit: Tensor) -> list[Tensor]:
    before = x.sum()
    x.mul_(2.0)
    y[1:] += x[:2]
    return [before + y.sum(), (x < limit).all()]


def test_what_is_written_is_put_back() -> None:
    module = trace(step, [X, Y, torch.tensor(0.0)])
    assert written_inputs(module) == {0, 1}
    guarded = rolled_back_if_invalid(module)
    for limit in (10.0, 5.0):
        x, y, expected_x, expected_y = X.clone(), Y.clone(), X.clone(), Y.clone()
        with torch.no_grad():
            loss, valid = guarded(x, y, torch.tensor(limit))
            expected = module(expected_x, expected_y, torch.tensor(limit))
        assert valid == (limit > 6.0) and torch.equal(loss, expected[0])
        assert torch.equal(x, expected_x if valid else X)
        assert torch.equal(y, expected_y if valid else Y)


def test_the_graph_is_appended_to() -> None:
    module = trace(step, [X, Y, torch.tensor(0.0)])
    before = [(node.name, node.target) for node in module.graph.nodes]
    guarded = rolled_back_if_invalid(module)
    assert [(node.name, node.target) for node in module.graph.nodes] == before
    copies, undoing = before[:3], before[-1:]
    now = [(node.name, node.target) for node in guarded.graph.nodes]
    assert now[:3] == copies and now[5 : 5 + len(before) - 4] == before[3:-1] and now[-1:] == undoing
    assert len(now) == len(before) + 2 + 1 + 2 * 2  # copies of what is written, the condition, choices and writes
    guarded.graph.lint()


def test_what_writes_nothing_stays() -> None:
    module = trace(lambda x, y: [x.sum() * y, (y > 0).all()], [X, Y])
    assert rolled_back_if_invalid(module) is module
