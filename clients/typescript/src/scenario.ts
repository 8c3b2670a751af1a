/** The events of the scenario that all clients publish; clients/README.md defines them. */

import { create } from "@bufbuild/protobuf";
import { EventSchema, type Event } from "./gen/oncelog/v1/aggregator_pb.js";

export const EVENTS_PER_REQUEST = 50;

const TOPICS = 10;
/** 2026-01-01T00:00:00Z. */
const FIRST_SECOND = 1_767_225_600;

/** The event at `position`: every fifth is a resend. */
export function eventAt(position: number): Event {
  const block = Math.floor(position / 5);
  const place = position % 5;
  return event(place === 4 ? 2 * block + 2 : 4 * block + place);
}

/** Always the same event: that is all a publisher must ensure. */
function event(number: number): Event {
  return create(EventSchema, {
    topic: `scenario-${number % TOPICS}`,
    eventId: `event-${number}`,
    timestamp: { seconds: BigInt(FIRST_SECOND + number) },
    source: "clients/typescript",
    payload: { case: "json", value: { number } },
    attributes: { region: "eu" },
  });
}
