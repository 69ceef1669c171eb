"""Rules of the house that no import contract can say, read from the source and from Django's registries."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib import admin

from cacheplane import dispatch
from cacheplane.celery import app as celery_app

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("billing", "cacheplane", "workers")
LIFECYCLE = "cacheplane/caching/lifecycle.py"
OUR_APPS = {"billing", "access", "engines", "kv", "events", "caching"}


def sources() -> list[str]:
    found = [path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")]
    return sorted(str(path.relative_to(REPOSITORY)) for path in found if "migrations" not in path.parts)


def tree_of(source: str) -> ast.Module:
    return ast.parse((REPOSITORY / source).read_text(), source)


# --- A cache object's status is written in one place -----------------------------------------------------------


def status_writes(tree: ast.Module) -> Iterator[int]:
    """Lines that assign to an attribute `status` of something that is not `self`, or that update, create or build
    a cache object with `status=`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if (
                    isinstance(target, ast.Attribute)
                    and target.attr == "status"
                    and not _is_self(target.value)
                ):
                    yield node.lineno
        if isinstance(node, ast.Call) and any(keyword.arg == "status" for keyword in node.keywords):
            name = ast.unparse(node.func)
            if "CacheObject" in name and name.endswith((".update", ".create", ".bulk_create", "CacheObject")):
                yield node.lineno


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def test_the_search_for_status_writes_finds_them() -> None:
    planted = """
row.status = ACTIVE
CacheObject.objects.filter(id=row.id, status=PENDING).update(status=ACTIVE, fence=2)
CacheObject.objects.filter(id=row.id).update(fence=3)
CacheObject(status=ACTIVE)
self.status = 200
"""
    assert list(status_writes(ast.parse(planted))) == [2, 3, 5]


@pytest.mark.parametrize("source", [name for name in sources() if name != LIFECYCLE])
def test_only_the_lifecycle_writes_a_status(source: str) -> None:
    assert list(status_writes(tree_of(source))) == []


def test_the_lifecycle_writes_every_status_with_a_condition_on_the_old_one() -> None:
    writes = [
        node
        for node in ast.walk(tree_of(LIFECYCLE))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "update"
        and any(keyword.arg == "status" for keyword in node.keywords)
    ]
    assert len(writes) >= 4
    for node in writes:
        found = ast.unparse(node.func)
        assert "filter(_claimed(claim))" in found or "status=" in found or "status__in=" in found, found


# --- Work leaves a request by name -----------------------------------------------------------------------------


def test_every_named_job_is_registered_and_every_registered_one_is_named() -> None:
    celery_app.loader.import_default_modules()
    registered = {name for name in celery_app.tasks if not name.startswith("celery.")}
    assert registered == set(dispatch.ALL)
    assert len(dispatch.ALL) == len(set(dispatch.ALL))


@pytest.mark.parametrize("source", [name for name in sources() if not name.startswith("workers/")])
def test_nobody_sends_a_job_but_dispatch(source: str) -> None:
    sends = [
        node.lineno
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Attribute) and node.attr in ("delay", "apply_async", "send_task")
    ]
    assert sends == [] or source == "cacheplane/dispatch.py"


# --- Operators see every table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [model for model in apps.get_models() if model._meta.app_label in OUR_APPS],
    ids=lambda m: m.__name__,
)
def test_every_table_has_its_page(model: type) -> None:
    assert model in admin.site._registry


# --- Money never touches a float -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [name for name in sources() if name.startswith("billing/")])
def test_no_float_near_money(source: str) -> None:
    floats = [
        node.lineno
        for node in ast.walk(tree_of(source))
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "float")
        or (isinstance(node, ast.Attribute) and node.attr == "FloatField")
    ]
    assert floats == []
