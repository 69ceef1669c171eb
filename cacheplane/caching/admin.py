"""The operators' view of cache objects. Nothing is edited: what changes one is an action with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from billing import clock, money
from cacheplane.access import audit, tiers
from cacheplane.access.admin_actions import ReasonField, ReasonForm, act_on_form, operator_of
from cacheplane.access.admin_pages import ReadOnlyAdmin
from cacheplane.caching import lifecycle
from cacheplane.caching.models import (
    ACTIVE,
    ERROR,
    EXPIRED,
    OWN_NOW,
    PENDING,
    CacheObject,
    CacheObjectEvent,
    CacheTag,
    CacheTagChange,
    IdempotencyKey,
    OrganizationBudget,
    PrecomputeTurn,
)
from cacheplane.errors import Conflict

STATUS_COLOURS = {PENDING: "info", ACTIVE: "success", EXPIRED: "warning", ERROR: "danger"}
TEXT_CHARS_SHOWN_MAX = 20_000
EVENTS_SHOWN_MAX = 50
TAGS_SHOWN_MAX = 50
UNBROKEN = '<span class="whitespace-nowrap">{}</span>'
LINK = '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>'


def _id_column(field: str, description: str) -> Callable[[Any], SafeString]:
    @display(description=description, ordering=field)
    def shown(obj: Any) -> SafeString:
        return format_html(UNBROKEN, getattr(obj, field))

    return shown


def _time_column(field: str, description: str) -> Callable[[Any], SafeString | str]:
    """To the second, in UTC: lifetimes are seconds."""

    @display(description=description, ordering=field)
    def shown(obj: Any) -> SafeString | str:
        instant: datetime | None = getattr(obj, field)
        return "-" if instant is None else format_html(UNBROKEN, f"{instant:%Y-%m-%d %H:%M:%S}")

    return shown


@display(description="organization", ordering="organization__name")
def _organization_column(obj: Any) -> SafeString:
    return format_html('<span title="{}">{}</span>', obj.organization_id, obj.organization.name)


class StatusNow(admin.SimpleListFilter):
    """By the status that a reader sees now, not by the one that was written last."""

    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(CacheObject.STATUSES)

    def queryset(self, request: HttpRequest, queryset: QuerySet[CacheObject]) -> QuerySet[CacheObject]:
        wanted = self.value()
        if wanted is None:
            return queryset
        over = CacheObject.objects.due(clock.now()).values("id")
        if wanted == EXPIRED:
            return queryset.filter(Q(status=EXPIRED) | Q(id__in=over))
        return queryset.filter(status=wanted).exclude(id__in=over)


class TtlForm(forms.Form):
    """`ttl_seconds` is counted from now, as everywhere: sent twice, it does the same."""

    ttl_seconds = forms.IntegerField(
        min_value=1, widget=UnfoldAdminIntegerFieldWidget(), label="Ends in (seconds from now)"
    )
    reason = ReasonField()

    def __init__(self, *args: Any, longest_seconds: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._longest_seconds = longest_seconds
        self.fields["ttl_seconds"].help_text = f"At most {longest_seconds:,} on this tier."

    def clean_ttl_seconds(self) -> int:
        seconds: int = self.cleaned_data["ttl_seconds"]
        if seconds > self._longest_seconds:
            raise forms.ValidationError(f"At most {self._longest_seconds:,} seconds on this tier.")
        return seconds


def _as_text(value: Any) -> SafeString:
    """JSON behind a fold, so that a page about an object does not begin with a novel."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    shown = text[:TEXT_CHARS_SHOWN_MAX]
    rest = len(text) - len(shown)
    return format_html(
        '<details><summary class="cursor-pointer">show {} characters</summary>'
        '<pre class="whitespace-pre-wrap break-words">{}{}</pre></details>',
        f"{len(text):,}",
        shown,
        f"\n… and {rest:,} characters more" if rest else "",
    )


