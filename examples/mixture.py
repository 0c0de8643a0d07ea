"""A Gaussian mixture of scikit-learn's irises, whose discrete assignments are sampled, not summed out.

Each flower's component is a categorical latent variable, so its gradient is estimated by the score function. Within
the plate a flower's sample affects only its own terms of the ELBO, which the downstream cost keeps to; a decaying
average of that cost, one for each flower, is the baseline. The species are used only to judge the assignments.

    python examples/mixture.py                     # half a minute; a picture in ./output/mixture
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_iris
from torch import Tensor, nn

import sgc
from sgc.training.progress import progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COMPONENTS = 3


def model(x: Tensor) -> None:
    """Three equally likely Gaussians with one covariance; the means and the covariance are point estimates."""
    locs = pyro.param("locs", lambda: spread_out(x))
    scale = pyro.param("scale", lambda: torch.eye(x.shape[-1]), constraint=constraints.lower_cholesky)
    with pyro.plate("flowers", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.full([COMPONENTS], 1 / COMPONENTS)))
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=scale), obs=x)


class Assigner(nn.Module):
    """The guide: a small network from a flower to the probabilities of its component."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.logits = nn.Sequential(nn.Linear(dims, 32), nn.Tanh(), nn.Linear(32, COMPONENTS))

    def guide(self, x: Tensor) -> None:
        pyro.module("assigner", self)
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        with pyro.plate("flowers", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.logits(x)), infer={"baseline": baseline})


def spread_out(x: Tensor) -> Tensor:
    """Flowers far from one another to start the means at: the first is drawn, each next is the farthest from those."""
    chosen = x[torch.randint(len(x), (1,))]
    while len(chosen) < COMPONENTS:
        chosen = torch.cat([chosen, x[torch.cdist(x, chosen).amin(-1).argmax()][None]])
    return chosen


def accuracy(assigned: Tensor, species: Tensor) -> float:
    """The share of flowers whose component is their species', under the best naming of the components."""
    counts = torch.zeros(COMPONENTS, COMPONENTS).index_put_((assigned, species), torch.tensor(1.0), accumulate=True)
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return counts[rows, columns].sum().item() / len(species)


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the tensors are small: a second thread would mostly wait
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    data = load_iris()
    raw, species = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    x = (raw - raw.mean(0)) / raw.std(0)
    assigner = Assigner(x.shape[-1])

    loss_module = sgc.compile(model, assigner.guide, backend=args.backend)
    optimizer = torch.optim.Adam(loss_module.initialize(x).parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=args.steps)
    print(loss_module.graph)

    def elbo(samples: int = 50) -> float:
        """Nats a flower."""
        with torch.no_grad():
            return -sum(loss_module(x).item() for _ in range(samples)) / (samples * len(x))

    before = running = elbo()
    curve: list[float] = []
    start = time.perf_counter()
    with progress(args.steps) as bar:
        for _ in range(args.steps):
            optimizer.zero_grad()
            loss = loss_module(x)
            loss.backward()
            optimizer.step()
            schedule.step()
            running += 0.02 * (-loss.item() / len(x) - running)
            curve.append(running)
            bar.show(1, partial("ELBO {:.3f}".format, running))
    seconds, after = time.perf_counter() - start, elbo()

    with torch.no_grad():
        assigned = assigner.logits(x).argmax(-1)
    right = accuracy(assigned, species)
    args.output.mkdir(parents=True, exist_ok=True)
    save_picture(args.output / "mixture.png", raw, assigned, species, curve)
    summary = {"elbo_before": before, "elbo_after": after, "accuracy": right, "seconds": round(seconds, 1)}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"ELBO {before:.3f} -> {after:.3f} nats a flower; {args.steps} steps in {seconds:.0f} s")
    print(f"{right:.1%} of the flowers are assigned as their species; picture in {args.output}")


def save_picture(path: Path, raw: Tensor, assigned: Tensor, species: Tensor, curve: list[float]) -> None:
    """The petals, coloured by component and shaped by species, and the running ELBO."""
    figure, (petals, elbo) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for kind, (name, marker) in enumerate(zip(("setosa", "versicolor", "virginica"), "o^s", strict=True)):
        mine = species == kind
        colors = [f"C{component}" for component in assigned[mine].tolist()]
        petals.scatter(raw[mine, 2], raw[mine, 3], c=colors, marker=marker, s=25, alpha=0.8)
        petals.scatter([], [], c="0.3", marker=marker, s=25, label=name)
    petals.set(title="components (colours) and species", xlabel="petal length (cm)", ylabel="petal width (cm)")
    petals.legend()
    elbo.plot(curve, linewidth=1)
    elbo.set(title="running ELBO", xlabel="step", ylabel="nats a flower")
    elbo.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a run of seconds; eager unless --backend is given")
    parser.add_argument("--backend", choices=["inductor", "eager", "torchscript"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/mixture"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    args = parser.parse_args()
    args.backend = args.backend or ("eager" if args.smoke else "inductor")
    args.steps = args.steps or (200 if args.smoke else 5000)
    return args


if __name__ == "__main__":
    main()
