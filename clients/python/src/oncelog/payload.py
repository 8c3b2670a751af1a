"""Exact JSON payloads: an object may come as a Struct, whose numbers are doubles, or as text."""

import json
import math
from decimal import Decimal
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from oncelog.v1.aggregator_pb2 import Event

WHOLE_MAX = 2.0**64
"""Below this, a whole double stands for its exact value; see json_text in the contract."""


def set_json(event: Event, payload: str | dict[str, Any]) -> None:
    """Gives `event` a JSON object, as text or as an object for `json.dumps`.

    An int of any size is kept. The server stores the object in whichever form can hold it.
    """
    event.json_text = payload if isinstance(payload, str) else json.dumps(payload, allow_nan=False)


def json_of(event: Event) -> str | None:
    """The payload as JSON text, with numbers as published; None without a JSON payload.

    Values outside JSON, which earlier servers stored, are "NaN", "Infinity", "-Infinity" or null.
    """
    match event.WhichOneof("payload"):
        case "json":
            return _object(event.json)
        case "json_text":
            return event.json_text
        case _:
            return None


def payload_of(event: Event) -> dict[str, Any] | None:
    """The payload as Python objects: whole numbers are ints, others floats, or Decimals where a float is not exact."""
    text = json_of(event)
    payload: dict[str, Any] | None = None if text is None else json.loads(text, parse_float=_number)
    return payload


def _number(literal: str) -> float | Decimal:
    number = float(literal)
    if math.isfinite(number) and Decimal(repr(number)) == Decimal(literal):
        return number
    return Decimal(literal)


def _object(struct: Struct) -> str:
    members = (f"{_text(name)}:{_value(value)}" for name, value in sorted(struct.fields.items()))
    return "{" + ",".join(members) + "}"


def _value(value: Value) -> str:
    match value.WhichOneof("kind"):
        case "number_value":
            return _double(value.number_value)
        case "string_value":
            return _text(value.string_value)
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "struct_value":
            return _object(value.struct_value)
        case "list_value":
            return "[" + ",".join(map(_value, value.list_value.values)) + "]"
        case _:
            return "null"


def _double(number: float) -> str:
    if not math.isfinite(number):
        return '"NaN"' if math.isnan(number) else '"Infinity"' if number > 0 else '"-Infinity"'
    if number == 0 and math.copysign(1, number) < 0:
        return "-0.0"
    return str(int(number)) if number.is_integer() and abs(number) < WHOLE_MAX else repr(number)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
