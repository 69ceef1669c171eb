"""How long an object that shall pay for itself is kept after its last use: the rule of the skier who rents. Pure.

To keep is to rent, to create again is to buy. After a use the object is kept for as many more started minutes as cost
no more than its creation, and then it is let go. Nobody knows when the next call comes; whatever comes, creation and
storage together cost at most twice what the best choice would have cost that knew all calls beforehand.

The end is that of a minute of the segment: the minute in which the use fell is paid for, and so is each one that has
started. It matters: were the kept minutes counted from the use itself, whose minute is bought already, the bound
would not hold (at 24 for a creation and 5 for a minute it would be 2.2, and up to 3 at other prices).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from billing import money

MINUTE = timedelta(minutes=1)
MINUTES_MAX = 366 * 24 * 60
"""A longest time, so that a storage price near nothing makes no end beyond the calendar."""


def break_even_minutes(*, creation: Decimal, storage_per_minute: Decimal) -> int:
    """Whole minutes of storage that cost no more than one creation, at least 1. Both are of the same tokens."""
    minute = money.to_nanos(storage_per_minute)
    if minute <= 0:
        return MINUTES_MAX
    return min(max(1, money.to_nanos(creation) // minute), MINUTES_MAX)


def kept_until(*, started_at: datetime, used_at: datetime, minutes: int) -> datetime:
    """The end of an object that is stored since `started_at`: of the minute in which it was used, and `minutes` on."""
    used = max(0, (used_at - started_at) // MINUTE)
    return started_at + (used + 1 + minutes) * MINUTE
