"""Usage as CloudEvents: every event once it is rated, none left out, none twice in a file, and it adds up."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from billing import audit, clock, exports
from billing.errors import ExportAhead, ExportMoved
from billing.exports import RatedEvent
from billing.models import ExportPosition, ExportTally, LedgerEntry, MeterEvent, StorageSegment
from cacheplane.checks import settings_are_sensible
from cacheplane.events import usage_export, usage_sinks
from cacheplane.events.usage_sinks import FileSink, HttpSink, Mark, SinkFailed, sink_of
from tests.conftest import wait_for
from tests.domain.billing.conftest import Payer, make_payer
from tests.receiver import Receiver, receiving

# Only what is committed is exported, so nothing here runs in a transaction of the test's.
pytestmark = pytest.mark.django_db(transaction=True)

SOURCE = "https://cache.example.com"


@pytest.fixture
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.BILLING_EXPORT_URL = f"file://{tmp_path}/usage"
    settings.BILLING_EXPORT_SOURCE = SOURCE
    settings.BILLING_EXPORT_BATCH_EVENTS = 3
    return tmp_path / "usage"


@pytest.fixture
def busy() -> Payer:
    """Somebody who has used something of everything: a creation, storage, calls, and one that was partly waived."""
    payer = make_payer(recharged="100")
    payer.create("cache-a", tokens=10_000, seconds=3600)
    for _ in range(3):
        payer.pass_time(minutes=25).call(prompt=500, cached=300, completion=70, subject="cache-a")
    payer.settle()
    settled()
    return payer


def settled() -> None:
    """Wait until no transaction of the whole cluster is older than our events: the other tests have theirs in it."""

    def is_settled() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(max(recorded_xid), 0) < pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
                " FROM billing_meterevent WHERE recorded_xid < pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
            )
            return bool(cursor.fetchone()[0])

    wait_for(is_settled, seconds=120, what="older transactions have ended", every=0.02)


def export_due(*, seconds: float) -> int:
    settled()
    return usage_export.export_due(seconds=seconds)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [path.read_text() for path in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line) for line in "".join(found).splitlines()]


def position() -> ExportPosition:
    return ExportPosition.objects.get()


# --- The form --------------------------------------------------------------------------------------------------


def a_rated_event(**about: Any) -> RatedEvent:
    values: dict[str, Any] = {
        "recorded_xid": 7,
        "id": uuid.UUID(int=5),
        "organization_id": "org-1",
        "meter": "prompt",
        "subject": "cache-a",
        "model": "moonshot-v1-8k",
        "quantity": 1_200,
        "unit": "token",
        "occurred_at": datetime(2024, 8, 7, 4, 30, tzinfo=UTC),
        "api_key_id": "ak-1",
        "request_id": "req-1",
        "currency": "CNY",
        "is_sandbox": False,
        "amount": Decimal("0.0144"),
        "waived": Decimal("0"),
        "unit_price": Decimal("0.000012"),
    }
    return RatedEvent(**values | about)


def test_an_event_says_all_that_a_bill_needs_and_amounts_are_exact_text() -> None:
    assert exports.cloud_event(a_rated_event(), source=SOURCE) == {
        "specversion": "1.0",
        "id": "00000000-0000-0000-0000-000000000005",
        "source": SOURCE,
        "type": "contextcache.tokens.v1",
        "subject": "org-1",
        "time": "2024-08-07T04:30:00+00:00",
        "datacontenttype": "application/json",
        "data": {
            "meter": "prompt",
            "model": "moonshot-v1-8k",
            "cache_id": "cache-a",
            "quantity": 1_200,
            "unit": "token",
            "amount": "0.014400000",
            "waived": "0.000000000",
            "currency": "CNY",
            "unit_price": "0.000012000",
            "api_key_id": "ak-1",
            "request_id": "req-1",
            "sandbox": False,
        },
    }


@pytest.mark.parametrize(
    ("meter", "kind"),
    [
        ("creation", "creation"),
        ("storage", "storage"),
        ("call", "call"),
        ("prompt", "tokens"),
        ("completion", "tokens"),
    ],
)
def test_each_meter_has_its_type(meter: str, kind: str) -> None:
    assert exports.cloud_event(a_rated_event(meter=meter), source=SOURCE)["type"] == f"contextcache.{kind}.v1"


def test_what_is_not_there_is_null() -> None:
    data = exports.cloud_event(a_rated_event(subject="", api_key_id="", request_id=""), source=SOURCE)["data"]
    assert (data["cache_id"], data["api_key_id"], data["request_id"]) == (None, None, None)


# --- The file --------------------------------------------------------------------------------------------------


def test_every_event_is_in_the_file_once_and_the_file_adds_up_to_the_ledger(
    folder: Path, busy: Payer
) -> None:
    assert export_due(seconds=60) == MeterEvent.objects.count() > 6
    told = lines(folder)
    assert Counter(event["id"] for event in told) == Counter(str(pk) for pk in ids())
    assert {event["subject"] for event in told} == {busy.organization_id}
    replayed, booked = defaultdict(Decimal), defaultdict(Decimal)
    for event in told:
        data = event["data"]
        assert Decimal(data["amount"]) == data["quantity"] * Decimal(data["unit_price"])
        replayed[data["meter"], event["time"][:13]] += Decimal(data["amount"])
    for entry in LedgerEntry.objects.exclude(meter_event=None).select_related("meter_event"):
        hour = entry.meter_event.occurred_at.astimezone(UTC).isoformat()[:13]
        booked[entry.meter_event.meter, hour] += entry.amount
    assert replayed == booked
    tallied = {(t.meter, t.hour.isoformat()[:13]): t.amount for t in ExportTally.objects.all()}
    assert tallied == booked


def ids() -> list[uuid.UUID]:
    return list(MeterEvent.objects.values_list("id", flat=True))


def test_a_second_run_finds_nothing_and_a_third_goes_on(folder: Path, busy: Payer) -> None:
    first = export_due(seconds=60)
    assert export_due(seconds=60) == 0
    busy.call(prompt=10)
    assert export_due(seconds=60) == 1
    assert len(lines(folder)) == position().exported == first + 1


def test_what_was_waived_is_told(folder: Path) -> None:
    poor = make_payer(recharged="0.01")
    poor.settle_call(poor.hold("0.006"), prompt=1_000)
    export_due(seconds=60)
    (event,) = lines(folder)
    assert (event["data"]["amount"], event["data"]["waived"]) == ("0.012000000", "0.002000000")


def test_a_reversal_does_not_unmake_the_use(folder: Path, busy: Payer) -> None:
    busy.correct(busy.entries(kind="call")[0])
    export_due(seconds=60)
    assert len([event for event in lines(folder) if event["data"]["meter"] == "call"]) == 3


def test_lines_that_were_written_and_never_committed_are_cut_off(
    folder: Path, busy: Payer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = export_due(seconds=60)
    busy.call(prompt=10, completion=5)
    with monkeypatch.context() as died:
        died.setattr(exports, "move", dies)
        with pytest.raises(KeyboardInterrupt):
            export_due(seconds=60)
    assert len(lines(folder)) == sent + 2, "written"
    busy.call(prompt=20)
    assert export_due(seconds=60) == 3
    assert Counter(event["id"] for event in lines(folder)) == Counter(str(pk) for pk in ids())


def dies(*_args: Any, **_options: Any) -> None:
    """As if the process were killed there."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("kept_bytes", [None, 40, 0])
