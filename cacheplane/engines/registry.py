"""Which engine serves what: engines are rows, their adapters are made from them."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from cacheplane.engines import http, slots
from cacheplane.engines.base import Engine as EngineAdapter
from cacheplane.engines.llamacpp import LlamaCppEngine
from cacheplane.engines.models import Engine, EngineSlot, ServedModel
from cacheplane.errors import EngineError, EngineOverloaded, InvalidRequest, NotFound

DEFAULT_ENGINE = "default"
REGISTER_TIMEOUT_SECONDS = 120.0
SERVING_MEMO_SECONDS = 5.0


@lru_cache(maxsize=64)
def _adapter(*, url: str, api_key: str, kv_dir: str) -> EngineAdapter:
    return LlamaCppEngine(url=url, api_key=api_key, kv_dir=Path(kv_dir))


def adapter_of(engine: Engine) -> EngineAdapter:
    """The adapter that speaks this engine's dialect. The key comes from the settings, never from a table."""
    return _adapter(url=engine.url, api_key=settings.ENGINE_API_KEY, kv_dir=engine.kv_dir)


def register() -> Engine:
    """Ask and probe the engine that the settings name, and write down what it is.

    All leases and all that slots held are forgotten: whoever calls this knows that the engine has just started, or
    that no call is in flight on it.
    """
    url, kv_dir = settings.ENGINE_URL, str(settings.ENGINE_KV_DIR)
    adapter = _adapter(url=url, api_key=settings.ENGINE_API_KEY, kv_dir=kv_dir)
    known = Engine.objects.filter(name=DEFAULT_ENGINE).first()
    owner = f"register:{uuid.uuid4().hex[:12]}"
    if known is not None:
        # The probe writes into a slot: nobody may use one meanwhile, or keep what it saves then.
        slots.seize(engine_id=known.id, owner=owner, seconds=REGISTER_TIMEOUT_SECONDS)
    try:
        found = http.call(adapter.capabilities(), timeout_seconds=REGISTER_TIMEOUT_SECONDS)
    except EngineError:
        if known is not None:
            slots.seize(engine_id=known.id, owner=owner, seconds=0)
        raise
    with transaction.atomic():
        engine, _created = Engine.objects.update_or_create(
            name=DEFAULT_ENGINE,
            defaults={
                "url": url,
                "kv_dir": kv_dir,
                "kind": found.kind,
                "model": found.model,
                "build": found.build,
                "fingerprint": found.fingerprint,
                "total_slots": found.total_slots,
                "window_tokens": found.window_tokens,
                "persist": found.persist,
                "registered_at": timezone.now(),
            },
        )
        engine.slots.all().delete()
        EngineSlot.objects.bulk_create(
            EngineSlot(engine=engine, index=index) for index in range(found.total_slots)
        )
    return engine


def engine_for(family: str) -> Engine:
    """The engine that serves a model family. Raises EngineOverloaded when none is registered yet."""
    engine = Engine.objects.filter(is_draining=False).order_by("id").first()
    if engine is None:
        raise EngineOverloaded("No engine is registered for this model; an operator can run register_engine.")
    return engine


def served_model(name: str) -> ServedModel:
    """The model that a caller named. Raises NotFound with the contract's sentence."""
    try:
        return ServedModel.objects.get(name=name)
    except ServedModel.DoesNotExist:
        raise NotFound(f"Not found the model {name[:64]} or Permission denied") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A model name with the engine that serves it."""

    model: str
    family: str
    window_tokens: int
    engine: Engine


_serving_memo: dict[str, tuple[float, Serving]] = {}


def remembered(name: str) -> Serving | None:
    """What `serving` found a moment ago, without asking anybody: for the event loop."""
    known = _serving_memo.get(name)
    return known[1] if known is not None and time.monotonic() - known[0] < SERVING_MEMO_SECONDS else None


def serving(name: str) -> Serving:
    """As `served_model` and `engine_for` together, remembered for some seconds: the hot path asks at each call.

    What must not be old is asked again when a slot is leased: whether the engine drains, and its fingerprint.
    """
    known = remembered(name)
    if known is not None:
        return known
    model = served_model(name)
    found = Serving(
        model=model.name,
        family=model.family,
        window_tokens=model.window_tokens,
        engine=engine_for(model.family),
    )
    _serving_memo[name] = (time.monotonic(), found)
    return found


def require_family(family: str) -> None:
    """Raise InvalidRequest unless `family` is a family, and not one of its models."""
    if not ServedModel.objects.filter(family=family).exists():
        raise InvalidRequest("model family is invalid")
