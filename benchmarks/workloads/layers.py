"""Networks: their first weights in numpy, and how each library takes them."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workloads.base import Values

Module = TypeVar("Module", bound=nn.Module)


def linear(rng: np.random.Generator, name: str, inputs: int, outputs: int) -> Values:
    """Weights [outputs, inputs] and biases [outputs] of one layer, uniform within 1 / sqrt(inputs)."""
    bound = inputs**-0.5
    return {
        f"{name}.weight": rng.uniform(-bound, bound, (outputs, inputs)).astype(np.float32),
        f"{name}.bias": rng.uniform(-bound, bound, outputs).astype(np.float32),
    }


def mlp(rng: np.random.Generator, name: str, inputs: int, hidden: int, outputs: int) -> Values:
    """A hidden layer; named as the members 0 and 2 of an ``nn.Sequential``."""
    return linear(rng, f"{name}.0", inputs, hidden) | linear(rng, f"{name}.2", hidden, outputs)


def recurrent(rng: np.random.Generator, name: str, inputs: int, hidden: int) -> Values:
    """An ``nn.RNNCell``: h' = tanh(W_ih x + b_ih + W_hh h + b_hh)."""
    of_input, of_state = linear(rng, "ih", inputs, hidden), linear(rng, "hh", hidden, hidden)
    return {
        f"{name}.weight_ih": of_input["ih.weight"],
        f"{name}.bias_ih": of_input["ih.bias"],
        f"{name}.weight_hh": of_state["hh.weight"],
        f"{name}.bias_hh": of_state["hh.bias"],
    }


def load(module: Module, values: Values, name: str) -> Module:
    """The torch module with the weights whose names begin with ``name.``."""
    prefix = f"{name}."
    module.load_state_dict({k.removeprefix(prefix): torch.tensor(v) for k, v in values.items() if k.startswith(prefix)})
    return module


def numpyro_params(values: Values, *names: str) -> dict[str, Any]:
    """``numpyro.param`` of all weights of the modules of these names."""
    import jax.numpy as jnp
    import numpyro

    prefixes = tuple(f"{name}." for name in names)
    return {key: numpyro.param(key, jnp.asarray(v)) for key, v in values.items() if key.startswith(prefixes)}


def dense(params: dict[str, Any], name: str, x: Any) -> Any:
    """A linear layer; for torch's tensors and for JAX's arrays."""
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def log_bernoulli(logits: Tensor, value: Tensor) -> Tensor:
    """Elementwise log-probability of 0 or 1."""
    return -F.binary_cross_entropy_with_logits(logits, value, reduction="none")


def draw_bernoulli(logits: Tensor) -> Tensor:
    """0 or 1 in floating point. A comparison fuses with what surrounds it, ``torch.bernoulli`` does not."""
    return (torch.rand_like(logits) < torch.sigmoid(logits)).to(logits.dtype)


def draw_categorical(logits: Tensor) -> Tensor:
    """Indices by the inverse of the cumulative distribution along the last dimension; shape ``logits.shape[:-1]``."""
    cumulative = torch.exp(logits.detach() - logits.detach().amax(-1, keepdim=True)).cumsum(-1)
    uniform = torch.rand(*logits.shape[:-1], 1, device=logits.device)
    return (uniform * cumulative[..., -1:] > cumulative[..., :-1]).sum(-1)