def test_a_death_in_the_very_first_batch_leaves_nothing_in_the_way(
    folder: Path, busy: Payer, monkeypatch: pytest.MonkeyPatch, kept_bytes: int | None
) -> None:
    with monkeypatch.context() as died:
        died.setattr(exports, "move", dies)
        with pytest.raises(KeyboardInterrupt):
            export_due(seconds=60)
    (path,) = folder.iterdir()
    if kept_bytes is not None:
        os.truncate(path, kept_bytes)
    export_due(seconds=60)
    assert Counter(event["id"] for event in lines(folder)) == Counter(str(pk) for pk in ids())


def test_somebody_elses_file_is_not_written_over(folder: Path, busy: Payer) -> None:
    folder.mkdir()
    path = folder / f"usage-{clock.now():%Y-%m-%d}.jsonl"
    path.write_text('{"not": "ours"}\n')
    assert export_due(seconds=60) == 0
    assert path.read_text() == '{"not": "ours"}\n'
    assert "is there already" in position().failure


def test_a_file_that_has_lost_lines_is_told_of_and_not_gone_on_with(folder: Path, busy: Payer) -> None:
    export_due(seconds=60)
    (path,) = folder.iterdir()
    os.truncate(path, 10)
    busy.call(prompt=10)
    assert export_due(seconds=60) == 0
    assert (path.stat().st_size, position().failures) == (10, 1)
    assert "has 10 bytes" in position().failure


