import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary } from "@bufbuild/protobuf";
import { EventSchema, StoredEventSchema } from "./gen/oncelog/v1/aggregator_pb.js";
import { eventOf, lineOf } from "./lines.js";
import { jsonPayload, payloadJson } from "./payload.js";

const EXACT = '{"a":[1.50,1e400],"id":9007199254740993}';
const LINE = `{"topic":"t","event_id":"1","timestamp":"2026-01-01T00:00:00Z","source":"s","payload":${EXACT},"attributes":{}`;

test("a Struct is printed exactly", () => {
  const value = { n: 12, f: 0.1, z: -0, big: 2 ** 60, a: [null, true, "é\n", {}], "\u{1f600}": 1, "\uffee": 2 };
  const event = create(EventSchema, { payload: { case: "json", value } });
  assert.equal(
    payloadJson(event),
    '{"a":[null,true,"é\\n",{}],"big":1152921504606846976,"f":0.1,"n":12,"z":-0.0,"\uffee":2,"\u{1f600}":1}',
  );
});

test("what JSON does not have is text", () => {
  const value = { l: [NaN, Infinity, -Infinity] };
  const event = create(EventSchema, { payload: { case: "json", value } });
  assert.equal(payloadJson(event), '{"l":["NaN","Infinity","-Infinity"]}');
});

test("what JSON does not have is text as it comes from a server, too", () => {
  const value = [0x11, 0, 0, 0, 0, 0, 0, 0xf8, 0x7f];
  const member = [0x0a, 1, 0x6e, 0x12, value.length, ...value];
  const none = [0x0a, 1, 0x6f, 0x12, 0];
  const struct = [0x0a, member.length, ...member, 0x0a, none.length, ...none];
  const event = fromBinary(EventSchema, Uint8Array.from([0x2a, struct.length, ...struct]));
  assert.equal(payloadJson(event), '{"n":"NaN","o":null}');
});

test("text is given back as it is", () => {
  assert.equal(payloadJson(create(EventSchema, { payload: jsonPayload(EXACT) })), EXACT);
  assert.equal(payloadJson(create(EventSchema)), undefined);
});

test("lines come back", () => {
  for (const line of [LINE, LINE.replace(EXACT, 'null,"data":"AAH/"'), LINE.replace(EXACT, "null")]) {
    const event = eventOf(`${line}}`);
    const listed = lineOf(create(StoredEventSchema, { event, sequence: 2n ** 63n + 1n }));
    assert.ok(listed.startsWith(`${line},"sequence":9223372036854775809,`), listed);
    assert.deepEqual(eventOf(listed), event);
  }
});

test("a line without an event is reported", () => {
  for (const [line, says] of [
    ["[]", /an event object/],
    ['{"topik":"t"}', /topik: not a field/],
    ['{"topic":7}', /topic: a string/],
    ['{"topic":"t"}', /payload: missing/],
    ['{"topic":"a","\\u0074opic":"b"}', /topic: given twice/],
    [`${LINE},"data":"AA=="}`, /data: given beside/],
  ] as const) {
    assert.throws(() => eventOf(line), says);
  }
});
