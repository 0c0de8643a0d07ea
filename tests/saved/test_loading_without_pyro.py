"""A file is loaded, evaluated and trained in a process where neither Pyro nor the model's code can be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import sgc

PROGRAM = """
import json, sys
sys.modules["pyro"] = None
import sgc, torch
loaded = sgc.load(sys.argv[1])
optimizer = torch.optim.Adam(loaded.parameters(), lr=0.05)
optimizer.load_state_dict(loaded.optimizer_state)
torch.manual_seed(3)
losses = []
for _ in range(3):
    optimizer.zero_grad()
    loss = loaded(torch.tensor([0.5, -0.2, 1.0]), scale=0.7)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
sgc.save(loaded, sys.argv[2])
heavy = [name for name in ("pyro", "torch._inductor.compile_fx", "tests") if sys.modules.get(name) is not None]
print(json.dumps([losses, {n: p.tolist() for n, p in loaded.state_dict().items()}, str(loaded.graph), heavy]))
"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, data: Tensor, *, scale: float) -> None:
        pyro.module("model", self)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            mean = self.net(z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(mean, scale), obs=data)


def guide(data: Tensor, *, scale: float) -> None:
    logits = pyro.param("logits", torch.zeros(3))
    with pyro.plate("data", len(data)):
        pyro.sample("z", dist.Bernoulli(logits=logits), infer={"baseline": {"use_decaying_avg_baseline": True}})


def test_it_trains_on_where_pyro_cannot_be_imported(tmp_path: Path) -> None:
    data = torch.tensor([0.5, -0.2, 1.0])
    module = sgc.compile(Model(), guide, backend="eager")
    for scale in (0.5, 0.6, 0.7):  # which makes an input of it
        module(data, scale=scale)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)

    def steps(count: int) -> list[float]:
        losses = []
        for _ in range(count):
            optimizer.zero_grad()
            loss = module(data, scale=0.7)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    steps(4)
    sgc.save(module, tmp_path / "loss.sgc", optimizer=optimizer)
    graph = str(module.graph)
    pyro.set_rng_seed(3)
    expected = steps(3)

    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path / "loss.sgc"), str(tmp_path / "again.sgc")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses, state, shown, heavy = json.loads(done.stdout)
    assert losses == expected
    assert {name: torch.tensor(value) for name, value in state.items()}.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(torch.tensor(state[name]), value), name
    assert shown == graph
    assert heavy == []
    assert sgc.load(tmp_path / "again.sgc")(data, scale=1.0).isfinite()