def test_a_day_has_a_file_and_a_clock_that_steps_back_opens_none(tmp_path: Path) -> None:
    sink, day = FileSink(tmp_path), datetime(2026, 1, 31, 23, 59, tzinfo=UTC)
    first = sink.send([{"n": 1}], after=Mark(), at=day)
    second = sink.send([{"n": 2}], after=first, at=day + timedelta(minutes=2))
    third = sink.send([{"n": 3}], after=second, at=day)
    assert [first.file_name, second.file_name] == ["usage-2026-01-31.jsonl", "usage-2026-02-01.jsonl"]
    assert (tmp_path / second.file_name).read_text() == '{"n":2}\n{"n":3}\n'
    assert third == Mark(file_name=second.file_name, file_bytes=16)
    # A day's file that a death left behind uncommitted is begun again.
    again = sink.send([{"n": 9}], after=first, at=day + timedelta(minutes=2))
    assert (tmp_path / again.file_name).read_text() == '{"n":9}\n'


# --- Nothing late is left out ----------------------------------------------------------------------------------


@pytest.fixture
def other_session() -> Iterator[psycopg.Connection]:
    about = connection.get_connection_params()
    known = {name: about[name] for name in ("dbname", "user", "password", "host", "port") if about.get(name)}
    with psycopg.connect(**known) as session:
        yield session


def test_an_event_that_is_committed_late_is_waited_for_and_goes_out(folder: Path) -> None:
    """It was recorded first and is committed last: an order by instants would have passed it by."""
    slow, quick = make_payer(recharged="10"), make_payer(recharged="10")
    hold = slow.hold("1")
    is_recorded, may_commit = threading.Event(), threading.Event()

    def slowly() -> None:
        try:
            with transaction.atomic():
                slow.settle_call(hold, prompt=5)
                is_recorded.set()
                assert may_commit.wait(60)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(slowly)
        try:
            assert is_recorded.wait(60)
            quick.call(prompt=10)
            assert usage_export.export_due(seconds=60) == 0, "it may still come before the quick one"
        finally:
            may_commit.set()
        committing.result()
    assert export_due(seconds=60) == 2
    assert [event["subject"] for event in lines(folder)] == [slow.organization_id, quick.organization_id]


def test_two_exporters_at_once_write_once(folder: Path, busy: Payer) -> None:
    old = exports.position_of(f"file://{folder}")
    batch = exports.next_batch(old, limit=2)
    exports.move(old, batch)
    with pytest.raises(ExportMoved):
        exports.move(old, batch)
    assert ExportTally.objects.count() == len({(e.meter, e.occurred_at.hour) for e in batch})
    assert position().exported == 2


def test_one_who_finds_another_at_work_leaves_it_alone(
    folder: Path, busy: Payer, other_session: psycopg.Connection
) -> None:
    key = exports.crc32(f"file://{folder}".encode()) & 0x7FFFFFFF
    other_session.execute("SELECT pg_advisory_lock(%s, %s)", [exports.LOCK_SPACE, key])
    assert export_due(seconds=60) == 0
    with pytest.raises(SinkFailed, match="Another process"):
        usage_export.export_now()
    assert not folder.exists()


