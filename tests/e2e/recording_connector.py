"""FlashQuantConnector that keeps what each load wrote into vLLM's cache, and what the node stores.

FQ_TEST_RECORD names the folder: one file a load, see Record.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flashquant.keys import KEY_BYTES
from flashquant.v1 import kv_cache_pb2 as pb
from flashquant.vllm.connector import FlashQuantConnector
from flashquant.vllm.jobs import LoadJob


class RecordingConnector(FlashQuantConnector):
    """See the head of the file."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.loads: dict[str, LoadJob] = {}

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Remembers the step's loads."""
        self.loads.update((job.request_id, job)
                          for job in self._get_connector_metadata().jobs.loads)
        super().start_load_kv(forward_context, **kwargs)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Keeps the loads that ended, before the engine reads their blocks."""
        sent, received = super().get_finished(finished_req_ids)
        for request_id in received or ():
            self._record(self.loads.pop(request_id))
        return sent, received

    def _record(self, job: LoadJob) -> None:
        view = self._worker.access.view
        ids = view.chunk_ids(job.block_ids)
        words = torch.empty(view.layers, len(ids), view.words, dtype=torch.int64)
        view.gather(ids, words)
        folder = Path(os.environ["FQ_TEST_RECORD"])
        torch.save({"words": words, "extents": self._extents(job),
                    "packing": asdict(self._packing)},
                   folder / f"{len(list(folder.iterdir()))}.pt")

    def _extents(self, job: LoadJob) -> list[tuple[bytes, bytes]]:
        """Primary and refinement extent of each block, as the node holds them."""
        client = self._worker._client
        match = client.lookup(job.keys, job.floor, lease=True)
        found = []
        for block in range(len(job.keys) // KEY_BYTES):
            reply = client.load(match.link, pb.LoadRequest(
                session_id=match.link.session_id, lease_id=match.lease_id, first_block=block,
                block_count=1, min_profile=job.floor, encoded=True))
            size, = reply.sizes
            found.append((reply.payload[:size], reply.payload[size:]))
        client.release(match.link, match.lease_id)
        return found
