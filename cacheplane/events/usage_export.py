"""Sending usage to where BILLING_EXPORT_URL says, batch by batch, with no transaction open while it is sent."""

from __future__ import annotations

import time

import structlog
from django.conf import settings

from billing import clock, exports
from billing.errors import ExportAhead, ExportMoved
from billing.models import ExportPosition
from cacheplane.events.usage_sinks import Mark, Sink, SinkFailed, sink_of

log = structlog.get_logger(__name__)

NEVER = 2**63 - 1
"""No transaction has that number."""


def configured() -> Sink | None:
    if not settings.BILLING_EXPORT_URL:
        return None
    return sink_of(settings.BILLING_EXPORT_URL, token=settings.BILLING_EXPORT_TOKEN)


def export_due(*, seconds: float) -> int:
    """The periodic job: what is due, unless the sink failed a moment ago; how many events. A sink's failure is
    written down, and not raised."""
    sink = configured()
    if sink is None:
        return 0
    with exports.alone(sink.name) as is_alone:
        if not is_alone:
            return 0
        try:
            position = exports.position_of(sink.name)
        except ExportAhead as error:
            log.error("usage_not_exported", reason=error.message)
            return 0
        if position.retry_at is not None and position.retry_at > clock.now():
            return 0
        try:
            return drain(sink, position, seconds=seconds)
        except (SinkFailed, ExportMoved) as error:
            log.error("usage_not_exported", sink=sink.name, reason=error.message)
            return 0


def export_now() -> int:
    """All that is due, now; how many events. Raises SinkFailed, billing's ExportError, and SinkFailed when another
    process is exporting there."""
    sink = _required()
    with exports.alone(sink.name) as is_alone:
        if not is_alone:
            raise SinkFailed(f"Another process is exporting to {sink.name}.")
        return drain(sink, exports.position_of(sink.name), seconds=float("inf"))


def export_after_restore() -> int:
    """After the database was restored from a dump, before anybody writes into it: what had not gone out yet, by the
    old numbers; from then on by the new ones. Raises as `export_now`."""
    sink = _required()
    with exports.alone(sink.name) as is_alone:
        if not is_alone:
            raise SinkFailed(f"Another process is exporting to {sink.name}.")
        position = exports.any_position_of(sink.name)
        sent = drain(sink, position, seconds=float("inf"), below=NEVER)
        exports.restart_after_restore(sink.name)
        return sent


def _required() -> Sink:
    sink = configured()
    if sink is None:
        raise SinkFailed("BILLING_EXPORT_URL is not set.")
    return sink


def drain(sink: Sink, position: ExportPosition, *, seconds: float, below: int | None = None) -> int:
    """Batch after batch until nothing is left, or the time is over. Raises SinkFailed, which is written down."""
    until = time.monotonic() + seconds
    sent = 0
    while batch := exports.next_batch(position, limit=settings.BILLING_EXPORT_BATCH_EVENTS, below=below):
        events = [exports.cloud_event(event, source=settings.BILLING_EXPORT_SOURCE) for event in batch]
        after = Mark(file_name=position.file_name, file_bytes=position.file_bytes)
        try:
            mark = sink.send(events, after=after, at=clock.now())
        except SinkFailed as error:
            exports.failed(position, reason=error.message)
            raise
        position = exports.move(position, batch, file_name=mark.file_name, file_bytes=mark.file_bytes)
        sent += len(batch)
        if time.monotonic() >= until:
            break
    return sent
