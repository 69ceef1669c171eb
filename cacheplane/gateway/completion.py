"""A running call: slot, verify, restore, chat, settle.

    start      a slot, the verified KV state in it, the first counted step of the answer
    deltas     the answer, step by step; several answers one after another, from the prompt that the slot holds
    finish     the slot, the unused money and the limits go back; what was produced is charged

Whatever is wrong with the cache makes a normal prefill of it, never an error.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import ParamSpec

import msgspec
import structlog
from django.conf import settings

from cacheplane import database
from cacheplane.access.callers import Caller
from cacheplane.chat import ChatDelta, ChatRequest, Usage
from cacheplane.engines import slots
from cacheplane.engines.base import Engine as EngineAdapter
from cacheplane.engines.models import Engine
from cacheplane.engines.slots import UNKNOWN_ORGANIZATION, Release, SlotLease
from cacheplane.errors import EngineError, EngineOverloaded, KVDamaged, ServiceUnavailable
from cacheplane.gateway import admission
from cacheplane.gateway.admission import Admitted, Outcome, Wanted
from cacheplane.gateway.cover import Cover
from cacheplane.gateway.matching import Prefix

log = structlog.get_logger(__name__)

P = ParamSpec("P")

SLOT_POLL_SECONDS_MIN, SLOT_POLL_SECONDS_MAX = 0.01, 0.25
DRAIN_POLL_SECONDS = 0.02
UNTIL_IDLE_SECONDS = 30.0
TOKENS_LOST_AT_END_MAX = 8
SETTLE_RETRY_SECONDS = (0.2, 1.0, 5.0, 15.0, 60.0, 120.0)


class Completion:
    """A call that was admitted. `await start()`, iterate `deltas()`, and `await finish()` in a finally.

    `is_hit`, `cached_tokens` and `usage` are what the engine reported, known once `start` has returned.
    """

    def __init__(
        self,
        *,
        caller: Caller,
        request: ChatRequest,
        wanted: Wanted,
        engine: Engine,
        adapter: EngineAdapter,
        admitted: Admitted,
        reset_ttl: tuple[str, int] | None,
        is_live: bool,
    ) -> None:
        self.caller = caller
        self.request = request
        self.wanted = wanted
        self.usage: Usage | None = None
        self.is_hit = False
        self._engine_id = engine.id
        self._adapter = adapter
        self._is_live = is_live
        self._cover = Cover(caller, wanted, started_at=admitted.at)
        self._started_at = admitted.at
        self._started_monotonic = time.monotonic()
        self.reset_ttl = reset_ttl
        self._leasing: asyncio.Task[SlotLease | None] | None = None
        self._lease = admitted.lease
        self._stream: AsyncGenerator[ChatDelta, None] | None = None
        self._opening: list[ChatDelta] = []
        self._finishing: asyncio.Task[None] | None = None
        self._lost_kv_reason: str | None = None
        self._proved_at: datetime | None = None
        self._succeeded = False
        self._was_cut = False
        self._engine_failed = False
        _open.add(self)

    @property
    def now(self) -> datetime:
        """What the organization's clock shows, without asking: when the call was admitted, and what passed since."""
        return self._started_at + timedelta(seconds=time.monotonic() - self._started_monotonic)

    async def start(self) -> None:
        """Get a slot, put the prefix into it, and wait for the first step of the answer. Raises EngineError."""
        if self._lease is None:
            self._lease = await self._wait_for_slot()
        reuse = await self._load_prefix(self._lease)
        self._stream = self._answer(self.request, self._lease, reuse_tokens=reuse)
        # An engine may open the answer before it has counted: nothing is told until it has.
        try:
            while self.usage is None:
                delta = await anext(self._stream, None)
                if delta is None:
                    raise EngineError("The engine ended the answer before it began")
                self._opening.append(delta)
                self._count(delta)
        except EngineError:
            self._engine_failed = True
            raise
        prefix = self.wanted.prefix
        if prefix is not None:
            self.is_hit = reuse and self._reused_all_of(prefix, self.usage.cached_tokens)
            if not self.is_hit:
                if reuse:
                    log.warning(
                        "engine_forgot_prefix", cache_id=prefix.cache_id, cached=self.usage.cached_tokens
                    )
                # A part of a prefix is no hit: it is neither told nor left out of the price.
                self.usage = msgspec.structs.replace(self.usage, cached_tokens=0)

    @staticmethod
    def _reused_all_of(prefix: Prefix, cached_tokens: int) -> bool:
        """A prompt that is cached to its end has its last token evaluated again, and a prefix that ends with the
        opening of a user's turn loses it to a turn of another role: a few tokens less are still the whole."""
        return cached_tokens > 0 and cached_tokens >= prefix.kv_tokens - TOKENS_LOST_AT_END_MAX

    async def deltas(self) -> AsyncGenerator[ChatDelta]:
        """All steps of all answers, the first included. Where the money ends, so do they, as at `max_tokens`."""
        try:
            for choice in range(self.request.n):
                async with aclosing(self._steps(choice)) as steps:
                    async for delta in steps:
                        yield delta
                        if delta.finish_reason is None and not await self._may_go_on():
                            self._was_cut = True
                            break
                if self._was_cut:
                    for unfinished in range(choice, self.request.n):
                        yield ChatDelta(choice=unfinished, finish_reason="length", usage=self.usage)
                    break
        except EngineError:
            # The answer is not whole, and not by the caller's doing: nothing of it is charged.
            self._engine_failed = True
            raise
        self._succeeded = True

    def _steps(self, choice: int) -> AsyncGenerator[ChatDelta, None]:
        return self._first_answer() if choice == 0 else self._next_answer(choice)

    async def _first_answer(self) -> AsyncGenerator[ChatDelta, None]:
        assert self._stream is not None
        for delta in self._opening:
            yield delta
        async for delta in self._stream:
            self._count(delta)
            yield delta

    async def _may_go_on(self) -> bool:
        """Whether the next token can be paid."""
        assert self.usage is not None
        produced = self.usage.completion_tokens
        while not self._cover.suffices(produced):
            if not await self._cover.grows():
                return False
        return True

    async def _next_answer(self, choice: int) -> AsyncGenerator[ChatDelta]:
        """Another answer to the same prompt, which is in the slot by now: it is neither counted nor charged again."""
        assert self.usage is not None and self._lease is not None
        seed = self.request.seed
        request = msgspec.structs.replace(self.request, seed=seed + choice if seed is not None else None)
        before = self.usage
        self._stream = self._answer(request, self._lease, reuse_tokens=True)
        async for delta in self._stream:
            if delta.usage is not None:
                produced = before.completion_tokens + delta.usage.completion_tokens
                self.usage = msgspec.structs.replace(before, completion_tokens=produced)
            yield msgspec.structs.replace(delta, choice=choice)

    def _answer(
        self, request: ChatRequest, lease: SlotLease, *, reuse_tokens: bool
    ) -> AsyncGenerator[ChatDelta, None]:
        return self._adapter.chat(request, slot=lease.index, reuse_tokens=reuse_tokens, is_live=self._is_live)

    def _count(self, delta: ChatDelta) -> None:
        if delta.usage is None:
            return
        counts_cached = self.is_hit or self.usage is None
        owned = self.wanted.prefix.kv_tokens if self.wanted.prefix is not None and counts_cached else 0
        self.usage = Usage(
            prompt_tokens=delta.usage.prompt_tokens,
            completion_tokens=delta.usage.completion_tokens,
            cached_tokens=min(delta.usage.cached_tokens, owned),
        )

    async def _wait_for_slot(self) -> SlotLease:
        deadline = time.monotonic() + settings.SLOT_WAIT_SECONDS
        pause = SLOT_POLL_SECONDS_MIN
        while True:
            # A task of its own: when the caller leaves in the middle, `finish` still learns what was taken.
            self._leasing = asyncio.create_task(
                database.run(
                    admission.take_slot,
                    engine_id=self._engine_id,
                    call_id=self.wanted.call_id,
                    prefix=self.wanted.prefix,
                )
            )
            lease = await asyncio.shield(self._leasing)
            if lease is not None:
                return lease
            if time.monotonic() + pause > deadline:
                raise EngineOverloaded(
                    "The engine is currently overloaded, please try again later", retry_after_seconds=5
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, SLOT_POLL_SECONDS_MAX)

    async def _load_prefix(self, lease: SlotLease) -> bool:
        """Make the slot hold the matched KV state; False when the call must evaluate all of its prompt."""
        if lease.resident_organization not in ("", self.caller.organization_id):
            # What another organization's call left behind would show in this one's timing.
            await self._adapter.erase(slot=lease.index)
        prefix = self.wanted.prefix
        if prefix is None or prefix.kv is None:
            return False
        if lease.resident == prefix.kv_id:
            return True
        try:
            await self._adapter.verify(prefix.kv, fingerprint=lease.fingerprint)
            await self._adapter.restore(prefix.kv, slot=lease.index)
        except KVDamaged as error:
            log.warning("kv_damaged", cache_id=prefix.cache_id, reason=error.message)
            self._lost_kv_reason = error.message
            return False
        self._proved_at = self.now
        return True

    async def finish(self) -> None:
        """Give back the slot and settle, once. Runs to its end even when the caller's task is cancelled."""
        if self._finishing is None:
            self._finishing = keep(asyncio.create_task(self._finish()))
            self._finishing.add_done_callback(lambda _: _open.discard(self))
        await asyncio.shield(self._finishing)

    async def _finish(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
        if self._lease is None and self._leasing is not None:
            self._lease = await self._leasing
        await self._cover.close()
        outcome = Outcome(
            usage=None if self._engine_failed else self.usage,
            is_hit=self.is_hit,
            evaluated_tokens=self._evaluated_tokens(),
            started_at=self._started_at,
            lost_kv_reason=self._lost_kv_reason,
            proved_at=self._proved_at,
        )
        reset_ttl = self.reset_ttl if self._succeeded else None
        if self._succeeded and not self._was_cut and self._lease is not None:
            released = self._released(self._lease)
            await self._settle(admission.settle, self.caller, self.wanted, outcome, reset_ttl, released)
            return
        await self._settle(admission.settle, self.caller, self.wanted, outcome, reset_ttl)
        if self._lease is not None:
            await self._until_idle(self._lease)
            await database.run(slots.give_back, self._released(self._lease))

    def _evaluated_tokens(self) -> int:
        if self._stream is None or self.usage is not None or self._engine_failed:
            return 0
        prefix = self.wanted.prefix
        return self.wanted.prompt_tokens - (prefix.tokens if prefix is not None else 0)

    async def _until_idle(self, lease: SlotLease) -> None:
        """The engine notices between two batches that its caller has gone. A slot that it still works in is not
        given to anybody: the next call would wait in it, silently."""
        deadline = time.monotonic() + UNTIL_IDLE_SECONDS
        try:
            while time.monotonic() < deadline:
                if await self._adapter.is_idle(slot=lease.index):
                    return
                await asyncio.sleep(SLOT_POLL_SECONDS_MAX)
        except EngineError:
            return  # it is away, and with it what it was doing

    async def _settle(self, settle: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Until the database takes it: a call that nobody settles would keep its place and its hold."""
        for pause in (*SETTLE_RETRY_SECONDS, None):
            try:
                await database.run_for(self.caller.organization_id, settle, *args, **kwargs)
                return
            except ServiceUnavailable:
                if pause is None:
                    log.error("call_not_settled", call_id=str(self.wanted.call_id))
                    return
                await asyncio.sleep(pause)

    def _released(self, lease: SlotLease) -> Release:
        if self.usage is None or self._engine_failed:
            # The engine broke off, or was broken off before it said anything: nobody knows what the slot holds.
            return Release(lease=lease, resident=None, resident_organization=UNKNOWN_ORGANIZATION)
        resident = self.wanted.prefix.kv_id if self.is_hit and self.wanted.prefix is not None else None
        return Release(
            lease=lease,
            resident=resident,
            resident_organization=self.caller.organization_id,
            # The row said that the prefix was in the slot and the engine had forgotten it: it was restarted.
            forgets=lease.resident is not None
            and resident is None
            and lease.resident == self._expected_resident(),
        )

    def _expected_resident(self) -> uuid.UUID | None:
        return self.wanted.prefix.kv_id if self.wanted.prefix is not None else None


_open: set[Completion] = set()
"""Admitted and not settled yet."""
_finishing: set[asyncio.Task[None]] = set()


def keep(task: asyncio.Task[None]) -> asyncio.Task[None]:
    """Hold a reference until the task is done: the event loop keeps only weak ones, and a stop waits for it."""
    _finishing.add(task)
    task.add_done_callback(_finishing.discard)
    return task


async def drained(*, timeout_seconds: float) -> None:
    """Wait until all calls are settled; called when the process stops. One that was broken off for that has not even
    begun to settle."""
    deadline = time.monotonic() + timeout_seconds
    while (_open or _finishing) and time.monotonic() < deadline:  # noqa: ASYNC110  # only here, and once
        await asyncio.sleep(DRAIN_POLL_SECONDS)
