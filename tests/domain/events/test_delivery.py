"""The outbox: with the change or not at all, at least once, under one id, signed, and not for ever."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import transaction
from standardwebhooks.webhooks import WebhookVerificationError

from billing import clock
from cacheplane.access.models import AuditEntry
from cacheplane.errors import Conflict, LimitExceeded, NotFound
from cacheplane.events import delivery, endpoints, outbox
from cacheplane.events.delivery import Outcome
from cacheplane.events.endpoints import Changes
from cacheplane.events.models import (
    CACHE_ACTIVE,
    CACHE_EXPIRED,
    DELIVERED,
    FAILED,
    PENDING,
    Delivery,
    DeliveryAttempt,
    OutboxEvent,
    WebhookEndpoint,
)
from tests.receiver import Receiver
from workers import webhooks as jobs

pytestmark = pytest.mark.django_db


def tell(organization_id: str, event_type: str = CACHE_ACTIVE) -> None:
    with transaction.atomic():
        outbox.tell(
            organization_id=organization_id,
            event_type=event_type,
            subject="cache-1",
            at=clock.now(),
            data={"id": "cache-1", "name": "ü"},
        )


def make_due() -> None:
    """As if the lease, or the wait for the next try, were over."""
    Delivery.objects.filter(state=PENDING).update(next_at=clock.now() - timedelta(milliseconds=1))


def test_what_is_told_arrives_once_and_is_signed(receiver: Receiver, listen, organization_id: str) -> None:
    issued = listen(organization_id)
    tell(organization_id)
    for _ in range(2):
        jobs.deliver_webhooks()
    [got] = receiver.got
    payload = got.verified(issued.secret)
    event = OutboxEvent.objects.get()
    assert got.id == event.id
    assert payload == {
        "type": "cache.active",
        "timestamp": event.at.isoformat(),
        "data": {"id": "cache-1", "name": "ü"},
    }
    assert got.headers["content-type"] == "application/json"
    row = Delivery.objects.get()
    assert (row.state, row.tries, row.next_at) == (DELIVERED, 1, None)
    assert DeliveryAttempt.objects.get().http_status == 204
    with pytest.raises(WebhookVerificationError):
        got.verified("whsec_" + "A" * 44)


def test_a_change_that_is_undone_is_not_told(receiver: Receiver, listen, organization_id: str) -> None:
    listen(organization_id)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        tell(organization_id)
        raise ZeroDivisionError
    assert not OutboxEvent.objects.exists()


def test_only_who_listens_is_told_and_nobody_of_another_organization(
    receiver: Receiver, listen, new_organization: Callable[..., str]
) -> None:
    mine, theirs = new_organization(), new_organization()
    wanted = [listen(mine, CACHE_ACTIVE).endpoint.id, listen(mine).endpoint.id]
    listen(mine, CACHE_EXPIRED)
    listen(theirs)
    disabled = listen(mine).endpoint
    endpoints.disable(disabled.id, reason="test", at=clock.now())
    tell(mine)
    assert sorted(Delivery.objects.values_list("endpoint_id", flat=True)) == sorted(wanted)
    tell(theirs, "webhook.unheard")
    assert OutboxEvent.objects.count() == 1, "nothing is written where nobody listens"


def test_a_sender_that_dies_after_sending_is_followed_by_one_that_sends_the_same_again(
    receiver: Receiver, listen, organization_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = listen(organization_id)
    tell(organization_id)

    def die(*_about: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(delivery, "report", die)
        delivery.deliver_due()
    assert len(receiver.got) == 1
    assert delivery.deliver_due() == 0, "it is leased"
    make_due()
    assert delivery.deliver_due() == 1
    first, second = receiver.got
    assert (first.id, first.body) == (second.id, second.body)
    second.verified(issued.secret)
    assert Delivery.objects.get().state == DELIVERED


def test_who_lost_its_lease_changes_nothing(receiver: Receiver, listen, organization_id: str) -> None:
    listen(organization_id)
    tell(organization_id)
    [zombie] = delivery.claim_due(at=clock.now())
    make_due()
    [heir] = delivery.claim_due(at=clock.now())
    assert (heir.fence, heir.tries) == (zombie.fence + 1, 2)
    delivery.report(heir, Outcome(duration_ms=1, http_status=200))
    delivery.report(zombie, Outcome(duration_ms=1, http_status=500))
    assert Delivery.objects.get().state == DELIVERED
    assert DeliveryAttempt.objects.count() == 1


def test_a_failure_is_tried_again_later_and_later_and_then_no_more(
    receiver: Receiver, listen, organization_id: str
) -> None:
    listen(organization_id)
    tell(organization_id)
    tries = len(delivery.RETRY_SECONDS) + 1
    receiver.answers = [500] * tries
    for wait in delivery.RETRY_SECONDS:
        at = clock.now()
        assert delivery.deliver_due() == 1
        row = Delivery.objects.get()
        assert row.next_at is not None
        waits = (row.next_at - at).total_seconds()
        assert wait <= waits <= wait * 1.2 + 10
        make_due()
    assert delivery.deliver_due() == 1
    row = Delivery.objects.get()
    assert (row.state, row.next_at, row.tries) == (FAILED, None, tries)
    assert len({one.id for one in receiver.got}) == 1
    assert list(DeliveryAttempt.objects.values_list("http_status", flat=True)) == [500] * tries


def test_a_success_after_failures_clears_the_endpoint(
    receiver: Receiver, listen, organization_id: str
) -> None:
    listen(organization_id)
    tell(organization_id)
    receiver.answers = [302]
    delivery.deliver_due()
    assert WebhookEndpoint.objects.get().failing_since is not None
    make_due()
    delivery.deliver_due()
    assert WebhookEndpoint.objects.get().failing_since is None


@pytest.mark.parametrize("how", ["gone", "days"])
def test_an_endpoint_that_is_hopeless_is_disabled_and_that_is_audited(
    receiver: Receiver, listen, organization_id: str, how: str
) -> None:
    endpoint = listen(organization_id).endpoint
    tell(organization_id)
    tell(organization_id)
    receiver.answers = [410] * 2 if how == "gone" else [503] * 2
    if how == "days":
        WebhookEndpoint.objects.update(failing_since=clock.now() - timedelta(days=3, seconds=1))
    jobs.deliver_webhooks()
    endpoint.refresh_from_db()
    assert endpoint.disabled_at is not None and endpoint.disabled_reason
    entry = AuditEntry.objects.get(action="webhook_endpoint.disable")
    assert (entry.operator, entry.subject, entry.organization_id) == (
        "system",
        endpoint.id,
        organization_id,
    )
    assert {row.state for row in Delivery.objects.all()} == {FAILED}
    tell(organization_id)
    assert Delivery.objects.count() == 2
    endpoints.update(organization_id, endpoint.id, Changes(is_enabled=True))
    tell(organization_id)
    assert jobs.deliver_webhooks() is None
    assert Delivery.objects.filter(state=DELIVERED).count() == 1


def test_an_endpoint_with_much_to_be_told_leaves_room_for_others(
    receiver: Receiver, listen, new_organization: Callable[..., str]
) -> None:
    loud, quiet = new_organization(), new_organization()
    listen(loud)
    listen(quiet)
    for _ in range(10):
        tell(loud)
    tell(quiet)
    claims = delivery.claim_due(at=clock.now())
    assert len(claims) == delivery.REQUESTS_PER_ENDPOINT + 1


def test_an_endpoint_that_fails_twice_rests_while_others_are_served(
    receiver: Receiver, listen, new_organization: Callable[..., str]
) -> None:
    failing, healthy = new_organization(), new_organization()
    listen(failing)
    for _ in range(delivery.REQUESTS_PER_ENDPOINT + 2):
        tell(failing)
    receiver.answers = [500] * delivery.REQUESTS_PER_ENDPOINT
    at = clock.now()
    delivery.deliver_due()
    listen(healthy)
    tell(healthy)
    assert delivery.deliver_due() == 1, "only what is healthy is due"
    waiting = Delivery.objects.filter(state=PENDING).values_list("next_at", flat=True)
    assert len(waiting) == delivery.REQUESTS_PER_ENDPOINT + 2
    # The last to fail keeps its own time; the others wait for the endpoint's.
    assert len([next_at for next_at in waiting if next_at < at + delivery.REST]) <= 1


def test_sent_again_it_goes_under_its_old_id(receiver: Receiver, listen, organization_id: str) -> None:
    endpoint = listen(organization_id).endpoint
    tell(organization_id)
    jobs.deliver_webhooks()
    row = Delivery.objects.get()
    endpoints.send_again(row.id, at=clock.now())
    jobs.deliver_webhooks()
    assert [one.id for one in receiver.got] == [row.event_id] * 2
    endpoints.disable(endpoint.id, reason="test", at=clock.now())
    with pytest.raises(Conflict):
        endpoints.send_again(row.id, at=clock.now())


def test_after_a_rotation_both_secrets_prove_for_a_day(
    receiver: Receiver, listen, organization_id: str
) -> None:
    old = listen(organization_id)
    new = endpoints.rotate(organization_id, old.endpoint.id)
    assert new.secret != old.secret
    tell(organization_id)
    jobs.deliver_webhooks()
    WebhookEndpoint.objects.update(previous_secret_until=clock.now())
    tell(organization_id)
    jobs.deliver_webhooks()
    during, after = receiver.got
    for secret in (old.secret, new.secret):
        during.verified(secret)
    after.verified(new.secret)
    with pytest.raises(WebhookVerificationError):
        after.verified(old.secret)


def test_no_table_holds_a_secret(listen, organization_id: str) -> None:
    issued = listen(organization_id)
    row = WebhookEndpoint.objects.values().get()
    assert not [value for value in row.values() if issued.secret[6:20] in str(value)]
    assert issued.secret not in repr(issued)


def test_an_organization_has_ten_endpoints_at_most(listen, new_organization: Callable[..., str]) -> None:
    mine, theirs = new_organization(), new_organization()
    for _ in range(endpoints.ENDPOINTS_MAX):
        listen(mine)
    with pytest.raises(Conflict, match="10 webhook endpoints"):
        listen(mine)
    listen(theirs)


def test_a_deleted_endpoint_takes_its_deliveries_along(
    receiver: Receiver, listen, new_organization: Callable[..., str]
) -> None:
    mine, theirs = new_organization(), new_organization()
    endpoint = listen(mine).endpoint
    tell(mine)
    with pytest.raises(NotFound):
        endpoints.delete(theirs, endpoint.id)
    endpoints.delete(mine, endpoint.id)
    assert not Delivery.objects.exists()
    jobs.deliver_webhooks()
    assert receiver.got == []


def test_tests_are_few(listen, organization_id: str) -> None:
    endpoint = listen(organization_id).endpoint
    for _ in range(endpoints.TESTS_PER_MINUTE):
        endpoints.send_test(organization_id, endpoint.id)
    with pytest.raises(LimitExceeded):
        endpoints.send_test(organization_id, endpoint.id)


def test_what_was_told_long_ago_is_forgotten(receiver: Receiver, listen, organization_id: str) -> None:
    listen(organization_id)
    tell(organization_id)
    jobs.deliver_webhooks()
    tell(organization_id)
    jobs.sweep_webhooks()
    assert OutboxEvent.objects.count() == 2
    OutboxEvent.objects.update(at=clock.now() - timedelta(days=30, seconds=1))
    jobs.sweep_webhooks()
    assert Delivery.objects.get().state == PENDING, "what is still on its way stays"
    assert OutboxEvent.objects.count() == 1
    assert not DeliveryAttempt.objects.exists()


def test_a_tick_with_nothing_to_do_costs_one_question(
    organization_id: str, django_assert_max_num_queries
) -> None:
    for tick in (jobs.deliver_webhooks, jobs.watch_for_webhooks):
        with django_assert_max_num_queries(4):  # two are the lock's
            tick()
