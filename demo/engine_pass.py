"""One vLLM process of the demo: answers all prompts and writes what it measured as JSON.

`first`: each prompt twice, cold and then from vLLM's own prefix cache; waits until the node has
published everything. `second`: each prompt once; this process's own cache is empty, so what it
does not compute comes from the node; then the prompt with the first process's answer, to see at
which of its tokens this engine would have chosen another one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from prompts import BLOCK_TOKENS, corpus, cut_prompts

from flashquant.local_engine import report_progress as say
from flashquant.vllm.node_view import NodeView
from flashquant.vllm.options import REQUEST_PROFILE, REQUEST_SAVE
from flashquant.vllm.scoring import predictions

NEW_TOKENS = 16
LOOKUP_MS = 1000  # the default of 100 turns a hit into a miss where builds run beside the demo
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
    options = {"endpoint": arguments.endpoint, "profile": "exact", "lookup_timeout_ms": LOOKUP_MS}
    if arguments.codec_set:
        options["codec_set"] = arguments.codec_set
    return options


def generate(llm: Any, codec: str, ids: list[int], save: bool = True, **parameters: Any) -> Any:
    """One request, alone in the engine."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, ignore_eos=True,
        extra_args={"kv_transfer_params": {REQUEST_PROFILE: codec, REQUEST_SAVE: save}},
        **parameters)
    output, = llm.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)
    return output


def answer(llm: Any, codec: str, ids: list[int]) -> dict[str, Any]:
    """Time to first token, tokens, what was cached."""
    output = generate(llm, codec, ids, max_tokens=NEW_TOKENS)
    return {"ttft_ms": output.metrics.first_token_latency * 1e3,
            "tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens}


def same_choices(llm: Any, codec: str, ids: list[int], tokens: list[int]) -> int:
    """How many of `tokens` this engine would choose too, each after the ones before it."""
    output = generate(llm, codec, ids + tokens, save=False, max_tokens=1, prompt_logprobs=1,
                      skip_reading_prefix_cache=False, detokenize=False)
    _, best = predictions(output, output.num_cached_tokens)
    return sum(a == b for a, b in zip(best[-len(tokens):], tokens, strict=True))


def first_pass(llm: Any, prompts: list[tuple[str, list[int]]],
               arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Cold and local answers, and what the node stored of them."""
    results = []
    for number, (codec, ids) in enumerate(prompts, 1):
        cold, local = answer(llm, codec, ids), answer(llm, codec, ids)
        results.append({"codec": codec, "prompt_tokens": len(ids), "cold": cold, "local": local})
        say(f"{number:2}/{len(prompts)} {codec:13} {len(ids)} tokens: cold "
            f"{cold['ttft_ms']:.0f} ms, own cache {local['ttft_ms']:.0f} ms")
    node = NodeView(llm.llm_engine.vllm_config.model_config, options_of(arguments))
    for result, (codec, ids) in zip(results, prompts):
        result["stored_bytes"] = node.wait_stored(ids, codec).stored_bytes
        result["raw_bytes_per_block"] = node.raw_bytes_per_block
    return results


def second_pass(llm: Any, prompts: list[tuple[str, list[int]]],
                first: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of an engine that has seen nothing yet. `first`: what first_pass returned."""
    results = []
    for number, ((codec, ids), before) in enumerate(zip(prompts, first, strict=True), 1):
        warm = answer(llm, codec, ids)
        same = same_choices(llm, codec, ids, before["local"]["tokens"])
        results.append({"codec": codec, "prompt_tokens": len(ids), "warm": warm,
                        "same_choices": same})
        say(f"{number:2}/{len(prompts)} {codec:13} {len(ids)} tokens: from the node "
            f"{warm['ttft_ms']:.0f} ms ({warm['cached']} tokens)")
    return results


def main() -> None:
    """Runs one pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=Path, help="output of the first pass: run the second")
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
    if arguments.first:
        results = second_pass(llm, prompts, json.loads(arguments.first.read_text()))
    else:
        results = first_pass(llm, prompts, arguments)
    arguments.output.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
