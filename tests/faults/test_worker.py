"""Workers that are killed, stopped, or never told: every object becomes active, once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Client, Instance, wait_for
from tests.faults import harm

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("faults-worker")]

TAKEN_OVER_SECONDS = 45.0
SWEPT_SECONDS = 30.0


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    yield from harm.own_instance(tmp_path_factory, first_start, PRECOMPUTE_LEASE_SECONDS="8")


def test_a_killed_worker_s_object_becomes_active_and_is_charged_once(
    instance: Instance, caller: Client
) -> None:
    struck = harm.created(caller, harm.long_text("Struck"))
    waiting = [harm.created(caller, f"Waiting {number}.") for number in range(3)]
    owner = harm.wait_until_computing(struck)
    at = datetime.now(UTC)
    harm.wait_until_replaced(instance, "worker", harm.strike(instance, "worker"))
    wait_for(
        lambda: len(harm.instants(struck, "claimed")) > 1,
        seconds=2 * TAKEN_OVER_SECONDS,
        what="another worker has claimed the object",
    )
    second = harm.instants(struck, "claimed")[1]
    for cache_id in (struck, *waiting):
        caller.wait_until(cache_id, "active", seconds=harm.COMPUTE_SECONDS)
        harm.require_computed_once(caller, cache_id)
        harm.require_hit(caller, cache_id)
    assert (second - at).total_seconds() <= TAKEN_OVER_SECONDS
    from cacheplane.caching.models import CacheObjectEvent

    claims = CacheObjectEvent.objects.filter(cache_id=struck, kind="claimed").order_by("at")
    assert [claim.detail["attempt"] for claim in claims] == [1, 2]
    assert claims[0].actor == owner != claims[1].actor


def test_a_nudge_that_is_lost_is_made_up_for(instance: Instance, caller: Client) -> None:
    with harm.paused(instance, "worker"):
        cache_id = harm.created(caller, "Nobody was told of this.")
        queue = instance.data_dir / "broker" / "queue"
        lost = list(queue.glob("*.msg"))
        assert lost, "the nudge was sent"
        for message in lost:
            message.unlink(missing_ok=True)
    caller.wait_until(cache_id, "active", seconds=SWEPT_SECONDS)
    harm.require_computed_once(caller, cache_id)


def test_a_broker_that_is_away_neither_fails_a_creation_nor_holds_it_up(
    instance: Instance, caller: Client
) -> None:
    queue = instance.data_dir / "broker" / "queue"
    aside = queue.with_name("queue-aside")
    with harm.paused(instance, "worker", "beat"):
        queue.rename(aside)
        queue.write_text("not a folder: nothing can be put here, by nobody")
        try:
            began = datetime.now(UTC)
            cache_id = harm.created(caller, "There was no broker when this came.")
            took = datetime.now(UTC) - began
        finally:
            queue.unlink()
            aside.rename(queue)
    assert took.total_seconds() < 1.5
    assert '"nudge_lost"' in (instance.data_dir / "logs" / "web.log").read_text()
    caller.wait_until(cache_id, "active", seconds=SWEPT_SECONDS)
    harm.require_computed_once(caller, cache_id)


def test_time_runs_out_also_while_nobody_looks_at_the_clock(instance: Instance, caller: Client) -> None:
    cache_id = caller.active("This ends on time.")["id"]
    assert harm.files_of(instance, cache_id)
    with harm.paused(instance, "beat"):
        answer = caller.request("PUT", f"/v1/caching/{cache_id}", {"ttl": 2})
        ends_at = answer.json["expired_at"]
        seen: list[tuple[float, str]] = []

        def is_over() -> bool:
            asked_at = datetime.now(UTC).timestamp()
            seen.append((asked_at, caller.get(cache_id).json["status"]))
            return seen[-1][1] == "expired"

        wait_for(is_over, seconds=20, what="the object is expired", every=0.02)
        # `expired_at` is told in whole seconds: the true end lies within the second that it names.
        assert not [status for asked_at, status in seen if asked_at >= ends_at + 1 and status == "active"]
        assert not [status for asked_at, status in seen if asked_at < ends_at - 1 and status == "expired"]
        answer = caller.ask(cache_id)
        assert answer.status == 200
        assert "msh-context-cache-id" not in answer.headers
        assert answer.json["usage"]["cached_tokens"] == 0
        assert harm.files_of(instance, cache_id), "nobody has swept yet"
    wait_for(
        lambda: not harm.files_of(instance, cache_id), seconds=SWEPT_SECONDS, what="its bytes are destroyed"
    )
