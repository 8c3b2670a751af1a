/** A publisher that resends until its events are durable. */

import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import type { ClientDuplexStream } from "@grpc/grpc-js";
import { DEFAULT_SERVER, connect, encode, wire } from "./channel.js";
import { ContractBroken, GaveUp, isTransient, summary } from "./errors.js";
import {
  AggregatorService,
  StreamingPublishRequestSchema,
  type Event,
  type EventOutcome,
  type StreamingPublishResponse,
} from "./gen/oncelog/v1/aggregator_pb.js";
import { Backoff, GIVE_UP_AFTER_MS, Watchdog } from "./retry.js";

const REQUESTS_UNACKED_MAX = 64;
const BYTES_UNACKED_MAX = 16 * 1024 * 1024;
const ACK_MS_MAX = 30_000;

/** The future ack of one request. */
export interface Ack {
  /** One outcome per event of the request, in order; rejects with the publisher's error. */
  readonly outcomes: Promise<EventOutcome[]>;
}

/** An unacked request, encoded once for all attempts. */
interface Unacked {
  readonly encoded: Buffer;
  readonly eventCount: number;
  readonly resolve: (outcomes: EventOutcome[]) => void;
  readonly reject: (error: unknown) => void;
  wasSent: boolean;
}

/** A stream that accepts requests. */
interface Stream {
  readonly call: ClientDuplexStream<Buffer, StreamingPublishResponse>;
  readonly watchdog: Watchdog;
}

/** Publishes events over one stream at a time until they are durable.
 *
 *  When the stream breaks, the publisher reconnects and resends the unacked requests, in order and before anything
 *  new. The server drops events it has already stored; the outcome of an event whose ack was lost is then a duplicate.
 */
export class Publisher {
  /** How often a stream, or an attempt at one, ended with events unacked. */
  breaks = 0;
  /** How many events were sent again because of that. */
  resent = 0;

  readonly #server: string;
  readonly #onBreak: (cause: string) => void;
  readonly #backoff = new Backoff();
  readonly #unacked: Unacked[] = [];
  #bytesUnacked = 0;
  /** Senders enter the window one after the other. */
  #turn: Promise<unknown> = Promise.resolve();
  /** Wakes the sender whose turn it is. */
  #changed = (): void => {};
  #running: Promise<void> | undefined;
  #stream: Stream | undefined;
  #isClosed = false;
  /** Closed, and nothing is waiting to be sent. */
  #isClosing = false;
  #failure: { readonly error: unknown } | undefined;

  /** Connects when there is something to send. `onBreak` is called for each break with events unacked. */
  constructor(server: string = DEFAULT_SERVER, onBreak?: (cause: string) => void) {
    this.#server = server;
    this.#onBreak = onBreak ?? ((cause) => console.warn(`${server}: ${cause}; connecting again`));
  }

  /** Sends `events` as one request, once the window has room for it.
   *
   *  Encoded, a request may have 4 MiB (`serve --max-request-bytes`). Waiting for the ack is optional: the request is
   *  resent until acked anyway.
   */
  async send(events: Event[]): Promise<Ack> {
    if (this.#isClosed) {
      throw new Error("the publisher is closed");
    }
    const encoded = encode(StreamingPublishRequestSchema, create(StreamingPublishRequestSchema, { events }));
    const sent = this.#turn.then(() => this.#enter(encoded, events.length));
    this.#turn = sent.catch(() => {});
    return sent;
  }

