"""Calls are to be answered soon: what is tried here is the API, not the engine's patience."""

import schemathesis

MAX_TOKENS = 8


@schemathesis.hook
def map_body(context, body):
    is_call = context.operation.path.endswith("/chat/completions") and isinstance(body, dict)
    if is_call and (body.get("max_tokens") is None or isinstance(body["max_tokens"], int)):
        body = body | {"max_tokens": min(body.get("max_tokens") or MAX_TOKENS, MAX_TOKENS)}
    return body
