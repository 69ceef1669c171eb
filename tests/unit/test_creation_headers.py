"""The headers of a creation, read without a server."""

from __future__ import annotations

import pytest

from cacheplane.api.schemas import creation, kimi
from cacheplane.errors import InvalidRequest


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "a\n", "\x7f", "x" * 256])
def test_a_wrong_idempotency_key_is_named(key):
    with pytest.raises(InvalidRequest, match="Idempotency-Key: got "):
        creation.check_idempotency_key(key)


def test_a_digest_is_of_what_a_body_says():
    def digest(body: bytes) -> str:
        return creation.digest_of(kimi.decode(body, kimi.CreateCache))

    message = b'"messages":[{"role":"user","content":"x"}]'
    same = digest(b'{"model":"m",' + message + b"}")
    assert digest(b"{" + message + b', "ignored": 1, "model": "m", "tools": null}') == same
    assert digest(b'{"model":"n",' + message + b"}") != same
