"""Which of the engine's own cached blocks were computed from lossy pages. Scheduler's thread only.

vLLM's prefix cache does not know profiles: a block loaded as `compact` serves any later request
with the same tokens. What such a request computes must not be stored as if it were exact.
"""

import collections

from flashquant.keys import KEY_BYTES
from flashquant.wire import Profile

MAX_KEYS = 1 << 16  # four million tokens; beyond it the oldest is forgotten


class Provenance:
    """Profiles of blocks by key; a block that was never noted is exact."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._profiles: collections.OrderedDict[bytes, Profile] = collections.OrderedDict()

    def note(self, keys: bytes, profile: Profile) -> None:
        """These blocks hold no more than `profile` gives."""
        if profile is Profile.EXACT:
            return
        for at in range(0, len(keys), KEY_BYTES):
            key = keys[at:at + KEY_BYTES]
            self._profiles[key] = max(profile, self._profiles.pop(key, profile))
        while len(self._profiles) > self._max_keys:
            self._profiles.popitem(last=False)

    def worst(self, keys: bytes) -> Profile:
        """Of all these blocks."""
        if not self._profiles:
            return Profile.EXACT
        return max((self._profiles.get(keys[at:at + KEY_BYTES], Profile.EXACT)
                    for at in range(0, len(keys), KEY_BYTES)), default=Profile.EXACT)
