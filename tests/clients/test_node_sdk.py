"""OpenAI's SDK for Node, the second client that most callers come with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "node"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules" / "openai").is_dir(),
    reason="needs Node and, once, `npm install --no-package-lock` in tests/clients/node",
)


def test_a_cache_objects_life(caller):
    assert NODE is not None
    about = {"BASE_URL": f"{caller.base_url}/v1", "API_KEY": caller.key}
    done = subprocess.run(
        [NODE, "journey.mjs"], cwd=FOLDER, env=os.environ | about, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cache = told["cache"]
    assert (told["made"], cache["status"]) == ("pending", "active")
    assert told["usage"]["cached_tokens"] == cache["tokens"]
    assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == cache["tokens"]
    assert told["answer"] == [[0, "assistant", "string"]]
    assert told["header"] == cache["id"]
    assert told["streamed"]["chunks"] >= 3
    assert told["streamed"]["finish"] in ("stop", "length")
    assert told["streamed"]["usage"]["prompt_tokens_details"]["cached_tokens"] == cache["tokens"]
    assert told["left"] == "chat.completion.chunk"
    assert "moonshot-v1-128k" in told["models"]
    assert told["listed"] == [cache["id"]]
    assert told["changed"] == {"a": "1"}
    assert told["deleted"] is True
    assert told["errors"] == {
        "absent": ["NotFoundError", 404, "resource_not_found_error"],
        "field": ["BadRequestError", 400, "invalid_request_error"],
        "key": ["AuthenticationError", 401, "invalid_authentication_error"],
    }
