"""The adapter for llama.cpp's server: the bundled one, or an operator's own reached by its URL."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec
from blake3 import blake3

from cacheplane.chat import ChatDelta, ChatRequest, Message, Tool
from cacheplane.engines import http, kv_files
from cacheplane.engines import llamacpp_wire as wire
from cacheplane.engines.base import Capabilities, KVHandle, Progress
from cacheplane.errors import (
    EngineError,
    EngineOverloaded,
    EngineRejected,
    EngineTimeout,
    InvalidRequest,
    KVDamaged,
    KVError,
    KVStoreFull,
)

T = TypeVar("T")

log = logging.getLogger(__name__)

_PROBE_TOKENS = 64
_PROBE_TEXT = "One two three four five six seven eight nine ten eleven twelve. " * _PROBE_TOKENS
_NEXT_TURN: Message = {"role": "user", "content": "1"}
_OTHER_NEXT_TURN: Message = {"role": "user", "content": "2"}
_SLOTS_KNOWN_SECONDS = 30.0  # after that an engine may have been started again with fewer
_DISK_SPARE_BYTES = 8 << 20  # a failed save with less than this left is told as a full disk
_COMPARED_AT_ONCE = 1024  # tokens; one by one, those of a whole window take 5 ms
_TOKENS_LOST_AT_CUT = (
    8  # a cut may fall inside a word; more than this means that the template rewrites the past
)

_SHORT_BYTES = 768
_SHAPES_MAX = 1000

_decode_chunk = msgspec.json.Decoder(wire.Chunk).decode
_decode_tokens = msgspec.json.Decoder(wire.Tokenized).decode
_decode_prefill = msgspec.json.Decoder(wire.PrefillEvent).decode


class LlamaCppEngine:
    """One server. Without `kv_dir`, or where what it saves does not show up there, nothing persists."""

    kind = "llamacpp"

    def __init__(self, url: str, api_key: str | None, kv_dir: str | os.PathLike[str] | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._kv_dir = Path(kv_dir) if kv_dir else None
        self._total_slots = 0
        self._slots_known_until = 0.0
        self._template: tuple[str, str, str] | None = None
        self._defusals: list[tuple[bytes, bytes]] | None = None
        self._least_counts: dict[tuple[str, ...], int] = {}

    # What it is

    async def capabilities(self) -> Capabilities:
        props, model = await self._describe()
        persist = await self._probe(slot=props.total_slots - 1)
        return Capabilities(
            kind=self.kind,
            model=model.id,
            build=_build(props, model),
            total_slots=props.total_slots,
            window_tokens=props.default_generation_settings.n_ctx,
            fingerprint=await _fingerprint(props, model),
            persist=persist,
        )

    async def is_healthy(self) -> bool:
        try:
            await self._ask("GET", "/health", limits=http.HEALTH)
        except EngineError:
            return False
        return True

    # Counting

    async def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int:
        body = wire.conversation(messages, tools)
        count = (await self._say("/v1/chat/completions/input_tokens", body, wire.InputTokens)).input_tokens
        plain = wire.plain_turns(messages) if not tools else None
        if plain is not None:
            if len(self._least_counts) >= _SHAPES_MAX:
                self._least_counts.clear()
            self._least_counts[plain[0]] = min(count, self._least_counts.get(plain[0], count))
        return count

    def bound_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int | None:
        """What the template adds to these turns is less than the least that a prompt of them has counted, and a
        text has no more tokens than bytes; a control token that is taken apart has one byte more."""
        plain = wire.plain_turns(messages) if not tools else None
        if plain is None or plain[1] > _SHORT_BYTES:
            return None
        least = self._least_counts.get(plain[0])
        return None if least is None else least + plain[1] * 4 // 3 + len(messages)

    async def prefix_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        return _kept(*await self._tokenized_prefix(messages, tools))

    async def count_prefix_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> int:
        cut, whole = await self._tokenized_prefix(messages, tools)
        # Nearly always the one goes on from the other, which shows without making numbers of a megabyte of digits.
        beginning = cut.rstrip().removesuffix(b"]}")
        if whole.startswith(beginning + b","):
            return beginning.count(b",") + 1
        return len(_kept(cut, whole))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text as it stands, template tokens understood."""
        return _tokens(await self._tokenize(text))

    # KV states

    async def prefill(
        self, tokens: Sequence[int], *, slot: int, filename: str, on_progress: Progress | None = None
    ) -> KVHandle:
        kv_files.path_of(self._folder(), filename)
        if not tokens:
            raise InvalidRequest("There are no tokens to compute.")
        await self.erase(slot=slot)
        started = time.monotonic()
        await self._evaluate(tokens, slot=slot, on_progress=on_progress)
        prefill_ms = round((time.monotonic() - started) * 1000)
        saving = asyncio.ensure_future(self._save(len(tokens), slot=slot, filename=filename))
        try:
            return replace(await asyncio.shield(saving), prefill_ms=prefill_ms)
        except asyncio.CancelledError:
            # The engine's save cannot be called back: let it end, so that what it wrote can be removed.
            await asyncio.wait([saving])
            await self.drop(filename)
            raise

    async def verify(self, handle: KVHandle, *, fingerprint: str) -> None:
        _same_world(handle, fingerprint)
        await asyncio.to_thread(kv_files.prove, self._folder(), handle)

    async def verify_sha256(self, handle: KVHandle, *, fingerprint: str) -> None:
        """As `verify`, by the slower digest."""
        _same_world(handle, fingerprint)
        await asyncio.to_thread(kv_files.prove_sha256, self._folder(), handle)

    async def restore(self, handle: KVHandle, *, slot: int) -> None:
        kv_files.path_of(self._folder(), handle.filename)
        try:
            done = await self._act(slot, "restore", handle.filename)
        except EngineRejected as error:
            await self.erase(slot=slot)
            raise KVDamaged(f"The engine did not take the saved state {handle.filename}.") from error
        if done.n_restored != handle.n_tokens:
            await self.erase(slot=slot)
            raise KVDamaged(
                f"The engine restored {done.n_restored} tokens from {handle.filename}, not {handle.n_tokens}."
            )

    async def erase(self, *, slot: int) -> None:
        await self._act(slot, "erase")

    async def is_idle(self, *, slot: int) -> bool:
        states = await self._get("/slots", list[wire.SlotState])
        return not any(state.is_processing for state in states if state.id == slot)

    async def drop(self, filename: str) -> None:
        await asyncio.to_thread(kv_files.destroy, self._folder(), filename)

    # Calls

    async def chat(
        self, request: ChatRequest, *, slot: int, reuse_tokens: bool, is_live: bool = True
    ) -> AsyncGenerator[ChatDelta, None]:
        await self._check_slot(slot)
        body = await self._defused(wire.chat_body(request, slot=slot, reuse_tokens=reuse_tokens))
        complete, reader = False, wire.EventReader()
        async with self._stream("/v1/chat/completions", body, http.CALL) as response:
            async for piece in response.content.iter_any() if is_live else http.portions(response):
                for event in reader.feed(piece):
                    chunk = _decoded(event, _decode_chunk)
                    if chunk.error is not None:
                        raise wire.translated(chunk.error, status=chunk.error.code)
                    complete = (
                        chunk.usage is not None
                    )  # the last event, and only it, has the whole call's usage
                    for delta in _deltas(chunk):
                        yield delta
        if not complete:
            raise EngineError("The engine broke off in the middle of its answer.")

    # How it is done

    async def _describe(self) -> tuple[wire.Props, wire.ModelEntry]:
        props, models = await asyncio.gather(
            self._get("/props", wire.Props), self._get("/v1/models", wire.ModelList)
        )
        if not models.data:
            raise EngineError("The engine names no model.")
        self._note_slots(props)
        return props, models.data[0]

    async def _tokenize(self, text: str) -> bytes:
        body = {"content": text, "add_special": True, "parse_special": True}
        return await self._ask("POST", "/tokenize", msgspec.json.encode(body))

    async def _tokenized_prefix(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> tuple[bytes, bytes]:
        """What the server answers for the tokens of these messages, and of the same with one more turn."""
        prefix, whole = await self._render_prefix(messages, tools)
        if not prefix or not whole.startswith(prefix):
            raise InvalidRequest(
                "The model's chat template changes earlier messages when a turn is added: "
                "a prefix of it cannot be cached."
            )
        return await asyncio.gather(self._tokenize(prefix), self._tokenize(whole))

    async def _render_prefix(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> tuple[str, str]:
        """The text of these messages, and that of the same with one more turn."""
        longer = [*messages, _NEXT_TURN]
        if messages and messages[-1].get("role") == "assistant":
            # The server takes such a message as the beginning of its answer and leaves it open. What two
            # different next turns have in common is the closed message and the opening of a user's turn.
            one, other = await asyncio.gather(
                self._render(longer, tools), self._render([*messages, _OTHER_NEXT_TURN], tools)
            )
            return os.path.commonprefix([one, other]), one
        prefix, whole = await asyncio.gather(self._render(messages, tools), self._render(longer, tools))
        return prefix, whole

    async def _render(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
        body = wire.conversation(messages, tools) | {"add_generation_prompt": False}
        return (await self._say("/apply-template", body, wire.Rendered)).prompt

    async def _evaluate(self, tokens: Sequence[int], *, slot: int, on_progress: Progress | None) -> None:
        body = {
            "prompt": list(tokens),
            "n_predict": 0,
            "id_slot": slot,
            "cache_prompt": False,
            "stream": True,
            "return_progress": True,
        }
        evaluated, reader = 0, wire.EventReader()
        async with self._stream("/completion", msgspec.json.encode(body), http.PREFILL) as response:
            async for piece in response.content.iter_any():
                for event in reader.feed(piece):
                    told = _decoded(event, _decode_prefill)
                    if told.error is not None:
                        raise wire.translated(told.error, status=told.error.code)
                    if told.prompt_progress is not None and on_progress is not None:
                        on_progress(told.prompt_progress.processed, len(tokens))
                    if told.stop:
                        evaluated = told.tokens_evaluated
        if evaluated != len(tokens):
            raise EngineError(f"The engine evaluated {evaluated} of {len(tokens)} tokens.")

    async def _save(self, n_tokens: int, *, slot: int, filename: str) -> KVHandle:
        folder = self._folder()
        temporary = folder / (filename + kv_files.TEMPORARY_SUFFIX)
        try:
            done = await self._act(slot, "save", temporary.name)
            if done.n_saved != n_tokens:
                raise EngineError(f"The engine saved {done.n_saved} of {n_tokens} tokens.")
            fingerprint = await _fingerprint(*await self._describe())
            sha256, fast = await asyncio.to_thread(
                kv_files.seal, temporary, folder / filename, size_bytes=done.n_written
            )
        except (EngineError, KVError, OSError) as error:
            full = await asyncio.to_thread(_discard, folder, filename)
            if full:
                raise KVStoreFull("The disk that holds saved KV states is full.") from error
            if isinstance(error, OSError):
                raise KVError(f"The saved state could not be kept: {error.strerror}.") from error
            raise
        return KVHandle(
            filename=filename,
            n_tokens=n_tokens,
            size_bytes=done.n_written,
            sha256=sha256,
            blake3=fast,
            fingerprint=fingerprint,
        )

    async def _probe(self, *, slot: int) -> bool:
        """Does a state that was saved come back? Some kinds of model say yes and reuse nothing."""
        if self._kv_dir is None or not self._kv_dir.is_dir():
            log.warning("engine %s: no KV folder, nothing will be saved", self._url)
            return False
        filename = f"probe-{uuid.uuid4().hex}.kv"
        tokens = (await self.tokenize(_PROBE_TEXT))[:_PROBE_TOKENS]
        try:
            handle = await self.prefill(tokens, slot=slot, filename=filename)
            await self.erase(slot=slot)
            await self.verify(handle, fingerprint=handle.fingerprint)
            await self.restore(handle, slot=slot)
            reused = await self._reused(tokens, slot=slot)
            await self.erase(slot=slot)
        except (EngineOverloaded, EngineTimeout):
            raise  # says nothing about what it could do
        except (EngineError, KVError) as error:
            log.warning("engine %s: saving and restoring does not work: %s", self._url, error)
            return False
        finally:
            await self.drop(filename)
        if reused < len(tokens) - 1:
            log.warning("engine %s: a restored state serves %d of %d tokens", self._url, reused, len(tokens))
        return reused >= len(tokens) - 1

    async def _reused(self, tokens: Sequence[int], *, slot: int) -> int:
        body = {"prompt": list(tokens), "n_predict": 1, "id_slot": slot, "cache_prompt": True}
        told = await self._post("/completion", body, wire.PrefillEvent)
        return told.timings.cache_n if told.timings else 0

    def _folder(self) -> Path:
        if self._kv_dir is None:
            raise KVError("This engine has no folder for saved KV states.")
        return self._kv_dir

    async def _check_slot(self, slot: int) -> None:
        # The server wraps a number out of range around and answers for another slot.
        if time.monotonic() >= self._slots_known_until:
            self._note_slots(await self._get("/props", wire.Props))
        if not 0 <= slot < self._total_slots:
            raise EngineRejected(f"The engine has {self._total_slots} slots; there is no slot {slot}.")

    async def _say(self, path: str, body: dict[str, Any], answer: type[T]) -> T:
        """As `_post`, for what callers wrote."""
        reply = await self._ask("POST", path, await self._defused(msgspec.json.encode(body)))
        return _decoded(reply, msgspec.json.Decoder(answer).decode)

    async def _defused(self, body: bytes) -> bytes:
        """The same without control tokens. The server takes them for such wherever they stand: whoever writes
        one into a message would end his turn with it and begin somebody else's."""
        defusals = self._defusals
        if defusals is None:
            defusals = self._defusals = await self._learn_control_tokens()
        for sign, plain in defusals:
            if sign in body:
                body = body.replace(sign, plain)
        return body

    async def _learn_control_tokens(self) -> list[tuple[bytes, bytes]]:
        props = await self._get("/props", wire.Props)
        self._note_slots(props)
        possible = wire.possible_control_tokens(props)
        body = {"content": "\n".join(sorted(possible)), "add_special": False, "with_pieces": True}
        understood, plain = await asyncio.gather(
            self._post("/tokenize", body | {"parse_special": True}, wire.Pieces),
            self._post("/tokenize", body | {"parse_special": False}, wire.Pieces),
        )
        return wire.defusals(possible & understood.texts() - plain.texts())

    def _note_slots(self, props: wire.Props) -> None:
        template = (props.chat_template, props.bos_token, props.eos_token)
        if template != self._template:
            self._template, self._defusals = template, None
            self._least_counts.clear()
        self._total_slots = props.total_slots
        self._slots_known_until = time.monotonic() + _SLOTS_KNOWN_SECONDS

    async def _act(self, slot: int, action: str, filename: str | None = None) -> wire.SlotAction:
        await self._check_slot(slot)
        body = {} if filename is None else {"filename": filename}
        return await self._post(f"/slots/{slot}?action={action}", body, wire.SlotAction)

    async def _get(self, path: str, answer: type[T]) -> T:
        return _decoded(await self._ask("GET", path), msgspec.json.Decoder(answer).decode)

    async def _post(self, path: str, body: dict[str, Any], answer: type[T]) -> T:
        reply = await self._ask("POST", path, msgspec.json.encode(body))
        return _decoded(reply, msgspec.json.Decoder(answer).decode)

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        limits: aiohttp.ClientTimeout = http.CONTROL,
    ) -> bytes:
        async with self._open(method, path, body, limits) as response:
            return await response.read()

    @asynccontextmanager
    async def _stream(
        self, path: str, body: bytes, limits: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Leaving early closes the connection, which is how the server learns that it may stop.

        Each stream has a connection of its own: the server says keep-alive and yet hangs up after a stream.
        """
        async with self._open("POST", path, body, limits, {"Connection": "close"}) as response:
            try:
                yield response
            finally:
                response.close()

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        body: bytes | None,
        limits: aiohttp.ClientTimeout,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        answered = False
        try:
            async with http.session().request(
                method, self._url + path, data=body, headers=self._headers | (headers or {}), timeout=limits
            ) as response:
                answered = True
                if response.status != 200:
                    raise wire.failure(response.status, await response.read())
                yield response
        except aiohttp.ConnectionTimeoutError as error:
            raise EngineOverloaded("The engine cannot be reached.", retry_after_seconds=1) from error
        except TimeoutError as error:
            raise EngineTimeout("The engine did not answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            if answered:
                raise EngineError("The engine broke off in the middle of its answer.") from error
            raise EngineOverloaded("The engine cannot be reached.", retry_after_seconds=1) from error


def _deltas(chunk: wire.Chunk) -> list[ChatDelta]:
    if chunk.prompt_progress is not None:
        # It says how far the prompt is; and what function is called, where the prompt ends within a tool call.
        begun = (choice.delta.tool_calls for choice in chunk.choices)
        return [ChatDelta(tool_calls=calls) for calls in begun if calls]
    usage = chunk.usage or chunk.timings
    counted = usage.usage() if usage is not None else None
    if not chunk.choices:
        return [ChatDelta(usage=counted)] if counted is not None else []
    return [
        ChatDelta(
            role=choice.delta.role,
            content=choice.delta.content,
            tool_calls=choice.delta.tool_calls,
            finish_reason=choice.finish_reason,
            usage=counted,
        )
        for choice in chunk.choices
    ]


def _decoded(answer: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(answer)
    except msgspec.DecodeError as error:
        raise EngineError("The engine's answer could not be understood.") from error


def _tokens(answer: bytes) -> list[int]:
    return _decoded(answer, _decode_tokens).tokens


def _kept(cut: bytes, whole: bytes) -> list[int]:
    """The tokens that both answers begin with. Raises InvalidRequest when a turn more has changed those before it."""
    tokens = _tokens(cut)
    kept = _common_length(tokens, _tokens(whole))
    if kept < len(tokens) - _TOKENS_LOST_AT_CUT or not kept:
        raise InvalidRequest("The model's tokenizer does not keep this prefix when a turn is added to it.")
    return tokens[:kept]


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    for start in range(0, length, _COMPARED_AT_ONCE):
        end = min(start + _COMPARED_AT_ONCE, length)
        if one[start:end] != other[start:end]:
            return next(index for index in range(start, end) if one[index] != other[index])
    return length


def _same_world(handle: KVHandle, fingerprint: str) -> None:
    if handle.fingerprint != fingerprint:
        raise KVDamaged(f"The saved state {handle.filename} belongs to another engine or model.")


def _discard(folder: Path, filename: str) -> bool:
    """Remove what a failed save left; was the disk full?"""
    full = shutil.disk_usage(folder).free < _DISK_SPARE_BYTES
    kv_files.destroy(folder, filename)
    return full


def _build(props: wire.Props, model: wire.ModelEntry) -> str:
    library = [tag.removeprefix("library=") for tag in model.tags if tag.startswith("library=")]
    return " ".join(["llama.cpp", props.build_info, *library])


async def _fingerprint(props: wire.Props, model: wire.ModelEntry) -> str:
    """Over everything the server tells that a saved state depends on.

    Not told by a server: KV types, flash attention, unified KV. The bundled engine tells its own as tags, an
    operator can (`--tags`); where nobody does, the server refuses such a file by itself when it is restored.
    """
    world = {
        "model": await asyncio.to_thread(_model_identity, props, model),
        "build": props.build_info,
        "tags": sorted(model.tags),
        "template": hashlib.sha256(props.chat_template.encode()).hexdigest(),
        "tokenizer": [props.bos_token, props.eos_token],
        "meta": model.meta,
        "slots": props.total_slots,
        "window_tokens": props.default_generation_settings.n_ctx,
    }
    return hashlib.sha256(msgspec.json.encode(world, order="deterministic")).hexdigest()


def _model_identity(props: wire.Props, model: wire.ModelEntry) -> str:
    """A digest of the model's bytes where it can be had: two models of one shape look alike from outside."""
    if any(tag.startswith("model-blake3=") for tag in model.tags):
        return "tagged"
    try:
        found = os.stat(props.model_path)
        return _file_digest(props.model_path, found.st_size, found.st_mtime_ns)
    except OSError:
        return f"{model.id} {props.model_path} {props.model_ftype}"


@lru_cache(maxsize=8)
def _file_digest(path: str, size_bytes: int, changed_ns: int) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
