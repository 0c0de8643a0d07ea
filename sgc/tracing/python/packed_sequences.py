"""Packed sequences, whose steps have as many rows as there are sequences that long: lengths are values of the program.

Where they follow from inputs they are read, and become a guard; the networks are unrolled, step by step, as ATen's
``RNN.cpp`` does where it runs them. The numbers are those of eager torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Numbers = Callable[[Tensor], list[int]]
"""Reads a tensor of whole numbers."""


def on_packed(name: str, args: tuple[Any, ...], numbers: Numbers) -> Any:
    """The result of a function of packed sequences, ``NotImplemented`` of any other function.

    :param numbers: for a tensor that depends on no sample; an error otherwise.
    """
    if name == "_pack_padded_sequence":
        return _pack(*args, numbers=numbers)
    if name == "_pad_packed_sequence":
        return _pad(*args, numbers=numbers)
    # What is not packed has the parameters in this place, and no sizes before.
    if name in _CELLS and len(args) > 3 and isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple)):
        return _run(name, args[0], numbers(args[1]), *args[2:])
    return NotImplemented


def _pack(padded: Tensor, lengths: Tensor, batch_first: bool, *, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """``torch._pack_padded_sequence``: data ``[sum of lengths, ...]`` and how many sequences have each step."""
    padded = padded.transpose(0, 1) if batch_first else padded
    ends = numbers(lengths)
    sizes = [sum(end > step for end in ends) for step in range(max(ends))]
    runs = [padded[start:stop, :size].flatten(0, 1) for start, stop, size in _runs(sizes)]
    return torch.cat(runs), torch.tensor(sizes, device="cpu")


def _pad(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding_value: float, total: int, *, numbers: Numbers
) -> tuple[Tensor, Tensor]:
    """``torch._pad_packed_sequence``: ``[total, batch, ...]``, and the length of each sequence."""
    sizes = numbers(batch_sizes)
    runs, taken = [], 0
    for start, stop, size in _runs(sizes):
        rows = data[taken : (taken := taken + (stop - start) * size)].unflatten(0, (stop - start, size))
        behind = rows.new_full((stop - start, sizes[0] - size, *data.shape[1:]), padding_value)
        runs.append(torch.cat([rows, behind], 1))
    runs.append(data.new_full((total - len(sizes), sizes[0], *data.shape[1:]), padding_value))
    padded = torch.cat(runs)
    lengths = torch.tensor([sum(size > row for size in sizes) for row in range(sizes[0])], device="cpu")
    return padded.transpose(0, 1) if batch_first else padded, lengths


def _runs(sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Steps of one size that follow one another: from, to, and the size."""
    made, start = [], 0
    for size, steps in itertools.groupby(sizes):
        stop = start + len(list(steps))
        made.append((start, stop, size))
        start = stop
    return made


State = tuple[Tensor, ...]
"""What a network passes from step to step: the hidden state, and of an LSTM the cell's."""

Weights = Sequence[Tensor]
"""Of one layer in one direction: of the hidden state, its bias if there is one, the projection if there is one."""


def _run(
    name: str,
    data: Tensor,
    sizes: list[int],
    initial: Tensor | State,
    parameters: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """``torch.lstm`` and the like on packed data: the output at each step, and the last states of every layer."""
    states = initial if isinstance(initial, tuple) else (initial,)
    directions = 2 if bidirectional else 1
    each = len(parameters) // (layers * directions)
    finals: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            position = layer * directions + direction
            weights = parameters[position * each : (position + 1) * each]
            state = tuple(part[position] for part in states)
            output, final = _layer(_CELLS[name], data, sizes, state, weights, has_biases, direction == 1)
            outputs.append(output)
            finals.append(final)
        data = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        if dropout and train and layer < layers - 1:
            data = torch.dropout(data, dropout, train=True)
    return (data, *(torch.stack(parts) for parts in zip(*finals, strict=True)))


def _layer(
    cell: Callable[..., State],
    data: Tensor,
    sizes: list[int],
    initial: State,
    weights: Sequence[Tensor],
    has_biases: bool,
    backwards: bool,
) -> tuple[Tensor, State]:
    """One layer in one direction: sequences leave it at their ends, or, backwards, enter it there."""
    inputs, hidden = weights[:2], weights[2:]
    bias, hidden_bias = hidden[:2] if has_biases else (None, None)
    projection = hidden[-1] if len(hidden) % 2 else None
    steps = functional.linear(data, inputs[0], bias).split(sizes)
    state = tuple(part[: sizes[-1] if backwards else sizes[0]] for part in initial)
    outputs: list[Tensor] = []
    ended: list[State] = []
    for step in reversed(steps) if backwards else steps:
        known, size = len(state[0]), len(step)
        if size > known:
            state = tuple(torch.cat([part, first[known:size]]) for part, first in zip(state, initial, strict=True))
        elif size < known:
            ended.append(tuple(part[size:] for part in state))
            state = tuple(part[:size] for part in state)
        state = cell(step, state, functional.linear(state[0], inputs[1], hidden_bias))
        if projection is not None:
            state = (functional.linear(state[0], projection), *state[1:])
        outputs.append(state[0])
    if backwards:
        outputs.reverse()
    ended.append(state)
    final = tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*reversed(ended), strict=True))
    return torch.cat(outputs), final


def _tanh(step: Tensor, state: State, gates: Tensor) -> State:
    return ((gates + step).tanh(),)


def _relu(step: Tensor, state: State, gates: Tensor) -> State:
    return ((gates + step).relu(),)


def _lstm(step: Tensor, state: State, gates: Tensor) -> State:
    taken, kept, new, out = (gates + step).chunk(4, 1)
    cell = kept.sigmoid() * state[1] + taken.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


def _gru(step: Tensor, state: State, gates: Tensor) -> State:
    reset, kept, new = gates.chunk(3, 1)
    of_reset, of_kept, of_new = step.chunk(3, 1)
    made = (of_new + new * (reset + of_reset).sigmoid()).tanh()
    return ((state[0] - made) * (kept + of_kept).sigmoid() + made,)


_CELLS: dict[str, Callable[[Tensor, State, Tensor], State]] = {
    "rnn_tanh": _tanh,
    "rnn_relu": _relu,
    "lstm": _lstm,
    "gru": _gru,
}

OF_PACKED = frozenset(("_pack_padded_sequence", "_pad_packed_sequence", *_CELLS))
"""The names of the functions that may be given packed sequences."""
