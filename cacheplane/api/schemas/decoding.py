"""JSON in, typed structs out. Every refusal names the field, what came and what is taken."""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec
from msgspec import inspect

from cacheplane.errors import InvalidRequest

S = TypeVar("S", bound=msgspec.Struct)

_NO_SUCH_WORD = re.compile(r"Invalid enum value (.*)", re.DOTALL)
_STEP = re.compile(r"\.[^.\[]+|\[[^\]]*\]")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?(?P<path>.*)`)?$", re.DOTALL)


def decode(body: bytes, into: type[S]) -> S:
    """A typed struct from a JSON body. Raises InvalidRequest naming the field."""
    try:
        value = msgspec.json.decode(body, type=into)
        # A second reading, of the keys alone: readers differ in which of two equal ones they take, and what a proxy
        # checked would not be what is done here.
        json.loads(body, object_pairs_hook=_each_key_once, parse_int=str, parse_float=str)
        return value
    except msgspec.ValidationError as error:
        raise InvalidRequest(explained(error, into=into)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Invalid request: the body is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("Invalid request: the body is nested too deeply") from None


def _each_key_once(pairs: list[tuple[str, object]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidRequest(
            f"Invalid request: {twice[:80]}: got it more than once, takes each key of an object once"
        )


def explained(error: msgspec.ValidationError, *, into: type[msgspec.Struct], root: str = "") -> str:
    """msgspec's sentence, turned round so that it begins with the field; of words it says which are taken."""
    found = _AT.match(str(error))
    assert found is not None
    path = root + (found["path"] or "")
    path = path.removeprefix(".") or "body"
    if word := _NO_SUCH_WORD.match(found["what"]):
        taken = _words(inspect.type_info(into), _STEP.findall(found["path"] or ""))
        return f"Invalid request: {path}: got {word[1][:80]}, takes one of {', '.join(taken)}"
    what = found["what"].replace("`", "").replace("Object missing required field", "missing field")
    return f"Invalid request: {path}: {what[:1].lower()}{what[1:]}"


def _words(of: inspect.Type, steps: list[str]) -> list[str]:
    """The words that are taken at the end of a path such as `.messages`, `[0]`, `.role`."""
    if isinstance(of, inspect.UnionType):
        return [word for one in of.types for word in _words(one, steps)]
    if not steps:
        return [str(word) for word in of.values] if isinstance(of, inspect.LiteralType) else []
    step, *rest = steps
    if isinstance(of, inspect.StructType):
        return [
            word
            for field in of.fields
            if f".{field.encode_name}" == step
            for word in _words(field.type, rest)
        ]
    if isinstance(of, inspect.ListType):
        return _words(of.item_type, rest)
    return _words(of.value_type, rest) if isinstance(of, inspect.DictType) else []


def refuse(path: str, came: object, taken: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: {path}: got {came!r}, takes {taken}")


def refuse_nul(body: bytes, value: object, *, path: str = "") -> None:
    """PostgreSQL keeps no NUL in text or JSON: say so before it does. The walk is made only when one may be there."""
    if b"\\u0000" not in body:
        return
    _walk_nul(msgspec.to_builtins(value), path)


def _walk_nul(value: object, path: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise InvalidRequest(
            f"Invalid request: {path.removeprefix('.')}: got a NUL character, takes text without it"
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _walk_nul(key, f"{path}.{key[:40]}".replace("\0", "\\u0000"))
            _walk_nul(item, f"{path}.{key[:40]}".replace("\0", "\\u0000"))
    if isinstance(value, list):
        for index, item in enumerate(value):
            _walk_nul(item, f"{path}[{index}]")
