"""The broker that needs no broker: messages in a folder, written by some and taken by others at the same time."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from kombu import Connection, Exchange, Queue

from cacheplane.celery import app, transport_class

MESSAGES = 150


def test_no_message_is_taken_before_it_is_whole_and_each_is_taken_once(tmp_path):
    folders = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path)}

    @contextmanager
    def opened() -> Iterator[Any]:
        options = folders | {"control_folder": str(tmp_path / "control"), "polling_interval": 0.001}
        transport = transport_class("filesystem://")
        with Connection("filesystem://", transport=transport, transport_options=options) as connection:
            with connection.SimpleQueue("jobs") as jobs:
                yield jobs

    def put(writer: int) -> None:
        with opened() as jobs:
            for number in range(MESSAGES):
                jobs.put([writer, number])

    taken: list[tuple[int, int]] = []
    deadline = time.monotonic() + 60

    def take() -> None:
        with opened() as jobs:
            while len(taken) < 2 * MESSAGES and time.monotonic() < deadline:
                try:
                    message = jobs.get(timeout=0.2)
                except queue.Empty:
                    continue
                taken.append(tuple(message.payload))
                message.ack()

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(take) for _ in range(3)]
        list(pool.map(put, range(2)))
        for reader in readers:
            reader.result()
    assert sorted(taken) == [(writer, number) for writer in range(2) for number in range(MESSAGES)]


def test_queues_may_be_bound_by_many_at_once_and_none_is_forgotten(tmp_path):
    folders = {"data_folder_in": str(tmp_path), "data_folder_out": str(tmp_path)}
    queues = [f"jobs-{number}" for number in range(24)]

    def bind(name: str) -> None:
        transport = transport_class("filesystem://")
        options = folders | {"control_folder": str(tmp_path / "control")}
        with Connection("filesystem://", transport=transport, transport_options=options) as connection:
            Queue(name, Exchange("all", "fanout"), channel=connection.default_channel).declare()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bind, queues))
    table = json.loads((tmp_path / "control" / "all.exchange").read_text())
    assert sorted(queue for _, _, queue in table) == sorted(queues)


def test_it_is_what_the_application_uses_without_a_broker():
    assert app.conf.broker_transport == transport_class("filesystem://")
    assert transport_class("redis://localhost") is transport_class("amqp://localhost") is None
