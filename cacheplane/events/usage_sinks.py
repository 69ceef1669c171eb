"""Where exported usage goes: a folder with a file of JSON Lines a day, or an HTTP endpoint that takes CloudEvents."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec

from cacheplane.errors import ServiceUnavailable

TIMEOUT_SECONDS = 30.0
URL_CHARS_MAX = 500
USER_AGENT = "cacheplane-usage/1"


class SinkFailed(ServiceUnavailable):
    """A batch did not arrive, or nobody knows whether it did."""

    code = "sink_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How far a sink's file is written: its name, and its bytes. Empty where there is no file."""

    file_name: str = ""
    file_bytes: int = 0


class Sink(Protocol):
    """`name` is its URL, and the key of its position."""

    name: str

    def send(self, events: Sequence[dict[str, Any]], *, after: Mark, at: datetime) -> Mark:
        """Returns when all of them are safe there: where the file ends now. `after` is what the last success
        returned; what lies behind it was never committed, and is written over. Raises SinkFailed."""


def sink_of(url: str, *, token: str) -> Sink:
    """Raises ValueError for a URL that is neither."""
    if len(url) > URL_CHARS_MAX:
        raise ValueError(f"takes at most {URL_CHARS_MAX} characters")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("takes no user name or password in it: the token has a setting of its own")
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path.startswith("/"):
        return FileSink(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpSink(url, token=token)
    raise ValueError("takes file:///a/folder, or an http or https URL")


class FileSink:
    """`usage-2026-01-31.jsonl` in a folder: the events that were exported on that day, in UTC, one a line.

    A batch is on the disk before its position is committed. What was written and not committed, because a process
    died in between, is cut off by the next: no event stands in the files twice.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"file://{folder}"
        self._folder = folder

    def send(self, events: Sequence[dict[str, Any]], *, after: Mark, at: datetime) -> Mark:
        name = max(f"usage-{at:%Y-%m-%d}.jsonl", after.file_name)
        lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
        try:
            return self._write(lines, name=name, after=after)
        except OSError as error:
            raise SinkFailed(f"{name}: {error.strerror or type(error).__name__}") from error

    def _write(self, lines: bytes, *, name: str, after: Mark) -> Mark:
        path = self._folder / name
        self._folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o640), "r+b") as file:
            # Until it is closed: an exporter that was thought dead does not write into its successor's lines.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = file.seek(0, os.SEEK_END)
            start = after.file_bytes if name == after.file_name else 0
            if size < start:
                raise SinkFailed(f"{name} has {size} bytes of the {start} that were exported to it.")
            if size and not after.file_name and not _begins_alike(file, lines):
                raise SinkFailed(f"{name} is there already, and not of this database's exports.")
            file.truncate(start)
            file.seek(start)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._keep_name()
        return Mark(file_name=name, file_bytes=start + len(lines))

    def _keep_name(self) -> None:
        """A new file is safe once its folder is."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _begins_alike(file: BinaryIO, lines: bytes) -> bool:
    """Whether what is there is what a first try left behind that never got as far as its commit."""
    first = lines[: lines.index(b"\n") + 1]
    file.seek(0)
    found = file.read(len(first))
    return first.startswith(found)


class HttpSink:
    """POST of a batch, `application/cloudevents-batch+json`, with a bearer token if there is one. Only 2xx is a
    success; a redirect is none, for it would carry the token elsewhere."""

    def __init__(self, url: str, *, token: str) -> None:
        self.name = url
        self._headers = {
            "Content-Type": "application/cloudevents-batch+json; charset=utf-8",
            "User-Agent": USER_AGENT,
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def send(self, events: Sequence[dict[str, Any]], *, after: Mark, at: datetime) -> Mark:
        try:
            status = asyncio.run(self._post(msgspec.json.encode(list(events))))
        except TimeoutError as error:
            raise SinkFailed(f"no answer within {TIMEOUT_SECONDS:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise SinkFailed(type(error).__name__) from error
        if not 200 <= status < 300:
            raise SinkFailed(f"answered {status}")
        return Mark()

    async def _post(self, body: bytes) -> int:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async with (
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session,
                session.post(self.name, data=body, headers=self._headers, allow_redirects=False) as answer,
            ):
                answer.close()
                return answer.status
