"""The first calls of the README, as they stand there: only the key, the port and the new object's id are put in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FIRST_CALLS = README.partition("## First calls")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", FIRST_CALLS, re.DOTALL)


def environment(caller) -> dict[str, str]:
    return os.environ | {"BASE_URL": f"{caller.base_url}/v1", "API_KEY": caller.key}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_calls_with_curl(caller):
    [shell] = blocks("sh")
    commands = [part for part in re.split(r"\n\n(?:#[^\n]*\n)*", shell) if part.startswith("curl ")]
    assert len(commands) == 3
    answers, cache_id = [], "cache-…"
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command.replace("cache-…", cache_id)],
            env=environment(caller),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
        if len(answers) == 1:
            cache_id = answers[0]["id"]
            caller.wait_until(cache_id, "active")
    created, called, balance = answers
    assert created["object"] == "context_cache_object"
    assert called["usage"]["cached_tokens"] == created["tokens"]
    assert balance["data"]["available_balance"] < 1000


def test_the_calls_with_the_openai_sdk(caller):
    [program] = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(caller), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    whole, streamed = (
        re.search(r" (\d+)$", done.stdout, re.MULTILINE),
        re.search(r"cached_tokens=(\d+)", done.stdout),
    )
    assert whole is not None and streamed is not None, done.stdout
    assert int(whole[1]) == int(streamed[1]) > 0
