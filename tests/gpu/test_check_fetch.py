"""check_fetch.py on a CPU: two processes with host memory in the GPUs' place."""

import check_fetch
from node_process import BUILD


def test_blocks_go_from_node_to_node_over_a_link_and_are_right():
    result = check_fetch.fetch(BUILD, "cpu")
    assert check_fetch.passed(result), result
    assert result["nccl_bytes"] > check_fetch.BLOCKS * 65536
