"""How far the answer of a running call is paid for: it begins with little, and more is set aside as it grows."""

from __future__ import annotations

import asyncio
from datetime import datetime

from cacheplane import database
from cacheplane.access.callers import Caller
from cacheplane.gateway import admission
from cacheplane.gateway.admission import HOLD_TOKENS, Wanted


class Cover:
    """`tokens` of the answer have money set aside. What it starts must be ended with `close`."""

    def __init__(self, caller: Caller, wanted: Wanted, *, started_at: datetime) -> None:
        self.tokens = wanted.held_tokens
        self._caller = caller
        self._wanted = wanted
        self._started_at = started_at
        self._is_whole = self.tokens >= wanted.max_tokens
        self._growing: asyncio.Task[int] | None = None

    def suffices(self, produced: int) -> bool:
        """Whether the answer may go on after `produced` tokens; asks for more in time, and does not wait for it."""
        if self._is_whole:
            return True
        if self._growing is None and produced + HOLD_TOKENS // 4 >= self.tokens:
            step = min(HOLD_TOKENS, self._wanted.max_tokens - self.tokens)
            # A task of its own: whoever leaves meanwhile must still learn what was set aside.
            self._growing = asyncio.create_task(
                database.run_for(
                    self._caller.organization_id,
                    admission.hold_more,
                    self._caller,
                    self._wanted,
                    completion_tokens=step,
                    started_at=self._started_at,
                )
            )
        return produced < self.tokens

    async def grows(self) -> bool:
        """Wait for what was asked for; False when there is no money for one token more. Raises ServiceUnavailable."""
        if self._growing is None:
            return False
        granted = await asyncio.shield(self._growing)
        self._growing = None
        self.tokens += granted
        self._is_whole = self.tokens >= self._wanted.max_tokens
        return granted > 0

    async def close(self) -> None:
        """Wait until nothing more is being set aside, so that the hold can be settled as it stands."""
        if self._growing is not None:
            await asyncio.wait({self._growing})
            self._growing.exception()  # whoever has not waited for it does not need it any more
