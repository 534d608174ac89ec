"""Reads a model's tokenizer, and puts token ids of texts of different length into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer

from worker.models.providers.tensors import refused
from worker.models.spec import ModelSpec


def read_tokenizer(
    spec: ModelSpec, path: Path, vocabulary_size: int, special: Sequence[str]
) -> tuple[Tokenizer, dict[str, int]]:
    """A tokenizer.json, without the truncation and padding it may ask for, and the ids of its special tokens.

    Args:
        vocabulary_size: of the network; an id beyond its table of tokens stops a GPU's process for good.
        special: tokens that the model needs.

    Raises: ModelUnavailable when the file is damaged, has more tokens, or lacks a special one.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise refused(spec, path, "a tokenizer", f"a file that can't be read ({reason})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids: dict[str, int] = {}
    for token in special:
        found = tokenizer.token_to_id(token)
        if found is None:
            raise refused(spec, path, f"the token {token}", "no such token")
        ids[token] = found
    if tokenizer.get_vocab_size() > vocabulary_size:
        expected = f"at most {vocabulary_size} tokens (config.json)"
        raise refused(spec, path, expected, str(tokenizer.get_vocab_size()))
    return tokenizer, ids


def pad(
    rows: Sequence[Sequence[int]], device: torch.device, token: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, filled up with `token`, and attention mask: int64 [len(rows), longest] on the device."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), token, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return tokens.to(device), mask.to(device)
