"""What stops the demonstration, in one sentence."""

from __future__ import annotations


class DemoError(Exception):
    """Its text is all that is shown."""


class ServerAway(DemoError):
    """Nothing answers at the URL."""
