"""What a cache object would cost and from how many calls on it would pay, before anything is created or held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from billing import accounts, charging, clock, money, rating
from billing.charging import CreationQuote
from cacheplane.access import gates, rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching import cache_objects, schedules, ski_rental
from cacheplane.caching.cache_objects import NewCacheObject
from cacheplane.caching.lifetimes import Auto, Lifetime, Scheduled
from cacheplane.engines import registry
from cacheplane.engines.models import Engine
from cacheplane.engines.registry import SizedModel

SECOND = timedelta(seconds=1)
SECONDS_PER_HOUR, MINUTES_PER_HOUR = 3600, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class OnModel:
    """One model of the family: what the same tokens cost in a call without the cache, and how many calls must spare
    that until the object has paid for itself; None: no number of calls does."""

    model: str
    price_uncached: Decimal
    is_too_long: bool
    """The tokens do not fit the model's window."""
    break_even_calls: int | None
    break_even_calls_per_hour: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """At the prices of now. `storage` is for the whole lifetime, each started minute whole."""

    model: str
    tokens: int
    currency: str
    lifetime_seconds: int
    creation_fee: Decimal
    storage_per_hour: Decimal
    storage: Decimal
    call_fee: Decimal
    break_even_minutes: int
    """Minutes of storage that cost no more than a creation: how long `ttl` auto keeps an unused object."""
    models: tuple[OnModel, ...]

    @property
    def total(self) -> Decimal:
        """What it costs to have it, without any call."""
        return money.add(self.creation_fee, self.storage)

    @property
    def verdict(self) -> str:
        pays = [
            f"from {one.break_even_calls_per_hour} calls an hour on {one.model}"
            for one in self.models
            if one.break_even_calls_per_hour is not None
        ]
        too_long = [one.model for one in self.models if one.is_too_long]
        never = [one.model for one in self.models if one.break_even_calls is None and not one.is_too_long]
        said = [f"it pays {', '.join(pays)}"] if pays else []
        if never:
            said.append(
                f"it never pays on {', '.join(never)}, where the call fee is not below what it spares"
            )
        if too_long:
            said.append(f"it is too long for {', '.join(too_long)}")
        return f"Kept for {self.lifetime_seconds} seconds, {'; '.join(said)}."


def estimate(caller: Caller, new: NewCacheObject) -> Estimate:
    """Refuses what a creation would refuse, but for its money. It counts as one request, for counting is work.

    Raises FeatureClosed, InvalidRequest, LimitExceeded, EngineError.
    """
    now = clock.read(caller.organization_id)
    gates.require(caller, feature=cache_objects.FEATURE, at=now.machine)
    rate_limits.admit_tokens(caller, tokens=0)
    at = now.at
    lifetime = cache_objects.checked(caller, new.lifetime, at=at)
    _tools, tokens = cache_objects.counted(caller, new)
    currency = accounts.balance(caller.organization_id, at).currency
    return priced(
        caller.organization_id,
        family=new.model,
        tokens=tokens,
        currency=currency,
        at=at,
        ends_at=at
        + _lasts(caller.organization_id, lifetime, family=new.model, tokens=tokens, currency=currency, at=at),
    )


def _lasts(
    organization_id: str, lifetime: Lifetime, *, family: str, tokens: int, currency: str, at: datetime
) -> timedelta:
    """With ttl auto as long as it is kept without a call; with a schedule one window."""
    if isinstance(lifetime, Scheduled):
        opening = schedules.read(lifetime.windows).next_opening(at)
        return opening.closes_at - opening.opens_at
    until = lifetime.until(at)
    if isinstance(lifetime, Auto):
        quote = charging.creation_quote(
            organization_id=organization_id, model=family, tokens=tokens, currency=currency, at=at
        )
        until = min(until, ski_rental.kept_until(started_at=at, used_at=at, minutes=_break_even(quote)))
    return until - at


def _break_even(quote: CreationQuote) -> int:
    return ski_rental.break_even_minutes(creation=quote.fee, storage_per_minute=quote.storage_per_minute)


def priced(
    organization_id: str, *, family: str, tokens: int, currency: str, at: datetime, ends_at: datetime
) -> Estimate:
    """The estimate of an object that is kept from `at` to `ends_at`, at the organization's prices."""
    quote = charging.creation_quote(
        organization_id=organization_id, model=family, tokens=tokens, currency=currency, at=at
    )
    minutes = rating.minutes_lived(started_at=at, ended_at=ends_at)
    storage = money.multiply(minutes, quote.storage_per_minute)
    served = registry.sized_models(family)
    # A call of no token costs the fee alone.
    call_fee = charging.cached_call_quote(
        organization_id=organization_id,
        model=served[0].name,
        family=family,
        currency=currency,
        prompt_tokens=0,
        completion_tokens=0,
        at=at,
    )
    lifetime_seconds = max(1, (ends_at - at) // SECOND)
    return Estimate(
        model=family,
        tokens=tokens,
        currency=currency,
        lifetime_seconds=lifetime_seconds,
        creation_fee=quote.fee,
        storage_per_hour=money.multiply(MINUTES_PER_HOUR, quote.storage_per_minute),
        storage=storage,
        call_fee=call_fee,
        break_even_minutes=_break_even(quote),
        models=_on_models(
            organization_id,
            served,
            engine=registry.engine_for(family),
            tokens=tokens,
            currency=currency,
            cost=money.add(quote.fee, storage),
            call_fee=call_fee,
            lifetime_seconds=lifetime_seconds,
            at=at,
        ),
    )


def _on_models(
    organization_id: str,
    served: Sequence[SizedModel],
    *,
    engine: Engine,
    tokens: int,
    currency: str,
    cost: Decimal,
    call_fee: Decimal,
    lifetime_seconds: int,
    at: datetime,
) -> tuple[OnModel, ...]:
    found = []
    for model in served:
        price = charging.call_quote(
            organization_id=organization_id,
            model=model.name,
            currency=currency,
            prompt_tokens=tokens,
            completion_tokens=0,
            at=at,
        )
        spared = money.to_nanos(money.subtract(price, call_fee))
        is_too_long = tokens >= min(model.window_tokens, engine.window_tokens)
        pays = spared > 0 and not is_too_long
        nanos = money.to_nanos(cost)
        found.append(
            OnModel(
                model=model.name,
                price_uncached=price,
                is_too_long=is_too_long,
                break_even_calls=_up(nanos, spared) if pays else None,
                break_even_calls_per_hour=(
                    _up(nanos * SECONDS_PER_HOUR, spared * lifetime_seconds) if pays else None
                ),
            )
        )
    return tuple(found)


def _up(dividend: int, divisor: int) -> int:
    """A call is whole, so what is begun counts."""
    return -(-dividend // divisor)
