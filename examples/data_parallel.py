"""Two processes train one classifier of digits with torch's ``DistributedDataParallel``; the result is checked.

Each process computes loss and gradient of its half of every minibatch in the compiled loss module, gloo averages the
gradients, and each takes the same optimizer step. The guide is an ``AutoDelta`` (a maximum a posteriori estimate),
whose loss has no noise, so that one process on the whole minibatches must find the same weights.

    python examples/data_parallel.py            # a minute
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, init_to_value
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import sgc
from sgc.training.progress import progress

TEST_SIZE = 297


def model(pixels: Tensor, labels: Tensor, total: int) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(64, 10), 1.0).to_event(2))
    bias = pyro.sample("bias", dist.Normal(torch.zeros(10), 1.0).to_event(1))
    # The minibatch stands for all images; so does each half of it, whose average is the whole.
    with poutine.scale(scale=total / len(pixels)), pyro.plate("images", len(pixels)):
        pyro.sample("label", dist.Categorical(logits=pixels @ weight + bias), obs=labels)


def load() -> tuple[Tensor, Tensor]:
    """All digits, 64 pixels from 0 to 1, and what they show, in a fixed random order."""
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]


def train(args: argparse.Namespace, rank: int, processes: int) -> dict[str, Tensor]:
    """Train on every ``processes``-th image of each minibatch, from image ``rank`` on; the weights found."""
    pyro.clear_param_store()
    torch.set_num_threads(1)
    pixels, labels = (tensor[TEST_SIZE:] for tensor in load())
    total, size = len(pixels), args.batch_size
    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"weight": torch.zeros(64, 10), "bias": torch.zeros(10)}))
    compiled = sgc.compile(model, guide, backend=args.backend)
    # Every process captures before the wrapper looks for the parameters.
    compiled.initialize(pixels[rank:size:processes], labels[rank:size:processes], total)
    loss_module: torch.nn.Module = DistributedDataParallel(compiled) if processes > 1 else compiled
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=0.02)
    with progress(args.steps, wanted=rank == 0) as bar:
        for step in range(args.steps):
            start = step * size % (total - size + 1)
            part = slice(start + rank, start + size, processes)
            optimizer.zero_grad()
            loss = loss_module(pixels[part], labels[part], total)
            loss.backward()
            optimizer.step()
            if bar is not None:
                bar.show(1, partial("ELBO {:.1f}".format, -loss.item()))
    if rank == 0 and processes == 1:
        print(compiled.graph)
    return {name: value.detach().clone() for name, value in guide.median().items()}


def _process(rank: int, args: argparse.Namespace, port: int, file: str) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=args.processes)
    found = train(args, rank, args.processes)
    if rank == 0:
        torch.save(found, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def accuracy(weights: dict[str, Tensor]) -> float:
    pixels, labels = (tensor[:TEST_SIZE] for tensor in load())
    return ((pixels @ weights["weight"] + weights["bias"]).argmax(-1) == labels).float().mean().item()


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    file = str(args.output / "weights.pt")
    torch.multiprocessing.spawn(_process, (args, port, file), nprocs=args.processes)
    together = torch.load(file)
    alone = train(args, 0, 1)
    summary: dict[str, Any] = {
        "processes": args.processes,
        "largest_difference": max((together[name] - alone[name]).abs().max().item() for name in alone),
        "largest_weight": max(value.abs().max().item() for value in alone.values()),
        "accuracy_together": accuracy(together),
        "accuracy_alone": accuracy(alone),
    }
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{args.processes} processes against one on the joined minibatches, after {args.steps} steps:")
    print(f"  largest difference of a weight {summary['largest_difference']:.1e} of {summary['largest_weight']:.2f}")
    print(f"  test accuracy {summary['accuracy_together']:.3f} and {summary['accuracy_alone']:.3f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a run of seconds; eager unless --backend is given")
    parser.add_argument("--backend", choices=["inductor", "eager", "torchscript"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("output/data_parallel"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args()
    args.backend = args.backend or ("eager" if args.smoke else "inductor")
    args.steps = args.steps or (40 if args.smoke else 600)
    return args


if __name__ == "__main__":
    main()
