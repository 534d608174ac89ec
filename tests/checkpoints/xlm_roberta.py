"""A tiny XLM-RoBERTa: what the checkpoints of BGE-M3 and of its reranker have in common. No model of the catalogue."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import XLMRobertaConfig

HIDDEN = 64
#: Tokens it reads at once, <s> and </s> included.
LIMIT = 256
#: Whole words of its vocabulary; it spells the others, letter by letter.
_WORDS = """
    a about and animal any are at boat black brown bus cat children city coffee cook cup dog drink end else fox fur
    garden goes grey had has her his house in into is island it jumps kitchen large lazy light lives long man milk
    morning mountain music near night nobody number of old on one over people pet quick rain red river road rocket sails
    sea she ship sits sky slowly small something story street sun text that the to town tree two under walks water where
    white wind window with woman word young
"""


def write_tokenizer(folder: Path) -> int:
    """A tokenizer.json in XLM-RoBERTa's format, and the file by which transformers knows its class.

    Returns: the size of its vocabulary. Letters outside ASCII are <unk>.
    """
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(f"▁{word}", -5.0 - index / 100) for index, word in enumerate(_WORDS.split())]
    pieces += [(character, -12.0) for character in string.printable.strip()]
    vocabulary = [(token, 0.0) for token in special] + [("▁", -8.0), *pieces, ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([*special, "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # The real files ask for it too; whoever loads them has to set their own.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16, pad_id=1, pad_token="<pad>")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}\n')
    return int(tokenizer.get_vocab_size())


def configure(vocabulary_size: int, *, hidden: int = HIDDEN, labels: int = 2) -> XLMRobertaConfig:
    """Two layers, with weights so far apart that different texts get different vectors; sets torch's seed."""
    torch.manual_seed(20_240_205)
    return XLMRobertaConfig(
        vocab_size=vocabulary_size, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LIMIT + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        initializer_range=1.0, num_labels=labels,
    )  # fmt: skip
