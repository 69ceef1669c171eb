"""The operators' view of webhooks. What changes one asks for a reason and is audited; no secret is shown twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import action, display
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
)

from billing import clock
from cacheplane.access import audit
from cacheplane.access.admin_actions import ReasonField, ReasonForm, act_on_form, operator_of
from cacheplane.access.admin_pages import ReadOnlyAdmin
from cacheplane.access.models import Organization
from cacheplane.events import endpoints
from cacheplane.events.endpoints import Changes, IssuedSecret
from cacheplane.events.models import (
    EVENT_TYPES,
    URL_CHARS_MAX,
    Delivery,
    DeliveryAttempt,
    ExpiringNotice,
    OutboxEvent,
    WebhookEndpoint,
)

ATTEMPTS_SHOWN_MAX = 50
CELL = '<td class="pr-4 align-top whitespace-nowrap">{}</td>'


class NewEndpointForm(forms.Form):
    organization = forms.ModelChoiceField(
        Organization.objects.all(), empty_label=None, widget=UnfoldAdminSelectWidget()
    )
    url = forms.CharField(max_length=URL_CHARS_MAX, widget=UnfoldAdminTextInputWidget())
    events = forms.MultipleChoiceField(
        choices=[(name, name) for name in EVENT_TYPES], widget=UnfoldAdminCheckboxSelectMultipleWidget()
    )
    reason = ReasonField()


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(ReadOnlyAdmin):
    list_display = ["id", "organization", "url", "events_shown", "state", "failing_since", "created_at"]
    list_filter = [("disabled_at", admin.EmptyFieldListFilter), ("failing_since", admin.EmptyFieldListFilter)]
    search_fields = ["id", "url", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    fields = [
        "id",
        "organization",
        "url",
        "description",
        "events_shown",
        "expiring_lead_seconds",
        "balance_threshold",
        "state",
        "disabled_at",
        "disabled_reason",
        "failing_since",
        "balance_low_at",
        "created_at",
        "created_by",
    ]
    readonly_fields = ["events_shown", "state"]
    actions_list = ["create_endpoint"]
    actions_detail = ["send_test", "rotate_secret", "disable", "enable"]

    @display(description="events")
    def events_shown(self, obj: WebhookEndpoint) -> str:
        return ", ".join(obj.events)

    @display(description="state", label={"enabled": "success", "disabled": "danger"})
    def state(self, obj: WebhookEndpoint) -> str:
        return "enabled" if obj.disabled_at is None else "disabled"

    @action(description="Create an endpoint", permissions=["operate"], icon="add")
    def create_endpoint(self, request: HttpRequest) -> HttpResponse:
        def perform(data: dict[str, Any]) -> HttpResponse:
            reason = audit.required_reason(data["reason"])
            with transaction.atomic():
                issued = endpoints.create(
                    data["organization"].pk,
                    url=data["url"],
                    events=data["events"],
                    actor=operator_of(request),
                )
                self._record(request, issued.endpoint, "create", reason)
            return self._show_once(request, issued)

        return act_on_form(
            self,
            request,
            title="Create a webhook endpoint",
            form=NewEndpointForm(request.POST or None),
            perform=perform,
            back_url=reverse("admin:events_webhookendpoint_changelist"),
            explanation="Its signing secret is shown once, on the next page.",
        )

    @action(description="Send a test event", permissions=["operate"], icon="send")
    def send_test(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: WebhookEndpoint) -> str:
            return f"{endpoints.send_test(row.organization_id, row.pk)} is on its way."

        return self._act(request, object_id, "Send a test event", "test", perform)

    @action(description="Rotate the secret", permissions=["operate"], icon="autorenew")
    def rotate_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: WebhookEndpoint) -> HttpResponse:
            return self._show_once(request, endpoints.rotate(row.organization_id, row.pk))

        return self._act(request, object_id, "Rotate the secret", "rotate", perform)

    @action(description="Disable", permissions=["operate"], icon="block")
    def disable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: WebhookEndpoint) -> str:
            endpoints.disable(row.pk, reason="disabled by an operator", at=clock.now())
            return f"{row} is disabled; nothing is sent to it any more."

        return self._act(request, object_id, "Disable", "disable", perform)

    @action(description="Enable", permissions=["operate"], icon="play_arrow")
    def enable(self, request: HttpRequest, object_id: str) -> HttpResponse:
        def perform(row: WebhookEndpoint) -> str:
            endpoints.update(row.organization_id, row.pk, Changes(is_enabled=True))
            return f"{row} is enabled."

        return self._act(request, object_id, "Enable", "enable", perform)

    def _show_once(self, request: HttpRequest, issued: IssuedSecret) -> HttpResponse:
        """The answer to the POST itself: a message would carry the secret through a cookie or the session table."""
        context = {
            **self.admin_site.each_context(request),
            "title": "Signing secret",
            "endpoint": issued.endpoint,
            "secret": issued.secret,
            "back_url": self.url_of(issued.endpoint.pk),
        }
        return render(request, "events/webhook_secret.html", context)

    def _record(self, request: HttpRequest, row: WebhookEndpoint, verb: str, reason: str) -> None:
        audit.record(
            operator=operator_of(request),
            action=f"webhook_endpoint.{verb}",
            subject=row.pk,
            organization_id=row.organization_id,
            reason=reason,
        )

    def _act(
        self,
        request: HttpRequest,
        object_id: str,
        title: str,
        verb: str,
        perform: Callable[[WebhookEndpoint], str | HttpResponse],
    ) -> HttpResponse:
        row: WebhookEndpoint = self.required(object_id)

        def perform_and_record(data: dict[str, Any]) -> str | HttpResponse:
            reason = audit.required_reason(data["reason"])
            with transaction.atomic():
                done = perform(row)
                self._record(request, row, verb, reason)
            return done

        return act_on_form(
            self,
            request,
            title=title,
            form=ReasonForm(request.POST or None),
            perform=perform_and_record,
            back_url=self.url_of(object_id),
            explanation=f"{row} of {row.organization}, {self.state(row)}: {row.url}",
        )


@admin.register(OutboxEvent)
class OutboxEventAdmin(ReadOnlyAdmin):
    list_display = ["id", "type", "subject", "organization", "at"]
    list_filter = ["type", ("at", admin.DateFieldListFilter)]
    search_fields = ["id", "subject", "organization__id", "organization__name"]
    list_select_related = ["organization"]
    fields = ["id", "type", "subject", "organization", "at", "data_shown"]
    readonly_fields = ["data_shown"]

    @display(description="data")
    def data_shown(self, obj: OutboxEvent) -> SafeString:
        text = json.dumps(obj.data, indent=2, ensure_ascii=False)
        return format_html('<pre class="whitespace-pre-wrap break-words">{}</pre>', text)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    list_display = ["id", "event_type", "endpoint", "state", "tries", "created_at", "next_at", "delivered_at"]
    list_filter = ["state", ("created_at", admin.DateFieldListFilter)]
    search_fields = ["id", "event__id", "endpoint__id", "endpoint__organization__name"]
    list_select_related = ["event", "endpoint"]
    fields = [
        "id",
        "event",
        "endpoint",
        "state",
        "tries",
        "created_at",
        "next_at",
        "delivered_at",
        "attempts_shown",
    ]
    readonly_fields = ["attempts_shown"]
    actions_detail = ["send_again"]

    @display(description="event", ordering="event__type")
    def event_type(self, obj: Delivery) -> str:
        return obj.event.type

    @display(description="attempts")
    def attempts_shown(self, obj: Delivery) -> SafeString | str:
        rows = [
            (f"{attempt.at:%Y-%m-%d %H:%M:%S}", attempt.http_status or attempt.error, attempt.duration_ms)
            for attempt in obj.attempts.all()[:ATTEMPTS_SHOWN_MAX]
        ]
        body = format_html_join("", f"<tr>{CELL}{CELL}" + CELL.replace("{}", "{} ms") + "</tr>", rows)
        return format_html("<table>{}</table>", body) if rows else "-"

    @action(description="Send again", permissions=["operate"], icon="replay")
    def send_again(self, request: HttpRequest, object_id: str) -> HttpResponse:
        row: Delivery = self.required(object_id)

        def perform(data: dict[str, Any]) -> str:
            reason = audit.required_reason(data["reason"])
            with transaction.atomic():
                endpoints.send_again(row.pk, at=clock.now())
                audit.record(
                    operator=operator_of(request),
                    action="webhook_delivery.send_again",
                    subject=row.pk,
                    organization_id=row.endpoint.organization_id,
                    reason=reason,
                )
            return f"{row} is on its way again, under the same webhook-id."

        return act_on_form(
            self,
            request,
            title="Send again",
            form=ReasonForm(request.POST or None),
            perform=perform,
            back_url=self.url_of(object_id),
            explanation=f"{row.event.type} to {row.endpoint.url}, {row.state}.",
        )


@admin.register(DeliveryAttempt)
class DeliveryAttemptAdmin(ReadOnlyAdmin):
    list_display = ["at", "delivery_id", "http_status", "error", "duration_ms"]
    list_filter = ["error", ("at", admin.DateFieldListFilter)]
    search_fields = ["delivery__id", "delivery__endpoint__id"]


@admin.register(ExpiringNotice)
class ExpiringNoticeAdmin(ReadOnlyAdmin):
    list_display = ["at", "cache_id", "endpoint_id"]
    search_fields = ["cache_id", "endpoint__id"]
