"""What tests with hostile peers share: what lies in the node, and what no peer may change."""

from raw_client import chain

MEMORY_GROWTH_MAX = 64 << 20  # README, Security: the most that floods may take
SEED = 20261124
KEYS = chain("hostile", 8)
