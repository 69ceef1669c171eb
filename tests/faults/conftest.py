"""What all tests that do harm have in common: callers of their own, and an audit of the books when it is over."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.conftest import Instance, wait_for
from tests.faults import harm


@pytest.fixture(autouse=True)
def _books_are_audited(ledger: None) -> None:
    """Whatever was done to an instance, its ledger keeps its promises."""


@pytest.fixture(autouse=True)
def _healthy_before(instance: Instance) -> None:
    """What an earlier test has done to the instance is over: it answers, and so does its engine."""

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"{instance.base_url}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    wait_for(is_ready, seconds=harm.BACK_SECONDS, what="the instance is ready")
