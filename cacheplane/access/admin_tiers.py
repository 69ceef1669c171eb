"""The operators' pages of tiers: thresholds and limits, and who has another tier than the one earned."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import Model
from django.http import HttpRequest
from unfold.admin import TabularInline

from cacheplane.access.admin_pages import AuditedAdmin, ReadOnlyAdmin
from cacheplane.access.models import Tier, TierOverride


@admin.register(Tier)
class TierAdmin(AuditedAdmin):
    list_display = [
        "slug",
        "recharged_from",
        "recharged_from_usd",
        "concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "tokens_per_day",
        "object_tokens_max",
        "cached_tokens_max",
        "ttl_seconds_max",
    ]
    search_fields = ["slug"]

    def get_readonly_fields(self, request: HttpRequest, obj: Tier | None = None) -> list[str]:
        return ["slug"] if obj else []


class TierOverrideInline(TabularInline):
    model = TierOverride
    fields = ["tier", "ends_at", "reason", "created_by", "created_at"]
    readonly_fields = fields
    extra = 0
    can_delete = False
    tab = True

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(TierOverride)
class TierOverrideAdmin(ReadOnlyAdmin):
    """Given and ended by the organization's actions, which know what follows from it."""

    list_display = ["organization", "tier", "ends_at", "reason", "created_by", "created_at"]
    list_filter = ["tier", ("ends_at", admin.EmptyFieldListFilter)]
    search_fields = ["organization__id", "organization__name", "reason"]
    list_select_related = ["organization", "tier"]
    date_hierarchy = "created_at"
