"""What the connector's worker half counts; stats.py says what the names mean."""

import threading


class Counters:
    """Counts by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._counts: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Adds to one of them."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + amount

    def take(self) -> dict[str, float]:
        """Counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, {}
            return counts
