"""An instance that is stopped and started again on the same folder, with all it knew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Client, Instance, start_instance
from tests.faults import harm

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("faults-restart")]

ATTEMPTS = 3


@pytest.fixture(scope="module")
def active() -> dict[str, str]:
    """What the first life left behind, by name."""
    return {}


@pytest.fixture(scope="module")
def instance(
    tmp_path_factory: pytest.TempPathFactory, first_start: Path, active: dict[str, str]
) -> Iterator[Instance]:
    """The second life of an instance: in its first it made two objects. Its disk is full by quota."""
    folder = tmp_path_factory.mktemp("restarted") / "data"
    first = start_instance(folder, copy_of=first_start)
    try:
        client = first.client()
        for name in ("one", "two"):
            active[name] = client.active(f"This is number {name}.")["id"]
            require_hit(client, active[name])
        active["key"] = client.key
    finally:
        assert harm.stopped(first) == 0
    second = start_instance(folder, environment={"KV_QUOTA_BYTES": "1"})
    try:
        yield second
    finally:
        status = harm.stopped(second)
    assert status == 0, second.log.read_text()[-4000:]


def require_hit(client: Client, cache_id: str) -> None:
    answer = client.ask(cache_id)
    assert answer.status == 200, answer.body
    assert answer.json["usage"]["cached_tokens"] > 0
    assert answer.headers["msh-context-cache-id"] == cache_id


def test_nothing_was_forgotten(instance: Instance, active: dict[str, str]) -> None:
    assert instance.ready["api_key"] == active["key"], "the key that was told once still is the key"
    client = instance.client(active["key"])
    for name in ("one", "two"):
        assert client.get(active[name]).json["status"] == "active"
        require_hit(client, active[name])


def test_an_object_that_cannot_be_kept_becomes_an_error_and_costs_nothing(
    instance: Instance, caller: Client
) -> None:
    from billing.models import Hold, MeterEvent
    from cacheplane.caching.models import CacheObject

    before = caller.balance()
    cache_id = harm.created(caller, "There is no room for this.")
    assert caller.balance() != before, "its price is held"
    found = caller.wait_until(cache_id, "error", seconds=harm.COMPUTE_SECONDS)
    assert found["error"]["type"] == "precompute_failed"
    assert "KV_QUOTA_BYTES" in found["error"]["message"]
    assert (
        len(harm.instants(cache_id, "claimed")) == len(harm.instants(cache_id, "attempt_failed")) == ATTEMPTS
    )
    assert not MeterEvent.objects.filter(organization_id=caller.organization).exists()
    assert [hold.state for hold in Hold.objects.filter(subject=cache_id)] == ["voided"]
    assert caller.balance() == before
    assert harm.files_of(instance, cache_id) == []
    assert CacheObject.objects.get(id=cache_id).hold_reference is None


def test_others_are_served_meanwhile(instance: Instance, active: dict[str, str], caller: Client) -> None:
    """The one that fails again and again stands in nobody's way."""
    cache_id = harm.created(caller, "No room for this either.")
    require_hit(instance.client(active["key"]), active["one"])
    caller.wait_until(cache_id, "error", seconds=harm.COMPUTE_SECONDS)
