"""Prompt texts that every machine with Python has: the language's own documentation."""

import pydoc_data.topics

REST_TOKENS = 17  # behind the last full block: what a warm request still computes
BLOCK_TOKENS = 64


def corpus() -> str:
    """About 170,000 tokens of English about Python, the same for one version of Python."""
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def cut_prompts(ids: list[int], codecs: list[str], sizes: list[int],
                count: int) -> list[tuple[str, list[int]]]:
    """`count` prompts per codec and size, as (codec, token ids); no two share a token of `ids`.

    A prompt has the full blocks of its size and 17 tokens more, so that 16 generated tokens do
    not fill another block.
    """
    prompts, begin = [], 0
    for size in sizes:
        length = size // BLOCK_TOKENS * BLOCK_TOKENS + REST_TOKENS
        for _ in range(count):
            for codec in codecs:
                prompts.append((codec, ids[begin:begin + length]))
                begin += length
    if begin > len(ids):
        raise SystemExit(f"the text has {len(ids)} tokens, {begin} are needed: fewer prompts")
    return prompts
