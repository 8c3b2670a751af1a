/** Events and counters as lines of JSON, in the form of HTTP and of `oncelog`. */

import { create, fromJson, toJson, type MessageInitShape } from "@bufbuild/protobuf";
import { base64Decode, base64Encode } from "@bufbuild/protobuf/wire";
import { TimestampSchema, type Timestamp } from "@bufbuild/protobuf/wkt";
import { EventSchema, type Event, type GetStatsResponse, type StoredEvent } from "./gen/oncelog/v1/aggregator_pb.js";
import { jsonPayload, payloadJson } from "./payload.js";

/** Members that the server adds to listed events. */
const SERVERS = new Set(["sequence", "received_at", "cursor"]);

/** The event of a line, or an Error that describes the fault. The server checks limits. */
export function eventOf(line: string): Event {
  const parsed: unknown = JSON.parse(line);
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new Error("an event object is expected");
  }
  const event: MessageInitShape<typeof EventSchema> = {};
  const texts = members(line);
  for (const [name, text] of texts) {
    switch (name) {
      case "topic":
        event.topic = string(name, text);
        break;
      case "event_id":
        event.eventId = string(name, text);
        break;
      case "source":
        event.source = string(name, text);
        break;
      case "timestamp":
        event.timestamp = timestamp(string(name, text));
        break;
      case "attributes":
        event.attributes = attributes(text);
        break;
      case "payload":
      case "data":
        break;
      default:
        if (!SERVERS.has(name)) {
          throw new Error(`${name}: not a field of an event`);
        }
    }
  }
  const [payload, data] = [texts.get("payload"), texts.get("data")];
  if (payload !== undefined && payload !== "null") {
    if (data !== undefined) {
      throw new Error("data: given beside payload; give one of them");
    }
    event.payload = jsonPayload(payload);
  } else if (data !== undefined) {
    event.payload = { case: "data", value: base64Decode(string("data", data)) };
  } else if (payload === undefined) {
    throw new Error("payload: missing; give an object, or null for an event without one");
  }
  return create(EventSchema, event);
}

/** A stored event as a listed line, without a cursor. */
export function lineOf(stored: StoredEvent): string {
  const event = stored.event ?? create(EventSchema);
  const names = Object.keys(event.attributes).sort();
  const parts: [string, string][] = [
    ["topic", JSON.stringify(event.topic)],
    ["event_id", JSON.stringify(event.eventId)],
    ["timestamp", timeText(event.timestamp)],
    ["source", JSON.stringify(event.source)],
    ["payload", payloadJson(event) ?? "null"],
  ];
  if (event.payload.case === "data") {
    parts.push(["data", JSON.stringify(base64Encode(event.payload.value))]);
  }
  parts.push(
    ["attributes", JSON.stringify(Object.fromEntries(names.map((name) => [name, event.attributes[name]])))],
    ["sequence", stored.sequence.toString()],
    ["received_at", timeText(stored.receivedAt)],
  );
  return `{${parts.map(([name, text]) => `"${name}":${text}`).join(",")}}`;
}

/** The counters in the form of `GET /stats`. */
export function statsLine(stats: GetStatsResponse): string {
  const topics = stats.topics.map((one) =>
    object([
      ["topic", JSON.stringify(one.topic)],
      ["unique_processed", one.uniqueProcessed.toString()],
      ["duplicate_dropped", one.duplicateDropped.toString()],
      ["last_received_at", timeText(one.lastReceivedAt)],
    ]),
  );
  return object([
    ["received", stats.received.toString()],
    ["unique_processed", stats.uniqueProcessed.toString()],
    ["duplicate_dropped", stats.duplicateDropped.toString()],
    ["conflicts", stats.conflicts.toString()],
    ["rejected", stats.rejected.toString()],
    ["topics", JSON.stringify(stats.topics.map((one) => one.topic))],
    ["topic_count", stats.topicCount.toString()],
    ["topic_stats", `[${topics.join(",")}]`],
    ["uptime_seconds", stats.uptimeSeconds.toString()],
    ["durable_tail", stats.durableTail.toString()],
    ["storage_bytes", stats.storageBytes.toString()],
    ["server_version", JSON.stringify(stats.serverVersion)],
  ]);
}

function object(members: [string, string][]): string {
  return `{${members.map(([name, text]) => `"${name}":${text}`).join(",")}}`;
}

/** The members of the object on a line that JSON.parse accepted, as text, which keeps a payload's digits. */
function members(line: string): Map<string, string> {
  const found = new Map<string, string>();
  let name: string | undefined;
  let depth = 0;
  let start = 0;
  const take = (end: number) => {
    if (name !== undefined) {
      if (found.has(name)) {
        throw new Error(`${name}: given twice`);
      }
      found.set(name, line.slice(start, end).trim());
    }
    name = undefined;
  };
  for (let at = 0; at < line.length; at += 1) {
    switch (line[at]) {
      case '"':
        at = endOfString(line, at);
        break;
      case "{":
      case "[":
        depth += 1;
        start = depth === 1 ? at + 1 : start;
        break;
      case "}":
      case "]":
        depth -= 1;
        if (depth === 0) {
          take(at);
        }
        break;
      case ":":
        if (depth === 1) {
          name = JSON.parse(line.slice(start, at)) as string;
          start = at + 1;
        }
        break;
      case ",":
        if (depth === 1) {
          take(at);
          start = at + 1;
        }
        break;
    }
  }
  return found;
}

/** The end of the string that starts at `at`. */
function endOfString(line: string, at: number): number {
  let end = at + 1;
  while (line[end] !== '"') {
    end += line[end] === "\\" ? 2 : 1;
  }
  return end;
}

function string(name: string, text: string): string {
  const value: unknown = JSON.parse(text);
  if (typeof value !== "string") {
    throw new Error(`${name}: a string is expected`);
  }
  return value;
}

function attributes(text: string): Record<string, string> {
  const value: unknown = JSON.parse(text);
  const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
  if (!isObject || Object.values(value).some((one) => typeof one !== "string")) {
    throw new Error("attributes: an object of strings is expected");
  }
  return value as Record<string, string>;
}

function timestamp(text: string): Timestamp {
  try {
    return fromJson(TimestampSchema, text);
  } catch (error) {
    throw new Error(`timestamp: ${error instanceof Error ? error.message : String(error)}`);
  }
}

function timeText(at: Timestamp | undefined): string {
  return JSON.stringify(toJson(TimestampSchema, at ?? create(TimestampSchema)));
}
