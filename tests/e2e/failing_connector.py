"""FlashQuantConnector whose loads fail on demand: FQ_TEST_FAULT names a file that says how."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from flashquant.keys import KEY_BYTES
from flashquant.vllm.connector import FlashQuantConnector
from flashquant.vllm.jobs import LoadJob


def spoilt(job: LoadJob, fault: str) -> LoadJob:
    """The job with keys nobody stored, from the first block ("all") or the middle ("half") on."""
    good = 0 if fault == "all" else len(job.keys) // KEY_BYTES // 2 * KEY_BYTES
    return replace(job, keys=job.keys[:good] + bytes(len(job.keys) - good))


class FailingConnector(FlashQuantConnector):
    """See the head of the file."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Spoils the step's loads when the file says so."""
        path = Path(os.environ["FQ_TEST_FAULT"])
        jobs = self._get_connector_metadata().jobs
        if path.exists() and jobs.loads:
            fault = path.read_text()
            jobs.loads[:] = [spoilt(job, fault) for job in jobs.loads]
        super().start_load_kv(forward_context, **kwargs)
