"""What all tests that do harm have in common: callers of their own, and an audit of the books when it is over."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _books_are_audited(ledger: None) -> None:
    """Whatever was done to an instance, its ledger keeps its promises."""
