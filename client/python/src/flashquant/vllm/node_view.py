"""The node's own account of what it holds for a prompt of an engine. For tools and evaluations."""

import time
from collections.abc import Mapping
from typing import Any

import grpc

from flashquant.client import Client, Deadlines, Match
from flashquant.keys import BLOCK_TOKENS, KeyChain, root_key
from flashquant.link import SessionSpec
from flashquant.v1 import admin_pb2, admin_pb2_grpc
from flashquant.vllm.geometry import ROWS
from flashquant.vllm.identity import namespace_name, namespace_of
from flashquant.vllm.options import parse_options
from flashquant.wire import Profile

CONNECT_S = 10.0
SETTLE_S = 120.0
LOOKUP_S = 2.0
PURGE_S = 10.0
POLL_S = 0.05


class NodeView:
    """A session in the namespace of an engine whose packing of K and V is strided."""

    def __init__(self, model_config: Any, config: Mapping[str, Any]) -> None:
        """`model_config`: vLLM's; `config`: kv_connector_extra_config. RuntimeError: no session."""
        options = parse_options(config)
        layers = model_config.hf_text_config.num_hidden_layers
        namespace = namespace_of(model_config, options, layers, ROWS)
        spec = SessionSpec(namespace_name(namespace, options), namespace, (0, layers),
                           (0, namespace.kv_heads), "node-view")
        self.raw_bytes_per_block = 2 * BLOCK_TOKENS * layers * namespace.kv_heads * (
            namespace.head_size * model_config.dtype.itemsize)
        self._endpoint, self._namespace_name = options.endpoint, spec.namespace_name
        self._client = Client(options.endpoint, spec, Deadlines(lookup_s=LOOKUP_S))
        self._client.start()
        if not self._client.wait_ready(CONNECT_S):
            raise RuntimeError(f"no session at {options.endpoint} within {CONNECT_S:.0f} s")

    def wait_stored(self, ids: list[int], profile: str, salt: str = "") -> Match:
        """What the node has of all full blocks of a prompt, once it has them all.

        RuntimeError if they do not all appear within two minutes.
        """
        info = self._client.link.info
        blocks = len(ids) // BLOCK_TOKENS
        chain = KeyChain(root_key(info.namespace_fingerprint, info.tenant, salt))
        chain.extend(ids[:blocks * BLOCK_TOKENS])
        floor, found = Profile.parse(profile).own_floor, 0
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            match = self._client.lookup(chain.keys(0, blocks), floor)
            found = match.matched_blocks if match else found
            if match and found == blocks:
                return match
            time.sleep(POLL_S)
        raise RuntimeError(f"{profile}: {found} of {blocks} blocks were stored within "
                           f"{SETTLE_S:.0f} s")

    def purge(self) -> None:
        """The node forgets what it has of this engine. grpc.RpcError when it does not answer."""
        with grpc.insecure_channel(self._endpoint) as channel:
            admin_pb2_grpc.AdminStub(channel).Purge(
                admin_pb2.PurgeRequest(namespace_name=self._namespace_name), timeout=PURGE_S)
