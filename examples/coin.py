"""How fair is a coin? A Beta-Bernoulli model whose posterior is known, so that the answer can be checked.

The guide is a Beta distribution too, hence the ELBO can reach the log evidence and the guide the exact posterior. Beta
is reparameterised implicitly: the gradient is pathwise although its sampler is not a formula.

    python examples/coin.py                     # seconds; a picture in ./output/coin
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from math import log
from pathlib import Path

import matplotlib
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

import sgc
from sgc.training.progress import progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PRIOR = (10.0, 10.0)


def model(flips: Tensor) -> None:
    fairness = pyro.sample("fairness", dist.Beta(*PRIOR))
    with pyro.plate("flips", len(flips)):
        pyro.sample("flip", dist.Bernoulli(fairness), obs=flips)


def guide(flips: Tensor) -> None:
    heads = pyro.param("heads", torch.tensor(15.0), constraint=constraints.positive)
    tails = pyro.param("tails", torch.tensor(15.0), constraint=constraints.positive)
    pyro.sample("fairness", dist.Beta(heads, tails))


def exact(flips: Tensor) -> tuple[dist.Beta, float]:
    """The conjugate posterior, and the log evidence."""
    heads, tails = flips.sum(), (1 - flips).sum()
    prior, posterior = dist.Beta(*PRIOR), dist.Beta(PRIOR[0] + heads, PRIOR[1] + tails)
    half = torch.tensor(0.5)  # Bayes' rule holds at every fairness; at one half the likelihood is 2 ** -len(flips)
    evidence = prior.log_prob(half) - len(flips) * log(2) - posterior.log_prob(half)
    return posterior, evidence.item()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the tensors are small: a second thread would mostly wait
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    flips = torch.cat([torch.ones(args.heads), torch.zeros(args.tails)])
    posterior, evidence = exact(flips)

    loss_module = sgc.compile(model, guide, num_particles=args.particles, backend=args.backend)
    optimizer = torch.optim.Adam(loss_module.initialize(flips).parameters(), lr=args.learning_rate)
    # A rate that falls to zero lets the noise of the gradient average out.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=args.steps)
    print(loss_module.graph)

    def elbo(samples: int = 500) -> float:
        with torch.no_grad():
            return -sum(loss_module(flips).item() for _ in range(samples)) / samples

    before = running = elbo()
    with progress(args.steps) as bar:
        for _ in range(args.steps):
            optimizer.zero_grad()
            loss = loss_module(flips)
            loss.backward()
            optimizer.step()
            schedule.step()
            running += 0.02 * (-loss.item() - running)
            bar.show(1, partial("ELBO {:.3f}".format, running))
    after = elbo()

    found = dist.Beta(pyro.param("heads").detach(), pyro.param("tails").detach())
    divergence = torch.distributions.kl_divergence(found, posterior).item()
    args.output.mkdir(parents=True, exist_ok=True)
    save_densities(args.output / "posterior.png", found, posterior)
    summary = {
        "elbo_before": before,
        "elbo_after": after,
        "log_evidence": evidence,
        "kl_to_exact_posterior": divergence,
        "mean": found.mean.item(),
        "exact_mean": posterior.mean.item(),
    }
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{args.heads} heads and {args.tails} tails")
    print(f"           {'found':>10} {'exact':>10}")
    for name, one, other in (
        ("heads", found.concentration1, posterior.concentration1),
        ("tails", found.concentration0, posterior.concentration0),
        ("mean", found.mean, posterior.mean),
        ("std", found.stddev, posterior.stddev),
        ("ELBO", after, evidence),
    ):
        print(f"{name:<10} {float(one):>10.4f} {float(other):>10.4f}")
    print(f"KL divergence from the exact posterior: {divergence:.5f} nats; picture in {args.output}")


def save_densities(path: Path, found: dist.Beta, posterior: dist.Beta) -> None:
    grid = torch.linspace(0.001, 0.999, 500)
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    axis.plot(grid, dist.Beta(*PRIOR).log_prob(grid).exp(), color="0.6", label="prior")
    axis.fill_between(grid, posterior.log_prob(grid).exp(), color="tab:blue", alpha=0.25, label="exact posterior")
    axis.plot(grid, found.log_prob(grid).exp(), color="tab:orange", label="guide")
    axis.set(xlabel="fairness", ylabel="density", xlim=(0, 1), ylim=(0, None))
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a run of seconds; eager unless --backend is given")
    parser.add_argument("--backend", choices=["inductor", "eager", "torchscript"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/coin"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--particles", type=int, default=4, help="samples of the ELBO that a step averages")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--heads", type=int, default=24)
    parser.add_argument("--tails", type=int, default=8)
    args = parser.parse_args()
    args.backend = args.backend or ("eager" if args.smoke else "inductor")
    args.steps = args.steps or (300 if args.smoke else 5000)
    return args


if __name__ == "__main__":
    main()
