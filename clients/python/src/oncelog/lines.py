"""Events and counters as lines of JSON, in the form of HTTP and of `oncelog`."""

import base64
import json
from collections.abc import Iterator
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from oncelog.payload import json_of, set_json
from oncelog.v1.aggregator_pb2 import Event, GetStatsResponse, StoredEvent

TEXTS = ("topic", "event_id", "source")
SERVERS = ("sequence", "received_at", "cursor")
"""Members that the server adds to listed events."""


def event_of(line: str) -> Event:
    """The event of a line, or a ValueError that describes the fault. The server checks limits."""
    event = Event()
    seen = set()
    payload = "null"
    for name, text, value in _members(line):
        if name in seen:
            raise ValueError(f"{name}: given twice")
        seen.add(name)
        if name in TEXTS:
            setattr(event, name, _string(name, value))
        elif name == "timestamp":
            event.timestamp.CopyFrom(_timestamp(_string(name, value)))
        elif name == "payload":
            payload = text
        elif name == "data":
            event.data = base64.b64decode(_string(name, value), validate=True)
        elif name == "attributes":
            if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
                raise ValueError("attributes: an object of strings is expected")
            event.attributes.update(value)
        elif name not in SERVERS:
            raise ValueError(f"{name}: not a field of an event")
    if payload != "null":
        if "data" in seen:
            raise ValueError("data: given beside payload; give one of them")
        set_json(event, payload)
    elif "data" not in seen and "payload" not in seen:
        raise ValueError("payload: missing; give an object, or null for an event without one")
    return event


def line_of(stored: StoredEvent) -> str:
    """A stored event as a listed line, without a cursor."""
    event = stored.event
    parts: list[tuple[str, str]] = [
        ("topic", _dump(event.topic)),
        ("event_id", _dump(event.event_id)),
        ("timestamp", _dump(event.timestamp.ToJsonString())),
        ("source", _dump(event.source)),
        ("payload", json_of(event) or "null"),
    ]
    if event.WhichOneof("payload") == "data":
        parts.append(("data", _dump(base64.b64encode(event.data).decode())))
    parts += [
        ("attributes", _dump(dict(sorted(event.attributes.items())))),
        ("sequence", _dump(stored.sequence)),
        ("received_at", _dump(stored.received_at.ToJsonString())),
    ]
    return "{" + ",".join(f'"{name}":{text}' for name, text in parts) + "}"


def stats_of(stats: GetStatsResponse) -> dict[str, object]:
    """The counters in the form of `GET /stats`."""
    return {
        "received": stats.received,
        "unique_processed": stats.unique_processed,
        "duplicate_dropped": stats.duplicate_dropped,
        "conflicts": stats.conflicts,
        "rejected": stats.rejected,
        "topics": [one.topic for one in stats.topics],
        "topic_count": stats.topic_count,
        "topic_stats": [
            {
                "topic": one.topic,
                "unique_processed": one.unique_processed,
                "duplicate_dropped": one.duplicate_dropped,
                "last_received_at": one.last_received_at.ToJsonString(),
            }
            for one in stats.topics
        ],
        "uptime_seconds": stats.uptime_seconds,
        "durable_tail": stats.durable_tail,
        "storage_bytes": stats.storage_bytes,
        "server_version": stats.server_version,
    }


def _members(line: str) -> Iterator[tuple[str, str, Any]]:
    """The members of the object on a line: name, text, value. Numbers stay text, which keeps a payload's digits."""
    decoder = json.JSONDecoder(parse_float=_unread, parse_int=_unread, parse_constant=_no_constant)

    def skip(at: int) -> int:
        return int(WHITESPACE.match(line, at).end())

    value, end = decoder.raw_decode(line, skip(0))
    if not isinstance(value, dict):
        raise ValueError("an event object is expected")
    if skip(end) != len(line):
        raise ValueError("more than one value on the line")
    at = skip(skip(0) + 1)
    while line[at] != "}":
        name, at = decoder.raw_decode(line, at)
        start = skip(skip(at) + 1)
        value, at = decoder.raw_decode(line, start)
        yield name, line[start:at], value
        at = skip(at)
        if line[at] == ",":
            at = skip(at + 1)


def _unread(_: str) -> None:
    """Python refuses an int of a few thousand digits, and nobody needs its value."""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: a string is expected")
    return value


def _timestamp(text: str) -> Timestamp:
    timestamp = Timestamp()
    try:
        timestamp.FromJsonString(text)
    except ValueError as error:
        raise ValueError(f"timestamp: {error}") from None
    return timestamp


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
