/** A reader that resumes where it was. */

import { setTimeout as sleep } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { DEFAULT_SERVER, connect, wire } from "./channel.js";
import { GaveUp, isTransient, summary } from "./errors.js";
import {
  AggregatorService,
  ListEventsRequestSchema,
  type ListEventsRequest,
  type ListEventsResponse,
} from "./gen/oncelog/v1/aggregator_pb.js";
import { Backoff, GIVE_UP_AFTER_MS, Watchdog } from "./retry.js";

const SILENCE_MS_MAX = 45_000;

/** What to read: the fields of ListEventsRequest, all of them optional. */
export type ReaderOptions = MessageInitShape<typeof ListEventsRequestSchema>;

/** Reads stored events to the end of the list, or forever with `follow`; without gap or repeat.
 *
 *  A response may hold no events. A caller that stores `response.cursor` with the results of its events processes
 *  every event exactly once.
 */
export class Reader {
  readonly #server: string;
  readonly #onBreak: (cause: string) => void;
  readonly #backoff = new Backoff();
  /** The rest of the request: the cursor and the limit move as events arrive. */
  readonly #request: ListEventsRequest;

  /** Connects when it is iterated. `onBreak` is called for each break. */
  constructor(server: string = DEFAULT_SERVER, options: ReaderOptions = {}, onBreak?: (cause: string) => void) {
    this.#server = server;
    this.#request = create(ListEventsRequestSchema, options);
    this.#onBreak = onBreak ?? ((cause) => console.warn(`${server}: ${cause}; connecting again`));
  }

  /** Resumes after the last response. */
  get cursor(): string {
    return this.#request.cursor;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ListEventsResponse, void, void> {
    for (;;) {
      let cause = "the server ended the stream";
      const client = connect(this.#server);
      const call = client.makeServerStreamRequest(...wire(AggregatorService.method.listEvents), this.#request);
      // The wait below throws it; anything after that does not matter.
      call.on("error", () => {});
      const watchdog = new Watchdog(SILENCE_MS_MAX, () => call.cancel());
      const responses = call[Symbol.asyncIterator]() as AsyncIterator<ListEventsResponse, void>;
      try {
        for (;;) {
          // Only while waiting: a caller may take any time between two responses.
          if (this.#request.follow) {
            watchdog.waitForWord();
          }
          const next = await responses.next();
          watchdog.rest();
          if (next.done) {
            break;
          }
          const isLast = this.#advance(next.value);
          yield next.value;
          if (isLast) {
            return;
          }
        }
        if (!this.#request.follow) {
          return;
        }
      } catch (error) {
        if (!isTransient(error)) {
          throw error;
        }
        cause = watchdog.barked ? `nothing from the server for ${SILENCE_MS_MAX / 1000} s` : summary(error);
      } finally {
        watchdog.rest();
        call.cancel();
        client.close();
      }
      const delay = this.#backoff.failure();
      if (delay === undefined) {
        throw new GaveUp(`gave up on ${this.#server} after ${GIVE_UP_AFTER_MS / 1000} s without a response: ${cause}`);
      }
      this.#onBreak(cause);
      await sleep(delay);
    }
  }

  /** Moves past `response`. Returns whether it was the last within the limit. */
  #advance(response: ListEventsResponse): boolean {
    this.#backoff.progress();
    this.#request.cursor = response.cursor;
    if (this.#request.limit === 0n) {
      return false;
    }
    const delivered = BigInt(response.events.length);
    this.#request.limit -= delivered < this.#request.limit ? delivered : this.#request.limit;
    // To the server 0 means no limit, so it must not be sent at the end.
    return this.#request.limit === 0n;
  }
}
