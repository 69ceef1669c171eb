"""Two model families on two engines, side by side: each object and each call goes to its own."""

from __future__ import annotations

import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Client, Instance, organization_of, start_instance, using_database_of, wait_for

pytestmark = [pytest.mark.own_instance, pytest.mark.xdist_group("two-engines")]

FAMILY, MODEL = "aurora-v1", "aurora-v1-4k"
QUESTION = {"role": "user", "content": "And now?"}
MEMO_SECONDS = 6
"""After that every process has forgotten which engine served a name."""


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory, first_start: Path) -> Iterator[Instance]:
    running = start_instance(tmp_path_factory.mktemp("two") / "data", copy_of=first_start)
    try:
        yield running
    finally:
        status = running.stop()
    assert status == 0, running.log.read_text()[-4000:]


@dataclass(frozen=True)
class Second:
    """The second engine, asked past the control plane."""

    url: str
    kv_dir: Path
    api_key: str

    def metric(self, name: str) -> int:
        request = urllib.request.Request(
            f"{self.url}/metrics", headers={"Authorization": f"Bearer {self.api_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return int(float(next(line.split()[-1] for line in lines if line.startswith(f"llamacpp:{name} "))))


@pytest.fixture(scope="module")
def second(instance: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    from cacheplane.launcher import engine

    folder = tmp_path_factory.mktemp("second")
    key = instance.settings["ENGINE_API_KEY"]
    with (folder / "log").open("wb") as log:
        running = engine.start(
            model=Path(os.environ["MODEL"]), kv_dir=folder / "kv", api_key=key, slots=2, output=log
        )
    try:
        yield Second(url=running.url, kv_dir=folder / "kv", api_key=key)
    finally:
        running.stop()


@pytest.fixture(scope="module")
def caller(instance: Instance, second: Second, django_db_blocker: Any) -> Client:
    """A caller of an instance on which an operator has put a second family on the second engine, with prices."""
    from billing import clock, price_book

    told = instance.manage(
        *("register_engine", "--name", "second", "--url", second.url, "--kv-dir", str(second.kv_dir)),
        *("--family", FAMILY, "--model", f"{MODEL}=4096", "--model", "aurora-v1-auto=auto"),
    )
    assert told.returncode == 0, told.stderr
    assert f"No price yet for prompt of {MODEL}" in told.stdout
    with using_database_of(instance, django_db_blocker):
        made = organization_of(instance)
        for meter, model in [
            *((meter, FAMILY) for meter in ("creation", "storage", "call")),
            *((meter, MODEL) for meter in ("prompt", "completion")),
        ]:
            price_book.publish(
                meter=meter, model=model, currency="CNY", per_million=Decimal(7), valid_from=clock.now()
            )
    return made


def test_objects_of_both_families_are_computed_and_called_each_on_its_engine(caller, second, instance):
    before = second.metric("prompt_tokens_total")
    made = {
        family: caller.create("You answer shortly. " * 20, model=family).json
        for family in ("moonshot-v1", FAMILY)
    }
    for family, model in (("moonshot-v1", "moonshot-v1-8k"), (FAMILY, MODEL)):
        active = caller.wait_until(made[family]["id"], "active")
        answer = caller.ask(active["id"], model=model)
        assert answer.status == 200, answer.body
        assert answer.json["usage"]["cached_tokens"] == active["tokens"]
        assert answer.json["model"] == model
    evaluated = second.metric("prompt_tokens_total") - before
    tokens = made[FAMILY]["tokens"]
    assert tokens <= evaluated < 2 * tokens, "one prefill and one call"
    assert len(list(second.kv_dir.glob("cache-*"))) == 1
    assert len(list(instance.kv_dir.glob("cache-*"))) == 1


def test_a_plain_call_goes_to_its_familys_engine(caller, second):
    before = second.metric("tokens_predicted_total")
    assert caller.chat(QUESTION).status == 200
    assert second.metric("tokens_predicted_total") == before
    assert caller.chat(QUESTION, model=MODEL).status == 200
    assert second.metric("tokens_predicted_total") == before + 4
    assert caller.chat(QUESTION, model="aurora-v1-auto").json["model"] == MODEL


def test_an_object_serves_no_other_family(caller):
    active = caller.active(model=FAMILY)
    refused = caller.ask(active["id"])
    assert refused.status == 400
    assert refused.error["message"].startswith("Invalid request: model: got moonshot-v1-8k, takes ")
    ordinary = caller.chat(*active["messages"], QUESTION, headers={"X-Msh-Context-Cache": active["id"]})
    assert ordinary.json["usage"]["cached_tokens"] == 0


def test_its_window_is_its_own_and_it_is_listed(caller):
    refused = caller.chat(QUESTION, model=MODEL, max_tokens=4096)
    assert refused.error["message"].startswith("Your request exceeded model token limit : 4096")
    listed = {model["id"] for model in caller.request("GET", "/v1/models").json["data"]}
    assert {MODEL, "aurora-v1-auto", "moonshot-v1-8k"} <= listed


def test_its_price_is_its_own(caller):
    before = caller.balance()["cash_balance"]
    usage = caller.chat(QUESTION, model=MODEL, max_tokens=60).json["usage"]
    spent = usage["total_tokens"] * Decimal(7) / 1_000_000
    assert abs(before - caller.balance()["cash_balance"] - spent) <= Decimal("0.00001")


def test_a_family_that_moves_takes_its_objects_along(caller, instance, second):
    active = caller.active("You move. " * 10, model=FAMILY)
    told = instance.manage("register_engine", "--family", FAMILY)
    assert told.returncode == 0, told.stderr
    try:
        time.sleep(MEMO_SECONDS)
        before = second.metric("tokens_predicted_total")
        lost = caller.ask(active["id"], model=MODEL)
        assert (lost.status, lost.json["usage"]["cached_tokens"]) == (200, 0)
        caller.wait_until(active["id"], "active")
        hit = caller.ask(active["id"], model=MODEL)
        assert hit.json["usage"]["cached_tokens"] == active["tokens"]
        assert second.metric("tokens_predicted_total") == before
    finally:
        back = ("--name", "second", "--url", second.url, "--kv-dir", str(second.kv_dir), "--family", FAMILY)
        assert instance.manage("register_engine", *back).returncode == 0
        time.sleep(MEMO_SECONDS)


def test_an_engine_at_work_holds_up_no_other(caller, instance, django_db_blocker):
    from cacheplane.engines import registry, slots

    with using_database_of(instance, django_db_blocker):
        engine_id = registry.engine_for("moonshot-v1").id
        lease = wait_for(
            lambda: slots.lease_for_prefill(engine_id=engine_id, owner="test", seconds=60),
            seconds=30,
            what="the first engine's lane is free",
        )
        try:
            waiting = caller.create("You wait.").json
            assert caller.active("You do not wait.", model=FAMILY)["status"] == "active"
            assert caller.get(waiting["id"]).json["status"] == "pending"
        finally:
            slots.release(lease, resident=None, resident_organization=slots.UNKNOWN_ORGANIZATION)
    caller.wait_until(waiting["id"], "active")


def test_a_family_without_an_engine_and_a_model_without_a_price_say_so(caller, instance, django_db_blocker):
    from cacheplane.engines.models import ModelFamily, ServedModel

    with using_database_of(instance, django_db_blocker):
        family = ModelFamily.objects.create(name="borealis")
        ServedModel.objects.create(name="borealis-8k", family=family, window_tokens=8192)
        ServedModel.objects.create(name="aurora-v1-free", family_id=FAMILY, window_tokens=4096)
    for refused in (caller.chat(QUESTION, model="borealis-8k"), caller.create(model="borealis")):
        assert (refused.status, refused.error["type"]) == (429, "engine_overloaded_error")
        assert "No engine serves the model family borealis" in refused.error["message"]
    refused = caller.chat(QUESTION, model="aurora-v1-free")
    assert (refused.status, refused.error["type"]) == (503, "server_error")
    assert "price" in refused.error["message"] and "aurora-v1-free" in refused.error["message"]


def test_a_command_that_cannot_be_meant_is_refused(instance):
    for wrong, said in (
        (("--model", "a=8"), "--family"),
        (("--name", "third"), "--url"),
        (("--family", "a", "--model", "a=lots"), "NAME=TOKENS"),
    ):
        told = instance.manage("register_engine", *wrong)
        assert told.returncode != 0 and said in told.stderr
