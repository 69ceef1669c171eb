"""A page of cache objects costs the same at any depth: what PostgreSQL does for it, as it says itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from cacheplane.access import api_keys, organizations
from cacheplane.access.callers import Caller
from cacheplane.caching import cache_objects
from cacheplane.caching.cache_objects import Page
from cacheplane.errors import NotFound

ROWS, LIMIT = 20_000, 20
BY_ID = ("caching_cacheobject_pkey", "caching_cacheobject_id_6c022423_like")
"""The primary key, and the other order that Django gives it."""
FILL = """
INSERT INTO caching_cacheobject (id, organization_id, project_id, api_key_id, model, name, description, metadata,
    messages, message_count, digest, tokens, created_at, expired_at, status, activations, creation_fee_due, attempts,
    fence, lease_owner, prefilled_tokens, error_type, error_message)
SELECT 'cache-' || %(mark)s || lpad(n::text, 19, '0'), %(organization)s, %(project)s, 'ak', 'moonshot-v1', '', '',
    jsonb_build_object('parity', (n %% 2)::text, 'n', n::text), '[]', 1, n::text, 1, now(), now(), 'expired', 0, true,
    0, 0, '', 0, '', ''
FROM generate_series(1, %(rows)s) AS n
"""


@pytest.fixture
def crowd(db: None) -> Caller:
    """A caller with many objects, among somebody else's as many."""
    api_keys._cache.clear()
    callers = []
    for mark in ("a", "b"):
        new = organizations.create(name="Test", tier_slug="tier5", operator="test")
        with connection.cursor() as cursor:
            about = {
                "mark": mark,
                "organization": new.organization.id,
                "project": new.project.id,
                "rows": ROWS,
            }
            cursor.execute(FILL, about)
        callers.append(api_keys.authenticate(new.issued_key.secret))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE caching_cacheobject")
    api_keys._cache.clear()
    return callers[0]


def object_id(number: int, *, mark: str = "a") -> str:
    return f"cache-{mark}{number:019}"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def plans_of(queries: list[str]) -> Iterator[list[dict[str, Any]]]:
    for query in queries:
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query.replace("%", "%%"), [])
            (found,) = cursor.fetchone()
        plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
        yield [node for node in nodes(plan) if node.get("Relation Name") == "caching_cacheobject"]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("cursor", ["after", "before"])
def test_a_page_reads_its_own_rows_and_no_others_at_any_depth(crowd, newest_first, cursor):
    for depth in (50, ROWS // 2, ROWS - 50):
        bounds = {"after": None, "before": None} | {cursor: object_id(depth)}
        wanted = Page(limit=LIMIT, newest_first=newest_first, metadata={}, **bounds)
        with CaptureQueriesContext(connection) as asked:
            found = cache_objects.page(crowd, wanted)
        assert len(found) == LIMIT
        by_cursor, page = plans_of([query["sql"] for query in asked])
        assert len(by_cursor) == len(page) == 1
        for node in (*by_cursor, *page):
            assert node["Node Type"] in ("Index Scan", "Index Only Scan"), node
            assert node.get("Rows Removed by Filter", 0) == 0, node
        assert by_cursor[0]["Index Name"] in BY_ID
        assert by_cursor[0]["Actual Rows"] == 1
        assert page[0]["Actual Rows"] <= LIMIT


def test_a_rare_metadata_pair_is_found_by_its_index(crowd):
    wanted = Page(
        limit=LIMIT, newest_first=True, after=None, before=None, metadata={"n": "17", "parity": "1"}
    )
    with CaptureQueriesContext(connection) as asked:
        (found,) = cache_objects.page(crowd, wanted)
    assert found.id == object_id(17)
    (page,) = plans_of([query["sql"] for query in asked])
    assert sum(node.get("Rows Removed by Filter", 0) for node in page) <= 2, page
    assert "cache_by_metadata" in {node.get("Index Name") for node in page} | _index_names(asked)


def _index_names(asked: CaptureQueriesContext) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN (FORMAT JSON) " + asked.captured_queries[-1]["sql"].replace("%", "%%"), [])
        (found,) = cursor.fetchone()
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return {node["Index Name"] for node in nodes(plan) if "Index Name" in node}


def test_a_common_metadata_pair_is_read_from_the_end(crowd):
    wanted = Page(limit=LIMIT, newest_first=True, after=None, before=None, metadata={"parity": "1"})
    found = cache_objects.page(crowd, wanted)
    assert [row.id for row in found] == [object_id(n) for n in range(ROWS - 1, ROWS - 1 - 2 * LIMIT, -2)]


def test_somebody_elses_cursor_is_absent(crowd):
    with pytest.raises(NotFound):
        cache_objects.page(
            crowd,
            Page(limit=1, newest_first=True, after=object_id(5, mark="b"), before=None, metadata={}),
        )
