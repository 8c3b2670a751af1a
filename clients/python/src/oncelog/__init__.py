"""A client of oncelog: publishes events exactly once, and reads them back.

The messages are in `oncelog.v1.aggregator_pb2`, generated from the contract.
"""

from oncelog.channel import DEFAULT_SERVER, connect, get_stats
from oncelog.errors import Closed, ContractBroken, GaveUp, InvalidServer, describe
from oncelog.payload import json_of, payload_of, set_json
from oncelog.publisher import Outcomes, Publisher
from oncelog.reader import Reader

__all__ = [
    "DEFAULT_SERVER",
    "Closed",
    "ContractBroken",
    "GaveUp",
    "InvalidServer",
    "Outcomes",
    "Publisher",
    "Reader",
    "connect",
    "describe",
    "get_stats",
    "json_of",
    "payload_of",
    "set_json",
]
