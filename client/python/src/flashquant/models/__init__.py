"""Language models that calibration and evaluation can run, by architecture.

To add an architecture, write a class with the members of `models.base.Model` and name it in
`ARCHITECTURES`.
"""

import json
from pathlib import Path

import torch

from flashquant.models.base import Model, Rows, Window
from flashquant.models.llama import LlamaModel

ARCHITECTURES = {"LlamaForCausalLM": LlamaModel}

__all__ = ["ARCHITECTURES", "Model", "Rows", "Window", "load_model", "load_tokenizer"]


def load_model(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Loads the Hugging Face model in `folder`; ValueError if its architecture is not known.

    `dtype`: of matrices and KV rows; None: as in the checkpoint.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder}: no config.json, so not a Hugging Face model folder")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name](Path(folder), config, device, dtype)
    raise ValueError(f"{folder}: architecture {names or 'not stated'} is not supported; "
                     f"supported: {', '.join(sorted(ARCHITECTURES))}")


def load_tokenizer(folder: Path):
    """The tokenizer saved beside the model (transformers, offline)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
