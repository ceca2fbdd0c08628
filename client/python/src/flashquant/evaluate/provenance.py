"""Where figures come from: commit, machine, model, codec sets, texts."""

import hashlib
import platform
import subprocess
from pathlib import Path

import torch

from flashquant.codec_set import CodecSet
from flashquant.evaluate.sizes import chain_ratio, interior_ratio
from flashquant.models.text import Document

CHAIN_TOKENS = (4096, 8192, 32768)


def commit() -> str:
    """Of the checkout that this file is in, `+` behind it where tracked files differ; `unknown`
    without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+",
               "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """As the kernel names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(device: str) -> dict:
    """What ran it."""
    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {"processor": processor(), "accelerator": accelerator, "torch": torch.__version__}


def describe_codec_set(codec_set: CodecSet, label: str) -> dict:
    """Identity of a codec set and its ratios to 16-bit values, everything counted."""
    ratios = {}
    for name, refined in (("compact", False), ("near-lossless", True)):
        ratios[name] = {"interior": round(interior_ratio(codec_set, refined), 3)}
        for tokens in CHAIN_TOKENS:
            ratios[name][str(tokens)] = round(chain_ratio(codec_set, tokens, refined), 3)
    return {"label": label, "model": codec_set.model, "id": codec_set.id.hex(),
            "calibrated_tokens": codec_set.calibrated_tokens, "ratios": ratios}


def describe_document(document: Document) -> dict:
    """Name, length and digest of the ids of a text."""
    digest = hashlib.sha256(document.ids.numpy().astype("<i4").tobytes()).hexdigest()
    return {"name": document.name, "tokens": len(document.ids), "sha256": digest[:16]}
