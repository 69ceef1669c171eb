"""Feature gates: who may use a feature yet.

An organization that is kept out stays out; one that is let in goes in; otherwise the tier's opening date
decides; a feature nobody opened is closed.
"""

from __future__ import annotations

from datetime import datetime

from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from cacheplane.access import audit
from cacheplane.access.callers import Caller
from cacheplane.access.models import FeatureGate, FeatureGateEntry, Organization
from cacheplane.errors import FeatureClosed, InvalidRequest, NotFound

CONTEXT_CACHING = "context_caching"

# `ORDER BY admits` puts false first: kept out beats let in.
REQUIRE_SQL = """
SELECT (SELECT admits FROM access_featuregateentry
        WHERE organization_id = %(organization_id)s AND gate_id = %(feature)s
          AND (ends_at IS NULL OR ends_at > %(at)s)
        ORDER BY admits LIMIT 1),
       EXISTS (SELECT 1 FROM access_featureopening o JOIN access_tier t ON t.slug = o.minimum_tier_id
               WHERE o.gate_id = %(feature)s AND o.opens_at <= %(at)s AND t.rank <= %(rank)s)
"""


def require(caller: Caller, *, feature: str, at: datetime) -> None:
    """FeatureClosed unless the caller's organization may use the feature at `at`."""
    require_for(caller.organization_id, rank=caller.tier.rank, feature=feature, at=at)


def require_for(organization_id: str, *, rank: int, feature: str, at: datetime) -> None:
    """The same where nobody calls: `rank` is that of the organization's tier."""
    with connection.cursor() as cursor:
        cursor.execute(
            REQUIRE_SQL,
            {
                "organization_id": organization_id,
                "feature": feature,
                "at": at,
                "rank": rank,
            },
        )
        admitted_by_entry, admitted_by_tier = cursor.fetchone()
    is_open = admitted_by_tier if admitted_by_entry is None else admitted_by_entry
    if not is_open:
        raise FeatureClosed("The API you are accessing is not open")


def open_for(
    organization: Organization, *, feature: str, until: datetime | None, reason: str, operator: str
) -> FeatureGateEntry:
    """Let one organization in, whatever its tier; `until` None: for good. Ends what kept it out."""
    return _enter(organization, feature=feature, admits=True, until=until, reason=reason, operator=operator)


def close_for(
    organization: Organization, *, feature: str, until: datetime | None = None, reason: str, operator: str
) -> FeatureGateEntry:
    """Keep one organization out, whatever its tier. Ends what let it in."""
    return _enter(organization, feature=feature, admits=False, until=until, reason=reason, operator=operator)


def end_entry(entry: FeatureGateEntry, *, reason: str, operator: str) -> None:
    """Take one entry back: from now on the others, and then the tier, decide."""
    with transaction.atomic():
        _live_entries().filter(id=entry.id).update(ends_at=Now())
        audit.record(
            operator=operator,
            action="feature_gate.end_entry",
            subject=entry.gate_id,
            organization_id=entry.organization_id,
            reason=audit.required_reason(reason),
            detail={"entry": entry.id, "admits": entry.admits},
        )


def _enter(
    organization: Organization,
    *,
    feature: str,
    admits: bool,
    until: datetime | None,
    reason: str,
    operator: str,
) -> FeatureGateEntry:
    reason = audit.required_reason(reason)
    if not FeatureGate.objects.filter(slug=feature).exists():
        raise NotFound(f"No feature gate is called {feature}")
    with transaction.atomic():
        # Two operators at once take turns, so that the later word is the only one left standing. Not the
        # full lock: it would make the organization's calls wait, whose rows point at this one.
        Organization.objects.select_for_update(no_key=True).get(id=organization.id)
        _live_entries().filter(gate_id=feature, organization=organization).update(ends_at=Now())
        entry = FeatureGateEntry.objects.create(
            gate_id=feature,
            organization=organization,
            admits=admits,
            ends_at=until,
            reason=reason,
            created_by=operator,
        )
        if until is not None and until <= entry.created_at:
            raise InvalidRequest(
                f"Invalid request: until is {until.isoformat()}, it takes a time in the future"
            )
        audit.record(
            operator=operator,
            action="feature_gate.open_for" if admits else "feature_gate.close_for",
            subject=feature,
            organization_id=organization.id,
            reason=reason,
            detail={"entry": entry.id, "until": until.isoformat() if until else None},
        )
    return entry


def _live_entries() -> QuerySet[FeatureGateEntry]:
    return FeatureGateEntry.objects.filter(Q(ends_at=None) | Q(ends_at__gt=Now()))
