"""Which room may import which: the contracts of `.importlinter`, kept by import-linter itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter import configuration
from importlinter.application import use_cases

REPOSITORY = Path(__file__).resolve().parents[2]
CONTRACTS_AT_LEAST = {
    "workers use cacheplane, cacheplane uses billing, never back",
    "Inside cacheplane, imports go down only",
    "Inside billing: measure, price, post, invoice",
    "Pure rooms import no framework",
}


def test_every_floor_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    configuration.configure()
    options = use_cases.read_user_options(config_filename=str(REPOSITORY / ".importlinter"))
    use_cases._register_contract_types(options)
    report = use_cases.create_report(options, cache_dir=str(tmp_path))
    assert not report.could_not_run
    checks = list(report.get_contracts_and_checks())
    assert {contract.name for contract, _ in checks} >= CONTRACTS_AT_LEAST
    assert {contract.name: check.metadata for contract, check in checks if not check.kept} == {}
