"""Why a specialization is not for a call: what differs, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgc.tracing.state.places import Place


class Miss(str):
    """What differs, in words.

    :param about: what it is that differs, the same however it does.
    :param remedy: how to let calls differ in it without another specialization.
    """

    about: str
    remedy: str
    __slots__ = ("about", "remedy")

    def __new__(cls, text: str, about: str | None = None, remedy: str = "") -> Miss:
        made = super().__new__(cls, text)
        made.about = about or text
        made.remedy = remedy or SAME_EACH_TIME
        return made


SAME_EACH_TIME = "let it be the same at each call, or keep a loss module for each"
ARRAY_AS_TENSOR = "pass its numbers as a tensor (torch.as_tensor): those of a tensor may differ from call to call"
AS_TENSORS = "pass values that change from call to call as tensors"
FEW_SHAPES = "pad data to a few shapes"
READ_OUTSIDE = (
    "write the choice with tensors (torch.where, indexing, poutine.mask), or read the value outside of model and guide"
)

NO_REASONS: Mapping[Place, str] = {}


def with_reasons(remedy: str, by_value: Mapping[Place, str], holder: Any, key: Any) -> str:
    """A remedy, with the reasons why numbers in what a holder has under a key are no inputs."""
    reasons = dict.fromkeys(why for place, why in by_value.items() if place.holder is holder and place.key == key)
    return "; ".join((remedy, *reasons))
