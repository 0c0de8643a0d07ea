"""A variational autoencoder on handwritten digits (Kingma and Welling 2014): the contrast to the sigmoid belief net.

The latent vector is Gaussian, so its gradient is pathwise: the stochastic graph has no score-function term and needs no
baseline. The model and the guide are plain Pyro.

    python examples/vae.py                     # half a minute; pictures in ./output/vae
    python examples/vae.py --backend eager     # without a C++ compiler
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


class Decoder(nn.Module):
    """The model: ``z -> pixels``."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent = latent
        self.logits = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, PIXELS))

    def model(self, x: Tensor) -> Tensor:
        """The probabilities of the pixels, of which ``x`` are observed."""
        pyro.module("decoder", self)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x), self.latent]).to_event(1))
            logits = self.logits(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
        return logits.sigmoid()


class Encoder(nn.Module):
    """The guide: ``pixels -> z``."""

    def __init__(self, latent: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Softplus())
        self.loc = nn.Linear(hidden, latent)
        self.log_scale = nn.Linear(hidden, latent)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self)
        with pyro.plate("images", len(x)):
            hidden = self.hidden(x)
            pyro.sample("z", dist.Normal(self.loc(hidden), self.log_scale(hidden).exp()).to_event(1))


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)  # the tensors are small: a second thread would mostly wait
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    train, test = load(args.batch_size)
    decoder, encoder = Decoder(args.latent, args.hidden), Encoder(args.latent, args.hidden)

    loss_module = sgc.compile(decoder.model, encoder.guide, backend=args.backend)
    optimizer = torch.optim.Adam(loss_module.initialize(train[0]).parameters(), lr=args.learning_rate)
    print(loss_module.graph)
    print(f"the gradient through z is {loss_module.graph.estimator('z').value}")

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
    save_curve(args.output / "elbo.png", train_elbos, test_elbos, "Variational autoencoder on 8x8 digits")
    images = test[0, :32]
    with torch.no_grad():
        encoded = poutine.trace(encoder.guide).get_trace(images)
        reconstructions = poutine.replay(decoder.model, trace=encoded)(images)
        samples = decoder.model(images)  # only the pixels are observed: z is drawn from the prior
    panels = {"test images": images, "reconstructions": reconstructions, "samples from the prior": samples}
    save_pictures(args.output / "pictures.png", panels)
    nx.write_graphml(loss_module.graph, args.output / "graph.graphml")
    (args.output / "graph.txt").write_text(f"{loss_module.graph}\n")
    summary = {"elbo_before": before, "elbo_after": test_elbos[-1], "epochs": args.epochs, "seconds": round(seconds, 1)}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"test ELBO {before:.2f} -> {test_elbos[-1]:.2f} nats an image; {args.epochs} epochs in {seconds:.0f} s")
    print(f"pictures, curve and graph are in {args.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a run of seconds; eager unless --backend is given")
    parser.add_argument("--backend", choices=["inductor", "eager", "torchscript"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/vae"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--latent", type=int, default=10, help="dimensions of z")
    parser.add_argument("--hidden", type=int, default=128, help="units in the hidden layers")
    args = parser.parse_args()
    args.backend = args.backend or ("eager" if args.smoke else "inductor")
    args.epochs = args.epochs or (5 if args.smoke else 300)
    return args


if __name__ == "__main__":
    main()
