"""What stops the launcher: a sentence for the person at the terminal, never a traceback.

LauncherError
└── EnvironmentNotReady   the Python environment could not be made
"""


class LauncherError(Exception):
    """Says in one sentence what is wrong and what to do about it."""


class EnvironmentNotReady(LauncherError):
    """The Python environment with the locked requirements could not be made."""
