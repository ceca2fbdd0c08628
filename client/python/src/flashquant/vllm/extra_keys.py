"""What else than token ids tells blocks apart (LoRA, images), as bytes for the key chain."""

from collections.abc import Callable
from typing import Any

from flashquant.keys import len32
from flashquant.vllm.scheduler_core import ExtraKeys, UnkeyableError

SALT_TAG = "cache_salt"  # already in the root of the chain


def canonical(value: object) -> bytes:
    """One byte string per value, the same in every process; UnkeyableError for odd types."""
    if value is None:
        return b"n"
    if isinstance(value, bool):
        return b"t" if value else b"f"
    if isinstance(value, int):
        return b"i" + len32(str(value).encode())
    if isinstance(value, str):
        return b"s" + len32(value.encode())
    if isinstance(value, bytes):
        return b"b" + len32(value)
    if isinstance(value, (tuple, list)):
        return b"l" + len32(b"".join(map(canonical, value)))
    raise UnkeyableError(f"no canonical bytes for {type(value).__name__}")


def extra_keys_from(generate: Callable[..., tuple[Any, int]] | None) -> ExtraKeys:
    """ExtraKeys over vLLM's generate_block_hash_extra_keys; without it nothing can be keyed."""

    def extra_keys(request: Any, begin: int, end: int, state: int) -> tuple[bytes, int]:
        if generate is None or getattr(request, "prompt_embeds", None) is not None:
            raise UnkeyableError("prompt embeddings cannot be keyed")
        extras, state = generate(request, begin, end, state)
        kept = [extra for extra in extras or () if not is_salt(extra)]
        return (canonical(kept) if kept else b""), state

    return extra_keys


def is_salt(extra: object) -> bool:
    """Whether this is vLLM's tagged cache salt."""
    return isinstance(extra, tuple) and len(extra) == 2 and extra[0] == SALT_TAG
