"""The events of the scenario that all clients publish; clients/README.md defines them."""

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from oncelog.v1.aggregator_pb2 import Event

EVENTS_PER_REQUEST = 50

_TOPICS = 10
# 2026-01-01T00:00:00Z.
_FIRST_SECOND = 1_767_225_600


def event_at(position: int) -> Event:
    """The event sent at `position`: every fifth is one that was sent before."""
    block, place = divmod(position, 5)
    return _event(2 * block + 2 if place == 4 else 4 * block + place)


def _event(number: int) -> Event:
    """Whenever it is made, it is the same: that is all a publisher has to take care of."""
    json = Struct()
    json["number"] = number
    return Event(
        topic=f"scenario-{number % _TOPICS}",
        event_id=f"event-{number}",
        timestamp=Timestamp(seconds=_FIRST_SECOND + number),
        source="clients/python",
        json=json,
        attributes={"region": "eu"},
    )
