"""Opening a call: what is meant, what it may use, and taking limits and money for it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar

import msgspec

from cacheplane import database
from cacheplane.access import rate_limits
from cacheplane.access.callers import Caller
from cacheplane.caching.cache_objects import check_ttl
from cacheplane.caching.models import ACTIVE
from cacheplane.caching.words import word_for
from cacheplane.chat import ChatRequest
from cacheplane.engines import registry, slots
from cacheplane.engines.base import Engine as EngineAdapter
from cacheplane.engines.registry import Serving
from cacheplane.errors import ContextWindowExceeded, ControlPlaneError, InvalidRequest, NotFound
from cacheplane.gateway import admission, matching
from cacheplane.gateway.admission import Admitted, Outcome, Wanted
from cacheplane.gateway.completion import Completion, keep
from cacheplane.gateway.matching import Prefix, Reference

A = TypeVar("A", bound=Admitted | None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a caller asked for, already checked for form. `request.messages` hold no cache message any more.

    `is_live`: the answer is read as it is made, and not as a whole.
    """

    request: ChatRequest
    reference: Reference | None
    request_id: str
    is_live: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a call would count and cost, with the cache and without it. Amounts are exact."""

    model: str
    prefix: Prefix
    prompt_tokens: int
    price: Decimal
    price_uncached: Decimal
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meant:
    """A call with its cache object looked up: `prefix` only when it is active, `named` in any state."""

    request: ChatRequest
    serving: Serving
    named: Prefix | None
    prefix: Prefix | None


async def open_call(caller: Caller, call: Call, *, gateway_id: uuid.UUID) -> Completion:
    """Look up what is meant, count it, and take limits and money. What it returns must be finished.

    Raises NotFound, InvalidRequest, LimitExceeded, EngineError, and billing's InsufficientFunds.
    """
    meant = _meant_at_once(call)
    if meant is None:
        meant = await database.run(_meant, caller, call)
    adapter = registry.adapter_of(meant.serving.engine)
    reset_ttl = None
    if (
        meant.named is not None
        and call.reference is not None
        and call.reference.reset_ttl_seconds is not None
    ):
        reset_ttl = (meant.named.cache_id, call.reference.reset_ttl_seconds)
    wanted, admitted = await _admitted_by_bound(caller, call, meant, adapter, gateway_id=gateway_id)
    if wanted is None or admitted is None:
        prompt_tokens = await _prompt_tokens(adapter, meant)
        wanted = _wanted(
            call, meant, _fitting(meant, prompt_tokens=prompt_tokens), prompt_tokens=prompt_tokens
        )
        admitted = await _admitted(admission.admit, caller, wanted, gateway_id=gateway_id, meant=meant)
    return Completion(
        caller=caller,
        request=meant.request,
        wanted=wanted,
        engine=meant.serving.engine,
        adapter=adapter,
        admitted=admitted,
        reset_ttl=reset_ttl,
        is_live=call.is_live,
    )


async def dry_run(caller: Caller, call: Call) -> DryRun:
    """Count and price a call without running it; one of the minute's requests, but none of its tokens.

    Raises InvalidRequest when the object is not active, LimitExceeded, EngineError.
    """
    meant = await database.run(_meant, caller, call)
    if meant.named is None:
        raise InvalidRequest(
            "Invalid request: dry_run: the call matches no cache object, and takes an active one"
        )
    if meant.prefix is None:
        raise InvalidRequest(
            f"Invalid request: dry_run: the cache object is {word_for(meant.named.status)}, and takes one that is "
            f"{word_for(ACTIVE)}"
        )
    await database.run_for(caller.organization_id, rate_limits.admit_tokens, caller, tokens=0)
    prompt_tokens = await _prompt_tokens(registry.adapter_of(meant.serving.engine), meant)
    serving = _fitting(meant, prompt_tokens=prompt_tokens)
    price, price_uncached, currency = await database.run(
        admission.prices, caller, serving, prefix=meant.prefix, prompt_tokens=prompt_tokens
    )
    return DryRun(
        model=serving.model,
        prefix=meant.prefix,
        prompt_tokens=prompt_tokens,
        price=price,
        price_uncached=price_uncached,
        currency=currency,
    )


def _meant_at_once(call: Call) -> _Meant | None:
    """A call that names no cache object, of a model that was asked for a moment ago: nothing to look up."""
    serving = registry.remembered(call.request.model) if call.reference is None else None
    return _Meant(request=call.request, serving=serving, named=None, prefix=None) if serving else None


def _meant(caller: Caller, call: Call) -> _Meant:
    """Runs in a database thread: the model, its engine, and the cache object with its messages put in place."""
    serving = registry.serving(call.request.model)
    reference = call.reference
    if reference is None:
        return _Meant(request=call.request, serving=serving, named=None, prefix=None)
    if reference.reset_ttl_seconds is not None:
        check_ttl(caller, field="reset_ttl", seconds=reference.reset_ttl_seconds)
    if not reference.is_message:
        return _matched_by_header(caller, call, serving, reference)
    named = matching.find(caller, reference)
    if named.model_family != serving.family:
        raise InvalidRequest(
            f"Invalid request: model: got {serving.model}, takes a model of the cache object's family "
            f"{named.model_family}"
        )
    assert named.messages is not None
    request = msgspec.structs.replace(
        call.request,
        messages=[*named.messages, *call.request.messages],
        tools=named.tools,
        tool_choice=call.request.tool_choice if named.tools else None,
    )
    return _Meant(
        request=request, serving=serving, named=named, prefix=named if named.status == ACTIVE else None
    )


def _matched_by_header(caller: Caller, call: Call, serving: Serving, reference: Reference) -> _Meant:
    """Header mode never fails for the cache's sake: what does not match is an ordinary call."""
    unmatched = _Meant(request=call.request, serving=serving, named=None, prefix=None)
    try:
        named = matching.find(caller, reference)
    except NotFound:
        return unmatched
    if named.model_family != serving.family or not matching.is_prefix_of(
        named, call.request.messages, call.request.tools
    ):
        return unmatched
    # Equal but for the order of keys. A message's are known ones, which an engine takes by their names; a tool's
    # parameters stand in the prompt as they come: what was computed is the object's own form.
    request = msgspec.structs.replace(call.request, tools=named.tools)
    return _Meant(
        request=request, serving=serving, named=named, prefix=named if named.status == ACTIVE else None
    )


