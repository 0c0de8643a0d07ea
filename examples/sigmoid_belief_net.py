"""A two-layer sigmoid belief net on handwritten digits, trained as in NVIL (Mnih and Gregor 2014).

Both latent layers are binary, so no gradient flows through their samples: it is estimated by the score function,
and what makes that work are baselines. Each layer has a neural one, which sees what the guide saw before it drew the
layer, on top of a decaying average of the downstream cost. The model and the guide are plain Pyro.

    python examples/sigmoid_belief_net.py                  # a minute or two; pictures in ./output/sigmoid_belief_net
    python examples/sigmoid_belief_net.py --backend eager  # without a C++ compiler
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import networkx as nx
import pyro
import pyro.distributions as dist
import torch
from digits import load, save_curve, save_pictures, shuffled
from pyro import poutine
from torch import Tensor, nn

import sgc
from sgc.training.progress import progress

PIXELS = 64


class Generator(nn.Module):
    """The model: ``top -> bottom -> pixels``, each layer factorised given the one above it."""

    def __init__(self, top: int, bottom: int) -> None:
        super().__init__()
        self.top_logits = nn.Parameter(torch.zeros(top))
        self.bottom_logits = nn.Linear(top, bottom)
        self.pixel_logits = nn.Linear(bottom, PIXELS)

    def model(self, x: Tensor) -> Tensor:
        """The probabilities of the pixels, of which ``x`` are observed."""
        pyro.module("generator", self)
        with pyro.plate("images", len(x)):
            top = pyro.sample("top", dist.Bernoulli(logits=self.top_logits.expand(len(x), -1)).to_event(1))
            bottom = pyro.sample("bottom", dist.Bernoulli(logits=self.bottom_logits(top)).to_event(1))
            logits = self.pixel_logits(bottom)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
        return logits.sigmoid()


class Baseline(nn.Module):
    """Predicts the downstream cost of each image's sample."""

    def __init__(self, inputs: int, hidden: int = 100) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen).squeeze(-1)


class Recogniser(nn.Module):
    """The guide: ``pixels -> bottom -> top``, with a baseline for each layer."""

    def __init__(self, top: int, bottom: int) -> None:
        super().__init__()
        self.bottom_logits = nn.Sequential(nn.Linear(PIXELS, 100), nn.Tanh(), nn.Linear(100, bottom))
        self.top_logits = nn.Sequential(nn.Linear(bottom, 100), nn.Tanh(), nn.Linear(100, top))
        self.bottom_baseline = Baseline(PIXELS)
        self.top_baseline = Baseline(bottom)

    def guide(self, x: Tensor) -> None:
        pyro.module("recogniser", self)
        with pyro.plate("images", len(x)):
            bottom = pyro.sample(
                "bottom",
                dist.Bernoulli(logits=self.bottom_logits(x)).to_event(1),
                infer={
                    "baseline": {
                        "nn_baseline": self.bottom_baseline,
                        "nn_baseline_input": x,
                        "use_decaying_avg_baseline": True,
                    }
                },
            )
            pyro.sample(
                "top",
                dist.Bernoulli(logits=self.top_logits(bottom)).to_event(1),
                infer={
                    "baseline": {
                        "nn_baseline": self.top_baseline,
                        "nn_baseline_input": bottom,
                        "use_decaying_avg_baseline": True,
                    }
                },
            )


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the tensors are small: a second thread would mostly wait
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    train, test = load(args.batch_size)
    generator, recogniser = Generator(args.top, args.bottom), Recogniser(args.top, args.bottom)

    loss_module = sgc.compile(generator.model, recogniser.guide, backend=args.backend)
    optimizer = torch.optim.Adam(loss_module.initialize(train[0]).parameters(), lr=args.learning_rate)
    print(loss_module.graph)
    print(loss_module.verify(train[0]))

    def elbo(batches: Tensor, samples: int = 5) -> float:
        """Nats an image, averaged over several samples."""
        with torch.no_grad():
            total = sum(loss_module(batch).item() for batch in batches for _ in range(samples))
        return -total / (samples * batches[..., 0].numel())

    before = elbo(test)
    train_elbos: list[float] = []
    test_elbos: list[float] = []
    print(f"test ELBO before training: {before:.2f} nats an image")
    start = time.perf_counter()
    with progress(args.epochs, "epoch") as bar:
        for _ in range(args.epochs):
            total = torch.zeros(())
            for batch in shuffled(train):
                optimizer.zero_grad()
                loss = loss_module(batch)
                loss.backward()
                optimizer.step()
                total -= loss.detach()
            train_elbos.append(total.item() / train[..., 0].numel())
            test_elbos.append(elbo(test))
            bar.show(1, lambda: f"ELBO {train_elbos[-1]:.2f}, test {test_elbos[-1]:.2f}")
    seconds = time.perf_counter() - start

    args.output.mkdir(parents=True, exist_ok=True)
    save_curve(args.output / "elbo.png", train_elbos, test_elbos, "Sigmoid belief net on 8x8 digits")
    images = test[0, :32]
    with torch.no_grad():
        guessed = poutine.trace(recogniser.guide).get_trace(images)
        reconstructions = poutine.replay(generator.model, trace=guessed)(images)
        samples = generator.model(images)  # only the pixels are observed: the layers above are drawn from the prior
    panels = {"test images": images, "reconstructions": reconstructions, "samples from the prior": samples}
    save_pictures(args.output / "pictures.png", panels)
    nx.write_graphml(loss_module.graph, args.output / "graph.graphml")
    (args.output / "graph.txt").write_text(f"{loss_module.graph}\n")
    torch.save(loss_module.state_dict(), args.output / "state.pt")
    summary = {"elbo_before": before, "elbo_after": test_elbos[-1], "epochs": args.epochs, "seconds": round(seconds, 1)}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"test ELBO {before:.2f} -> {test_elbos[-1]:.2f} nats an image; {args.epochs} epochs in {seconds:.0f} s")
    print(f"pictures, curve, graph and parameters are in {args.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a run of seconds; eager unless --backend is given")
    parser.add_argument("--backend", choices=["inductor", "eager", "torchscript"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/sigmoid_belief_net"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--top", type=int, default=32, help="units in the top layer")
    parser.add_argument("--bottom", type=int, default=64, help="units in the layer above the pixels")
    args = parser.parse_args()
    args.backend = args.backend or ("eager" if args.smoke else "inductor")
    args.epochs = args.epochs or (5 if args.smoke else 1000)
    return args


if __name__ == "__main__":
    main()
