"""The operators' view of KV states: where bytes lie, and when they were last seen whole. Read-only."""

from __future__ import annotations

from django.contrib import admin
from django.core.exceptions import ObjectDoesNotExist
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.html import format_html
from unfold.decorators import display

from cacheplane.access.admin_pages import ReadOnlyAdmin
from cacheplane.kv.models import KVState


@admin.register(KVState)
class KVStateAdmin(ReadOnlyAdmin):
    """A state leaves this list once its bytes are destroyed."""

    list_display = [
        "id",
        "organization_name",
        "object_of",
        "engine",
        "tokens",
        "size",
        "state",
        "created_at",
        "proved_at",
    ]
    list_filter = [
        "engine",
        ("doomed_at", admin.EmptyFieldListFilter),
        ("created_at", admin.DateFieldListFilter),
    ]
    search_fields = ["id", "filename", "sha256", "cache_object__id", "organization__id", "organization__name"]
    date_hierarchy = "created_at"
    ordering = ["-created_at"]
    fields = [
        "id",
        "organization",
        "object_of",
        "engine",
        "filename",
        "tokens",
        "size",
        "sha256",
        "blake3",
        "fingerprint",
        "state",
        "created_at",
        "proved_at",
        "doomed_at",
    ]
    readonly_fields = ["object_of", "tokens", "size", "state"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[KVState]:
        # The texts of an object may be megabytes; here only its id is shown.
        related = super().get_queryset(request).select_related("organization", "engine", "cache_object")
        return related.defer("cache_object__messages", "cache_object__tools", "cache_object__metadata")

    @display(description="organization", ordering="organization__name")
    def organization_name(self, obj: KVState) -> str:
        return format_html('<span title="{}">{}</span>', obj.organization_id, obj.organization.name)

    @display(description="cache object", ordering="cache_object__id")
    def object_of(self, obj: KVState) -> str:
        try:
            cache_id = obj.cache_object.pk
        except ObjectDoesNotExist:
            return "-"
        return format_html(
            '<a class="text-primary-600 dark:text-primary-500 whitespace-nowrap" href="{}">{}</a>',
            reverse("admin:caching_cacheobject_change", args=[cache_id]),
            cache_id,
        )

    @display(description="tokens", ordering="n_tokens")
    def tokens(self, obj: KVState) -> str:
        return f"{obj.n_tokens:,}"

    @display(description="size", ordering="size_bytes")
    def size(self, obj: KVState) -> str:
        return filesizeformat(obj.size_bytes)

    @display(
        description="state", ordering="doomed_at", label={"kept": "success", "to be destroyed": "warning"}
    )
    def state(self, obj: KVState) -> str:
        return "kept" if obj.doomed_at is None else "to be destroyed"
