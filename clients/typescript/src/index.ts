/** A client of oncelog: publishes events exactly once, and reads them back. */

export { DEFAULT_SERVER, connect, getStats } from "./channel.js";
export { ContractBroken, GaveUp, InvalidServer, describe } from "./errors.js";
export {
  EventSchema,
  Outcome,
  type Event,
  type EventOutcome,
  type ListEventsResponse,
  type StoredEvent,
} from "./gen/oncelog/v1/aggregator_pb.js";
export { jsonPayload, payloadJson } from "./payload.js";
export { Publisher, type Ack } from "./publisher.js";
export { Reader, type ReaderOptions } from "./reader.js";
