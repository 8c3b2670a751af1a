"""The events of the scenario that all clients publish; clients/README.md defines them."""

from datetime import UTC, datetime, timedelta

from oncelog.v1.aggregator_pb2 import Event

EVENTS_PER_REQUEST = 50

_TOPICS = 10
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def event_at(position: int) -> Event:
    """The event sent at `position`: every fifth is one that was sent before."""
    block, place = divmod(position, 5)
    return _event(2 * block + 2 if place == 4 else 4 * block + place)


def _event(number: int) -> Event:
    """Whenever it is made, it is the same: that is all a publisher has to take care of."""
    return Event(
        topic=f"scenario-{number % _TOPICS}",
        event_id=f"event-{number}",
        timestamp=_FIRST + timedelta(seconds=number),
        source="clients/python",
        json={"number": number},
        attributes={"region": "eu"},
    )
