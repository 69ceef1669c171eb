"""The operators' view of engines. They change the drain flag, families and the served names; a probe says the rest."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.db.models import Count, F, Max, Model, Q, QuerySet, URLField
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from unfold.admin import TabularInline
from unfold.decorators import action, display

from cacheplane.access import audit
from cacheplane.access.admin_actions import ReasonForm, act_on_form, operator_of
from cacheplane.access.admin_pages import AuditedAdmin, AuditedForm, ReadOnlyAdmin
from cacheplane.engines.models import Engine, EngineSlot, ModelFamily, ServedModel
from cacheplane.errors import Conflict


def _is_leased() -> Q:
    return Q(lease_until__isnull=False, lease_until__gt=Now())


class EngineSlotInline(TabularInline):
    model = EngineSlot
    fields = [
        "index",
        "lease_owner",
        "lease_until",
        "resident",
        "resident_organization",
        "last_used_at",
        "wanted_until",
    ]
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Engine)
class EngineAdmin(ReadOnlyAdmin):
    list_display = [
        "name",
        "kind",
        "url",
        "model_file",
        "takes_work",
        "slots_in_use",
        "window",
        "persist",
        "registered_at",
    ]
    list_filter = ["is_draining", "kind", "persist"]
    search_fields = ["name", "url", "model", "build", "fingerprint"]
    ordering = ["name"]
    formfield_overrides = {URLField: {"assume_scheme": "http"}}
    inlines = [EngineSlotInline]
    actions_detail = ["drain", "undrain"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Engine]:
        leased = Count("slots", filter=Q(slots__lease_until__gt=Now()))
        return super().get_queryset(request).annotate(leased_slots=leased)

    @display(description="model", ordering="model")
    def model_file(self, obj: Engine) -> str:
        return PurePath(obj.model).name

    @display(description="state", ordering="is_draining", label={"serving": "success", "draining": "warning"})
    def takes_work(self, obj: Engine) -> str:
        return "draining" if obj.is_draining else "serving"

    @display(description="slots in use", ordering="leased_slots")
    def slots_in_use(self, obj: Any) -> str:
        return f"{obj.leased_slots} of {obj.total_slots}"

    @display(description="window, tokens", ordering="window_tokens")
    def window(self, obj: Engine) -> str:
        return f"{obj.window_tokens:,}"

    @action(description="Drain", permissions=["operate"], icon="pause")
    def drain(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._set_draining(
            request,
            object_id,
            wanted=True,
            title="Drain",
            explanation="No new call and no new precompute goes to it; those that run may finish.",
        )

    @action(description="Take back into service", permissions=["operate"], icon="play_arrow")
    def undrain(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._set_draining(
            request,
            object_id,
            wanted=False,
            title="Take back into service",
            explanation="New calls and precomputes may go to it again.",
        )

    def _set_draining(
        self, request: HttpRequest, object_id: str, *, wanted: bool, title: str, explanation: str
    ) -> HttpResponse:
        engine = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            set_draining(engine, wanted=wanted, reason=data["reason"], operator=operator_of(request))
            return f"{engine} is {'draining' if wanted else 'in service'} now."

        return act_on_form(
            self,
            request,
            title=title,
            form=ReasonForm(request.POST or None),
            perform=perform,
            back_url=self.url_of(object_id),
            explanation=f"{engine} at {engine.url}. {explanation}",
        )


def set_draining(engine: Engine, *, wanted: bool, reason: str, operator: str) -> None:
    """Change the flag and say so in the audit log. Raises Conflict when it stands so already."""
    with transaction.atomic():
        if not Engine.objects.filter(pk=engine.pk, is_draining=not wanted).update(is_draining=wanted):
            raise Conflict(f"The engine {engine} is {'draining' if wanted else 'in service'} already.")
        audit.record(
            operator=operator,
            action="engine.drain" if wanted else "engine.undrain",
            subject=engine.name,
            reason=audit.required_reason(reason),
        )


@admin.register(EngineSlot)
class EngineSlotAdmin(ReadOnlyAdmin):
    list_display = [
        "slot",
        "use",
        "lease_owner",
        "lease_until",
        "resident",
        "organization_of",
        "last_used_at",
    ]
    list_filter = ["engine"]
    search_fields = ["lease_owner", "resident", "resident_organization"]
    list_select_related = ["engine"]
    ordering = ["engine_id", "index"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[EngineSlot]:
        return super().get_queryset(request).annotate(is_leased=_is_leased(), engine_name=F("engine__name"))

    @display(description="slot", ordering="index")
    def slot(self, obj: Any) -> str:
        return f"{obj.engine_name} / {obj.index}"

    @display(description="state", label={"in use": "warning", "free": "success"})
    def use(self, obj: Any) -> str:
        return "in use" if obj.is_leased else "free"

    @display(description="holds a prefix of", ordering="resident_organization")
    def organization_of(self, obj: EngineSlot) -> str:
        return obj.resident_organization or "nobody"


@admin.register(ModelFamily)
class ModelFamilyAdmin(AuditedAdmin):
    list_display = ["name", "engine", "names"]
    list_filter = ["engine"]
    list_select_related = ["engine"]
    search_fields = ["name"]
    fields = ["name", "engine", "reason"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ModelFamily]:
        return super().get_queryset(request).annotate(names_count=Count("served_models"))

    def get_readonly_fields(self, request: HttpRequest, obj: ModelFamily | None = None) -> list[str]:
        return ["name"] if obj else []

    @display(description="names", ordering="names_count")
    def names(self, obj: Any) -> int:
        return int(obj.names_count)


class ServedModelForm(AuditedForm):
    def clean_window_tokens(self) -> int | None:
        """A name whose window no engine has would be taken and then refused by the engine, call by call."""
        wanted: int | None = self.cleaned_data["window_tokens"]
        largest = Engine.objects.aggregate(largest=Max("window_tokens"))["largest"]
        if wanted is not None and largest is not None and wanted > largest:
            raise forms.ValidationError(f"The largest window of an engine is {largest} tokens.")
        return wanted


@admin.register(ServedModel)
class ServedModelAdmin(AuditedAdmin):
    form = ServedModelForm
    list_display = ["name", "family", "window", "owned_by", "created_at"]
    list_filter = ["family"]
    search_fields = ["name", "family__name"]
    fields = ["name", "family", "window_tokens", "owned_by", "reason"]
    actions_detail = ["withdraw"]

    def get_readonly_fields(self, request: HttpRequest, obj: ServedModel | None = None) -> list[str]:
        return ["name"] if obj else []

    @display(description="window, tokens", ordering="window_tokens")
    def window(self, obj: ServedModel) -> str:
        return "as the call needs" if obj.window_tokens is None else f"{obj.window_tokens:,}"

    @action(description="Withdraw", permissions=["operate"], icon="delete")
    def withdraw(self, request: HttpRequest, object_id: str) -> HttpResponse:
        model = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            withdraw(model, reason=data["reason"], operator=operator_of(request))
            return f"{object_id} is no longer served."

        return act_on_form(
            self,
            request,
            title="Withdraw",
            form=ReasonForm(request.POST or None),
            perform=perform,
            back_url=reverse("admin:engines_servedmodel_changelist"),
            explanation=f"{model}: who asks for it is told, within a second or two, that it is not found.",
        )


def withdraw(model: ServedModel, *, reason: str, operator: str) -> None:
    """Stop serving a name. Its family's cache objects stay, for the names that remain."""
    with transaction.atomic():
        audit.record(
            operator=operator,
            action="served_model.withdraw",
            subject=model.name,
            reason=audit.required_reason(reason),
            detail={"family": model.family_id, "window_tokens": model.window_tokens},
        )
        model.delete()
