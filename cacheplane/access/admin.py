"""The operators' view of access. What changes limits, keys or gates asks for a reason and is audited."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.html import format_html
from unfold.admin import TabularInline
from unfold.decorators import action, display

from billing import money
from cacheplane.access import (
    admin_money,  # noqa: F401  (registers its pages)
    admin_operators,  # noqa: F401  (registers its pages)
    api_keys,
    audit,
    gates,
    organizations,
    tiers,
)
from cacheplane.access.admin_actions import (
    GateForm,
    IssueKeyForm,
    NewOrganizationForm,
    ReasonForm,
    RechargeForm,
    RotateKeyForm,
    TierForm,
    act_on_form,
    operator_of,
    show_secret_once,
)
from cacheplane.access.admin_pages import AccessAdmin, AuditedAdmin, ReadOnlyAdmin
from cacheplane.access.admin_tiers import TierOverrideInline
from cacheplane.access.models import (
    ApiKey,
    AuditEntry,
    CallInFlight,
    FeatureGate,
    FeatureGateEntry,
    FeatureOpening,
    Gateway,
    Organization,
    Project,
    RateState,
)
from cacheplane.access.rate_limits import DEAD_AFTER_SECONDS


class ProjectInline(TabularInline):
    model = Project
    fields = ["id", "name", "created_at"]
    readonly_fields = fields
    extra = 0
    show_change_link = True
    can_delete = False
    tab = True

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class FeatureGateEntryInline(TabularInline):
    model = FeatureGateEntry
    fields = ["gate", "admits", "ends_at", "reason", "created_by", "created_at"]
    readonly_fields = fields
    extra = 0
    can_delete = False
    tab = True

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Organization)
class OrganizationAdmin(AuditedAdmin):
    list_display = ["id", "name", "tier_now", "kind", "coloured_state", "calls_now", "created_at"]
    list_filter = ["tier_overrides__tier", "tier", "state", "kind", ("created_at", admin.DateFieldListFilter)]
    search_fields = ["id", "name"]
    list_select_related = ["tier", "rate_state"]
    date_hierarchy = "created_at"
    fields = [
        *("id", "name", "kind", "state", "created_at"),
        *("tier_now", "tier_override", "tier_earned", "recharged", "billing", "reason"),
    ]
    readonly_fields = [field for field in fields if field not in ("name", "kind", "reason")]
    inlines = [ProjectInline, FeatureGateEntryInline, TierOverrideInline]
    actions_list = ["create_organization"]
    actions_detail = [
        "issue_key",
        "open_gate",
        "recharge",
        {"title": "More", "items": ["close_gate", "set_tier", "end_tier_override", "suspend", "resume"]},
    ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Added by the action, which also makes the project, the key and the billing account."""
        return False

    @display(description="state", ordering="state", label={"active": "success", "suspended": "danger"})
    def coloured_state(self, obj: Organization) -> str:
        return obj.state

    def get_queryset(self, request: HttpRequest) -> QuerySet[Organization]:
        return super().get_queryset(request).with_tier_now()

    @display(description="tier now", ordering="tier_now")
    def tier_now(self, obj: Any) -> str:
        return obj.tier_now

    @display(description="override")
    def tier_override(self, obj: Organization) -> str:
        override = tiers.override_now(obj)
        return f"{override}: {override.reason}" if override else "-"

    @display(description="tier earned")
    def tier_earned(self, obj: Organization) -> str:
        return obj.tier_id

    @display(description="recharged in cash")
    def recharged(self, obj: Organization) -> str:
        return money.text(tiers.standing(obj).recharged)

    @display(description="calls in flight", ordering="rate_state__in_flight")
    def calls_now(self, obj: Organization) -> int:
        return obj.rate_state.in_flight if hasattr(obj, "rate_state") else 0

    @display(description="billing account")
    def billing(self, obj: Organization) -> str:
        try:
            url = reverse("admin:billing_billingaccount_change", args=[obj.pk])
        except NoReverseMatch:
            return "-"
        return format_html('<a href="{}">purses, holds, recharge</a>', url)

    @action(description="Create an organization", permissions=["operate"], icon="add")
    def create_organization(self, request: HttpRequest) -> HttpResponse:
        back_url = reverse("admin:access_organization_changelist")

        def perform(data: dict[str, Any]) -> HttpResponse:
            new = organizations.create(
                name=data["name"],
                tier_slug=data["tier"].slug if data["tier"] else None,
                currency=data["currency"],
                kind=data["kind"],
                operator=operator_of(request),
            )
            return show_secret_once(
                self, request, issued=new.issued_key, back_url=self.url_of(new.organization.pk)
            )

        return act_on_form(
            self,
            request,
            title="Create an organization",
            form=NewOrganizationForm(request.POST or None),
            perform=perform,
            back_url=back_url,
            explanation="With a project, an API key (shown once) and a billing account.",
        )

    @action(description="Issue an API key", permissions=["operate"], icon="key")
    def issue_key(self, request: HttpRequest, object_id: str) -> HttpResponse:
        organization = self.required(object_id)
        return _issue_key(
            self, request, projects=organization.projects.all(), back_url=self.url_of(object_id)
        )

    @action(description="Open a feature gate", permissions=["operate"], icon="lock_open")
    def open_gate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        organization = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            gates.open_for(
                organization,
                feature=data["feature"].slug,
                until=data["until"],
                reason=data["reason"],
                operator=operator_of(request),
            )
            return f"{data['feature']} is open for {organization.name}."

        return self._act(request, object_id, "Open a feature gate", perform, form_class=GateForm)

    @action(description="Close a feature gate", permissions=["operate"], icon="lock")
    def close_gate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        organization = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            gates.close_for(
                organization,
                feature=data["feature"].slug,
                until=data["until"],
                reason=data["reason"],
                operator=operator_of(request),
            )
            return f"{data['feature']} is closed to {organization.name}."

        return self._act(request, object_id, "Close a feature gate", perform, form_class=GateForm)

    @action(description="Recharge", permissions=["operate"], icon="payments")
    def recharge(self, request: HttpRequest, object_id: str) -> HttpResponse:
        organization = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            organizations.recharge(
                organization_id=organization.pk,
                amount=data["amount"],
                purse=data["purse"],
                reason=data["reason"],
                operator=operator_of(request),
                idempotency_key=f"admin:{data['idempotency_key']}",
            )
            return f"{data['amount']} went into the {data['purse']} purse of {organization.name}."

        return self._act(request, object_id, "Recharge", perform, form_class=RechargeForm)

    @action(description="Set the tier", permissions=["operate"], icon="stairs")
    def set_tier(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(data: dict[str, Any]) -> str:
            given = tiers.override(
                organization_id=object_id,
                tier_slug=data["tier"].slug,
                until=data["until"],
                reason=data["reason"],
                operator=operator_of(request),
            )
            return f"The tier is {given}."

        return self._act(request, object_id, "Set the tier", perform, form_class=TierForm)

    @action(description="End the tier's override", permissions=["operate"], icon="undo")
    def end_tier_override(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(data: dict[str, Any]) -> str:
            organization = tiers.end_override(
                organization_id=object_id, reason=data["reason"], operator=operator_of(request)
            )
            return f"The tier is {organization.tier_id}, as earned."

        return self._act(request, object_id, "End the tier's override", perform)

    @action(description="Suspend", permissions=["operate"], icon="block")
    def suspend(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(data: dict[str, Any]) -> str:
            organizations.suspend(
                organization_id=object_id, reason=data["reason"], operator=operator_of(request)
            )
            return "Suspended: its calls are refused from now on."

        return self._act(request, object_id, "Suspend", perform)

    @action(description="Resume", permissions=["operate"], icon="play_arrow")
    def resume(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(data: dict[str, Any]) -> str:
            organizations.resume(
                organization_id=object_id, reason=data["reason"], operator=operator_of(request)
            )
            return "Resumed: it is served again."

        return self._act(request, object_id, "Resume", perform)

    def _act(
        self,
        request: HttpRequest,
        object_id: str,
        title: str,
        perform: Any,
        *,
        form_class: type[forms.Form] = ReasonForm,
    ) -> HttpResponse:
        organization = self.required(object_id)
        return act_on_form(
            self,
            request,
            title=title,
            form=form_class(request.POST or None),
            perform=perform,
            back_url=self.url_of(object_id),
            explanation=f"{organization}, {tiers.tier_now(organization)}, {organization.state}.",
        )


def _issue_key(
    model_admin: AccessAdmin, request: HttpRequest, *, projects: QuerySet[Project], back_url: str
) -> HttpResponse:
    def perform(data: dict[str, Any]) -> HttpResponse:
        issued = api_keys.issue(
            project=data["project"],
            name=data["name"],
            expires_at=data["expires_at"],
            reason=audit.required_reason(data["reason"]),
            operator=operator_of(request),
        )
        return show_secret_once(model_admin, request, issued=issued, back_url=back_url)

    return act_on_form(
        model_admin,
        request,
        title="Issue an API key",
        form=IssueKeyForm(request.POST or None, projects=projects),
        perform=perform,
        back_url=back_url,
        explanation="The secret is shown once, on the next page.",
    )


@admin.register(Project)
class ProjectAdmin(AuditedAdmin):
    list_display = ["id", "name", "organization", "created_at"]
    list_filter = [("created_at", admin.DateFieldListFilter)]
    search_fields = ["id", "name", "organization__id", "organization__name"]
    autocomplete_fields = ["organization"]
    list_select_related = ["organization"]
    actions_detail = ["issue_key"]

    def get_readonly_fields(self, request: HttpRequest, obj: Project | None = None) -> list[str]:
        return ["organization"] if obj else []

    @action(description="Issue an API key", permissions=["operate"], icon="key")
    def issue_key(self, request: HttpRequest, object_id: str) -> HttpResponse:
        self.required(object_id)
        projects = Project.objects.filter(pk=object_id)
        return _issue_key(self, request, projects=projects, back_url=self.url_of(object_id))


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    """The digest is not shown: it is no secret, but nobody needs to see it."""

    list_display = [
        "id",
        "name",
        "organization",
        "project",
        "shown_hint",
        "life",
        "created_at",
        "last_used_at",
    ]
    list_filter = [
        ("revoked_at", admin.EmptyFieldListFilter),
        ("expires_at", admin.DateFieldListFilter),
        ("last_used_at", admin.DateFieldListFilter),
    ]
    search_fields = ["id", "name", "organization__id", "organization__name", "hint"]
    list_select_related = ["organization", "project"]
    fields = [
        "id",
        "name",
        "organization",
        "project",
        "shown_hint",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
    ]
    readonly_fields = ["shown_hint"]
    actions_detail = ["rotate", "revoke"]

    @display(description="secret ends in", ordering="hint")
    def shown_hint(self, obj: ApiKey) -> str:
        return f"…{obj.hint}"

    @display(description="state", label={"live": "success", "expired": "warning", "revoked": "danger"})
    def life(self, obj: ApiKey) -> str:
        if obj.revoked_at is not None:
            return "revoked"
        return "expired" if obj.expires_at is not None and obj.expires_at <= timezone.now() else "live"

    @action(description="Revoke", permissions=["operate"], icon="key_off")
    def revoke(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            api_keys.revoke(
                api_key_id=key.pk, operator=operator_of(request), reason=data["reason"], at=timezone.now()
            )
            return f"{key} is revoked."

        return act_on_form(
            self,
            request,
            title="Revoke",
            form=ReasonForm(request.POST or None),
            perform=perform,
            back_url=self.url_of(object_id),
            explanation=f"{key}: for good, felt everywhere within {api_keys.CACHE_TTL_SECONDS:.0f} seconds.",
        )

    @action(description="Rotate", permissions=["operate"], icon="autorenew")
    def rotate(self, request: HttpRequest, object_id: str) -> HttpResponse:
        key = self.required(object_id)

        def perform(data: dict[str, Any]) -> HttpResponse:
            issued = api_keys.rotate(
                api_key_id=key.pk,
                operator=operator_of(request),
                reason=data["reason"],
                at=timezone.now(),
                grace_seconds=data["grace_seconds"],
            )
            return show_secret_once(self, request, issued=issued, back_url=self.url_of(issued.key.pk))

        return act_on_form(
            self,
            request,
            title="Rotate",
            form=RotateKeyForm(request.POST or None),
            perform=perform,
            back_url=self.url_of(object_id),
            explanation=f"A second key beside {key}; both live until the grace ends.",
        )


class FeatureOpeningInline(TabularInline):
    model = FeatureOpening
    fields = ["minimum_tier", "opens_at"]
    readonly_fields = fields
    extra = 0
    can_delete = False
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(FeatureGate)
class FeatureGateAdmin(AuditedAdmin):
    list_display = ["slug", "description"]
    search_fields = ["slug", "description"]
    inlines = [FeatureOpeningInline]

    def get_readonly_fields(self, request: HttpRequest, obj: FeatureGate | None = None) -> list[str]:
        return ["slug"] if obj else []


@admin.register(FeatureOpening)
class FeatureOpeningAdmin(AuditedAdmin):
    """To take an opening back, move its date into the future."""

    list_display = ["gate", "minimum_tier", "opens_at"]
    list_filter = ["gate", "minimum_tier"]
    autocomplete_fields = ["gate", "minimum_tier"]
    search_fields = ["gate__slug"]
    list_select_related = ["gate", "minimum_tier"]


@admin.register(FeatureGateEntry)
class FeatureGateEntryAdmin(ReadOnlyAdmin):
    """Made by the actions of an organization; ended here."""

    list_display = ["gate", "organization", "admits", "ends_at", "reason", "created_by", "created_at"]
    list_filter = ["gate", "admits", ("ends_at", admin.EmptyFieldListFilter)]
    search_fields = ["organization__id", "organization__name", "reason", "created_by"]
    list_select_related = ["gate", "organization"]
    date_hierarchy = "created_at"
    actions_detail = ["end_entry"]

    @action(description="End now", permissions=["operate"], icon="event_busy")
    def end_entry(self, request: HttpRequest, object_id: str) -> HttpResponse:
        entry = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            gates.end_entry(entry, reason=data["reason"], operator=operator_of(request))
            return f"{entry}: ended."

        return act_on_form(
            self,
            request,
            title="End now",
            form=ReasonForm(request.POST or None),
            perform=perform,
            back_url=self.url_of(object_id),
            explanation=f"{entry}. From now on the other entries, and then the tier, decide.",
        )


@admin.register(RateState)
class RateStateAdmin(ReadOnlyAdmin):
    list_display = ["organization", "in_flight", "requests", "tokens", "levels_at", "day", "day_tokens"]
    search_fields = ["organization__id", "organization__name"]
    list_select_related = ["organization"]
    ordering = ["-in_flight"]

    @display(description="requests, as of then", ordering="requests_level")
    def requests(self, obj: RateState) -> str:
        return f"{obj.requests_level:.1f}"

    @display(description="tokens, as of then", ordering="tokens_level")
    def tokens(self, obj: RateState) -> str:
        return f"{obj.tokens_level:,.0f}"


@admin.register(Gateway)
class GatewayAdmin(ReadOnlyAdmin):
    list_display = ["id", "host", "pid", "is_alive", "started_at", "heartbeat_at"]
    search_fields = ["host", "id"]

    @display(description="alive", boolean=True)
    def is_alive(self, obj: Gateway) -> bool:
        return (timezone.now() - obj.heartbeat_at).total_seconds() < DEAD_AFTER_SECONDS


@admin.register(CallInFlight)
class CallInFlightAdmin(ReadOnlyAdmin):
    list_display = ["id", "organization", "gateway_id", "tokens_reserved", "started_at"]
    search_fields = ["id", "organization__id", "organization__name", "gateway_id"]
    list_select_related = ["organization"]


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ["at", "operator", "action", "subject", "organization", "reason"]
    list_filter = ["action", ("at", admin.DateFieldListFilter)]
    search_fields = ["operator", "action", "subject", "reason", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    date_hierarchy = "at"
    fields = ["at", "operator", "action", "subject", "organization", "reason", "shown_detail"]
    readonly_fields = ["shown_detail"]

    @display(description="detail")
    def shown_detail(self, obj: AuditEntry) -> str:
        return format_html("<pre>{}</pre>", json.dumps(obj.detail, indent=2, ensure_ascii=False))
