"""Who is calling: organization, project and key of one request, with the limits of its tier."""

from __future__ import annotations

from dataclasses import dataclass

from cacheplane.errors import OrganizationSuspended

ACTIVE = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimits:
    slug: str
    rank: int
    concurrency: int
    requests_per_minute: int
    tokens_per_minute: int
    tokens_per_day: int | None
    """None: unlimited."""
    object_tokens_max: int
    cached_tokens_max: int
    ttl_seconds_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    organization_id: str
    organization_name: str
    organization_state: str
    project_id: str
    api_key_id: str
    tier: TierLimits
    is_sandbox: bool = False
    """Its clock may be ahead of the database's, so nothing that asks the database's own may decide for it."""

    @property
    def account_label(self) -> str:
        """How the contract's sentences name a caller: `org-…<ak-…>`."""
        return f"{self.organization_id}<{self.api_key_id}>"


def require_active(caller: Caller) -> None:
    """OrganizationSuspended unless the organization may be served."""
    require_state(caller.account_label, caller.organization_state)


def require_state(account_label: str, state: str) -> None:
    """The same where nobody calls."""
    if state != ACTIVE:
        raise OrganizationSuspended(
            f"Your account {account_label} is not active, current state: {state}, "
            "you may consider to check your account balance"
        )
