#!/usr/bin/env node
/** The command: `node dist/cli.js`. */

import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs, type ParseArgsConfig } from "node:util";
import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { DEFAULT_SERVER, connect, encode, getStats, wire } from "./channel.js";
import { ContractBroken, GaveUp, InvalidServer, describe, isServiceError } from "./errors.js";
import {
  AggregatorService,
  EventSchema,
  Outcome,
  PublishRequestSchema,
  type Event,
  type EventOutcome,
  type PublishResponse,
} from "./gen/oncelog/v1/aggregator_pb.js";
import { eventOf, lineOf, statsLine } from "./lines.js";
import { Publisher } from "./publisher.js";
import { Reader } from "./reader.js";
import { EVENTS_PER_REQUEST, eventAt } from "./scenario.js";

const USAGE = `usage: node dist/cli.js <command> [--server host:port]

  publish [--batch N] [--totals] [--sample N]    publish events from standard input, one a line
  list [--topic T] [--cursor C] [--limit N]      print stored events, one a line
  follow [--topic T] [--cursor C] [--limit N]    print stored events, and go on as they come
  stats                                          print the counters
  scenario [--events N] [--rate R]               publish the scenario of clients/README.md

--batch is events a request (100), --totals publishes over Publish for one response with the totals, --sample publishes N
made-up events instead. The server is ONCELOG_SERVER or ${DEFAULT_SERVER} without --server.`;

/** Well below the limit of a request; a larger event travels alone. */
const BATCH_BYTES_MAX = 1024 * 1024;

const REJECTED = 1;
const FAILED = 2;

const SERVER = {
  server: { type: "string", default: process.env["ONCELOG_SERVER"] ?? DEFAULT_SERVER },
} as const;

class UsageError extends Error {}

/** An event and the number of its line, from 1. */
interface Line {
  readonly number: number;
  readonly event: Event;
}

type Lines = AsyncIterable<Line> | Iterable<Line>;

/** The summary; its fields are those of clients/README.md. */
class Tally {
  sent = 0;
  stored = 0;
  duplicates = 0;
  conflicts = 0;
  rejected = 0;
  breaks = 0;
  resent = 0;

  count(lines: Line[], outcomes: EventOutcome[]): void {
    for (const [at, { outcome, reason }] of outcomes.entries()) {
      switch (outcome) {
        case Outcome.STORED:
          this.stored += 1;
          break;
        case Outcome.CONFLICT:
          this.conflicts += 1;
          this.duplicates += 1;
          break;
        case Outcome.DUPLICATE:
          this.duplicates += 1;
          break;
        default:
          this.reject(lines[at]?.number ?? 0, reason);
          continue;
      }
      this.sent += 1;
    }
  }

  reject(line: number, reason: string): void {
    this.sent += 1;
    this.rejected += 1;
    note(`line ${line}: rejected: ${reason}`);
  }

  exitStatus(): number {
    return this.rejected > 0 ? REJECTED : 0;
  }
}

async function publish(args: string[]): Promise<number> {
  const options = parse(args, {
    ...SERVER,
    batch: { type: "string", default: "100" },
    sample: { type: "string" },
    totals: { type: "boolean" },
  });
  const tally = new Tally();
  const lines = options.sample === undefined ? readLines(tally) : sample(count("sample", options.sample));
  const batches = batched(lines, count("batch", options.batch));
  return options.totals === true
    ? publishForTotals(options.server, batches, tally)
    : publishAcked(new Publisher(options.server), batches, tally);
}

/** Publishes over StreamingPublish, and counts each ack as it comes. */
async function publishAcked(
  publisher: Publisher,
  batches: AsyncIterable<Line[]>,
  tally: Tally,
  onAck: () => void = () => {},
): Promise<number> {
  try {
    for await (const lines of batches) {
      const ack = await publisher.send(lines.map(({ event }) => event));
      ack.outcomes.then(
        (outcomes) => {
          tally.count(lines, outcomes);
          onAck();
        },
        // `close` throws it.
        () => {},
      );
    }
    await publisher.close();
  } finally {
    tally.breaks = publisher.breaks;
    tally.resent = publisher.resent;
    printJson(tally);
  }
  return tally.exitStatus();
}

/** Publishes over Publish: one response for all requests, and an error that names a bad event. */
async function publishForTotals(server: string, batches: AsyncIterable<Line[]>, tally: Tally): Promise<number> {
  const client = connect(server);
  try {
    let answer: (error: Error | null, totals?: PublishResponse) => void = () => {};
    const totals = new Promise<PublishResponse>((resolve, reject) => {
      answer = (error, response) => (response === undefined ? reject(error) : resolve(response));
    });
    const call = client.makeClientStreamRequest(...wire(AggregatorService.method.publish), answer);
    // The server may respond before the input ends.
    const answered = totals.catch(() => {}).then(() => "answered" as const);
    for await (const lines of batches) {
      const request = create(PublishRequestSchema, { events: lines.map(({ event }) => event) });
      if (!call.write(request) && (await Promise.race([once(call, "drain"), answered])) === "answered") {
        break;
      }
    }
    call.end();
    const { received, uniqueProcessed, duplicateDropped, conflicts } = await totals;
    tally.sent += Number(received);
    tally.stored = Number(uniqueProcessed);
    tally.duplicates = Number(duplicateDropped);
    tally.conflicts = Number(conflicts);
  } finally {
    client.close();
  }
  printJson(tally);
  return tally.exitStatus();
}

