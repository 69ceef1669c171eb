"""An API key: issued, proved, mistyped, revoked, rotated."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from cacheplane.access import api_keys
from cacheplane.access.callers import require_active
from cacheplane.access.models import ApiKey, AuditEntry, Organization, Project
from cacheplane.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound, OrganizationSuspended

pytestmark = pytest.mark.django_db


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock) -> api_keys.CallerCache:
    return api_keys.CallerCache(clock=clock)


def test_a_new_key_proves_its_caller(issued, organization, project):
    caller = api_keys.authenticate(issued.secret)
    assert (caller.organization_id, caller.project_id) == (organization.id, project.id)
    assert caller.api_key_id == issued.key.id
    assert (caller.tier.slug, caller.tier.concurrency, caller.tier.tokens_per_day) == ("tier0", 1, 1_500_000)
    assert (caller.tier.object_tokens_max, caller.tier.cached_tokens_max) == (131_072, 1_000_000)
    assert caller.tier.ttl_seconds_max == 30 * 86_400


def test_the_secret_has_the_public_id_in_it_and_is_stored_nowhere(issued):
    public = issued.key.id.removeprefix("ak-")
    assert re.fullmatch(rf"sk-{public}[0-9A-Za-z]{{38}}", issued.secret)
    row = ApiKey.objects.filter(id=issued.key.id).values().get()
    assert row["digest"] == api_keys.digest_of(issued.secret)
    assert row["hint"] == issued.secret[-4:]
    assert issued.secret not in str(row)
    assert issued.secret not in repr(issued)
    assert issued.secret[-30:] not in str(list(AuditEntry.objects.values()))


def test_the_digest_depends_on_the_pepper(issued, settings):
    before = api_keys.digest_of(issued.secret)
    settings.API_KEY_PEPPER = "another pepper"
    assert api_keys.digest_of(issued.secret) != before
    with pytest.raises(NotAuthenticated):
        api_keys.authenticate(issued.secret)


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_key_is_told_so(nothing):
    with pytest.raises(NotAuthenticated, match="^Invalid Authentication$"):
        api_keys.authenticate(nothing)


def test_each_single_mistyped_character_is_refused_without_the_database(issued, django_assert_num_queries):
    with django_assert_num_queries(0):
        for position in range(len(issued.secret)):
            mistyped = _with_another_character(issued.secret, position)
            with pytest.raises(NotAuthenticated, match="^Incorrect API key provided$"):
                api_keys.authenticate(mistyped)


def _with_another_character(secret: str, position: int) -> str:
    other = "7" if secret[position] != "7" else "8"
    return secret[:position] + other + secret[position + 1 :]


@pytest.mark.parametrize(
    "strange", ["sk-", "sk-é" * 20, "x" * 100_000, "sk-" + "\x00" * 58, "sk-" + "٣" * 58]
)
def test_a_strange_secret_is_refused(strange):
    with pytest.raises(NotAuthenticated, match="^Incorrect API key provided$"):
        api_keys.authenticate(strange)


def test_a_well_formed_key_of_nobody_and_a_wrong_secret_of_a_real_id_cost_the_same_queries(issued):
    nobody = api_keys._new_secret(public="0" * 20)
    wrong = api_keys._new_secret(public=issued.key.id.removeprefix("ak-"))
    counts = []
    for secret in (nobody, wrong):
        with CaptureQueriesContext(connection) as queries, pytest.raises(NotAuthenticated):
            api_keys.authenticate(secret)
        counts.append(len(queries))
    assert counts == [1, 1]


def test_a_refused_key_is_not_remembered(issued, cache):
    wrong = api_keys._new_secret(public=issued.key.id.removeprefix("ak-"))
    with pytest.raises(NotAuthenticated):
        api_keys.authenticate(wrong, cache=cache)
    assert len(cache) == 0


def test_a_proved_caller_is_remembered_for_five_seconds(issued, cache, clock, django_assert_num_queries):
    assert api_keys.cached(issued.secret, cache=cache) is None
    caller = api_keys.authenticate(issued.secret, cache=cache)
    with django_assert_num_queries(0):
        clock.seconds += 4.9
        assert api_keys.cached(issued.secret, cache=cache) == caller
        assert api_keys.authenticate(issued.secret, cache=cache) == caller
        clock.seconds += 0.1
        assert api_keys.cached(issued.secret, cache=cache) is None


def test_a_revocation_elsewhere_is_felt_within_five_seconds(issued, cache, clock):
    api_keys.authenticate(issued.secret, cache=cache)
    elsewhere = api_keys.CallerCache()
    api_keys.revoke(
        api_key_id=issued.key.id, operator="ada", reason="leaked", at=timezone.now(), cache=elsewhere
    )
    clock.seconds += 5.0
    with pytest.raises(NotAuthenticated, match="^Incorrect API key provided$"):
        api_keys.authenticate(issued.secret, cache=cache)


def test_a_slow_query_does_not_stretch_the_five_seconds(cache, clock, make_caller):
    caller, read_at = make_caller(), clock.seconds
    clock.seconds += 3.0
    cache.put("digest", caller, read_at=read_at)
    clock.seconds += 2.0
    assert cache.get("digest") is None


def test_a_revocation_here_is_felt_at_once(issued, cache, django_capture_on_commit_callbacks):
    api_keys.authenticate(issued.secret, cache=cache)
    with django_capture_on_commit_callbacks(execute=True):
        api_keys.revoke(
            api_key_id=issued.key.id, operator="ada", reason="leaked", at=timezone.now(), cache=cache
        )
    assert api_keys.cached(issued.secret, cache=cache) is None
    entry = AuditEntry.objects.get(action="api_key.revoke")
    assert (entry.operator, entry.subject, entry.reason) == ("ada", issued.key.id, "leaked")


def test_the_cache_is_bounded(clock, make_caller):
    small, caller = api_keys.CallerCache(callers_max=3, clock=clock), make_caller()
    for number in range(10):
        small.put(f"digest-{number}", caller, read_at=clock.seconds)
    assert len(small) == 3
    assert small.get("digest-9") == caller
    assert small.get("digest-0") is None


def test_an_expired_key_is_refused_and_never_remembered_past_its_end(project, cache, clock):
    soon = timezone.now() + timedelta(seconds=2)
    issued = api_keys.issue(project=project, name="short", operator="test", expires_at=soon)
    api_keys.authenticate(issued.secret, cache=cache)
    clock.seconds += 2.0
    assert api_keys.cached(issued.secret, cache=cache) is None
    ApiKey.objects.filter(id=issued.key.id).update(expires_at=timezone.now() - timedelta(seconds=1))
    with pytest.raises(NotAuthenticated):
        api_keys.authenticate(issued.secret, cache=cache)


def test_rotation_leaves_two_live_keys_until_the_grace_ends(issued, cache):
    at = timezone.now()
    second = api_keys.rotate(
        api_key_id=issued.key.id, operator="ada", reason="yearly", at=at, grace_seconds=3_600, cache=cache
    )
    assert second.secret != issued.secret
    callers = {api_keys.authenticate(one.secret, cache=cache).project_id for one in (issued, second)}
    assert callers == {issued.key.project_id}
    issued.key.refresh_from_db()
    assert issued.key.expires_at == at + timedelta(hours=1)
    assert second.key.expires_at is None


def test_a_revoked_key_can_be_neither_revoked_nor_rotated_again(issued):
    at = timezone.now()
    api_keys.revoke(api_key_id=issued.key.id, operator="ada", reason="leaked", at=at)
    with pytest.raises(Conflict, match="was revoked at"):
        api_keys.revoke(api_key_id=issued.key.id, operator="ada", reason="again", at=at)
    with pytest.raises(Conflict, match="was revoked at"):
        api_keys.rotate(api_key_id=issued.key.id, operator="ada", reason="again", at=at)


def test_revoking_takes_a_reason_and_a_key(issued):
    with pytest.raises(InvalidRequest, match="reason"):
        api_keys.revoke(api_key_id=issued.key.id, operator="ada", reason="  ", at=timezone.now())
    with pytest.raises(NotFound):
        api_keys.revoke(api_key_id="ak-nobody", operator="ada", reason="leaked", at=timezone.now())


def test_the_last_use_is_written_once_a_minute_not_once_a_call(issued, clock):
    with CaptureQueriesContext(connection) as first:
        api_keys.authenticate(issued.secret, cache=api_keys.CallerCache())
    with CaptureQueriesContext(connection) as second:
        api_keys.authenticate(issued.secret, cache=api_keys.CallerCache())
    assert (len(first), len(second)) == (2, 1)
    issued.key.refresh_from_db()
    assert timezone.now() - issued.key.last_used_at < timedelta(seconds=30)


def test_a_suspended_organization_is_known_but_not_served(issued, organization):
    Organization.objects.filter(id=organization.id).update(state="suspended")
    caller = api_keys.authenticate(issued.secret)
    with pytest.raises(OrganizationSuspended) as refusal:
        require_active(caller)
    assert str(refusal.value) == (
        f"Your account {organization.id}<{issued.key.id}> is not active, current state: suspended, "
        "you may consider to check your account balance"
    )


def test_an_active_organization_is_served(issued):
    require_active(api_keys.authenticate(issued.secret))


def test_the_database_refuses_a_key_whose_project_is_another_organizations(project):
    stranger = Organization.objects.create(name="Other", tier_id="tier0")
    foreign_project = Project.objects.create(organization=stranger, name="default")
    ApiKey.objects.create(
        organization=project.organization, project=foreign_project, name="x", digest="d" * 64, hint="hint"
    )
    with pytest.raises(IntegrityError, match="api_key_project_of_its_organization"):
        connection.check_constraints()