# --- The audit -------------------------------------------------------------------------------------------------


def broken() -> set[str]:
    return {violation.invariant for violation in audit.violations(clock.now())}


def test_the_audit_holds_exports_against_the_ledger(folder: Path, busy: Payer) -> None:
    export_due(seconds=0)
    assert broken() == set(), "what is late is no mistake"
    export_due(seconds=60)
    assert broken() == set()
    assert audit.EXPORTED in audit.names()
    tally = ExportTally.objects.filter(meter="storage").first()
    for change in (
        {"events": tally.events + 1},
        {"quantity": tally.quantity - 1},
        {"amount": tally.amount * 2},
    ):
        ExportTally.objects.filter(pk=tally.pk).update(**change)
        assert broken() == {audit.EXPORTED}, change
        tally.save()
    tally.delete()
    assert broken() == {audit.EXPORTED}, "exported, and not counted"
    tally.save(force_insert=True)
    ExportPosition.objects.update(recorded_xid=MeterEvent.objects.earliest("recorded_xid").recorded_xid - 1)
    assert broken() == {audit.EXPORTED}, "counted, and not exported"
    ExportPosition.objects.all().delete()


# --- After a restore -------------------------------------------------------------------------------------------


def test_a_position_of_another_database_is_refused_and_begun_anew_by_hand(folder: Path, busy: Payer) -> None:
    export_due(seconds=0)
    exported = position().exported
    assert 0 < exported < MeterEvent.objects.count()
    # As a dump brings them: the old numbers are above all that the new database has given.
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE billing_meterevent DISABLE TRIGGER billing_meterevent_is_append_only")
        cursor.execute("UPDATE billing_meterevent SET recorded_xid = recorded_xid + 1000000000")
        cursor.execute("ALTER TABLE billing_meterevent ENABLE TRIGGER billing_meterevent_is_append_only")
    ExportPosition.objects.update(recorded_xid=position().recorded_xid + 1_000_000_000)
    with pytest.raises(ExportAhead, match="--restored"):
        usage_export.export_now()
    assert export_due(seconds=60) == 0
    call_command("export_usage", "--restored")
    assert position().recorded_xid == 0
    busy.call(prompt=10)
    assert export_due(seconds=60) == 1
    assert Counter(event["id"] for event in lines(folder)) == Counter(str(pk) for pk in ids())
    assert broken() == set()


# --- HTTP ------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    with receiving() as made:
        settings.BILLING_EXPORT_URL = made.url
        settings.BILLING_EXPORT_TOKEN = "a-token"
        settings.BILLING_EXPORT_SOURCE = SOURCE
        yield made


def test_a_batch_is_posted_as_cloudevents_with_the_token(receiver: Receiver, busy: Payer) -> None:
    sent = usage_export.export_now()
    (got,) = receiver.got
    assert got.headers["content-type"].startswith("application/cloudevents-batch+json")
    assert got.headers["authorization"] == "Bearer a-token"
    assert {event["id"] for event in got.json} == {str(pk) for pk in ids()}
    assert len(got.json) == sent == position().exported


def test_a_failure_waits_and_is_made_up_for_under_the_same_ids(receiver: Receiver, busy: Payer) -> None:
    receiver.answers[:] = [500]
    assert export_due(seconds=60) == 0
    assert (position().failures, position().failure, position().exported) == (1, "answered 500", 0)
    assert export_due(seconds=60) == 0
    assert len(receiver.got) == 1, "not yet"
    ExportPosition.objects.update(retry_at=clock.now())
    assert export_due(seconds=60) == len(ids())
    first, second = receiver.got
    assert first.body == second.body
    assert (position().failures, position().failure, position().retry_at) == (0, "", None)


def test_each_failure_in_a_row_waits_longer(receiver: Receiver, busy: Payer) -> None:
    receiver.answers[:] = [503] * 7
    waits = []
    for _ in range(7):
        ExportPosition.objects.update(retry_at=None)
        export_due(seconds=60)
        waits.append(round((position().retry_at - clock.now()).total_seconds() / 5) * 5)
    assert waits == [5, 30, 120, 600, 1_800, 1_800, 1_800]


