"""What nothing uses."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.emit.rewrites.graphs import apply, equal, lines, results, traced

X = torch.tensor([1.0, 2.0])


def unused(x: Tensor) -> list[Tensor]:
    torch.rand(2).exp()
    torch._assert_async(x.sum() > 0, "positive")
    x.sin()
    old = x * 2
    x.copy_(old + 1)
    return [torch.rand(2) + old]


def test_draws_stay_where_the_random_numbers_must() -> None:
    module = traced(unused, X)
    rand = torch.ops.aten.rand.default
    apply("functionalise", module)
    before = results(module, X)
    assert sum(node.target is rand for node in module.graph.nodes) == 2
    assert not any("sin(" in line for line in lines(module))  # tracing tidied it
    assert not apply("drop_dead_nodes", module, "torch")
    assert equal(results(module, X), before)
    assert apply("drop_dead_nodes", module, "fast")
    assert lines(module) == [
        "sum_1 = sum(x0)",
        "gt = gt.Scalar(sum_1, 0)",
        "_assert_async = _assert_async.msg(gt, positive)",
        "mul = mul.Tensor(x0, 2)",
        "add = add.Tensor(mul, 1)",
        "copy = copy(x0, add)",
        "rand_1 = rand([2])",
        "add_1 = add.Tensor(rand_1, mul)",
        "copy__1 = copy_(x0, copy)",
        "return [add_1]",
    ]


def test_pure_nodes_go() -> None:
    module = traced(lambda x: [x.exp()], X)
    output = next(node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        idle = module.graph.call_function(torch.ops.aten.sin.default, (output.args[0][0],))
        module.graph.call_function(torch.ops.aten.cos.default, (idle,))
    assert apply("drop_dead_nodes", module)
    assert lines(module) == ["exp = exp(x0)", "return [exp]"]
