/** Errors: which ones to retry, and their details.
 *
 *  A final error of the server is thrown unchanged, a `ServiceError` of grpc-js; `describe` formats it.
 */

import { fromBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { status, type ServiceError } from "@grpc/grpc-js";
import { BadRequestSchema, ErrorInfoSchema, StatusSchema } from "./gen/google/rpc/details_pb.js";

const DETAILS = "grpc-status-details-bin";

const TRANSIENT = new Set([
  // The codes of a broken connection, a server that starts or stops, and a full disk that may heal.
  status.UNAVAILABLE,
  status.CANCELLED,
  status.UNKNOWN,
  status.INTERNAL,
  status.RESOURCE_EXHAUSTED,
  status.DEADLINE_EXCEEDED,
  status.ABORTED,
]);

/** The connection kept breaking. Publishing unacked events again is safe. */
export class GaveUp extends Error {
  override readonly name = "GaveUp";
}

/** The server violates the contract. */
export class ContractBroken extends Error {
  override readonly name = "ContractBroken";
}

/** The address of a server is invalid. */
export class InvalidServer extends Error {
  override readonly name = "InvalidServer";
}

export function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

/** Whether a call that failed so may succeed when retried. */
export function isTransient(error: unknown): error is ServiceError {
  return isServiceError(error) && TRANSIENT.has(error.code);
}

/** The code and the message. */
export function summary(error: ServiceError): string {
  return `${status[error.code]}: ${error.details}`;
}

/** The code and the message, then a line for each google.rpc detail. */
export function describe(error: ServiceError): string {
  return [summary(error), ...details(error)].join("\n  ");
}

function details(error: ServiceError): string[] {
  const [encoded] = error.metadata.get(DETAILS);
  if (!(encoded instanceof Buffer)) {
    return [];
  }
  const lines: string[] = [];
  for (const packed of fromBinary(StatusSchema, encoded).details) {
    for (const violation of anyUnpack(packed, BadRequestSchema)?.fieldViolations ?? []) {
      lines.push(`${violation.field}: ${violation.description}`);
    }
    const info = anyUnpack(packed, ErrorInfoSchema);
    if (info !== undefined) {
      const pairs = Object.entries(info.metadata).map(([key, value]) => `${key}=${value}`);
      lines.push([info.reason, ...pairs.sort()].join(" "));
    }
  }
  return lines;
}
