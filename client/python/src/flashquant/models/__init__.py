"""Language models that calibration and evaluation can run, by architecture.

To add an architecture, name it in `ARCHITECTURES` and teach `models.settings` what it does.
"""

import json
from pathlib import Path

import torch

from flashquant.models.base import Model, Rows, Window
from flashquant.models.decoder import Decoder
from flashquant.models.settings import read_settings

ARCHITECTURES = ("Gemma3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
                 "Qwen3ForCausalLM")

__all__ = ["ARCHITECTURES", "Model", "Rows", "Window", "load_model", "load_tokenizer"]


def load_model(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Loads the Hugging Face model in `folder`; ValueError if its architecture is not known.

    `dtype`: of matrices and KV rows; None: as in the files.
    """
    config_file = Path(folder) / "config.json"
    if not config_file.is_file():
        raise ValueError(f"{folder}: no config.json, so not a Hugging Face model folder")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            try:
                return Decoder(Path(folder), read_settings(config, name), device, dtype)
            except KeyError as error:
                raise ValueError(f"{folder}: config.json lacks {error}") from error
            except ValueError as error:
                raise ValueError(f"{folder}: {error}") from error
    raise ValueError(f"{folder}: architecture {names or 'not stated'} is not supported; "
                     f"supported: {', '.join(ARCHITECTURES)}")


def load_tokenizer(folder: Path):
    """The tokenizer saved beside the model (transformers, offline)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
