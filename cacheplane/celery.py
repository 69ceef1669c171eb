"""The Celery application. It holds no task: `workers` registers them, `dispatch` names them."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from pathlib import Path
from queue import Empty
from typing import Any

from celery import Celery
from django.conf import settings
from kombu.transport import filesystem, virtual
from kombu.utils.json import dumps, loads

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cacheplane.settings")

BROKER_TIMEOUT_SECONDS = 1.0
FILESYSTEM_POLL_SECONDS = 0.05
DRAIN_SECONDS = 0.25


def transport_options(url: str) -> dict[str, object]:
    """What each broker needs so that a lost worker's job comes back soon and a dead broker is noticed soon."""
    if url.startswith("filesystem://"):
        for folder in ("queue", "control"):
            (settings.BROKER_DIR / folder).mkdir(parents=True, exist_ok=True)
        return {
            "data_folder_in": str(settings.BROKER_DIR / "queue"),
            "data_folder_out": str(settings.BROKER_DIR / "queue"),
            "control_folder": str(settings.BROKER_DIR / "control"),
            "store_processed": False,
            "polling_interval": FILESYSTEM_POLL_SECONDS,
        }
    if url.startswith(("redis://", "rediss://")):
        return {
            "visibility_timeout": 3600,
            "unacked_restore_interval": 2,
            "unacked_restore_throttle": 1,
            "socket_connect_timeout": BROKER_TIMEOUT_SECONDS,
            "socket_timeout": 5.0,
        }
    return {"confirm_publish": True, "connect_timeout": BROKER_TIMEOUT_SECONDS}


class WholeFiles(filesystem.Channel):
    """Each file appears whole, under its name, and is taken by one. kombu opens a file first and fills it then: a
    process that looks in between finds an empty one, and ends."""

    def _put(self, queue: str, message: dict[str, Any], **_options: Any) -> None:  # type: ignore[override]
        name = f"{time.monotonic_ns() // 1_000_000}_{uuid.uuid4()}.{queue}.msg"
        _write_whole(Path(self.data_folder_out) / name, message)

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        folder = Path(self.data_folder_in)
        for name in sorted(os.listdir(folder)):
            if name.partition(".")[2] != f"{queue}.msg":
                continue
            taken = folder / f".{name}.taken"
            try:
                (folder / name).rename(taken)
            except FileNotFoundError:
                continue  # somebody else was first
            message = loads(taken.read_text())  # type: ignore[no-untyped-call]
            taken.unlink()
            return message
        raise Empty

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        self.control_folder.mkdir(exist_ok=True)
        with (self.control_folder / ".lock").open("a") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # until it is closed
            bound = self.get_table(exchange)  # type: ignore[no-untyped-call]
            row = filesystem.exchange_queue_t(routing_key or "", pattern or "", queue or "")
            if row not in bound:
                _write_whole(self._exchange_file(exchange), [row, *bound])  # type: ignore[no-untyped-call]


def _write_whole(path: Path, content: object) -> None:
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    unfinished.write_text(dumps(content))  # type: ignore[no-untyped-call]
    unfinished.replace(path)


class FilesystemTransport(filesystem.Transport):
    Channel = WholeFiles

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)  # type: ignore[no-untyped-call]
        # kombu's is one for all threads: it says "bound" before the file does, and what another thread sends
        # in between goes nowhere.
        self.state = virtual.BrokerState()  # type: ignore[no-untyped-call]

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:  # type: ignore[override]
        """Raises TimeoutError, and earlier than asked: a worker looks whether it is to stop only between two waits."""
        if timeout is not None:
            timeout = min(timeout, DRAIN_SECONDS)
        super().drain_events(connection, timeout=timeout)  # type: ignore[no-untyped-call]


def transport_class(url: str) -> str | None:
    """None: the one that the URL's scheme names."""
    return "cacheplane.celery:FilesystemTransport" if url.startswith("filesystem://") else None


app = Celery("cacheplane")
app.conf.update(
    broker_url=settings.CELERY_BROKER_URL,
    broker_transport=transport_class(settings.CELERY_BROKER_URL),
    broker_transport_options=transport_options(settings.CELERY_BROKER_URL),
    broker_connection_timeout=BROKER_TIMEOUT_SECONDS,
    broker_connection_retry_on_startup=True,
    include=[
        "workers.schedule",
        "workers.precompute",
        "workers.expiry",
        "workers.metering",
        "workers.sweeping",
        "workers.webhooks",
        "workers.exporting",
    ],
    task_default_queue="cacheplane",
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    worker_enable_remote_control=False,
    task_serializer="json",
    accept_content=["json"],
    timezone="UTC",
    beat_schedule_filename=str(settings.DATA_DIR / "beat-schedule"),
)
