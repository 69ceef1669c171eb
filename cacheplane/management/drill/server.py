"""A PostgreSQL that a drill has for itself, and the environment that leads to it. Nothing here needs Django."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cacheplane.launcher import postgres
from cacheplane.launcher.engine import ROOT
from cacheplane.launcher.testing import FOREIGN

CONNECTIONS_MAX = 300
"""Two hundred callers at once, and some to watch them."""
OWN_DATABASE_VARIABLE = "CACHEPLANE_DRILL_DATABASE"
"""Holds DATABASE_URL again, so that no drill ever begins on a database that was not made for it."""


@contextmanager
def own_server(*, durable: bool = False) -> Iterator[dict[str, str]]:
    """The environment for whoever works on it; the server ends and its folder goes with the block."""
    folder = Path(tempfile.mkdtemp(prefix="cacheplane-drill-"))
    try:
        (folder / "data").mkdir()
        server = postgres.start(
            folder / "postgres",
            log=folder / "postgres.log",
            durable=durable,
            connections_max=CONNECTIONS_MAX,
        )
        try:
            yield _environment(folder, database_url=server.url)
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path, *, database_url: str) -> dict[str, str]:
    """Ours, without what leads to the operator's instance."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return kept | {
        "DATA_DIR": str(folder / "data"),
        "DATABASE_URL": database_url,
        OWN_DATABASE_VARIABLE: database_url,
        "SECRET_KEY": secrets.token_urlsafe(48),
        "API_KEY_PEPPER": secrets.token_urlsafe(48),
        "DJANGO_SETTINGS_MODULE": "cacheplane.settings",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
