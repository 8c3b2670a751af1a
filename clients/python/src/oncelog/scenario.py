"""The events of the scenario that all clients publish; clients/README.md defines them."""

from datetime import UTC, datetime, timedelta

from oncelog.v1.aggregator_pb2 import Event

EVENTS_PER_REQUEST = 50

_TOPICS = 10
_FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def event_at(position: int) -> Event:
    """The event at `position`: every fifth is a resend."""
    block, place = divmod(position, 5)
    return _event(2 * block + 2 if place == 4 else 4 * block + place)


def _event(number: int) -> Event:
    """Always the same event: that is all a publisher must ensure."""
    return Event(
        topic=f"scenario-{number % _TOPICS}",
        event_id=f"event-{number}",
        timestamp=_FIRST + timedelta(seconds=number),
        source="clients/python",
        json={"number": number},
        attributes={"region": "eu"},
    )
