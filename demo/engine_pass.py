"""One vLLM process of the demo: answers all prompts and writes what it measured as JSON.

`first`: each prompt twice, cold and then from vLLM's own prefix cache; waits until the node has
published everything. `second`: each prompt once; this process's own cache is empty, so what it
does not compute comes from the node.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from prompts import BLOCK_TOKENS, corpus, cut_prompts

SETTLE_S = 30.0
NEW_TOKENS = 16
WARM_UP_TOKENS = 300


def make_engine(arguments: argparse.Namespace) -> Any:
    """vLLM with the connector; eager, one thread, blocks of 64 tokens."""
    from vllm import LLM
    from vllm.config import KVTransferConfig

    transfer = KVTransferConfig(
        kv_connector="FlashQuantConnector", kv_role="kv_both",
        kv_load_failure_policy="recompute", kv_connector_extra_config=options_of(arguments))
    return LLM(model=arguments.model, dtype="bfloat16", block_size=BLOCK_TOKENS,
               max_model_len=8192, max_num_batched_tokens=2048, enforce_eager=True,
               enable_prefix_caching=True, disable_log_stats=False,
               kv_transfer_config=transfer)


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """kv_connector_extra_config."""
    options = {"endpoint": arguments.endpoint, "profile": "exact"}
    if arguments.codec_set:
        options["codec_set"] = arguments.codec_set
    return options


def answer(llm: Any, codec: str, ids: list[int]) -> dict[str, Any]:
    """One request, alone in the engine: time to first token, tokens, what was cached."""
    from vllm import SamplingParams

    parameters = SamplingParams(
        temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True,
        extra_args={"kv_transfer_params": {"flashquant_profile": codec}})
    output, = llm.generate([{"prompt_token_ids": ids}], parameters, use_tqdm=False)
    return {"ttft_ms": output.metrics.first_token_latency * 1e3,
            "tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens}


class NodeView:
    """The node's own account of what it holds for a prompt."""

    def __init__(self, llm: Any, arguments: argparse.Namespace) -> None:
        from flashquant.client import Client, Deadlines
        from flashquant.link import SessionSpec
        from flashquant.vllm.identity import namespace_name, namespace_of
        from flashquant.vllm.options import parse_options

        options = parse_options(options_of(arguments))
        config = llm.llm_engine.vllm_config.model_config
        layers = config.hf_text_config.num_hidden_layers
        namespace = namespace_of(config, options, layers, "rows")
        spec = SessionSpec(namespace_name(namespace, options), namespace, (0, layers),
                           (0, namespace.kv_heads), "demo")
        self.raw_bytes_per_block = 2 * BLOCK_TOKENS * layers * namespace.kv_heads * (
            namespace.head_size * config.dtype.itemsize)
        self._client = Client(arguments.endpoint, spec, Deadlines(lookup_s=2.0))
        self._client.start()
        if not self._client.wait_ready(10):
            raise SystemExit("the node gives the demo no session")

    def stored_bytes(self, codec: str, ids: list[int]) -> list[int]:
        """Per block of the prompt, once all its full blocks are published."""
        from flashquant.keys import KeyChain, root_key
        from flashquant.wire import Profile

        info = self._client.link.info
        chain = KeyChain(root_key(info.namespace_fingerprint, info.tenant, ""))
        blocks = len(ids) // BLOCK_TOKENS
        chain.extend(ids[:blocks * BLOCK_TOKENS])
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            match = self._client.lookup(chain.keys(0, blocks), Profile.parse(codec).own_floor)
            if match and match.matched_blocks == blocks:
                return list(match.stored_bytes)
            time.sleep(0.05)
        raise SystemExit(f"{codec}: not all {blocks} blocks were stored within {SETTLE_S} s")


def first_pass(llm: Any, prompts: list[tuple[str, list[int]]],
               arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Cold and local answers, and what the node stored of them."""
    results = []
    for number, (codec, ids) in enumerate(prompts, 1):
        cold, local = answer(llm, codec, ids), answer(llm, codec, ids)
        results.append({"codec": codec, "prompt_tokens": len(ids), "cold": cold, "local": local})
        say(f"{number:2}/{len(prompts)} {codec:13} {len(ids)} tokens: cold "
            f"{cold['ttft_ms']:.0f} ms, own cache {local['ttft_ms']:.0f} ms")
    node = NodeView(llm, arguments)
    for result, (codec, ids) in zip(results, prompts):
        result["stored_bytes"] = node.stored_bytes(codec, ids)
        result["raw_bytes_per_block"] = node.raw_bytes_per_block
    return results


def second_pass(llm: Any, prompts: list[tuple[str, list[int]]]) -> list[dict[str, Any]]:
    """Answers of an engine that has seen nothing yet."""
    results = []
    for number, (codec, ids) in enumerate(prompts, 1):
        warm = answer(llm, codec, ids)
        results.append({"codec": codec, "prompt_tokens": len(ids), "warm": warm})
        say(f"{number:2}/{len(prompts)} {codec:13} {len(ids)} tokens: from the node "
            f"{warm['ttft_ms']:.0f} ms ({warm['cached']} tokens)")
    return results


def say(text: str) -> None:
    """A progress line on the demo's terminal."""
    print(f"    {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs one pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("first", "second"))
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--codec-set", default="")
    parser.add_argument("--codecs", nargs="+", required=True)
    parser.add_argument("--sizes", nargs="+", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    llm = make_engine(arguments)
    ids = llm.get_tokenizer().encode(corpus())
    prompts = cut_prompts(ids[WARM_UP_TOKENS:], arguments.codecs, arguments.sizes,
                          arguments.count)
    answer(llm, "exact", ids[:WARM_UP_TOKENS])
    first = arguments.which == "first"
    results = first_pass(llm, prompts, arguments) if first else second_pass(llm, prompts)
    arguments.output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
