"""In whose turn objects are computed: who has many keeps nobody with few waiting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import transaction

from cacheplane.caching import lifecycle
from cacheplane.caching.models import PrecomputeTurn
from tests.domain.caching.conftest import Owner

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("books")]


def taken(times: int) -> list[str]:
    """What a worker takes up, one after the other."""
    claims = [lifecycle.claim_next(owner="test") for _ in range(times)]
    return [claim.cache_id for claim in claims if claim is not None]


def test_organizations_take_turns_and_each_has_its_oldest_first(new_owner: Callable[..., Owner]) -> None:
    crowd, other = new_owner(), new_owner()
    many = [crowd.pending().id for _ in range(4)]
    few = [other.pending().id for _ in range(2)]
    assert taken(7) == [many[0], few[0], many[1], few[1], many[2], many[3]]


def test_who_deletes_and_creates_anew_has_had_its_turn(new_owner: Callable[..., Owner]) -> None:
    crowd, other = new_owner(), new_owner()
    first = crowd.pending()
    assert taken(1) == [first.id]
    with transaction.atomic():
        lifecycle.delete(crowd.organization_id, first.id, actor="ak-1")
    again, one = crowd.pending(), other.pending()
    assert again.created_at < one.created_at
    assert taken(2) == [one.id, again.id]
    assert PrecomputeTurn.objects.count() == 2