  /** Sends nothing more, and waits until everything is acked. Throws the error that prevents it. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#turn;
    this.#isClosing = true;
    this.#endIfDone();
    await this.#running;
    if (this.#failure !== undefined) {
      throw this.#failure.error;
    }
  }

  async #enter(encoded: Buffer, eventCount: number): Promise<Ack> {
    while (this.#failure === undefined && !this.#hasRoom(encoded.length)) {
      await new Promise<void>((resolve) => (this.#changed = resolve));
    }
    if (this.#failure !== undefined) {
      throw this.#failure.error;
    }
    const outcomes = new Promise<EventOutcome[]>((resolve, reject) => {
      const unacked = { encoded, eventCount, resolve, reject, wasSent: false };
      this.#unacked.push(unacked);
      if (this.#stream !== undefined) {
        if (this.#unacked.length === 1) {
          this.#stream.watchdog.waitForWord();
        }
        this.#give(this.#stream, unacked);
      }
    });
    // A caller that does not wait for the ack learns of a failure from `close`.
    outcomes.catch(() => {});
    this.#bytesUnacked += encoded.length;
    this.#running ??= this.#run();
    return { outcomes };
  }

  #hasRoom(bytes: number): boolean {
    const { length } = this.#unacked;
    return length === 0 || (length < REQUESTS_UNACKED_MAX && this.#bytesUnacked + bytes <= BYTES_UNACKED_MAX);
  }

  /** Publishes until nothing is unacked and the stream has ended. */
  async #run(): Promise<void> {
    while (this.#unacked.length > 0) {
      try {
        await this.#publishOnOneStream();
      } catch (error) {
        this.#fail(error);
      }
    }
    this.#running = undefined;
  }

  async #publishOnOneStream(): Promise<void> {
    const client = connect(this.#server);
    const [path, , decode] = wire(AggregatorService.method.streamingPublish);
    const call = client.makeBidiStreamRequest(path, (encoded: Buffer) => encoded, decode);
    // The wait below throws it; anything after that does not matter.
    call.on("error", () => {});
    const watchdog = new Watchdog(ACK_MS_MAX, () => call.cancel());
    const stream = { call, watchdog };
    let cause = "the server ended the stream";
    try {
      this.#stream = stream;
      watchdog.waitForWord();
      for (const unacked of this.#unacked) {
        this.#give(stream, unacked);
      }
      let acked = 0;
      for await (const response of call) {
        acked += 1;
        this.#acknowledge(stream, response, acked);
      }
    } catch (error) {
      if (!isTransient(error)) {
        throw error;
      }
      cause = watchdog.barked ? `no ack for ${ACK_MS_MAX / 1000} s` : summary(error);
    } finally {
      this.#stream = undefined;
      watchdog.rest();
      call.cancel();
      client.close();
    }
    // A stream may end if nothing is waiting for it; the next request opens another.
    if (this.#unacked.length === 0) {
      return;
    }
    this.breaks += 1;
    const delay = this.#backoff.failure();
    if (delay === undefined) {
      throw new GaveUp(`gave up on ${this.#server} after ${GIVE_UP_AFTER_MS / 1000} s without an ack: ${cause}`);
    }
    this.#onBreak(cause);
    await sleep(delay);
  }

  /** Hands a request to the stream. The window bounds how much may wait there for the connection. */
  #give(stream: Stream, unacked: Unacked): void {
    if (unacked.wasSent) {
      this.resent += unacked.eventCount;
    }
    unacked.wasSent = true;
    stream.call.write(unacked.encoded);
  }

  /** Takes the `acked`th response of a stream for the oldest request. */
  #acknowledge(stream: Stream, response: StreamingPublishResponse, acked: number): void {
    const [unacked] = this.#unacked;
    if (unacked === undefined || response.acknowledgedRequests !== BigInt(acked)) {
      throw new ContractBroken(
        `response ${acked} of a stream acknowledges ${response.acknowledgedRequests} requests`,
      );
    }
    if (response.outcomes.length !== unacked.eventCount) {
      throw new ContractBroken(
        `${response.outcomes.length} outcomes for a request of ${unacked.eventCount} events`,
      );
    }
    this.#unacked.shift();
    this.#bytesUnacked -= unacked.encoded.length;
    this.#backoff.progress();
    if (this.#unacked.length > 0) {
      stream.watchdog.waitForWord();
    } else {
      stream.watchdog.rest();
    }
    unacked.resolve(response.outcomes);
    this.#changed();
    this.#endIfDone();
  }

  #endIfDone(): void {
    if (this.#isClosing && this.#unacked.length === 0) {
      this.#stream?.call.end();
    }
  }

  #fail(error: unknown): void {
    this.#failure = { error };
    for (const unacked of this.#unacked.splice(0)) {
      unacked.reject(error);
    }
    this.#changed();
  }
}
