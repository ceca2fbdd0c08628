"""Where the blocks of a chain lie in a row of chunks. Pure functions.

The row begins with the chunk that holds the first token of the first block. `chunk_tokens` divides
64 or is a multiple of it.
"""

from dataclasses import dataclass

import numpy as np

from flashquant.keys import BLOCK_TOKENS


@dataclass(frozen=True)
class Placement:
    """Chunks of `blocks` blocks from `first_block` on."""

    first_block: int
    blocks: int
    chunk_tokens: int

    @property
    def base_token(self) -> int:
        """Where the row of chunks begins."""
        return self.first_block * BLOCK_TOKENS // self.chunk_tokens * self.chunk_tokens

    @property
    def end_token(self) -> int:
        """Where the last block ends."""
        return (self.first_block + self.blocks) * BLOCK_TOKENS

    @property
    def chunks(self) -> int:
        """Length of the row."""
        return -(-(self.end_token - self.base_token) // self.chunk_tokens)

    def indices(self) -> np.ndarray:
        """Chunks of each block, [blocks][chunks per block], counted in the row."""
        per_block = max(1, BLOCK_TOKENS // self.chunk_tokens)
        return self._begins()[:, None] // self.chunk_tokens + np.arange(per_block)

    def first_tokens(self) -> list[int]:
        """Position of each block in its first chunk."""
        return (self._begins() % self.chunk_tokens).tolist()

    def _begins(self) -> np.ndarray:
        """Tokens from the row's begin to each block's."""
        blocks = np.arange(self.first_block, self.first_block + self.blocks)
        return blocks * BLOCK_TOKENS - self.base_token

    def pieces(self, limit: int) -> list["Placement"]:
        """The same blocks in runs of at most `limit`; runs begin and end with a chunk."""
        step = limit // self.blocks_per_unit * self.blocks_per_unit
        begin, end = self.first_block, self.first_block + self.blocks
        cuts = [begin, *range(begin // step * step + step, end, step), end]
        return [Placement(a, b - a, self.chunk_tokens) for a, b in zip(cuts, cuts[1:])]

    @property
    def blocks_per_unit(self) -> int:
        """Blocks that share a chunk."""
        return max(1, self.chunk_tokens // BLOCK_TOKENS)
