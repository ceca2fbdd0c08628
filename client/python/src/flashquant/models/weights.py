"""Weights of a Hugging Face folder, by name, without reading the files into memory."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class Weights:
    """All `*.safetensors` of a folder. On the CPU tensors are maps of the files, which the system
    reads when they are used and drops when memory is short: a model may be larger than memory."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype | None = None) -> None:
        """`dtype`: None = that of the file. ValueError if there is no such file."""
        self._folder, self._device, self._dtype = folder, device, dtype
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder}: no *.safetensors file")
        self._file_of = {}
        for file in files:
            opened = safe_open(str(file), framework="pt")
            self._file_of.update({name: opened for name in opened.keys()})

    def find(self, name: str) -> Tensor | None:
        """The tensor; None if there is none."""
        file = self._file_of.get(name)
        return None if file is None else file.get_tensor(name).to(self._device, self._dtype)

    def get(self, name: str) -> Tensor:
        """As `find`; ValueError if there is none."""
        found = self.find(name)
        if found is None:
            raise ValueError(f"{self._folder}: no weight {name!r} in its *.safetensors files")
        return found
