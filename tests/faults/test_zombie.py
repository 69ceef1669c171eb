"""A worker that stands still past its lease, and wakes: it changes nothing any more."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Client, Instance, wait_for
from tests.faults import harm

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("faults-zombie")]

LEASE_SECONDS = 5
LOSS = re.compile(r"claim_lost|lane_lost")
"""Which of the two it notices first is a matter of where it stood still.
"""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    yield from harm.own_instance(tmp_path_factory, first_start, PRECOMPUTE_LEASE_SECONDS=str(LEASE_SECONDS))


@pytest.fixture
def second_worker(instance: Instance) -> Iterator[subprocess.Popen[bytes]]:
    """One that works while the instance's own does not."""
    with (instance.data_dir / "logs" / "second-worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "cacheplane.celery", "worker"]
            + ["-P", "threads", "-c", "2", "--loglevel", "INFO"],
            cwd=REPOSITORY,
            env=instance.environment() | {"PRECOMPUTE_LEASE_SECONDS": str(LEASE_SECONDS)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    yield process
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def test_a_zombie_changes_nothing(instance: Instance, caller: Client, request: pytest.FixtureRequest) -> None:
    cache_id = harm.created(caller, harm.long_text("Zombie"))
    zombie = harm.wait_until_computing(cache_id)
    with harm.paused(instance, "worker"):
        request.getfixturevalue("second_worker")
        caller.wait_until(cache_id, "active", seconds=harm.COMPUTE_SECONDS)
        from cacheplane.caching.models import CacheObject, CacheObjectEvent

        before = CacheObject.objects.values().get(id=cache_id)
        events = CacheObjectEvent.objects.filter(cache_id=cache_id).order_by("at")
        kinds = list(events.values_list("kind", "actor"))
        assert [kind for kind, _ in kinds].count("claimed") == 2
        assert kinds[-1][0] == "active" and kinds[-1][1] != zombie
        log = instance.data_dir / "logs" / "worker.log"
        said = log.stat().st_size
    # It is awake again: it must come to see that its claim is gone, and take away what it wrote.
    wait_for(
        lambda: LOSS.search(log.read_bytes()[said:].decode(errors="replace")),
        seconds=harm.COMPUTE_SECONDS,
        what="the zombie finds its claim lost",
    )
    harm.wait_until_only_its_file(instance, cache_id)
    assert CacheObject.objects.values().get(id=cache_id) == before
    assert list(events.values_list("kind", "actor")) == kinds
    harm.require_computed_once(caller, cache_id)
    harm.require_hit(caller, cache_id)


def test_a_worker_that_stood_still_alone_goes_on_and_charges_once(instance: Instance, caller: Client) -> None:
    """Nobody took over meanwhile, so its claim is still its own."""
    cache_id = harm.created(caller, harm.long_text("Sleeper"))
    harm.wait_until_computing(cache_id)
    from billing import clock
    from cacheplane.caching.models import CacheObject

    with harm.paused(instance, "worker"):
        wait_for(
            lambda: CacheObject.objects.filter(id=cache_id, lease_until__lt=clock.now()).exists(),
            seconds=4 * LEASE_SECONDS,
            what="its lease has run out",
        )
    caller.wait_until(cache_id, "active", seconds=harm.COMPUTE_SECONDS)
    harm.require_computed_once(caller, cache_id)
    harm.wait_until_only_its_file(instance, cache_id)
