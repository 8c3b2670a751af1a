"""How to connect: one place for the options of all channels."""

import re
from importlib import resources

import grpc

from oncelog.errors import InvalidServer
from oncelog.v1.aggregator_pb2 import GetStatsRequest, GetStatsResponse
from oncelog.v1.aggregator_pb2_grpc import AggregatorServiceStub

DEFAULT_SERVER = "127.0.0.1:50051"

# The largest event that a server can be configured to accept, and room for its envelope.
MESSAGE_BYTES_MAX = 16 * 1024 * 1024 + 64 * 1024
KEEPALIVE_INTERVAL_MS = 15_000
KEEPALIVE_TIMEOUT_MS = 10_000


def connect(server: str = DEFAULT_SERVER) -> grpc.Channel:
    """A channel to `server`, host:port or http://host:port, with its own connection."""
    address = re.fullmatch(r"(?:http://)?(\S+:\d+)", server)
    if address is None:
        raise InvalidServer(f"{server!r} is not the address of a server; expected host:port")
    return grpc.insecure_channel(
        address[1],
        options=[
            ("grpc.service_config", resources.files("oncelog").joinpath("service_config.json").read_text("utf-8")),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            # Otherwise a new channel waits for the reconnect of an older one.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def get_stats(server: str = DEFAULT_SERVER) -> GetStatsResponse:
    """The counters of the server; the service config waits and retries."""
    with connect(server) as channel:
        return AggregatorServiceStub(channel).GetStats(GetStatsRequest())
