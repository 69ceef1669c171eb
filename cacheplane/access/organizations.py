"""Organizations: create one with all it needs, suspend it, resume it, move it to another tier."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from decimal import Decimal

from django.db import transaction

from billing import accounts, charging, clock
from cacheplane.access import api_keys, audit, rate_limits
from cacheplane.access.api_keys import IssuedKey
from cacheplane.access.models import Organization, Project, Tier
from cacheplane.errors import Conflict, InvalidRequest, NotFound

NAME_CHARS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrganization:
    organization: Organization
    project: Project
    issued_key: IssuedKey


def create(
    *, name: str, tier_slug: str, operator: str, kind: str = Organization.Kind.STANDARD
) -> NewOrganization:
    """An organization with a project, a key, its rate state and its billing account: all or nothing."""
    name = _required_name(name)
    tier = _tier(tier_slug)
    with transaction.atomic():
        organization = Organization.objects.create(name=name, tier=tier, kind=kind)
        audit.record(
            operator=operator,
            action="organization.create",
            subject=organization.id,
            organization_id=organization.id,
            detail={"name": name, "tier": tier.slug, "kind": str(kind)},
        )
        rate_limits.open_state(organization_id=organization.id)
        accounts.open_account(organization_id=organization.id)
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


def set_tier(*, organization_id: str, tier_slug: str, reason: str, operator: str) -> Organization:
    """Give it another tier than the one it earned."""
    reason, tier = audit.required_reason(reason), _tier(tier_slug)
    with transaction.atomic():
        organization = _for_update(organization_id)
        before, organization.tier = organization.tier_id, tier
        organization.save(update_fields=["tier"])
        audit.record(
            operator=operator,
            action="organization.set_tier",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
            detail={"from": before, "to": tier.slug},
        )
    return organization


def recharge(
    *, organization_id: str, amount: Decimal, purse: str, reason: str, operator: str, idempotency_key: str
) -> None:
    """Put money (¥) into its `cash` or `voucher` purse. The same `idempotency_key` again changes nothing.

    Raises InvalidRequest, and billing's errors.
    """
    reason = audit.required_reason(reason)
    if amount <= 0:
        raise InvalidRequest(f"Invalid request: amount got {amount}, it takes more than 0")
    with transaction.atomic():
        charging.recharge(
            organization_id=organization_id,
            amount=amount,
            purse=purse,
            reason=reason,
            operator=operator,
            idempotency_key=idempotency_key,
            at=clock.now_of(organization_id),
        )
        audit.record(
            operator=operator,
            action="organization.recharge",
            subject=organization_id,
            organization_id=organization_id,
            reason=reason,
            detail={"amount": str(amount), "purse": purse, "idempotency_key": idempotency_key},
        )


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


def _tier(slug: str) -> Tier:
    tier = Tier.objects.filter(slug=slug).first()
    if tier is None:
        known = ", ".join(Tier.objects.values_list("slug", flat=True))
        raise InvalidRequest(f"Invalid request: tier got {slug!r}, it takes one of {known}")
    return tier


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
