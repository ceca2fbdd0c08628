"""A vLLM process that stores prefixes in a node, loads them back and scores what follows.

    python -m flashquant.vllm.scoring PLAN RESULT

PLAN and RESULT are files of scoring_plan.py. For each prefix and profile: a request
computes the prefix and stores it; the engine forgets its own blocks; a second request loads the
prefix from the node and computes the new tokens, teacher-forced; a third goes on greedily from the
first new token. Only the first one stores.
"""

import sys
from pathlib import Path
from typing import Any

from flashquant.keys import BLOCK_TOKENS
from flashquant.local_engine import report_progress
from flashquant.scoring_plan import Case, Plan, Scored, read_plan, write_results
from flashquant.vllm.node_view import NodeView
from flashquant.vllm.options import REQUEST_PROFILE, REQUEST_SAVE

CONNECTOR = {"kv_connector": "FlashQuantConnector",
             "kv_connector_module_path": "flashquant.vllm.connector"}
CHUNK_TOKENS = 2048  # of a prefill step; more than the new tokens, so these are one step
STAGING_BYTES = 1 << 30  # what does not fit is not stored, where the node is slower than the model
LOOKUP_MS, LOAD_MS, STORE_MS = 30e3, 60e3, 60e3  # a miss would only spoil the measurement


def connector_options(plan: Plan) -> dict[str, Any]:
    """kv_connector_extra_config."""
    options = {"endpoint": plan.endpoint, "profile": "exact", "lookup_timeout_ms": LOOKUP_MS,
               "load_timeout_ms": LOAD_MS, "store_timeout_ms": STORE_MS,
               "staging_bytes": STAGING_BYTES}
    return {**options, "codec_set": plan.codec_set} if plan.codec_set else options


def make_engine(plan: Plan) -> Any:
    """vLLM with the connector, eager; logits in FP32 whatever the model's type."""
    from vllm import LLM
    from vllm.config import KVTransferConfig

    transfer = KVTransferConfig(**CONNECTOR, kv_role="kv_both", kv_load_failure_policy="recompute",
                                kv_connector_extra_config=connector_options(plan))
    longest = max(len(case.prefix) + max(len(case.new), case.greedy_tokens + 1)
                  for case in plan.cases)
    return LLM(model=plan.model, dtype=plan.dtype, block_size=BLOCK_TOKENS,
               max_model_len=longest + 1, max_num_batched_tokens=CHUNK_TOKENS,
               enforce_eager=True, enable_prefix_caching=True,
               hf_overrides={"head_dtype": "float32"}, kv_transfer_config=transfer)


class Scorer:
    """Runs cases one request at a time."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._engine = plan, make_engine(plan)
        model_config = self._engine.llm_engine.vllm_config.model_config
        self._node = NodeView(model_config, connector_options(plan))

    def score(self, case: Case, profile: str) -> Scored:
        """RuntimeError when the node did not deliver exactly the prefix. The node is empty before
        and after: one that is short of room gives up refinements first."""
        salt = f"{case.name} {profile}"
        self._generate(case.prefix + case.new[:1], salt, profile, save=True, max_tokens=1)
        match = self._node.wait_stored(case.prefix, profile, salt)
        if match.usable_blocks != match.matched_blocks:
            raise RuntimeError(f"{salt}: the node would give {match.usable_blocks} of "
                               f"{match.matched_blocks} blocks")
        if not self._engine.reset_prefix_cache():
            raise RuntimeError(f"{salt}: vLLM does not forget its blocks")
        scored = self._load(case, case.new, salt, profile, max_tokens=1, prompt_logprobs=1)
        greedy = []
        if case.greedy_tokens:
            output = self._load(case, case.new[:1], salt, profile, max_tokens=case.greedy_tokens,
                                ignore_eos=True)
            greedy = list(output.outputs[0].token_ids)
        self._node.purge()
        return Scored(case.name, profile, scored.num_cached_tokens, sum(match.stored_bytes),
                      *predictions(scored, len(case.prefix)), greedy)

    def _load(self, case: Case, new: list[int], salt: str, profile: str, **parameters: Any) -> Any:
        """A request behind a stored prefix. The engine's own cache has nothing of it, or what it
        loaded before."""
        output = self._generate(case.prefix + new, salt, profile, **parameters)
        if output.num_cached_tokens != len(case.prefix):
            raise RuntimeError(f"{salt}: {output.num_cached_tokens} tokens were loaded, "
                               f"expected {len(case.prefix)}")
        return output

    def _generate(self, ids: list[int], salt: str, profile: str, save: bool = False,
                  **parameters: Any) -> Any:
        from vllm import SamplingParams

        # Without the explicit False, prompt_logprobs makes vLLM bypass every cache; without
        # detokenize=False it reads entries of loaded positions, which are uninitialised memory.
        sampling = SamplingParams(
            temperature=0, detokenize=False, skip_reading_prefix_cache=False,
            extra_args={"kv_transfer_params": {REQUEST_PROFILE: profile, REQUEST_SAVE: save}},
            **parameters)
        prompt = {"prompt_token_ids": ids, "cache_salt": salt}
        output, = self._engine.generate([prompt], sampling, use_tqdm=False)
        return output


def predictions(output: Any, loaded: int) -> tuple[list[float], list[int]]:
    """Negative log likelihoods and most likely tokens of positions loaded + 1 to the end.

    Position `loaded` itself would need the logits of a loaded token, which is not computed.
    """
    ids, entries = output.prompt_token_ids, output.prompt_logprobs
    nll = [-entries[i][ids[i]].logprob for i in range(loaded + 1, len(ids))]
    best = [next(token for token, found in entries[i].items() if found.rank == 1)
            for i in range(loaded + 1, len(ids))]
    return nll, best


def main() -> None:
    """Runs a plan."""
    plan = read_plan(Path(sys.argv[1]))
    scorer = Scorer(plan)
    results = []
    for number, case in enumerate(plan.cases, 1):
        for profile in plan.profiles:
            results.append(scorer.score(case, profile))
        report_progress(f"vLLM: {number} of {len(plan.cases)} prefixes, {case.name}")
    write_results(results, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
