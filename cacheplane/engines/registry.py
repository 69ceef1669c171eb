"""Which engine serves what: engines, families and names are rows; adapters are made from them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from cacheplane.access import audit
from cacheplane.engines import http, slots
from cacheplane.engines.base import Engine as EngineAdapter
from cacheplane.engines.llamacpp import LlamaCppEngine
from cacheplane.engines.models import Engine, EngineSlot, ModelFamily, ServedModel
from cacheplane.errors import EngineError, EngineOverloaded, InvalidRequest, NotFound

DEFAULT_ENGINE = "default"
REGISTER_TIMEOUT_SECONDS = 120.0
SERVING_MEMO_SECONDS = 5.0


@lru_cache(maxsize=64)
def _adapter(*, url: str, api_key: str, kv_dir: str) -> EngineAdapter:
    return LlamaCppEngine(url=url, api_key=api_key, kv_dir=Path(kv_dir))


def adapter_of(engine: Engine) -> EngineAdapter:
    """The adapter that speaks this engine's dialect. The key comes from the settings, never from a table."""
    return _adapter(url=engine.url, api_key=_api_key_of(engine.name), kv_dir=engine.kv_dir)


def _api_key_of(name: str) -> str:
    return str(settings.ENGINE_API_KEYS.get(name, settings.ENGINE_API_KEY))


def register(name: str = DEFAULT_ENGINE, *, url: str | None = None, kv_dir: Path | None = None) -> Engine:
    """Ask and probe an engine, by default the one that the settings name, and write down what it is.

    While it is the only engine, it serves each family that has none. All leases and all that slots held are
    forgotten: whoever calls this knows that the engine has just started, or that no call is in flight on it.
    """
    url, folder = url or settings.ENGINE_URL, str(kv_dir or settings.ENGINE_KV_DIR)
    adapter = _adapter(url=url, api_key=_api_key_of(name), kv_dir=folder)
    known = Engine.objects.filter(name=name).first()
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
            name=name,
            defaults={
                "url": url,
                "kv_dir": folder,
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
        if not Engine.objects.exclude(pk=engine.pk).exists():
            ModelFamily.objects.filter(engine__isnull=True).update(engine=engine)
    return engine


def serve(family: str, *, on: Engine, models: Mapping[str, int | None], operator: str) -> None:
    """Put a family on an engine and add names to it, with their windows; None makes a name that picks its own.

    A family that moves keeps its cache objects: each is computed again when it is next called.
    """
    with transaction.atomic():
        ModelFamily.objects.update_or_create(name=family, defaults={"engine": on})
        for name, window_tokens in models.items():
            ServedModel.objects.update_or_create(
                name=name, defaults={"family_id": family, "window_tokens": window_tokens}
            )
        detail = {"engine": on.name, "models": dict(models)}
        audit.record(operator=operator, action="model_family.serve", subject=family, detail=detail)


def engines_in_service() -> list[Engine]:
    return list(Engine.objects.filter(is_draining=False).order_by("id"))


def families_of(engine: Engine) -> list[str]:
    return list(ModelFamily.objects.filter(engine=engine).values_list("name", flat=True))


def engine_for(family: str) -> Engine:
    """The engine that serves a model family. Raises EngineOverloaded when it has none in service."""
    found = ModelFamily.objects.select_related("engine").filter(name=family).first()
    return _in_service(found.engine if found is not None else None, family)


def _in_service(engine: Engine | None, family: str) -> Engine:
    if engine is None:
        raise EngineOverloaded(
            f"No engine serves the model family {family}; an operator can put it on one with register_engine."
        )
    if engine.is_draining:
        raise EngineOverloaded(f"The engine of the model family {family} is out of service for a while.")
    return engine


def served_model(name: str) -> ServedModel:
    """The model that a caller named. Raises NotFound with the contract's sentence."""
    try:
        # PostgreSQL takes no NUL: a name with one is nobody's.
        return ServedModel.objects.select_related("family__engine").get(name=name.replace("\0", "\ufffd"))
    except ServedModel.DoesNotExist:
        raise NotFound(f"Not found the model {name[:64]} or Permission denied") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A model name with the engine that serves it."""

    model: str
    family: str
    window_tokens: int
    engine: Engine
    sizes: tuple[tuple[int, str], ...] = ()
    """Of a name that stands for others: their windows and names, the smallest first."""

    def fitting(self, tokens: int) -> Serving:
        """Itself; or, where the name stands for others, the smallest that takes `tokens`, else the largest."""
        if not self.sizes:
            return self
        takes = (size for size in self.sizes if size[0] >= tokens)
        window_tokens, model = next(takes, self.sizes[-1])
        return replace(self, model=model, window_tokens=window_tokens, sizes=())


_serving_memo: dict[str, tuple[float, Serving]] = {}


def remembered(name: str) -> Serving | None:
    """What `serving` found a moment ago, without asking anybody: for the event loop."""
    known = _serving_memo.get(name)
    return known[1] if known is not None and time.monotonic() - known[0] < SERVING_MEMO_SECONDS else None


def serving(name: str) -> Serving:
    """As `served_model` with its engine, remembered for some seconds: the hot path asks at each call.

    What must not be old is asked again when a slot is leased: whether the engine drains, and its fingerprint.
    """
    known = remembered(name)
    if known is not None:
        return known
    model = served_model(name)
    engine = _in_service(model.family.engine, model.family_id)
    if model.window_tokens is None:
        sizes = _sizes_of(model)
        window_tokens = sizes[-1][0]
    else:
        sizes, window_tokens = (), model.window_tokens
    found = Serving(
        model=model.name,
        family=model.family_id,
        window_tokens=window_tokens,
        engine=engine,
        sizes=sizes,
    )
    _serving_memo[name] = (time.monotonic(), found)
    return found


def _sizes_of(model: ServedModel) -> tuple[tuple[int, str], ...]:
    """Windows and names of the model's family, the smallest first. Raises NotFound when there is none."""
    found = tuple((sized.window_tokens, sized.name) for sized in sized_models(model.family_id))
    if not found:
        raise NotFound(f"Not found the model {model.name[:64]} or Permission denied")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SizedModel:
    """A model name that has a window of its own."""

    name: str
    window_tokens: int


def sized_models(family: str) -> list[SizedModel]:
    """The family's names that have a window, the smallest first."""
    rows = ServedModel.objects.filter(family_id=family).order_by("window_tokens", "name")
    return [
        SizedModel(name=name, window_tokens=window_tokens)
        for name, window_tokens in rows.values_list("name", "window_tokens")
        if window_tokens is not None
    ]


def require_family(family: str) -> None:
    """Raise InvalidRequest unless `family` is a family, and not one of its models."""
    if not ServedModel.objects.filter(family_id=family, window_tokens__isnull=False).exists():
        raise InvalidRequest("model family is invalid")