def test_a_redirect_is_no_success_and_the_token_goes_nowhere_else(receiver: Receiver, busy: Payer) -> None:
    with receiving() as elsewhere:
        receiver.answers[:], receiver.location = [307], elsewhere.url
        with pytest.raises(SinkFailed, match="answered 307"):
            usage_export.export_now()
        assert elsewhere.got == []


def test_a_sink_that_is_away_is_a_failure(receiver: Receiver, busy: Payer, settings: Any) -> None:
    settings.BILLING_EXPORT_URL = "http://127.0.0.1:9/events"
    assert export_due(seconds=60) == 0
    assert position().failures == 1


def test_a_slow_sink_is_a_failure(receiver: Receiver, busy: Payer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_sinks, "TIMEOUT_SECONDS", 0.2)
    receiver.delay_seconds = 1
    with pytest.raises(SinkFailed, match="no answer"):
        usage_export.export_now()


# --- Settings and the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("file:///srv/usage", FileSink),
        ("file:///srv/a%20folder", FileSink),
        ("https://meter.example.com/api/v1/events", HttpSink),
        ("http://127.0.0.1:8888/events", HttpSink),
    ],
)
def test_a_url_names_its_sink(url: str, kind: type) -> None:
    assert isinstance(sink_of(url, token=""), kind)


@pytest.mark.parametrize(
    "url",
    ["usage", "file://host/srv", "file:usage", "ftp://host/x", "https://", "https://user:secret@host/x"],
)
def test_a_url_that_is_none_is_told_at_the_start_without_what_it_holds(url: str, settings: Any) -> None:
    settings.BILLING_EXPORT_URL = url
    found = [error for error in settings_are_sensible() if error.id == "cacheplane.E005"]
    assert len(found) == 1
    assert "secret" not in found[0].msg


def test_without_a_url_nothing_is_done(settings: Any, busy: Payer) -> None:
    settings.BILLING_EXPORT_URL = ""
    assert export_due(seconds=60) == 0
    assert not ExportPosition.objects.exists()
    assert settings_are_sensible() == []
    with pytest.raises(CommandError, match="BILLING_EXPORT_URL"):
        call_command("export_usage", "--once")


def test_the_command_sends_what_is_due_and_says_how_much(
    folder: Path, busy: Payer, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("export_usage", "--once")
    assert capsys.readouterr().out == f"{len(ids())} events to file://{folder}\n"
    (path,) = folder.iterdir()
    path.unlink()
    busy.call(prompt=1)
    settled()
    with pytest.raises(CommandError, match="has 0 bytes"):
        call_command("export_usage", "--once")


def test_the_workers_job_exports(folder: Path, busy: Payer) -> None:
    from workers.exporting import export_usage

    export_usage()
    assert len(lines(folder)) == len(ids())


def test_a_sandboxs_events_say_so(folder: Path, new_sandbox: Callable[[], Payer]) -> None:
    new_sandbox().call(prompt=10)
    export_due(seconds=60)
    assert [event["data"]["sandbox"] for event in lines(folder)] == [True]


@pytest.fixture
def new_sandbox() -> Callable[[], Payer]:
    from billing import accounts
    from cacheplane.access.models import Organization

    def make() -> Payer:
        organization = Organization.objects.create(name="Rehearsal", tier_id="tier0", kind="sandbox")
        accounts.open_account(organization.id)
        payer = Payer(organization_id=organization.id, at=clock.now())
        payer.recharge("1")
        return payer

    return make


def test_segments_are_left_as_they_were(folder: Path, busy: Payer) -> None:
    """Exporting reads: nothing of billing is changed by it."""
    before = list(StorageSegment.objects.values()), list(LedgerEntry.objects.values())
    export_due(seconds=60)
    assert (list(StorageSegment.objects.values()), list(LedgerEntry.objects.values())) == before
