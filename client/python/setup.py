"""Generates the gRPC stubs from ../../proto into src/flashquant/v1, then builds the package."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PROTO = HERE.parents[1] / "proto"
PROTO_FILES = ("flashquant/v1/kv_cache.proto", "flashquant/v1/admin.proto")


def generate_stubs() -> None:
    """Writes *_pb2.py and *_pb2_grpc.py; keeps what is there when the .proto files are not."""
    if not PROTO.is_dir():
        return
    from grpc_tools import protoc

    out = HERE / "src"
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*arguments, *PROTO_FILES]) != 0:
        raise SystemExit("protoc failed on " + ", ".join(PROTO_FILES))


generate_stubs()
setup()
