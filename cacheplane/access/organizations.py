"""Organizations: create one with all it needs, put money in or take it back, suspend it, resume it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from django.db import transaction

from billing import accounts, charging, clock, price_book
from billing.charging import Recharged
from billing.models import AccountKind, LedgerEntry
from cacheplane.access import api_keys, audit, rate_limits, tiers
from cacheplane.access.api_keys import IssuedKey
from cacheplane.access.models import Organization, Project
from cacheplane.errors import Conflict, InvalidRequest, NotFound

NAME_CHARS_MAX = 200
HOUSE_CURRENCY = "CNY"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrganization:
    organization: Organization
    project: Project
    issued_key: IssuedKey


def create(
    *,
    name: str,
    operator: str,
    tier_slug: str | None = None,
    currency: str = HOUSE_CURRENCY,
    kind: str = Organization.Kind.STANDARD,
) -> NewOrganization:
    """An organization with a project, a key, its rate state and its billing account: all or nothing.

    A tier that is given holds whatever it recharges; without one it earns its tier. Raises InvalidRequest, also when
    something that is sold has no price in its currency.
    """
    name = _required_name(name)
    _require_prices(currency)
    tier = None if tier_slug is None else tiers.named(tier_slug)
    with transaction.atomic():
        earned = tiers.earned_with(Decimal(0), currency)
        organization = Organization.objects.create(name=name, tier=earned, kind=kind)
        audit.record(
            operator=operator,
            action="organization.create",
            subject=organization.id,
            organization_id=organization.id,
            detail={
                "name": name,
                "tier": tier.slug if tier else earned.slug,
                "kind": str(kind),
                "currency": currency,
            },
        )
        rate_limits.open_state(organization_id=organization.id)
        accounts.open_account(organization_id=organization.id, currency=currency)
        if tier is None:
            tiers.earn(organization_id=organization.id, operator=operator, reason="created")
        else:
            tiers.override(
                organization_id=organization.id,
                tier_slug=tier.slug,
                reason="given as it was created",
                operator=operator,
            )
        project = Project.objects.create(organization=organization, name="default")
        issued_key = api_keys.issue(project=project, name="default", operator=operator)
    return NewOrganization(organization=organization, project=project, issued_key=issued_key)


def suspend(*, organization_id: str, reason: str, operator: str) -> Organization:
    """Refuse its calls from now on (felt everywhere within `api_keys.CACHE_TTL_SECONDS`)."""
    return _change_state(
        organization_id,
        expected=Organization.State.ACTIVE,
        wanted=Organization.State.SUSPENDED,
        reason=reason,
        operator=operator,
    )


def resume(*, organization_id: str, reason: str, operator: str) -> Organization:
    """Serve it again."""
    return _change_state(
        organization_id,
        expected=Organization.State.SUSPENDED,
        wanted=Organization.State.ACTIVE,
        reason=reason,
        operator=operator,
    )


def recharge(
    *,
    organization_id: str,
    amount: Decimal,
    purse: str,
    reason: str,
    operator: str,
    idempotency_key: str,
    expires_at: datetime | None = None,
) -> Recharged:
    """Put money into its `cash` or `voucher` purse (which may expire); cash earns a tier, at once.

    `amount` is in its own currency. The same `idempotency_key` again changes nothing. Raises InvalidRequest, and
    billing's errors.
    """
    reason = audit.required_reason(reason)
    if amount <= 0:
        raise InvalidRequest(f"Invalid request: amount got {amount}, it takes more than 0")
    with transaction.atomic():
        recharged = charging.recharge(
            organization_id=organization_id,
            amount=amount,
            purse=purse,
            reason=reason,
            operator=operator,
            idempotency_key=idempotency_key,
            at=clock.now_of(organization_id),
            expires_at=expires_at,
        )
        if recharged.is_new:
            audit.record(
                operator=operator,
                action="organization.recharge",
                subject=organization_id,
                organization_id=organization_id,
                reason=reason,
                detail={"amount": str(amount), "purse": purse, "idempotency_key": idempotency_key},
            )
            if purse == AccountKind.CASH:
                tiers.earn(organization_id=organization_id, operator=operator, reason=reason)
    return recharged


def correct(*, organization_id: str, entry_id: int, reason: str, operator: str) -> LedgerEntry:
    """Undo one entry of its ledger by a reversing one. Without a recharge its tier is no longer earned, at once.

    Raises InvalidRequest, and billing's errors.
    """
    reason = audit.required_reason(reason)
    with transaction.atomic():
        reversal = charging.correct(
            organization_id=organization_id,
            entry_id=entry_id,
            reason=reason,
            operator=operator,
            at=clock.now_of(organization_id),
        )
        audit.record(
            operator=operator,
            action="organization.correct",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
            detail={"entry": entry_id, "reversal": reversal.pk, "amount": str(reversal.amount)},
        )
        tiers.earn(organization_id=organization_id, operator=operator, reason=reason)
    return reversal


def _change_state(
    organization_id: str, *, expected: str, wanted: str, reason: str, operator: str
) -> Organization:
    reason = audit.required_reason(reason)
    with transaction.atomic():
        organization = _for_update(organization_id)
        if organization.state != expected:
            raise Conflict(f"The organization {organization_id} is {organization.state} already")
        organization.state = wanted
        organization.save(update_fields=["state"])
        audit.record(
            operator=operator,
            action=f"organization.{'suspend' if wanted == Organization.State.SUSPENDED else 'resume'}",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
        )
    return organization


def _for_update(organization_id: str) -> Organization:
    organization = Organization.objects.select_for_update(no_key=True).filter(id=organization_id).first()
    if organization is None:
        raise NotFound(f"No organization has the id {organization_id}")
    return organization


def _require_prices(currency: str) -> None:
    """Nothing is converted, so whatever is sold in the house's currency must have a price in this one."""
    if currency not in tiers.THRESHOLDS:
        known = ", ".join(tiers.THRESHOLDS)
        raise InvalidRequest(f"Invalid request: currency got {currency!r}, it takes one of {known}")
    missing = price_book.unpriced(currency, reference=HOUSE_CURRENCY, at=clock.now())
    if missing:
        named = ", ".join(f"{meter} of {model}" for meter, model in missing)
        raise InvalidRequest(
            f"Invalid request: currency got {currency}, but there is no {currency} price for {named}; "
            "announce it first"
        )


def _required_name(name: str) -> str:
    stripped = name.strip()
    # NUL, and lone surrogates (what is left of bytes that were no text), cannot be stored.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in stripped):
        raise InvalidRequest("Invalid request: name has characters that are no text")
    if not stripped or len(stripped) > NAME_CHARS_MAX:
        raise InvalidRequest(
            f"Invalid request: name got {len(stripped)} characters, it takes 1 to {NAME_CHARS_MAX}"
        )
    return stripped
