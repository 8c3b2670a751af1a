"""Errors: which ones to retry, and their details.

A final error of the server is raised unchanged, a `grpc.RpcError`; `describe` formats it.
"""

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc import Call, RpcError, StatusCode
from grpc_status import rpc_status

TRANSIENT = frozenset(
    {
        # The codes of a broken connection, a server that starts or stops, and a full disk that may heal.
        StatusCode.UNAVAILABLE,
        StatusCode.CANCELLED,
        StatusCode.UNKNOWN,
        StatusCode.INTERNAL,
        StatusCode.RESOURCE_EXHAUSTED,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.ABORTED,
    }
)


class GaveUp(Exception):
    """The connection kept breaking. Publishing unacked events again is safe."""


class ContractBroken(Exception):
    """The server violates the contract."""


class InvalidServer(ValueError):
    """The address of a server is invalid."""


class Closed(Exception):
    """The publisher is closed."""


def is_transient(error: RpcError) -> bool:
    """Whether a call that failed so may succeed when retried."""
    return isinstance(error, Call) and error.code() in TRANSIENT


def summary(error: RpcError) -> str:
    """The code and the message."""
    if not isinstance(error, Call):
        return str(error)
    return f"{error.code().name}: {error.details()}"


def describe(error: RpcError) -> str:
    """The code and the message, then a line for each google.rpc detail."""
    return "\n  ".join([summary(error), *_details(error)])


def _details(error: RpcError) -> list[str]:
    try:
        status = rpc_status.from_call(error) if isinstance(error, Call) else None
    except (DecodeError, ValueError):
        # Not from this server: its details do not belong to the code and message.
        return []
    lines: list[str] = []
    packed: Any
    for packed in status.details if status else []:
        bad_request = error_details_pb2.BadRequest()
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(bad_request):
            lines += [f"{violation.field}: {violation.description}" for violation in bad_request.field_violations]
        elif packed.Unpack(info):
            lines.append(" ".join([info.reason, *(f"{key}={info.metadata[key]}" for key in sorted(info.metadata))]))
    return lines
