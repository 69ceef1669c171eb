"""Operators' logins and rights: Django's own pages in the admin's look, with each change in the audit log."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from cacheplane.access import audit
from cacheplane.access.admin_actions import operator_of


class Audited(ModelAdmin):  # type: ignore[misc]  # the admin's library has no types
    """Says who changed whose rights; never what a password is."""

    noun: str

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._record(request, obj, "add", message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._record(request, obj, "change", message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for obj in queryset:
            self._record(request, obj, "delete", [])
        return super().log_deletions(request, queryset)

    def _record(self, request: HttpRequest, obj: Model, verb: str, message: Any) -> None:
        changed = [str(part) for part in message] if isinstance(message, list) else [str(message)]
        audit.record(
            operator=operator_of(request),
            action=f"{self.noun}.{verb}",
            subject=str(obj),
            reason="",
            detail={"changed": changed},
        )


admin.site.unregister(User)
admin.site.unregister(Group)


@admin.register(User)
class OperatorAdmin(UserAdmin, Audited):  # type: ignore[type-arg]
    noun = "operator"
    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm


@admin.register(Group)
class OperatorGroupAdmin(GroupAdmin, Audited):  # type: ignore[misc]
    noun = "operator_group"
