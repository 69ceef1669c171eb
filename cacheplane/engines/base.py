"""What every inference engine must be able to do for us, and the frozen types that cross that door.

The adapter is asynchronous; `engines.http.call` runs one of its coroutines for synchronous callers (workers, the
REST part). Every method raises only `cacheplane.errors.EngineError` or `KVError`: an engine's own words are
translated once, inside the adapter.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cacheplane.chat import ChatDelta, ChatRequest, Message, Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine said of itself, and what the probe proved. Tokens are per slot."""

    kind: str
    model: str
    build: str
    total_slots: int
    window_tokens: int
    fingerprint: str
    """Hex SHA-256 over all that makes a saved KV state readable; another fingerprint means another world."""
    persist: bool
    """True when save, erase, restore and reuse were seen to work on this engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVHandle:
    """One saved KV state on the engine's disk. `filename` is relative to the engine's KV folder.

    `prefill_ms` is what a prefill has just measured: how long the engine worked on the tokens, from the request to
    its last token, saving and hashing left out. None where a handle was read back, not made.
    """

    filename: str
    n_tokens: int
    size_bytes: int
    sha256: str
    blake3: str
    fingerprint: str
    prefill_ms: int | None = None


Progress = Callable[[int, int], None]
"""Called with (tokens evaluated, tokens in all) while a prefill runs."""


class Engine(Protocol):
    async def capabilities(self) -> Capabilities:
        """Ask, and probe persistence with 64 tokens in the last slot. Seconds; called at start only."""

    async def is_healthy(self) -> bool:
        """True when the engine answers and its model is loaded. Never raises."""

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int:
        """Prompt tokens of a call with these messages, the opening of the answer included."""

    def bound_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int | None:
        """No fewer than `count_tokens` would say, and for a short prompt not many more; asks nobody.

        None for what is long or out of the ordinary, and until some prompt of the same turns has been counted.
        """

    async def prefix_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        """Token ids of these messages as a prefix, cut at a template boundary.

        Where the last message is the assistant's, the prefix ends with the opening of a user's turn: it serves
        the calls that go on with one.

        Raises InvalidRequest when the model's template does not keep the prefix stable under one more turn.
        """

    async def count_prefix_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int:
        """How many `prefix_tokens` there are, sooner. Raises as it does."""

    async def prefill(
        self, tokens: Sequence[int], *, slot: int, filename: str, on_progress: Progress | None = None
    ) -> KVHandle:
        """Erase the slot, evaluate `tokens`, save under a temporary name, hash, fsync, rename to `filename`.

        Cancelling it stops the engine and leaves no file. `on_progress` runs on the event loop: it must be quick.
        """

    async def verify(self, handle: KVHandle, *, fingerprint: str) -> None:
        """Raise KVDamaged unless file, size, checksum and fingerprint are all as they were saved.

        Asks no engine. Reads every byte, with the fast digest (BLAKE3) on all cores: 1 to 5 ms for 10 MB.
        """

    async def restore(self, handle: KVHandle, *, slot: int) -> None:
        """Load a verified state into a slot. Raises KVDamaged when the engine refuses; the slot is then erased."""

    async def erase(self, *, slot: int) -> None:
        """Forget what a slot holds."""

    async def is_idle(self, *, slot: int) -> bool:
        """False while the engine still works in a slot, as it does for a moment after a call was broken off."""

    async def drop(self, filename: str) -> None:
        """Destroy the bytes of a saved state; absent is fine."""

    def chat(
        self, request: ChatRequest, *, slot: int, reuse_tokens: bool, is_live: bool = True
    ) -> AsyncGenerator[ChatDelta, None]:
        """Run a call in a slot; `reuse_tokens` lets the engine start from what the slot holds.

        Unless `is_live`, nobody reads along, and deltas may come some milliseconds late, several at a time.

        Closing it (`aclosing`) closes the connection, and the engine stops. The last delta carries the final
        usage; each delta with content carries the usage so far, for a call that is given up.
        """
