"""Names with numbers in them, as loops over time, layers and plates make them: ``z_3``, ``obs[3]``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_NUMBER = re.compile(r"[0-9]{1,18}")
_RUNS = 4


@dataclass(frozen=True)
class NumberedName:
    """A name taken apart: its numbers, and the text around them, one piece more than numbers."""

    text: tuple[str, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> NumberedName:
        """Take a name apart; ``z_03`` has the number 3."""
        return cls(tuple(_NUMBER.split(name)), tuple(map(int, _NUMBER.findall(name))))


def spelled(text: Sequence[str], words: Sequence[str]) -> str:
    """A name with words in the place of its numbers: ``z_t``; in braces where they could be misread, ``z{t}``."""
    name = text[0]
    for word, piece in zip(words, text[1:], strict=True):
        letter = word.rstrip("'")
        plain = letter.isdecimal() or (letter.isalpha() and not name[-1:].isalpha() and not piece[:1].isalpha())
        name += (word if plain else f"{{{word}}}") + piece
    return name


def listed(values: Iterable[int]) -> str:
    """Numbers in words: ``0 … 29``, ``0, 2 … 28``, ``0 … 4, 6``."""
    ordered = sorted(set(values))
    steps = {after - before for before, after in pairwise(ordered)}
    if len(ordered) > 3 and len(steps) == 1 and steps != {1}:
        return f"{ordered[0]}, {ordered[1]} … {ordered[-1]}"
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    words = [", ".join(map(str, run)) if len(run) < 3 else f"{run[0]} … {run[-1]}" for run in runs]
    if len(words) > _RUNS:
        words = [*words[: _RUNS - 2], "…", words[-1]]
    return ", ".join(words)
