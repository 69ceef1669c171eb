"""Feature gates: kept out beats let in beats the tier's opening date; what nobody opened is closed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from cacheplane.access import gates
from cacheplane.access.models import AuditEntry, FeatureGateEntry, FeatureOpening, Organization
from cacheplane.errors import FeatureClosed, InvalidRequest, NotFound

pytestmark = pytest.mark.django_db

OPENING = datetime(2024, 6, 30, 16, 0, tzinfo=UTC)
BEFORE, AFTER = OPENING - timedelta(seconds=1), OPENING + timedelta(days=10)
SENTENCE = "^The API you are accessing is not open$"


def _is_open(caller, *, at=AFTER, feature=gates.CONTEXT_CACHING) -> bool:
    try:
        gates.require(caller, feature=feature, at=at)
    except FeatureClosed:
        return False
    return True


def _enter(caller, *, admits: bool, ends_at=None) -> None:
    FeatureGateEntry.objects.create(
        gate_id=gates.CONTEXT_CACHING,
        organization_id=caller.organization_id,
        admits=admits,
        ends_at=ends_at,
        reason="a test",
        created_by="test",
    )


LIVE, ENDED = AFTER + timedelta(days=1), AFTER - timedelta(days=1)


@pytest.mark.parametrize(
    ("tier", "at", "let_in", "kept_out", "is_open"),
    [
        ("tier0", AFTER, "no", "no", False),
        ("tier4", AFTER, "no", "no", False),
        ("tier5", BEFORE, "no", "no", False),
        ("tier5", OPENING, "no", "no", True),
        ("tier5", AFTER, "no", "no", True),
        ("tier0", AFTER, "for good", "no", True),
        ("tier0", AFTER, "live", "no", True),
        ("tier0", AFTER, "ended", "no", False),
        ("tier5", AFTER, "no", "for good", False),
        ("tier5", AFTER, "no", "live", False),
        ("tier5", AFTER, "no", "ended", True),
        ("tier0", AFTER, "for good", "for good", False),
        ("tier5", AFTER, "live", "live", False),
        ("tier0", AFTER, "live", "ended", True),
        ("tier5", AFTER, "ended", "live", False),
        ("tier0", AFTER, "ended", "ended", False),
    ],
)
def test_precedence(make_caller, tier, at, let_in, kept_out, is_open):
    caller = make_caller(tier)
    ends = {"for good": None, "live": LIVE, "ended": ENDED}
    for admits, word in ((True, let_in), (False, kept_out)):
        if word != "no":
            _enter(caller, admits=admits, ends_at=ends[word])
    assert _is_open(caller, at=at) is is_open


def test_an_entry_ends_at_its_very_instant(make_caller):
    caller = make_caller("tier0")
    _enter(caller, admits=True, ends_at=LIVE)
    assert _is_open(caller, at=LIVE - timedelta(microseconds=1))
    assert not _is_open(caller, at=LIVE)


def test_a_later_opening_for_a_lower_tier_widens_the_gate(make_caller):
    caller = make_caller("tier3")
    FeatureOpening.objects.create(
        gate_id=gates.CONTEXT_CACHING, minimum_tier_id="tier3", opens_at=AFTER + timedelta(hours=1)
    )
    assert not _is_open(caller, at=AFTER)
    assert _is_open(caller, at=AFTER + timedelta(hours=1))


def test_the_sentence_is_the_contracts_and_the_price_is_one_query(make_caller, django_assert_num_queries):
    caller = make_caller("tier0")
    with django_assert_num_queries(1), pytest.raises(FeatureClosed, match=SENTENCE):
        gates.require(caller, feature=gates.CONTEXT_CACHING, at=AFTER)


def test_a_feature_nobody_made_is_closed_even_to_the_highest_tier(make_caller):
    assert not _is_open(make_caller("tier5"), feature="teleportation")


def test_one_organizations_entry_lets_nobody_else_in(make_caller):
    friend, stranger = make_caller("tier0"), make_caller("tier0")
    _enter(friend, admits=True)
    assert _is_open(friend)
    assert not _is_open(stranger)


def _organization_of(caller) -> Organization:
    return Organization.objects.get(id=caller.organization_id)


def test_an_operator_opens_closes_and_opens_again_and_the_last_word_counts(make_caller):
    caller = make_caller("tier0")
    organization, feature = _organization_of(caller), gates.CONTEXT_CACHING
    gates.open_for(organization, feature=feature, until=None, reason="beta guest", operator="ada")
    assert _is_open(caller, at=timezone.now())
    gates.close_for(organization, feature=feature, reason="abuse", operator="ada")
    assert not _is_open(caller, at=timezone.now())
    gates.open_for(organization, feature=feature, until=None, reason="resolved", operator="bob")
    assert _is_open(caller, at=timezone.now())
    trail = AuditEntry.objects.filter(action__startswith="feature_gate.").order_by("id")
    assert [(entry.action, entry.operator, entry.reason) for entry in trail] == [
        ("feature_gate.open_for", "ada", "beta guest"),
        ("feature_gate.close_for", "ada", "abuse"),
        ("feature_gate.open_for", "bob", "resolved"),
    ]


def test_a_guest_with_an_end_date_is_out_after_it(make_caller):
    caller = make_caller("tier0")
    until = timezone.now() + timedelta(days=7)
    gates.open_for(
        _organization_of(caller), feature=gates.CONTEXT_CACHING, until=until, reason="trial", operator="ada"
    )
    assert _is_open(caller, at=until - timedelta(seconds=1))
    assert not _is_open(caller, at=until)


def test_ending_an_entry_gives_the_word_back_to_the_tier(make_caller):
    caller = make_caller("tier5")
    entry = gates.close_for(
        _organization_of(caller), feature=gates.CONTEXT_CACHING, reason="abuse", operator="ada"
    )
    gates.end_entry(entry, reason="resolved", operator="ada")
    assert _is_open(caller, at=timezone.now())
    assert AuditEntry.objects.filter(action="feature_gate.end_entry").count() == 1


def test_what_an_operator_gets_wrong_changes_nothing(make_caller):
    organization = _organization_of(make_caller("tier0"))
    past = timezone.now() - timedelta(seconds=1)
    with pytest.raises(InvalidRequest, match="until"):
        gates.open_for(organization, feature=gates.CONTEXT_CACHING, until=past, reason="x", operator="ada")
    with pytest.raises(InvalidRequest, match="reason"):
        gates.open_for(organization, feature=gates.CONTEXT_CACHING, until=None, reason=" ", operator="ada")
    with pytest.raises(NotFound, match="teleportation"):
        gates.open_for(organization, feature="teleportation", until=None, reason="x", operator="ada")
    assert not FeatureGateEntry.objects.exists()
    assert not AuditEntry.objects.filter(action__startswith="feature_gate.").exists()
