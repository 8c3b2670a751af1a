"""The command: `python -m oncelog`."""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial

import grpc

from oncelog.channel import DEFAULT_SERVER, connect, get_stats
from oncelog.errors import ContractBroken, GaveUp, InvalidServer, describe
from oncelog.lines import event_of, line_of, stats_of
from oncelog.publisher import Outcomes, Publisher
from oncelog.reader import Reader
from oncelog.scenario import EVENTS_PER_REQUEST, event_at
from oncelog.v1.aggregator_pb2 import (
    OUTCOME_CONFLICT,
    OUTCOME_DUPLICATE,
    OUTCOME_STORED,
    Event,
    PublishRequest,
)
from oncelog.v1.aggregator_pb2_grpc import AggregatorServiceStub

BATCH_BYTES_MAX = 1024 * 1024
"""Well below the limit of a request; a larger event travels alone."""

REJECTED = 1
FAILED = 2
INTERRUPTED = 130

Line = tuple[int, Event]
"""An event and the number of its line, from 1."""


@dataclass
class Tally:
    """The summary; its fields are those of clients/README.md."""

    sent: int = 0
    stored: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    breaks: int = 0
    resent: int = 0

    def count(self, lines: list[Line], outcomes: Outcomes) -> None:
        for (line, _), outcome in zip(lines, outcomes, strict=True):
            if outcome.outcome == OUTCOME_STORED:
                self.stored += 1
            elif outcome.outcome == OUTCOME_DUPLICATE:
                self.duplicates += 1
            elif outcome.outcome == OUTCOME_CONFLICT:
                self.duplicates += 1
                self.conflicts += 1
            else:
                self.reject(line, outcome.reason)
                continue
            self.sent += 1

    def reject(self, line: int, reason: str) -> None:
        self.sent += 1
        self.rejected += 1
        note(f"line {line}: rejected: {reason}")


def publish(arguments: argparse.Namespace) -> int:
    tally = Tally()
    lines = sample(arguments.sample) if arguments.sample is not None else read_lines(tally)
    batches = batched(lines, arguments.batch)
    if arguments.totals:
        return publish_for_totals(arguments.server, batches, tally)
    return publish_acked(Publisher(arguments.server), batches, tally)


def publish_acked(publisher: Publisher, batches: Iterable[list[Line]], tally: Tally, prints: bool = False) -> int:
    """Publishes over StreamingPublish; counts each ack as it comes, and prints it if asked to."""

    def acked(lines: list[Line], ack: Future[Outcomes]) -> None:
        # The publisher raises the error of a failed ack.
        if ack.exception() is None:
            tally.count(lines, ack.result())
            if prints:
                print_json({"acked": tally.sent})

    try:
        with publisher:
            for lines in batches:
                publisher.send(event for _, event in lines).add_done_callback(partial(acked, lines))
    finally:
        tally.breaks, tally.resent = publisher.breaks, publisher.resent
        print_json(asdict(tally))
    return REJECTED if tally.rejected else 0


def publish_for_totals(server: str, batches: Iterable[list[Line]], tally: Tally) -> int:
    """Publishes over Publish: one response for all requests, and an error that names a bad event."""
    requests = (PublishRequest(events=[event for _, event in lines]) for lines in batches)
    with connect(server) as channel:
        totals = AggregatorServiceStub(channel).Publish(requests)
    tally.sent += totals.received
    tally.stored = totals.unique_processed
    tally.duplicates = totals.duplicate_dropped
    tally.conflicts = totals.conflicts
    print_json(asdict(tally))
    return REJECTED if tally.rejected else 0


def scenario(arguments: argparse.Namespace) -> int:
    publisher = Publisher(arguments.server, on_break=lambda cause: print_json({"broken": cause}))
    batches = batched(sample(arguments.events), EVENTS_PER_REQUEST)
    return publish_acked(publisher, paced(batches, arguments.rate), Tally(), prints=True)


def read(arguments: argparse.Namespace, follow: bool) -> int:
    reader = Reader(
        arguments.server, topic=arguments.topic, cursor=arguments.cursor, limit=arguments.limit, follow=follow
    )
    try:
        for response in reader:
            for stored in response.events:
                print(line_of(stored))
            sys.stdout.flush()
    finally:
        if reader.cursor:
            note(f"cursor: {reader.cursor}")
    return 0


def stats(arguments: argparse.Namespace) -> int:
    print_json(stats_of(get_stats(arguments.server)))
    return 0


def read_lines(tally: Tally) -> Iterator[Line]:
    """The events of standard input. Lines without one are rejected here."""
    for number, line in enumerate(sys.stdin, 1):
        if line.isspace():
            continue
        try:
            yield number, event_of(line)
        except (ValueError, RecursionError) as error:
            tally.reject(number, " ".join(str(error).split()))


def sample(count: int) -> Iterator[Line]:
    return ((position + 1, event_at(position)) for position in range(count))


def batched(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    batch: list[Line] = []
    batch_bytes = 0
    for line in lines:
        event_bytes = line[1].ByteSize()
        if batch and (len(batch) == size or batch_bytes + event_bytes > BATCH_BYTES_MAX):
            yield batch
            batch = []
            batch_bytes = 0
        batch.append(line)
        batch_bytes += event_bytes
    if batch:
        yield batch


def paced(batches: Iterable[list[Line]], events_per_second: float) -> Iterator[list[Line]]:
    start = time.monotonic()
    sent = 0
    for batch in batches:
        if events_per_second > 0:
            time.sleep(max(0.0, start + sent / events_per_second - time.monotonic()))
        yield batch
        sent += len(batch)


def print_json(one: dict[str, object]) -> None:
    print(json.dumps(one), flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr)


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parse() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--server",
        default=os.environ.get("ONCELOG_SERVER", DEFAULT_SERVER),
        help="host:port of the server (ONCELOG_SERVER; %(default)s)",
    )
    parser = argparse.ArgumentParser(prog="python -m oncelog", description="Events into oncelog, and out again.")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("publish", parents=[common], help="publish events from standard input, one a line")
    command.add_argument("--batch", type=count, default=100, help="events a request (%(default)s)")
    command.add_argument("--sample", type=count, help="publish so many made-up events instead")
    command.add_argument("--totals", action="store_true", help="over Publish: one response with the totals")
    command.set_defaults(run=publish)

    for name, follow, words in (
        ("list", False, "print stored events, one a line"),
        ("follow", True, "print stored events, and go on as they come"),
    ):
        command = commands.add_parser(name, parents=[common], help=words)
        command.add_argument("--topic", default="", help="of this topic only")
        command.add_argument("--cursor", default="", help="resume after this cursor")
        command.add_argument("--limit", type=count, default=0, help="print so many at most")
        command.set_defaults(run=partial(read, follow=follow))

    command = commands.add_parser("stats", parents=[common], help="print the counters")
    command.set_defaults(run=stats)

    command = commands.add_parser("scenario", parents=[common], help="publish the scenario of clients/README.md")
    command.add_argument("--events", type=count, default=5000, help="how many (%(default)s)")
    command.add_argument("--rate", type=float, default=0, help="events a second; as fast as it can without")
    command.set_defaults(run=scenario)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    try:
        return int(arguments.run(arguments))
    except grpc.RpcError as error:
        note(f"error: {describe(error)}")
        if isinstance(error, grpc.Call) and error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            note(f"  no answer from {arguments.server}")
    except (ContractBroken, GaveUp, InvalidServer) as error:
        note(f"error: {error}")
    except BrokenPipeError:
        # The reader of the output has seen enough; keep the interpreter from flushing into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
