"""Whether a cache object pays, and what its owner could do about it. Pure: every rule can be tried by hand.

The rules are asked in this order; the first that applies is the advice:

- `stop`: no call used the object, and its storage was paid.
- `shorten`: more than half of what its storage cost was for minutes after the last call.
- `schedule`: calls came on three days or more, at least nine in ten of them within the same twelve hours of the day
  or fewer, and what was stored outside those hours cost more than creating the object anew on each of those days.
- `keep`: none of these; it may still lose money, and then the sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from billing import money
from billing.money import ZERO

KEEP, SHORTEN, STOP, SCHEDULE = "keep", "shorten", "stop", "schedule"
WORDS = (KEEP, SHORTEN, STOP, SCHEDULE)

TAIL_SHARE = 2
"""The part of the storage after the last call that is too much is more than one in this many."""
SCHEDULE_DAYS_MIN = 3
SCHEDULE_HOURS_MAX = 12
SCHEDULE_CALLS_IN_TEN = 9
HOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What is known of one object over a period. `tail` is the storage paid for minutes after its last call;
    `calls_by_hour` has 24 numbers. Money is in one currency."""

    calls: int
    call_days: int
    calls_by_hour: Sequence[int]
    cost_uncached: Decimal
    creation: Decimal
    storage: Decimal
    call_fees: Decimal
    stored_minutes: int
    tail: Decimal

    @property
    def cost(self) -> Decimal:
        return money.total([self.creation, self.storage, self.call_fees])

    @property
    def saved(self) -> Decimal:
        """Negative when it cost more than it spared."""
        return money.subtract(self.cost_uncached, self.cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One of WORDS, and a sentence that says why."""

    word: str
    reason: str


def break_even_calls_per_hour(kept: Kept) -> int | None:
    """From how many calls in each stored hour such calls as it had pay for its creation and storage, rounded up;
    None when none came, or when a call spares no more than its fee."""
    spared = money.to_nanos(money.subtract(kept.cost_uncached, kept.call_fees))
    if not kept.calls or spared <= 0 or not kept.stored_minutes:
        return None
    fixed = money.to_nanos(money.add(kept.creation, kept.storage))
    return -(-fixed * kept.calls * 60 // (spared * kept.stored_minutes))


def advise(kept: Kept) -> Advice:
    if not kept.calls and kept.storage > ZERO:
        return Advice(
            word=STOP, reason=f"No call used it, and its storage cost {money.text(kept.storage)}: delete it."
        )
    if money.to_nanos(kept.tail) * TAIL_SHARE > money.to_nanos(kept.storage):
        return Advice(
            word=SHORTEN,
            reason=(
                f"Of {money.text(kept.storage)} for storage, {money.text(kept.tail)} was paid after the last call: "
                "give it a shorter life, or delete it when it has done its work."
            ),
        )
    hours = busy_hours(kept.calls_by_hour)
    if hours is not None and kept.call_days >= SCHEDULE_DAYS_MIN and _is_idle_time_dear(kept, hours=hours[1]):
        first, length = hours
        return Advice(
            word=SCHEDULE,
            reason=(
                f"At least {SCHEDULE_CALLS_IN_TEN} in 10 of its calls came between {first:02d}:00 and "
                f"{(first + length) % HOURS:02d}:00, on {kept.call_days} days: keep it in those hours alone."
            ),
        )
    return Advice(word=KEEP, reason=_why_keep(kept))


def busy_hours(calls_by_hour: Sequence[int]) -> tuple[int, int] | None:
    """(first hour, number of hours) of the shortest span of a day, over midnight too, with nine in ten of the calls;
    None when that takes more than SCHEDULE_HOURS_MAX hours, or when there was no call."""
    calls = sum(calls_by_hour)
    if not calls:
        return None
    for length in range(1, SCHEDULE_HOURS_MAX + 1):
        within = [
            sum(calls_by_hour[(first + hour) % HOURS] for hour in range(length)) for first in range(HOURS)
        ]
        if max(within) * 10 >= calls * SCHEDULE_CALLS_IN_TEN:
            return within.index(max(within)), length
    return None


def _is_idle_time_dear(kept: Kept, *, hours: int) -> bool:
    """Whether the storage outside the busy hours cost more than a creation on each day would."""
    idle_minutes = kept.stored_minutes - hours * 60 * kept.call_days
    if idle_minutes <= 0:
        return False
    creations = money.to_nanos(kept.creation) * kept.call_days
    return money.to_nanos(kept.storage) * idle_minutes > creations * kept.stored_minutes


def _why_keep(kept: Kept) -> str:
    if kept.saved >= ZERO:
        return f"It saved {money.text(kept.saved)}."
    loses = f"It cost {money.text(-kept.saved)} more than it saved"
    wanted = break_even_calls_per_hour(kept)
    if wanted is None:
        return f"{loses}: its calls spare no more than their fee."
    return f"{loses}: it pays from {wanted} such calls an hour on."