def _wanted(call: Call, meant: _Meant, serving: Serving, *, prompt_tokens: int) -> Wanted:
    return Wanted(
        call_id=uuid.uuid4(),
        model=serving.model,
        family=meant.serving.family,
        prompt_tokens=prompt_tokens,
        max_tokens=meant.request.n * meant.request.max_tokens,
        prefix=meant.prefix,
        request_id=call.request_id,
    )


async def _admitted_by_bound(
    caller: Caller, call: Call, meant: _Meant, adapter: EngineAdapter, *, gateway_id: uuid.UUID
) -> tuple[Wanted | None, Admitted | None]:
    """A short prompt of a caller who has plenty need not be counted before it is evaluated: asking the engine takes
    longer than admission. (None, None) where it must."""
    bound = _prompt_bound(adapter, meant)
    if bound is None or meant.serving.sizes:
        return None, None
    try:
        serving = _fitting(meant, prompt_tokens=bound)
    except ContextWindowExceeded:
        return None, None  # told with the exact count, if it is true of that
    wanted = _wanted(call, meant, serving, prompt_tokens=bound)
    return wanted, await _admitted(
        admission.admit_by_bound, caller, wanted, gateway_id=gateway_id, meant=meant
    )


def _prompt_bound(adapter: EngineAdapter, meant: _Meant) -> int | None:
    """At least as many tokens as the prompt has, if that can be told without asking and is not far off."""
    request, prefix = meant.request, meant.prefix
    if prefix is None:
        return adapter.bound_tokens(request.messages, request.tools)
    rest = request.messages[prefix.message_count :]
    bound = adapter.bound_tokens(rest, None) if rest else None
    return prefix.tokens + bound if bound is not None else None


async def _prompt_tokens(adapter: EngineAdapter, meant: _Meant) -> int:
    """The prompt's tokens. A cached prefix is not counted again: its count is known, only the rest is asked for."""
    if meant.prefix is None:
        return await adapter.count_tokens(meant.request.messages, meant.request.tools)
    rest = meant.request.messages[meant.prefix.message_count :]
    if not rest:
        return await adapter.count_tokens(meant.request.messages, meant.request.tools)
    return meant.prefix.tokens + await adapter.count_tokens(rest, None)


def _fitting(meant: _Meant, *, prompt_tokens: int) -> Serving:
    """The model that the call is answered and billed as. Raises ContextWindowExceeded."""
    tokens = prompt_tokens + meant.request.max_tokens
    serving = meant.serving.fitting(tokens)
    window = min(serving.window_tokens, serving.engine.window_tokens)
    if tokens > window:
        raise ContextWindowExceeded(
            f"Your request exceeded model token limit : {window} ({prompt_tokens} prompt tokens and "
            f"max_tokens {meant.request.max_tokens})"
        )
    return serving


async def _admitted(
    admit: Callable[..., A], caller: Caller, wanted: Wanted, *, gateway_id: uuid.UUID, meant: _Meant
) -> A:
    taking = asyncio.create_task(
        database.run_for(
            caller.organization_id,
            admit,
            caller,
            wanted,
            gateway_id=gateway_id,
            engine_id=meant.serving.engine.id,
        )
    )
    try:
        return await asyncio.shield(taking)
    except asyncio.CancelledError:
        # The caller left while the transaction ran: it may have committed, so what it took is given back.
        keep(asyncio.create_task(_undo(taking, caller, wanted)))
        raise


async def _undo(taking: asyncio.Task[A], caller: Caller, wanted: Wanted) -> None:
    try:
        admitted = await taking
    except ControlPlaneError:
        return  # refused, so nothing was taken
    if admitted is None:
        return
    outcome = Outcome(usage=None, is_hit=False, started_at=admitted.at)
    await database.run_for(caller.organization_id, admission.settle, caller, wanted, outcome, None)
    lease = admitted.lease
    if lease is not None:
        # Nothing was done with it: it holds what it held.
        await database.run(
            slots.release,
            lease,
            resident=lease.resident,
            resident_organization=lease.resident_organization,
        )
