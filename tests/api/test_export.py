"""Usage of a running instance, exported by its workers: what is in the file is what is in the ledger."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.api import books
from tests.conftest import Instance, organization_of, start_instance, using_database_of, wait_for

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("export")]

SOURCE = "urn:test:cacheplane"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export") / "usage"


@pytest.fixture(scope="module")
def instance(folder: Path, tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    running = start_instance(
        tmp_path_factory.mktemp("exporting") / "data",
        environment={"BILLING_EXPORT_URL": f"file://{folder}", "BILLING_EXPORT_SOURCE": SOURCE},
        copy_of=first_start,
    )
    try:
        yield running
    finally:
        status = running.stop()
    assert status == 0, running.log.read_text()[-4000:]


def told(folder: Path) -> list[dict[str, Any]]:
    """The whole lines that are there; the last may still be in the writing."""
    text = "".join(path.read_text() for path in sorted(folder.glob("usage-*.jsonl")))
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def test_what_a_caller_used_is_in_the_file_within_seconds_and_adds_up(
    instance: Instance, folder: Path, django_db_blocker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from billing.models import MeterEvent

    with using_database_of(instance, django_db_blocker):
        caller = organization_of(instance)
        active = caller.active("The slot is free and the call is done. " * 20)
        for n in range(5):
            assert caller.ask(active["id"], f"Question {n}?").status == 200
        assert caller.request("DELETE", f"/v1/caching/{active['id']}").status == 200
        facts = {str(pk) for pk in MeterEvent.objects.values_list("id", flat=True)}
        assert len(facts) == 1 + 1 + 5 * 3
        wait_for(lambda: len(told(folder)) >= len(facts), seconds=60, what="all is exported")
        events = told(folder)
        assert Counter(event["id"] for event in events) == Counter(facts)
        assert {(event["source"], event["subject"]) for event in events} == {(SOURCE, caller.organization)}
        sums: dict[str, Decimal] = defaultdict(Decimal)
        for event in events:
            sums[event["data"]["meter"]] += Decimal(event["data"]["amount"])
        assert dict(sums) == books.spent(caller)
        creation = next(event for event in events if event["type"] == "contextcache.creation.v1")
        assert creation["data"]["quantity"] == active["tokens"]
        assert creation["data"]["cache_id"] == active["id"]

    done = instance.manage("audit_ledger", "--json")
    assert (done.returncode, json.loads(done.stdout)["violations"]) == (0, []), done.stdout
    monkeypatch.setenv("BILLING_EXPORT_URL", f"file://{folder}")
    again = instance.manage("export_usage", "--once")
    assert again.returncode == 0, again.stderr
    assert len(told(folder)) == len(facts), "nothing twice"


def test_a_file_that_was_tampered_with_is_told_in_the_log(
    instance: Instance, folder: Path, django_db_blocker: Any
) -> None:
    path = max(folder.glob("usage-*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with using_database_of(instance, django_db_blocker):
        caller = organization_of(instance)
    assert caller.chat({"role": "user", "content": "Hello."}).status == 200
    wait_for(lambda: "usage_not_exported" in instance.logs(), seconds=60, what="it is in the log")
    assert path.read_bytes() == whole[:100]
