"""Text files as token sequences."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flashquant.models import load_tokenizer


@dataclass(frozen=True)
class Document:
    """Name and token ids [T] of one text."""

    name: str
    ids: Tensor


def read_documents(model_folder: Path, files: list[Path], least_tokens: int) -> list[Document]:
    """Tokenises `files`; ValueError names the first one shorter than `least_tokens`."""
    tokenizer = load_tokenizer(model_folder)
    documents = []
    for file in files:
        ids = tokenizer(file.read_text(encoding="utf-8"), verbose=False).input_ids
        if len(ids) < least_tokens:
            raise ValueError(f"{file}: {len(ids)} tokens, at least {least_tokens} are needed")
        documents.append(Document(file.stem, torch.tensor(ids)))
    return documents


def spread_sequences(documents: list[Document], tokens: int, count: int) -> list[Tensor]:
    """`count` sequences of `tokens` ids, in turn from each document, in the middle of equal parts.

    Fewer sequences than documents: from documents at equal distances, so that every kind of text
    has its share in a sorted list. They do not overlap unless the documents are too short for that.
    """
    if count < len(documents):
        documents = [documents[(2 * n + 1) * len(documents) // (2 * count)] for n in range(count)]
    turns = -(-count // len(documents))
    sequences = []
    for number in range(count):
        document, turn = documents[number % len(documents)], number // len(documents)
        begin = (2 * turn + 1) * (len(document.ids) - tokens) // (2 * turns)
        sequences.append(document.ids[begin:begin + tokens])
    return sequences
