/** Connecting, and the contract's calls in the form that grpc-js takes. */

import { readFileSync } from "node:fs";
import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type MessageShape,
} from "@bufbuild/protobuf";
import { Client, Metadata, credentials } from "@grpc/grpc-js";
import { InvalidServer } from "./errors.js";
import {
  AggregatorService,
  GetStatsRequestSchema,
  type GetStatsResponse,
} from "./gen/oncelog/v1/aggregator_pb.js";

export const DEFAULT_SERVER = "127.0.0.1:50051";

/** The largest event that a server can be configured to accept, and room for its envelope. */
const MESSAGE_BYTES_MAX = 16 * 1024 * 1024 + 64 * 1024;
const KEEPALIVE_INTERVAL_MS = 15_000;
const KEEPALIVE_TIMEOUT_MS = 10_000;

const serviceConfig = readFileSync(new URL("service_config.json", import.meta.url), "utf8");

/** A client of `server`, host:port or http://host:port, with its own connection. */
export function connect(server: string = DEFAULT_SERVER): Client {
  const address = /^(?:http:\/\/)?(\S+:\d+)$/.exec(server)?.[1];
  if (address === undefined) {
    throw new InvalidServer(`"${server}" is not the address of a server; expected host:port`);
  }
  return new Client(address, credentials.createInsecure(), {
    "grpc.service_config": serviceConfig,
    "grpc.max_receive_message_length": MESSAGE_BYTES_MAX,
    "grpc.keepalive_time_ms": KEEPALIVE_INTERVAL_MS,
    "grpc.keepalive_timeout_ms": KEEPALIVE_TIMEOUT_MS,
    "grpc.keepalive_permit_without_calls": 1,
    // Otherwise a new client waits for the reconnect of an older one.
    "grpc.use_local_subchannel_pool": 1,
  });
}

/** The path of a method and the codecs of its messages, in the order in which grpc-js takes them. */
export function wire<I extends DescMessage, O extends DescMessage>(method: DescMethod & { input: I; output: O }) {
  return [
    `/${method.parent.typeName}/${method.name}`,
    (request: MessageShape<I>): Buffer => encode(method.input, request),
    (bytes: Buffer): MessageShape<O> => fromBinary(method.output, bytes),
  ] as const;
}

export function encode<M extends DescMessage>(schema: M, message: MessageShape<M>): Buffer {
  const bytes = toBinary(schema, message);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The counters of the server; the service config waits and retries. */
export async function getStats(server: string = DEFAULT_SERVER): Promise<GetStatsResponse> {
  const client = connect(server);
  try {
    return await new Promise((resolve, reject) => {
      const request = create(GetStatsRequestSchema);
      // grpc-js reads waitForReady in the service config but ignores it.
      const metadata = new Metadata({ waitForReady: true });
      client.makeUnaryRequest(...wire(AggregatorService.method.getStats), request, metadata, (error, response) => {
        if (response !== undefined) {
          resolve(response);
        } else {
          reject(error);
        }
      });
    });
  } finally {
    client.close();
  }
}
