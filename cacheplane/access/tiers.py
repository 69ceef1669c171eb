"""Which tier an organization has: what its recharges have earned, or what an operator gave it instead.

All cash recharged, less what was reversed, earns the highest tier whose threshold it reaches, in the transaction of
the recharge; reversing one may lose it again. An override beats the earned tier while it is in force: that is asked
of the clock at each read, so that its end needs nobody to be at work. Billing is told of every change at once, and of
an end that is known ahead.

Lock order: the billing account, then the organization.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction
from django.db.models import Q, Value
from django.db.models.functions import Least

from billing import accounts, ledger, price_tiers
from billing.accounts import LockedAccount
from cacheplane.access import audit
from cacheplane.access.models import ClockTimestamp, Organization, Tier, TierOverride
from cacheplane.errors import Conflict, InvalidRequest, NotFound

THRESHOLDS = {"CNY": "recharged_from", "USD": "recharged_from_usd"}
"""Nothing is converted: who pays in $ earns by what is recharged in $."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """`tier` is the one in force. `recharged` is in the organization's own currency."""

    tier: Tier
    earned: Tier
    override: TierOverride | None
    recharged: Decimal


def standing(organization: Organization) -> Standing:
    override = override_now(organization)
    return Standing(
        tier=override.tier if override else organization.tier,
        earned=organization.tier,
        override=override,
        recharged=ledger.cash_recharged(organization.pk),
    )


def tier_now(organization: Organization) -> Tier:
    override = override_now(organization)
    return override.tier if override else organization.tier


def override_now(organization: Organization) -> TierOverride | None:
    return TierOverride.objects.filter(organization=organization).in_force().select_related("tier").first()


def named(slug: str) -> Tier:
    """Raises InvalidRequest, which says what there is."""
    tier = Tier.objects.filter(slug=slug).first()
    if tier is None:
        known = ", ".join(Tier.objects.values_list("slug", flat=True))
        raise InvalidRequest(f"Invalid request: tier got {slug!r}, it takes one of {known}")
    return tier


def earned_with(recharged: Decimal, currency: str) -> Tier:
    """The highest tier that so much earns, else the lowest there is."""
    reached = Tier.objects.filter(**{f"{THRESHOLDS[currency]}__lte": recharged}).order_by("-rank").first()
    return reached or Tier.objects.order_by("rank")[0]


# --- Earning --------------------------------------------------------------------------------------------------


def earn(*, organization_id: str, operator: str, reason: str) -> None:
    """Reckon the earned tier anew, in the transaction that changed what was recharged."""
    account = accounts.lock(organization_id)
    organization = _locked(organization_id)
    recharged = ledger.cash_recharged(organization_id)
    before, organization.tier = organization.tier_id, earned_with(recharged, account.currency)
    if organization.tier_id != before:
        organization.save(update_fields=["tier"])
        audit.record(
            operator=operator,
            action="organization.earn_tier",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
            detail={
                "from": before,
                "to": organization.tier_id,
                "recharged": f"{recharged} {account.currency}",
            },
        )
    _tell_billing(account, organization)


def _tell_billing(account: LockedAccount, organization: Organization) -> None:
    """The prices of the tier in force from now on, and those of the earned one from the override's end on."""
    at = account.locked_at
    # By the account's clock, which prices follow, and which a sandbox's may be ahead of the database's.
    live = Q(ends_at__isnull=True) | Q(ends_at__gt=at)
    override = TierOverride.objects.filter(live, organization=organization).order_by("-id").first()
    if override is None:
        price_tiers.change(account, tier=organization.tier_id, at=at)
    else:
        price_tiers.change(
            account, tier=override.tier_id, at=at, until=override.ends_at, then=organization.tier_id
        )


# --- Overriding -----------------------------------------------------------------------------------------------


def override(
    *, organization_id: str, tier_slug: str, until: datetime | None = None, reason: str, operator: str
) -> TierOverride:
    """Give it this tier, whatever it has earned, until `until` or until that is ended. The later word wins.

    Raises InvalidRequest, NotFound, and billing's NoPrice.
    """
    reason, tier = audit.required_reason(reason), named(tier_slug)
    with transaction.atomic():
        account = accounts.lock(_known(organization_id))
        organization = _locked(organization_id)
        if until is not None and until <= account.locked_at:
            raise InvalidRequest(
                f"Invalid request: until is {until.isoformat()}, it takes a time in the future"
            )
        before = tier_now(organization).slug
        _end_all(organization, at=account.locked_at)
        given = TierOverride.objects.create(
            organization=organization, tier=tier, ends_at=until, reason=reason, created_by=operator
        )
        audit.record(
            operator=operator,
            action="organization.override_tier",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
            detail={"from": before, "to": tier.slug, "until": until.isoformat() if until else None},
        )
        _tell_billing(account, organization)
    return given


def end_override(*, organization_id: str, reason: str, operator: str) -> Organization:
    """Let the earned tier hold again. Raises Conflict when no override is in force, NotFound, billing's NoPrice."""
    reason = audit.required_reason(reason)
    with transaction.atomic():
        account = accounts.lock(_known(organization_id))
        organization = _locked(organization_id)
        before = tier_now(organization).slug
        if not _end_all(organization, at=account.locked_at):
            raise Conflict(f"No override is in force for {organization_id}: its tier is {before}, as earned")
        audit.record(
            operator=operator,
            action="organization.end_tier_override",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
            detail={"from": before, "to": organization.tier_id},
        )
        _tell_billing(account, organization)
    return organization


def _end_all(organization: Organization, *, at: datetime) -> int:
    # Ended by both clocks, should the account's be ahead.
    now = Least(Value(at), ClockTimestamp())
    return TierOverride.objects.filter(organization=organization).in_force().order_by().update(ends_at=now)


def _known(organization_id: str) -> str:
    if not Organization.objects.filter(id=organization_id).exists():
        raise NotFound(f"No organization has the id {organization_id}")
    return organization_id


def _locked(organization_id: str) -> Organization:
    # Not the full lock: it would make the organization's calls wait, whose rows point at this one.
    return Organization.objects.select_for_update(no_key=True).get(id=organization_id)