@admin.register(CacheObject)
class CacheObjectAdmin(ReadOnlyAdmin):
    list_display = [
        _id_column("id", "id"),
        "status_now",
        _organization_column,
        "model",
        "tokens_shown",
        _time_column("activated_at", "activated"),
        _time_column("expired_at", "ends"),
        "attempts",
    ]
    list_filter = [StatusNow, "ttl_policy", "model", ("organization", admin.RelatedOnlyFieldListFilter)]
    search_fields = ["id", "name", "organization__id", "organization__name"]
    date_hierarchy = "created_at"
    ordering = ["-created_at", "-id"]
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "id",
                    "status_now",
                    "error_shown",
                    "organization",
                    "project",
                    "api_key",
                    "model",
                    "name",
                    "description",
                    "metadata",
                    "tags_shown",
                ]
            },
        ),
        ("Content", {"fields": ["message_count", "tokens_shown", "digest", "messages_shown", "tools_shown"]}),
        ("Life", {"fields": ["created_at", "activated_at", "expired_at", "activations", "events_shown"]}),
        (
            "What decides its end",
            {
                "fields": [
                    "ttl_policy",
                    "used_at",
                    "kept_minutes",
                    "cap_at",
                    "schedule",
                    "reopen_at",
                    "precompute_seconds",
                    "budget_shown",
                    "wanted_until",
                ]
            },
        ),
        (
            "Precompute",
            {
                "fields": [
                    "progress",
                    "attempts",
                    "retry_at",
                    "lease_owner",
                    "lease_until",
                    "fence",
                    "kv_shown",
                ]
            },
        ),
        ("Money", {"fields": ["creation_fee_due", "hold_reference", "segment", "charges"]}),
    ]
    readonly_fields = [
        "status_now",
        "error_shown",
        "tokens_shown",
        "messages_shown",
        "tools_shown",
        "events_shown",
        "progress",
        "charges",
        "api_key",
        "kv_shown",
        "tags_shown",
        "budget_shown",
    ]
    actions_detail = ["expire", "extend", "recompute"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[CacheObject]:
        # The organization's clock, read once per statement, decides the status of every row that is shown.
        shown = super().get_queryset(request).annotate(read_at=OWN_NOW)
        related = shown.select_related("organization__billing_account", "segment", "project")
        return related.defer("messages", "tools")

    # --- What is shown ---

    @display(description="status", label=STATUS_COLOURS)
    def status_now(self, obj: Any) -> str:
        read_at: datetime = obj.read_at
        return str(obj.status_at(read_at))

    @display(description="tokens", ordering="tokens")
    def tokens_shown(self, obj: CacheObject) -> str:
        return f"{obj.tokens:,}"

    @display(description="error")
    def error_shown(self, obj: CacheObject) -> str:
        return f"{obj.error_type}: {obj.error_message}" if obj.error_type else "-"

    @display(description="budget")
    def budget_shown(self, obj: CacheObject) -> str:
        if obj.budget_amount is None:
            return "-"
        return f"{money.text(obj.budget_amount)}, {obj.get_budget_per_display()}"

    @display(description="tags")
    def tags_shown(self, obj: CacheObject) -> str:
        names = list(obj.tags.order_by("tag").values_list("tag", flat=True)[: TAGS_SHOWN_MAX + 1])
        shown = ", ".join(names[:TAGS_SHOWN_MAX])
        return f"{shown}, …" if len(names) > TAGS_SHOWN_MAX else shown or "-"

    @display(description="messages")
    def messages_shown(self, obj: CacheObject) -> SafeString:
        return _as_text(obj.messages)

    @display(description="tools")
    def tools_shown(self, obj: CacheObject) -> SafeString | str:
        return "-" if obj.tools is None else _as_text(obj.tools)

    @display(description="API key")
    def api_key(self, obj: CacheObject) -> SafeString:
        url = reverse("admin:access_apikey_change", args=[obj.api_key_id])
        return format_html(LINK, url, obj.api_key_id)

    @display(description="KV state")
    def kv_shown(self, obj: CacheObject) -> SafeString | str:
        if obj.kv_state_id is None:
            return "-"
        url = reverse("admin:kv_kvstate_change", args=[obj.kv_state_id])
        return format_html(LINK, url, obj.kv_state_id)

    @display(description="prefilled")
    def progress(self, obj: CacheObject) -> str:
        return f"{obj.prefilled_tokens:,} of {obj.tokens:,} tokens"

    @display(description="events")
    def events_shown(self, obj: CacheObject) -> SafeString | str:
        events = CacheObjectEvent.objects.filter(cache_id=obj.pk).order_by("-at")[:EVENTS_SHOWN_MAX]
        rows = [
            (f"{event.at:%Y-%m-%d %H:%M:%S}", event.kind, event.actor, _short(event.detail))
            for event in events
        ]
        body = format_html_join(
            "", "<tr>" + '<td class="pr-4 align-top whitespace-nowrap">{}</td>' * 4 + "</tr>", rows
        )
        return format_html("<table>{}</table>", body) if rows else "-"

    @display(description="charges")
    def charges(self, obj: CacheObject) -> SafeString | str:
        try:
            url = reverse("admin:billing_meterevent_changelist")
        except NoReverseMatch:
            return "-"
        return format_html(LINK, f"{url}?q={obj.pk}", "what was counted for it")

    # --- What an operator may do ---

    @action(description="Expire now", permissions=["operate"], icon="timer_off")
    def expire(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: CacheObject, data: dict[str, Any]) -> str:
            lifecycle.expire_now(row.organization_id, row.pk, actor=operator_of(request))
            return f"{row} is expired; its bytes are being destroyed."

        return self._act(
            request,
            object_id,
            title="Expire now",
            audited_as="cache_object.expire",
            perform=perform,
            consequence="It ends at once: the last started minute is charged, its KV bytes are destroyed.",
        )

    @action(description="Extend", permissions=["operate"], icon="more_time")
    def extend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: CacheObject, data: dict[str, Any]) -> str:
            changed = lifecycle.extend(
                row.organization_id, row.pk, actor=operator_of(request), ttl_seconds=data["ttl_seconds"]
            )
            return f"{row} is {changed.status} and ends at {changed.expired_at:%Y-%m-%d %H:%M:%S} UTC."

        return self._act(
            request,
            object_id,
            title="Extend",
            audited_as="cache_object.extend",
            perform=perform,
            asks_ttl=True,
            consequence="One that has ended goes back to pending and is computed, and charged, anew.",
        )

    @action(description="Recompute", permissions=["operate"], icon="refresh")
    def recompute(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: CacheObject, data: dict[str, Any]) -> str:
            _recompute(row, ttl_seconds=data["ttl_seconds"], actor=operator_of(request))
            return f"{row} is pending and will be computed anew."

        return self._act(
            request,
            object_id,
            title="Recompute",
            audited_as="cache_object.recompute",
            perform=perform,
            asks_ttl=True,
            consequence=(
                "An active one is computed anew free of charge and keeps its end. "
                "One that has ended is charged as when it was created, and ends as said here."
            ),
        )

    def _act(
        self,
        request: HttpRequest,
        object_id: str,
        *,
        title: str,
        audited_as: str,
        perform: Callable[[CacheObject, dict[str, Any]], str],
        consequence: str,
        asks_ttl: bool = False,
    ) -> HttpResponse:
        row = self.required(object_id)

        def perform_and_record(data: dict[str, Any]) -> str:
            with transaction.atomic():
                done = perform(row, data)
                audit.record(
                    operator=operator_of(request),
                    action=audited_as,
                    subject=row.pk,
                    organization_id=row.organization_id,
                    reason=audit.required_reason(data["reason"]),
                    detail={key: value for key, value in data.items() if key != "reason"},
                )
            return done

        posted = request.POST or None
        longest = tiers.tier_now(row.organization).ttl_seconds_max
        return act_on_form(
            self,
            request,
            title=title,
            form=TtlForm(posted, longest_seconds=longest) if asks_ttl else ReasonForm(posted),
            perform=perform_and_record,
            back_url=self.url_of(object_id),
            explanation=f"{row} of {row.organization} is {_status_now(row)}. {consequence}",
        )


