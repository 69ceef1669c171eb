"""Shell around the export of usage."""

from __future__ import annotations

from cacheplane import dispatch
from cacheplane.celery import app
from cacheplane.events import usage_export

RUN_SECONDS = 20.0
"""After which no batch is begun any more: the next tick goes on."""


@app.task(name=dispatch.EXPORT_USAGE)
def export_usage() -> None:
    usage_export.export_due(seconds=RUN_SECONDS)
