"""Of all Python tests and what they start: one thread each. Several spin while they wait for each
other, and where a processor is missing that costs ten times the work.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
