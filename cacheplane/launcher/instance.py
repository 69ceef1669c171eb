"""The data folder of an instance: its lock, its secrets, what other commands read to reach it, the ready file."""

import errno
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from cacheplane.launcher.errors import LauncherError

FREE_BYTES_MIN = 512 << 20
SECRET_NAMES = ("SECRET_KEY", "API_KEY_PEPPER", "ENGINE_API_KEY", "ADMIN_PASSWORD")


class DataDir:
    """One folder that holds everything of an instance; held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: TextIO | None = None

    def open(self) -> None:
        """Make the folder and hold its lock. Raises LauncherError."""
        try:
            for folder in (self.path, self.logs, self.kv, self.models, self.path / "static"):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            self._lock = (self.path / "up.lock").open("a+")
        except OSError as error:
            raise LauncherError(explain(error, self.path)) from error
        self._hold(self._lock)
        free = shutil.disk_usage(self.path).free
        if free < FREE_BYTES_MIN:
            raise LauncherError(
                f"The disk of {self.path} is full: {free >> 20} MiB are free and {FREE_BYTES_MIN >> 20} are needed. "
                f"Make room, or take another disk with --data-dir."
            )

    def _hold(self, lock: TextIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise LauncherError(
                f"Another `manage.py up` (pid {holder}) runs on {self.path}: stop it, or take another --data-dir."
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def kv(self) -> Path:
        return self.path / "kv"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    def secrets(self, environment: Mapping[str, str]) -> dict[str, str]:
        """This instance's secrets: the environment's where it says them, else those of the first start."""
        known = self._read_secrets()
        for name in SECRET_NAMES:
            known.setdefault(name, secrets.token_urlsafe(48 if name != "ADMIN_PASSWORD" else 15))
        self.keep_secrets(known)
        return known | {name: environment[name] for name in SECRET_NAMES if environment.get(name)}

    def _read_secrets(self) -> dict[str, str]:
        try:
            found = json.loads((self.path / "secrets.json").read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise LauncherError(
                f"{self.path / 'secrets.json'} is damaged: restore it from a backup, or take another --data-dir."
            ) from error
        return dict(found)

    def keep_secrets(self, values: Mapping[str, str]) -> None:
        write_private(self.path / "secrets.json", json.dumps(dict(values), indent=1) + "\n")

    def write_environment(self, values: Mapping[str, str]) -> None:
        """`instance.env`: with the same DATA_DIR every other command reads from it how to reach this instance."""
        lines = [f"{name}={_quoted(value)}" for name, value in sorted(values.items())]
        write_private(self.path / "instance.env", "\n".join(["# Written by `manage.py up`.", *lines]) + "\n")


def _quoted(value: str) -> str:
    """As django-environ reads it back: single quotes keep everything as it is."""
    if "'" not in value:
        return f"'{value}'"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole; only its owner may read it. Raises LauncherError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError as error:
        raise LauncherError(explain(error, path)) from error


def explain(error: OSError, path: Path) -> str:
    """One sentence that says what to do about a folder or file that cannot be used."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {path} is full: make room, or take another disk with --data-dir."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} cannot be written ({error.strerror}): change its rights, or take another --data-dir."
    return f"{path} cannot be used ({error.strerror}): take another --data-dir."
