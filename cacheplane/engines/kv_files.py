"""Saved KV states as files: sealed when they are written, proved before they are read.

The engine trusts its files: one byte too few ends its process, a changed one gives wrong text. So nothing is
handed to it that has not just been compared with what was saved.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from blake3 import blake3

from cacheplane.engines.base import KVHandle
from cacheplane.errors import KVDamaged

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_READ_BYTES = 1 << 20

TEMPORARY_SUFFIX = ".tmp"


def path_of(folder: Path, filename: str) -> Path:
    """Raises ValueError for a name that could leave the folder: names are ours, so this is a bug of ours."""
    if not _NAME.fullmatch(filename):
        raise ValueError(f"{filename!r} is not a name for a saved KV state")
    return folder / filename


def seal(temporary: Path, final: Path, *, size_bytes: int) -> tuple[str, str]:
    """Hash a file that was just written, make it durable, give it its name.

    Returns SHA-256 and BLAKE3, in hex. Raises KVDamaged when it has not the size that its writer told.
    """
    sha256, fast = hashlib.sha256(), blake3()
    with temporary.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha256.update(piece)
            fast.update(piece)
        if file.tell() != size_bytes:
            raise KVDamaged(f"The engine wrote {size_bytes} bytes; {file.tell()} arrived.")
        os.fsync(file.fileno())
    os.replace(temporary, final)
    _fsync_folder(final.parent)
    return sha256.hexdigest(), fast.hexdigest()


def prove(folder: Path, handle: KVHandle) -> None:
    """Raise KVDamaged unless the bytes are those that were saved. A hit waits for this, so: on all cores."""
    path = _same_size(folder, handle)
    try:
        digest = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    except OSError as error:
        raise KVDamaged(f"The saved state {handle.filename} cannot be read: {error.strerror}.") from error
    _same_digest(handle, digest, handle.blake3)


def prove_sha256(folder: Path, handle: KVHandle) -> None:
    """As `prove`, by the slower digest: for audits."""
    path = _same_size(folder, handle)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise KVDamaged(f"The saved state {handle.filename} cannot be read: {error.strerror}.") from error
    _same_digest(handle, digest, handle.sha256)


def destroy(folder: Path, filename: str) -> None:
    """Remove a saved state and what an interrupted save left of it."""
    path = path_of(folder, filename)
    path.unlink(missing_ok=True)
    path.with_name(filename + TEMPORARY_SUFFIX).unlink(missing_ok=True)


def _same_size(folder: Path, handle: KVHandle) -> Path:
    path = path_of(folder, handle.filename)
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise KVDamaged(f"The saved state {handle.filename} is gone.") from error
    if size_bytes != handle.size_bytes:
        raise KVDamaged(f"The saved state {handle.filename} has {size_bytes} bytes, not {handle.size_bytes}.")
    return path


def _same_digest(handle: KVHandle, found: str, saved: str) -> None:
    if found != saved:
        raise KVDamaged(f"The saved state {handle.filename} is not what was saved: its checksum differs.")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