async function scenario(args: string[]): Promise<number> {
  const options = parse(args, {
    ...SERVER,
    events: { type: "string", default: "5000" },
    rate: { type: "string", default: "0" },
  });
  const rate = Number(options.rate);
  if (!(rate >= 0)) {
    throw new UsageError("--rate must be a number of events a second");
  }
  const publisher = new Publisher(options.server, (cause) => printJson({ broken: cause }));
  const batches = batched(sample(count("events", options.events)), EVENTS_PER_REQUEST);
  const tally = new Tally();
  return publishAcked(publisher, paced(batches, rate), tally, () => printJson({ acked: tally.sent }));
}

async function read(args: string[], follow: boolean): Promise<number> {
  const options = parse(args, {
    ...SERVER,
    topic: { type: "string", default: "" },
    cursor: { type: "string", default: "" },
    limit: { type: "string" },
  });
  const reader = new Reader(options.server, {
    topic: options.topic,
    cursor: options.cursor,
    limit: options.limit === undefined ? 0n : BigInt(count("limit", options.limit)),
    follow,
  });
  const tellCursor = (): void => {
    if (reader.cursor !== "") {
      note(`cursor: ${reader.cursor}`);
    }
  };
  process.once("SIGINT", () => {
    tellCursor();
    process.exit(130);
  });
  try {
    for await (const response of reader) {
      const lines = response.events.map((stored) => `${lineOf(stored)}\n`);
      if (!process.stdout.write(lines.join(""))) {
        await once(process.stdout, "drain");
      }
    }
  } finally {
    tellCursor();
  }
  return 0;
}

async function stats(args: string[]): Promise<number> {
  const { server } = parse(args, SERVER);
  try {
    console.log(statsLine(await getStats(server)));
    return 0;
  } catch (error) {
    report(error);
    if (isServiceError(error) && error.code === status.DEADLINE_EXCEEDED) {
      note(`  no answer from ${server}`);
    }
    return FAILED;
  }
}

/** The events of standard input. Lines without one are rejected here. */
async function* readLines(tally: Tally): AsyncGenerator<Line> {
  let number = 0;
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    number += 1;
    if (line.trim() === "") {
      continue;
    }
    let event;
    try {
      event = eventOf(line);
    } catch (error) {
      tally.reject(number, error instanceof Error ? error.message : String(error));
      continue;
    }
    yield { number, event };
  }
}

function* sample(events: number): Generator<Line> {
  for (let position = 0; position < events; position += 1) {
    yield { number: position + 1, event: eventAt(position) };
  }
}

async function* batched(lines: Lines, size: number): AsyncGenerator<Line[]> {
  let batch: Line[] = [];
  let batchBytes = 0;
  for await (const line of lines) {
    const eventBytes = encode(EventSchema, line.event).length;
    if (batch.length > 0 && (batch.length === size || batchBytes + eventBytes > BATCH_BYTES_MAX)) {
      yield batch;
      batch = [];
      batchBytes = 0;
    }
    batch.push(line);
    batchBytes += eventBytes;
  }
  if (batch.length > 0) {
    yield batch;
  }
}

async function* paced(batches: AsyncIterable<Line[]>, eventsPerSecond: number): AsyncGenerator<Line[]> {
  const start = performance.now();
  let sent = 0;
  for await (const batch of batches) {
    if (eventsPerSecond > 0) {
      await sleep(Math.max(0, start + (sent / eventsPerSecond) * 1000 - performance.now()));
    }
    yield batch;
    sent += batch.length;
  }
}

function parse<const O extends NonNullable<ParseArgsConfig["options"]>>(args: string[], options: O) {
  try {
    return parseArgs({ args, options }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function count(option: string, text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) {
    throw new UsageError(`--${option} must be a whole number of at least 1`);
  }
  return value;
}

function printJson(one: object): void {
  console.log(JSON.stringify(one));
}

function note(text: string): void {
  console.error(text);
}

async function main([name, ...args]: string[]): Promise<number> {
  switch (name) {
    case "publish":
      return publish(args);
    case "list":
      return read(args, false);
    case "follow":
      return read(args, true);
    case "stats":
      return stats(args);
    case "scenario":
      return scenario(args);
    case "--help":
    case "-h":
      console.log(USAGE);
      return 0;
    default:
      throw new UsageError(name === undefined ? "a command is missing" : `there is no command ${name}`);
  }
}

function report(error: unknown): void {
  if (error instanceof UsageError) {
    note(`error: ${error.message}\n\n${USAGE}`);
  } else if (isServiceError(error)) {
    note(`error: ${describe(error)}`);
  } else if (error instanceof GaveUp || error instanceof ContractBroken || error instanceof InvalidServer) {
    note(`error: ${error.message}`);
  } else {
    throw error;
  }
}

// The reader of the output has seen enough.
process.stdout.on("error", () => process.exit(FAILED));
try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  report(error);
  process.exitCode = FAILED;
}
