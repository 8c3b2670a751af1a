"""Constraints that the OpenAPI document cannot express for schemathesis."""

import json

import schemathesis

NAME_BYTES_MAX = 255
ATTRIBUTES_BYTES_MAX = 8 * 1024


@schemathesis.serializer("application/x-ndjson")
def one_a_line(ctx, value):
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item) + "\n" for item in items).encode()


@schemathesis.hook
def filter_body(ctx, body):
    """Drops cases that JSON Schema cannot describe: limits in bytes, integers that no double holds."""
    return is_exact(body) and all(map(is_short, body if isinstance(body, list) else [body]))


def is_exact(value):
    if isinstance(value, dict):
        return all(map(is_exact, value.values()))
    if isinstance(value, list):
        return all(map(is_exact, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**1023 and int(float(value)) == value
    return True


def is_short(event):
    if not isinstance(event, dict):
        return True
    names = [event.get(field) for field in ("topic", "event_id", "source")]
    attributes = event.get("attributes")
    pairs = attributes.items() if isinstance(attributes, dict) else ()
    sizes = [size(key) + size(value) for key, value in pairs]
    return all(size(name) <= NAME_BYTES_MAX for name in names) and sum(sizes) <= ATTRIBUTES_BYTES_MAX


def size(text):
    return len(text.encode(errors="surrogatepass")) if isinstance(text, str) else 0
