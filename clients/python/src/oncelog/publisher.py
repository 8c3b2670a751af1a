"""A publisher that resends until its events are durable."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc

from oncelog.channel import DEFAULT_SERVER, connect
from oncelog.errors import Closed, ContractBroken, GaveUp, is_transient, summary
from oncelog.retry import GIVE_UP_AFTER_SECONDS, Backoff, Watchdog
from oncelog.v1.aggregator_pb2 import Event, EventOutcome, StreamingPublishRequest, StreamingPublishResponse
from oncelog.v1.aggregator_pb2_grpc import AggregatorServiceStub

REQUESTS_UNACKED_MAX = 64
BYTES_UNACKED_MAX = 16 * 1024 * 1024
ACK_SECONDS_MAX = 30.0

Outcomes = Sequence[EventOutcome]
"""One outcome per event of a request, in their order."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Unacked:
    request: StreamingPublishRequest
    bytes: int
    ack: Future[Outcomes] = field(default_factory=Future)
    was_sent: bool = False


@dataclass(eq=False)
class _Stream:
    watchdog: Watchdog
    # How many of the unacked requests, the oldest first, were given to this stream.
    given: int = 0
    acked: int = 0
    ended: bool = False


class Publisher:
    """Publishes events over one stream at a time until they are durable.

    When the stream breaks, the publisher reconnects and resends the unacked requests, in order and before anything
    new. The server drops events it has already stored; the outcome of an event whose ack was lost is then a duplicate.

        with Publisher() as publisher:
            for outcome in publisher.send([event]).result(): ...

    May be used by several threads. `on_break` is called, on a thread of the publisher, for each break with events
    unacked; without it they are logged.
    """

    def __init__(self, server: str = DEFAULT_SERVER, on_break: Callable[[str], object] | None = None) -> None:
        self.breaks = 0
        """How often a stream, or an attempt at one, ended with events unacked."""
        self.resent = 0
        """How many events were sent again because of that."""
        self._server = server
        self._on_break = on_break or (lambda cause: _log.warning("%s: %s; connecting again", server, cause))
        self._backoff = Backoff()
        # Guards the fields below, and signals their changes.
        self._changed = threading.Condition()
        self._unacked: deque[_Unacked] = deque()
        self._bytes_unacked = 0
        self._is_closing = False
        self._error: Exception | None = None
        self._worker = threading.Thread(target=self._run, name="oncelog-publisher", daemon=True)
        self._worker.start()

    def send(self, events: Iterable[Event]) -> Future[Outcomes]:
        """Sends `events` as one request, waiting while the window is full. Returns the future ack.

        Encoded, a request may have 4 MiB (`serve --max-request-bytes`). Waiting for the ack is optional: the request is
        resent until acked anyway.
        """
        request = StreamingPublishRequest(events=events)
        unacked = _Unacked(request, request.ByteSize())
        with self._changed:
            self._changed.wait_for(lambda: self._cannot_send() or self._has_room(unacked.bytes))
            if self._cannot_send():
                raise self._error or Closed("the publisher is closed")
            self._unacked.append(unacked)
            self._bytes_unacked += unacked.bytes
            self._changed.notify_all()
        return unacked.ack

    def close(self) -> None:
        """Sends nothing more, and waits until everything is acked. Raises the error that prevents it."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._worker.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._fail(Closed("the publisher was left by an error"))

    def _cannot_send(self) -> bool:
        return self._is_closing or self._error is not None

    def _has_room(self, size: int) -> bool:
        if not self._unacked:
            return True
        return len(self._unacked) < REQUESTS_UNACKED_MAX and self._bytes_unacked + size <= BYTES_UNACKED_MAX

    def _run(self) -> None:
        try:
            while self._wait_for_request():
                self._publish_on_one_stream()
        except Exception as error:
            self._fail(error)

    def _wait_for_request(self) -> bool:
        """Waits for something to send; False if nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._unacked or self._cannot_send())
            return bool(self._unacked) and self._error is None

    def _publish_on_one_stream(self) -> None:
        cause = "the server ended the stream"
        with connect(self._server) as channel, Watchdog(ACK_SECONDS_MAX, channel.close) as watchdog:
            stream = _Stream(watchdog)
            try:
                for response in AggregatorServiceStub(channel).StreamingPublish(self._requests(stream)):
                    self._acknowledge(stream, response)
            except grpc.RpcError as error:
                if not is_transient(error):
                    raise
                cause = f"no ack for {ACK_SECONDS_MAX:.0f} s" if watchdog.barked else summary(error)
            finally:
                with self._changed:
                    stream.ended = True
                    self._changed.notify_all()
        with self._changed:
            # A stream may end if nothing is waiting for it; the next request opens another.
            if not self._unacked or self._error is not None:
                return
        self.breaks += 1
        delay = self._backoff.failure()
        if delay is None:
            raise GaveUp(f"gave up on {self._server} after {GIVE_UP_AFTER_SECONDS:.0f} s without an ack: {cause}")
        self._on_break(cause)
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None, delay)

    def _requests(self, stream: _Stream) -> Iterator[StreamingPublishRequest]:
        """The requests for a stream: the unacked ones, and new ones as they come. Runs on a thread of gRPC."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        stream.ended
                        or self._error is not None
                        or stream.given < len(self._unacked)
                        or (self._is_closing and not self._unacked)
                    )
                )
                if stream.ended or self._error is not None or stream.given == len(self._unacked):
                    return
                unacked = self._unacked[stream.given]
                if stream.given == 0:
                    stream.watchdog.wait_for_word()
                stream.given += 1
                if unacked.was_sent:
                    self.resent += len(unacked.request.events)
                unacked.was_sent = True
            yield unacked.request

    def _acknowledge(self, stream: _Stream, response: StreamingPublishResponse) -> None:
        """Takes the next response of a stream for the oldest request."""
        with self._changed:
            if self._error is not None:
                raise self._error
            stream.acked += 1
            if response.acknowledged_requests != stream.acked or stream.given == 0:
                raise ContractBroken(
                    f"response {stream.acked} of a stream acknowledges {response.acknowledged_requests} requests"
                )
            unacked = self._unacked[0]
            if len(response.outcomes) != len(unacked.request.events):
                raise ContractBroken(
                    f"{len(response.outcomes)} outcomes for a request of {len(unacked.request.events)} events"
                )
            self._unacked.popleft()
            self._bytes_unacked -= unacked.bytes
            stream.given -= 1
            if stream.given == 0:
                stream.watchdog.rest()
            else:
                stream.watchdog.wait_for_word()
            self._backoff.progress()
            self._changed.notify_all()
        # Not under the lock: the ack's waiter may send at once.
        if unacked.ack.set_running_or_notify_cancel():
            unacked.ack.set_result(response.outcomes)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            unacked = list(self._unacked)
            self._unacked.clear()
            self._changed.notify_all()
        for one in unacked:
            if one.ack.set_running_or_notify_cancel():
                one.ack.set_exception(self._error)
