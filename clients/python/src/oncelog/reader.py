"""A reader that resumes where it was."""

import logging
import time
from collections.abc import Callable, Iterator

import grpc

from oncelog.channel import DEFAULT_SERVER, connect
from oncelog.errors import GaveUp, is_transient, summary
from oncelog.retry import GIVE_UP_AFTER_SECONDS, Backoff, Watchdog
from oncelog.v1.aggregator_pb2 import ListEventsRequest, ListEventsResponse
from oncelog.v1.aggregator_pb2_grpc import AggregatorServiceStub

SILENCE_SECONDS_MAX = 45.0

_log = logging.getLogger(__name__)


class Reader:
    """Reads stored events to the end of the list, or forever with `follow`; without gap or repeat.

        for response in Reader(topic="orders"):
            for stored in response.events: ...

    A response may hold no events. A caller that stores `response.cursor` with the results of its events processes
    every event exactly once.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        topic: str = "",
        cursor: str = "",
        limit: int = 0,
        follow: bool = False,
        on_break: Callable[[str], object] | None = None,
    ) -> None:
        self._server = server
        # The rest of the request: the cursor and the limit move as events arrive.
        self._request = ListEventsRequest(topic=topic, cursor=cursor, limit=limit, follow=follow)
        self._on_break = on_break or (lambda cause: _log.warning("%s: %s; connecting again", server, cause))
        self._backoff = Backoff()

    @property
    def cursor(self) -> str:
        """Resumes after the last response."""
        return self._request.cursor

    def __iter__(self) -> Iterator[ListEventsResponse]:
        while True:
            with connect(self._server) as channel, Watchdog(SILENCE_SECONDS_MAX, channel.close) as watchdog:
                cause = "the server ended the stream"
                try:
                    for response in self._responses(channel, watchdog):
                        is_last = self._advance(response)
                        yield response
                        if is_last:
                            return
                    if not self._request.follow:
                        return
                except grpc.RpcError as error:
                    if not is_transient(error):
                        raise
                    silent = f"nothing from the server for {SILENCE_SECONDS_MAX:.0f} s"
                    cause = silent if watchdog.barked else summary(error)
            delay = self._backoff.failure()
            if delay is None:
                raise GaveUp(
                    f"gave up on {self._server} after {GIVE_UP_AFTER_SECONDS:.0f} s without a response: {cause}"
                )
            self._on_break(cause)
            time.sleep(delay)

    def _responses(self, channel: grpc.Channel, watchdog: Watchdog) -> Iterator[ListEventsResponse]:
        responses = AggregatorServiceStub(channel).ListEvents(self._request)
        while True:
            # Only while waiting: a caller may take any time between two responses.
            if self._request.follow:
                watchdog.wait_for_word()
            response = next(responses, None)
            watchdog.rest()
            if response is None:
                return
            yield response

    def _advance(self, response: ListEventsResponse) -> bool:
        """Moves past `response`. Returns whether it was the last within the limit."""
        self._backoff.progress()
        self._request.cursor = response.cursor
        if self._request.limit == 0:
            return False
        self._request.limit -= min(len(response.events), self._request.limit)
        # To the server 0 means no limit, so it must not be sent at the end.
        return self._request.limit == 0
