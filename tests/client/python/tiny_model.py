"""A tiny random Llama with a byte tokenizer, and texts: what calibration tests run on."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the page holds rows of a block and each head codes them with its own table".split()


def make_model(folder: Path, **changes) -> Path:
    """Two layers, two kv heads of 64, FP32; `changes` go into the configuration."""
    torch.manual_seed(5)
    settings = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "head_dim": 64,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "max_position_embeddings": 1024} | changes
    model = LlamaForCausalLM(LlamaConfig(**settings))
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def make_texts(folder: Path, count: int, seed: int) -> list[str]:
    """`count` files of about 4,000 bytes, that is tokens."""
    source = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(count):
        file = folder / f"text-{seed}-{number}.txt"
        file.write_text(" ".join(source.choices(WORDS, k=900)), encoding="utf-8")
        files.append(str(file))
    return files
