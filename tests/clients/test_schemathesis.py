"""Whatever our OpenAPI document allows, and much that it does not, sent by two organizations: no check fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
EXAMPLES = 15
SEED = 20240701


def identities(path: Path, **callers) -> Path:
    """The file that says who calls: each caller's objects must stay out of the other's sight."""
    users = [
        {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {caller.key}"}]}
        for name, caller in callers.items()
    ]
    path.write_text(json.dumps({"auth": users}))  # JSON is YAML
    return path


@pytest.mark.timeout(600)
def test_no_check_fails(new_caller, ledger, tmp_path):
    one, other = new_caller(), new_caller()
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", str(FOLDER / "schemathesis.toml"), "run"]
        + [f"{one.base_url}/v1/schema", "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"]
        + ["--auth-wfc", str(identities(tmp_path / "identities.yaml", one=one, other=other))]
        + ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--continue-on-failure", "--no-color"]
        + ["--generation-database", "none", "--request-timeout", "60"],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Tested:" in done.stdout, done.stdout
