"""What a part reports, and how its progress is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Advance = Callable[[int], None]
"""Called with how many units of work were done since the last time."""


def in_silence(done: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One promise, counted: `count` units of `what` were tried from `seed` in `seconds`."""

    part: str
    name: str
    goal: str
    reached: str
    is_reached: bool
    count: int
    what: str
    seed: int | None
    seconds: float


class DrillError(Exception):
    """The drill could not be carried out; that is no figure."""
