"""Generates src/oncelog/v1 from the contract, and copies the service config, whenever the package is built."""

import shutil
import sys
from pathlib import Path

from grpc_tools import protoc
from setuptools import setup

HERE = Path(__file__).resolve().parent
CONTRACT = HERE.parent.parent / "proto"
SOURCE = HERE / "src"

status = protoc.main(
    [
        "protoc",
        f"-I{CONTRACT}",
        f"-I{Path(protoc.__file__).parent / '_proto'}",
        f"--python_out={SOURCE}",
        f"--pyi_out={SOURCE}",
        f"--grpc_python_out={SOURCE}",
        f"--mypy_grpc_out=quiet:{SOURCE}",
        "oncelog/v1/aggregator.proto",
    ]
)
if status != 0:
    sys.exit(f"protoc failed with status {status}")
shutil.copy(HERE.parent / "service_config.json", SOURCE / "oncelog")

setup()
