"""Circuit breaker of one node. Thread-safe."""

import threading
import time
from collections.abc import Callable

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0


class CircuitBreaker:
    """Closed: calls go. A failure opens it: no call goes, until a probe (half-open) succeeds.

    Probes are spaced by a delay that doubles from 0.2 s to 5 s while they fail.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._delay_s = 0.0            # 0 = closed
        self._next_probe_s = 0.0

    @property
    def closed(self) -> bool:
        """Whether calls may go."""
        with self._lock:
            return self._delay_s == 0.0

    def probe_wait_s(self) -> float:
        """Seconds until the next probe may go; 0 = now."""
        with self._lock:
            return max(0.0, self._next_probe_s - self._clock())

    def failure(self) -> None:
        """Opens it, or keeps it open for twice as long."""
        with self._lock:
            self._delay_s = min(max(2 * self._delay_s, FIRST_DELAY_S), LONGEST_DELAY_S)
            self._next_probe_s = self._clock() + self._delay_s

    def success(self) -> None:
        """Closes it."""
        with self._lock:
            self._delay_s = self._next_probe_s = 0.0
