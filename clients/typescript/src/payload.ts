/** Exact JSON payloads: an object may come as a Struct, whose numbers are doubles, or as text. */

import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import type { Event } from "./gen/oncelog/v1/aggregator_pb.js";

/** Below this, a whole double stands for its exact value; see json_text in the contract. */
const WHOLE_MAX = 2 ** 64;

/**
 * A payload made from the text of a JSON object, whose numbers keep their digits, even those that JSON.parse would round.
 * The server stores it in whichever form can hold it.
 */
export function jsonPayload(text: string): { case: "jsonText"; value: string } {
  return { case: "jsonText", value: text };
}

/**
 * The JSON payload of an event, in either form, as text, with numbers as published; undefined without one. Values
 * outside JSON, which earlier servers stored, are "NaN", "Infinity", "-Infinity" or null.
 */
export function payloadJson({ payload }: Event): string | undefined {
  switch (payload.case) {
    case "json":
      return objectText(payload.value);
    case "jsonText":
      return payload.value;
    default:
      return undefined;
  }
}

function objectText(members: JsonObject): string {
  const names = Object.keys(members).sort(byCodePoint);
  return `{${names.map((name) => `${JSON.stringify(name)}:${valueText(members[name] ?? null)}`).join(",")}}`;
}

function valueText(value: JsonValue): string {
  if (typeof value === "number") {
    return doubleText(value);
  }
  if (Array.isArray(value)) {
    return `[${value.map(valueText).join(",")}]`;
  }
  return typeof value === "object" && value !== null ? objectText(value) : JSON.stringify(value);
}

function doubleText(number: number): string {
  if (!Number.isFinite(number)) {
    return `"${number}"`;
  }
  if (Object.is(number, -0)) {
    return "-0.0";
  }
  return Number.isInteger(number) && Math.abs(number) < WHOLE_MAX ? BigInt(number).toString() : String(number);
}

/** Strings are compared by their UTF-16 units in JavaScript, a different order beyond the basic plane. */
function byCodePoint(a: string, b: string): number {
  const [left, right] = [[...a], [...b]];
  for (const [at, one] of left.entries()) {
    const other = right[at];
    const order = other === undefined ? 1 : (one.codePointAt(0) ?? 0) - (other.codePointAt(0) ?? 0);
    if (order !== 0) {
      return order;
    }
  }
  return left.length - right.length;
}
