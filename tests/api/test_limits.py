"""Limits of a caller's tier: concurrency, requests and tokens of a minute, tokens of a day."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from tests.api import books
from tests.api.streams import Call
from tests.conftest import wait_for

HELLO = {"role": "user", "content": "Hello."}


def account(caller) -> str:
    return re.escape(f"Your account {caller.organization}") + r"<ak-[0-9a-z]{20}> request reached "


def assert_refused(answer, caller, sentence: str) -> int:
    """The contract's sentence and `Retry-After`; the seconds to wait."""
    assert (answer.status, answer.error["type"]) == (429, "rate_limit_reached_error")
    assert re.fullmatch(account(caller) + sentence, answer.error["message"]), answer.error["message"]
    told = re.search(r"after (\d+) seconds", answer.error["message"])
    waits = int(answer.headers["retry-after"])
    assert told is None or int(told[1]) == waits
    assert waits >= 1
    return waits


def test_tier0_has_one_call_at_a_time(new_caller):
    caller = new_caller(tier="tier0")
    with Call(caller, HELLO, stream=True, max_tokens=4000) as running:
        assert running.answer.status == 200
        refused = caller.chat(HELLO)
        assert_refused(refused, caller, r"max concurrency: 1, please try again after \d+ seconds")
    wait_for(lambda: books.is_idle(caller), seconds=15, what="the place is given back")
    assert caller.chat(HELLO).status == 200


def test_tier0_has_three_requests_a_minute(new_caller):
    caller = new_caller(tier="tier0")
    assert [caller.chat(HELLO).status for _ in range(3)] == [200] * 3
    waits = assert_refused(caller.chat(HELLO), caller, r"max request: 3, please try again after \d+ seconds")
    assert waits <= 20
    assert len(books.counted(caller, "prompt")) == 3


def test_counting_tokens_is_a_request_of_the_minute(new_caller):
    caller = new_caller(tier="tier0")
    body = {"model": "moonshot-v1-8k", "messages": [HELLO]}
    path = "/v1/tokenizers/estimate-token-count"
    assert [caller.request("POST", path, body).status for _ in range(3)] == [200] * 3
    refused = caller.request("POST", path, body)
    assert_refused(refused, caller, r"max request: 3, please try again after \d+ seconds")


def test_of_many_at_once_no_more_are_admitted_than_the_minute_has(new_caller):
    caller = new_caller(tier="tier0")
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: caller.chat(HELLO, max_tokens=1), range(12)))
    admitted = [answer for answer in answers if answer.status == 200]
    assert 1 <= len(admitted) <= 3
    assert {answer.error["type"] for answer in answers if answer.status != 200} == {
        "rate_limit_reached_error"
    }
    assert len(books.counted(caller, "prompt")) == len(admitted)


def test_prompt_and_max_tokens_of_calls_in_flight_count_against_the_minute(new_caller):
    caller = new_caller(tier="tier1")
    long = {"model": "moonshot-v1-128k", "stream": True, "max_tokens": 100_000}
    with Call(caller, HELLO, **long) as running:
        assert running.answer.status == 200
        refused = caller.chat(HELLO, **long)
        sentence = r"TPM rate limit, current:\d{5,6}, limit:128000, please try again after \d+ seconds"
        assert_refused(refused, caller, sentence)
        assert caller.chat(HELLO, max_tokens=20).status == 200
    wait_for(lambda: books.is_idle(caller), seconds=15, what="what was not used is given back")
    with Call(caller, HELLO, **long) as again:
        assert again.answer.status == 200


def test_a_call_beyond_a_whole_minute_is_told_that_waiting_is_no_use(new_caller):
    caller = new_caller(tier="tier0")
    refused = caller.chat(HELLO, model="moonshot-v1-128k", max_tokens=40_000)
    assert_refused(refused, caller, r"TPM rate limit, current:40\d{3}, limit:32000; .*")
    assert "a retry cannot succeed" in refused.error["message"]


def test_tokens_of_a_day_are_limited(new_caller):
    from cacheplane.access.models import RateState

    caller = new_caller(tier="tier0")
    assert caller.chat(HELLO).status == 200
    RateState.objects.filter(organization_id=caller.organization).update(day_tokens=1_499_999)
    refused = caller.chat(HELLO)
    waits = assert_refused(
        refused, caller, r"TPD rate limit, current:1499999, limit:1500000, please try again after \d+ seconds"
    )
    assert waits <= 86_400


def test_limits_hold_for_all_keys_of_an_organization(new_caller, instance):
    from cacheplane.access import api_keys
    from cacheplane.access.models import Project

    caller = new_caller(tier="tier0")
    project = Project.objects.get(organization_id=caller.organization)
    second = instance.client(api_keys.issue(project=project, name="second", operator="test").secret)
    assert [caller.chat(HELLO).status, second.chat(HELLO).status, caller.chat(HELLO).status] == [200] * 3
    assert second.chat(HELLO).status == caller.chat(HELLO).status == 429


def test_one_organizations_limit_is_not_anothers(new_caller):
    busy, other = new_caller(tier="tier0"), new_caller(tier="tier0")
    for _ in range(4):
        busy.chat(HELLO)
    assert busy.chat(HELLO).status == 429
    assert other.chat(HELLO).status == 200


def test_a_refused_call_holds_nothing(new_caller):
    caller = new_caller(tier="tier0")
    for _ in range(3):
        assert caller.chat(HELLO).status == 200
    posted, held = books.purse(caller)
    assert caller.chat(HELLO).status == 429
    assert books.purse(caller) == (posted, held) == (posted, 0)
