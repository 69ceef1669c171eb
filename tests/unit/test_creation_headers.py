"""The headers of a creation, read without a server."""

from __future__ import annotations

import pytest

from cacheplane.api.schemas import creation, kimi
from cacheplane.errors import InvalidRequest


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=5", 5),
        ("WAIT=5", 5),
        (' wait = "5" ', 5),
        ("wait=5; foo=bar", 5),
        ("respond-async, wait=5", 5),
        ('foo="a, wait=9", wait=5', 5),
        ("wait=5,wait=9", 5),
        ("wait=x,wait=9", None),
        ("wait=0", None),
        ("wait=-5", None),
        ("wait=5s", None),
        ('wait="5', None),
        ("wait=٥", None),
        ("wait=" + "9" * 5000, None),
        ("waiting=5", None),
        (",;=,", None),
        ('"' * 5000, None),
    ],
)
def test_a_wait_is_read_as_rfc_7240_says(prefer, seconds):
    assert creation.wait_seconds(prefer) == seconds


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
