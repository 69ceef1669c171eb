"""How far usage has been exported, and what of it, for operators to look at."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.contrib import admin
from django.db.models import Count, IntegerField, Min, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Coalesce, Now
from django.http import HttpRequest
from unfold.decorators import display

from billing.admin.pages import ReadOnlyAdmin
from billing.models import ExportPosition, ExportTally, MeterEvent

BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)


@admin.register(ExportPosition)
class ExportPositionAdmin(ReadOnlyAdmin):
    """One row a sink; `waiting` and `lag` are of what has not gone there yet."""

    list_display = ["sink", "exported", "waiting", "lag", "moved_at", "failures", "failure", "retry_at"]
    list_filter = [("retry_at", admin.EmptyFieldListFilter)]
    search_fields = ["sink"]
    ordering = ["sink"]
    fields = [
        *("sink", "exported", "waiting", "lag", "moved_at", "failures", "failure", "retry_at"),
        *("file_name", "file_bytes", "recorded_xid", "event_id", "not_before"),
    ]
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[ExportPosition]:
        behind = MeterEvent.objects.filter(
            Q(recorded_xid__gt=OuterRef("recorded_xid"))
            | Q(recorded_xid=OuterRef("recorded_xid"), id__gt=OuterRef("event_id")),
            recorded_at__gte=Coalesce(OuterRef("not_before"), Value(BEFORE_ALL)),
        )
        grouped = behind.order_by().annotate(one=Value(1)).values("one")
        left = Subquery(grouped.annotate(n=Count("*")).values("n"), output_field=IntegerField())
        since = Subquery(grouped.annotate(first=Min("recorded_at")).values("first"))
        shown: QuerySet[ExportPosition] = super().get_queryset(request)
        return shown.annotate(left=Coalesce(left, 0), late=Now() - since)

    @display(description="waiting", ordering="left")
    def waiting(self, obj: Any) -> str:
        return f"{obj.left:,}"

    @display(description="lag")
    def lag(self, obj: Any) -> str:
        return f"{obj.late.total_seconds():.0f} s" if obj.late is not None else "-"


@admin.register(ExportTally)
class ExportTallyAdmin(ReadOnlyAdmin):
    """What the audit compares with the ledger, by meter and hour."""

    list_display = ["hour", "meter", "currency", "events", "quantity", "amount", "position"]
    list_filter = ["meter", "currency"]
    list_select_related = ["position"]
    search_fields = ["position__sink"]
    date_hierarchy = "hour"
    ordering = ["-hour", "meter"]