def _status_now(row: CacheObject) -> str:
    return row.status_at(clock.now_of(row.organization_id))


def _recompute(row: CacheObject, *, ttl_seconds: int, actor: str) -> None:
    """Active: as if its bytes were lost, so the rework is free. Ended: revived. Pending: raises Conflict."""
    status = _status_now(row)
    if status == PENDING:
        raise Conflict("The cache object is pending: it is being computed already.")
    if status in (EXPIRED, ERROR):
        lifecycle.extend(row.organization_id, row.pk, actor=actor, ttl_seconds=ttl_seconds)
        return
    assert row.kv_state_id is not None
    if not lifecycle.kv_lost(
        row.organization_id,
        row.pk,
        kv_id=row.kv_state_id,
        reason="recompute asked by operator",
        actor=actor,
    ):
        raise Conflict("The cache object has changed meanwhile; look again.")


def _short(detail: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in detail.items())


@admin.register(CacheObjectEvent)
class CacheObjectEventAdmin(ReadOnlyAdmin):
    """What happened to objects, also to those that are gone."""

    list_display = [
        _time_column("at", "at"),
        _id_column("cache_id", "cache object"),
        _organization_column,
        "kind",
        "actor",
        "detail_shown",
    ]
    list_filter = ["kind", ("at", admin.DateFieldListFilter)]
    search_fields = ["cache_id", "actor", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    date_hierarchy = "at"
    ordering = ["-at"]
    fields = ["at", "cache_id", "organization", "kind", "actor", "detail_shown"]
    readonly_fields = ["detail_shown"]

    @display(description="detail")
    def detail_shown(self, obj: CacheObjectEvent) -> str:
        return _short(obj.detail) or "-"


@admin.register(CacheTag)
class CacheTagAdmin(ReadOnlyAdmin):
    """Names of objects as they are now; how they came to be so stands in the tag changes."""

    list_display = [
        "tag",
        _organization_column,
        "object_shown",
        "version",
        _time_column("created_at", "bound"),
    ]
    list_filter = [
        ("organization", admin.RelatedOnlyFieldListFilter),
        ("created_at", admin.DateFieldListFilter),
    ]
    search_fields = ["tag", "cache_object__id", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    ordering = ["organization", "tag"]
    fields = ["tag", "organization", "object_shown", "version", "created_at"]
    readonly_fields = ["object_shown"]

    @display(description="cache object", ordering="cache_object_id")
    def object_shown(self, obj: CacheTag) -> SafeString:
        url = reverse("admin:caching_cacheobject_change", args=[obj.cache_object_id])
        return format_html(LINK, url, obj.cache_object_id)


@admin.register(CacheTagChange)
class CacheTagChangeAdmin(ReadOnlyAdmin):
    """What each tag pointed to and when, also of tags and objects that are gone."""

    list_display = [
        _time_column("at", "at"),
        "tag",
        "version",
        "kind",
        _id_column("cache_id", "cache object"),
        _organization_column,
        "actor",
    ]
    list_filter = ["kind", ("at", admin.DateFieldListFilter)]
    search_fields = ["tag", "cache_id", "actor", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    date_hierarchy = "at"
    ordering = ["-at", "-id"]
    fields = ["at", "tag", "version", "kind", "cache_id", "organization", "actor"]


@admin.register(OrganizationBudget)
class OrganizationBudgetAdmin(ReadOnlyAdmin):
    """What an organization's creations and storage may cost; `manage.py set_budget` changes it."""

    list_display = [_organization_column, "amount", "per", _time_column("set_at", "set"), "set_by"]
    search_fields = ["organization__id", "organization__name"]
    list_select_related = ["organization"]
    fields = ["organization", "amount", "per", "set_at", "set_by"]


@admin.register(PrecomputeTurn)
class PrecomputeTurnAdmin(ReadOnlyAdmin):
    """Whose turn it was: of the organizations with pending objects, the one for which it is longest ago comes next."""

    list_display = [_organization_column, _time_column("taken_at", "last turn")]
    search_fields = ["organization__id", "organization__name"]
    list_select_related = ["organization"]
    fields = ["organization", "taken_at"]


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnlyAdmin):
    """Which creations were made under a key of their caller's, in the last day and a little before."""

    list_display = [
        "key",
        _organization_column,
        _id_column("cache_id", "cache object"),
        _time_column("created_at", "created"),
    ]
    list_filter = [
        ("organization", admin.RelatedOnlyFieldListFilter),
        ("created_at", admin.DateFieldListFilter),
    ]
    search_fields = ["key", "cache_id", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    ordering = ["-created_at", "-id"]
    fields = ["key", "organization", "cache_id", "body_digest", "created_at"]
