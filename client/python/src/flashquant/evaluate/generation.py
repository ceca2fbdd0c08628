"""Greedy decoding with transformers, from a cache whose first rows went through a codec."""

from pathlib import Path

import torch
from torch import Tensor

from flashquant.models import Rows
from flashquant.models.base import same_rows


class Generator:
    """A model of transformers on `device`, decoding greedily."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM

        self._device = device
        self._model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", local_files_only=True).to(device).eval()

    @torch.no_grad()
    def prefix_cache(self, ids: Tensor, rows: Rows = same_rows) -> list[tuple[Tensor, Tensor]]:
        """K, V [N, G, T, d] of every layer after `rows`, for ids [N, T]."""
        cache = self._model(ids.to(self._device), use_cache=True,
                            logits_to_keep=1).past_key_values
        stored = []
        for number, layer in enumerate(cache.layers):
            k, v = rows(number, layer.keys.float(), layer.values.float())
            stored.append((k.to(layer.keys.dtype), v.to(layer.keys.dtype)))
        return stored

    @torch.no_grad()
    def decode(self, cache: list[tuple[Tensor, Tensor]], prefix: Tensor, prompts: list[Tensor],
               new_tokens: int) -> list[Tensor]:
        """Greedy continuations [<= new_tokens] of each of N `prompts` (one id or more) behind
        `prefix` [N, T] ([1, T]: the same for all), whose rows are `cache`; they end before an
        end-of-text id."""
        from transformers import DynamicCache

        count, longest = len(prompts), max(len(p) for p in prompts)
        end = self._model.generation_config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        filled = torch.full((count, longest), end)
        mask = torch.zeros(count, longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            filled[row, longest - len(prompt):] = prompt
            mask[row, longest - len(prompt):] = 1
        past = DynamicCache(config=self._model.config)
        for number, (k, v) in enumerate(cache):
            past.update(*(x.expand(count, -1, -1, -1) for x in (k, v)), number)
        ids = torch.cat([prefix.expand(count, -1), filled], 1).to(self._device)
        seen = torch.cat([torch.ones(count, prefix.shape[1], dtype=torch.long), mask], 1)
        out = self._model.generate(
            ids, attention_mask=seen.to(self._device), past_key_values=past, do_sample=False,
            max_new_tokens=new_tokens, pad_token_id=end, eos_token_id=end)
        found = out[:, ids.shape[1]:].cpu()
        return [line[:int((line == end).int().argmax())] if (line == end).any() else line
                for line in found]
