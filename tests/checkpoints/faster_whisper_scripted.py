"""The scripted checkpoint (see `whisper_scripted`) in the format of faster-whisper: a folder for CTranslate2.

Converted by CTranslate2's own converter for transformers' Whisper; tokenizer.json is made from the vocabulary that comes with
OpenAI's package.
"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import whisper
from ctranslate2.converters.transformers import WhisperLoader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.convert_slow_tokenizer import bytes_to_unicode
from whisper.model import Whisper
from whisper.tokenizer import get_encoding, get_tokenizer

from tests.checkpoints.whisper_scripted import describe, network
from worker.models.spec import ModelSpec

WORDS = "Nine yellow lanterns shine along the quiet river."
FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.json")
#: OpenAI's name of a layer -> transformers'.
_LAYERS = {
    r"\.blocks\.": ".layers.",
    r"\.mlp\.0\.": ".fc1.",
    r"\.mlp\.2\.": ".fc2.",
    r"\.mlp_ln\.": ".final_layer_norm.",
    r"\.(cross_)?attn\.query\.": r".\1attn.q_proj.",
    r"\.(cross_)?attn\.key\.": r".\1attn.k_proj.",
    r"\.(cross_)?attn\.value\.": r".\1attn.v_proj.",
    r"\.(cross_)?attn\.out\.": r".\1attn.out_proj.",
    r"\.cross_attn\.": ".encoder_attn.",
    r"\.cross_attn_ln\.": ".encoder_attn_layer_norm.",
    r"\.attn\.": ".self_attn.",
    r"\.attn_ln\.": ".self_attn_layer_norm.",
    r"\.positional_embedding$": ".embed_positions.weight",
    r"\.token_embedding\.": ".embed_tokens.",
    r"(encoder|decoder)\.ln(_post)?\.": r"\1.layer_norm.",
}


def in_transformers(source: Whisper) -> WhisperForConditionalGeneration:
    """The same network as transformers has it."""
    dims = source.dims
    config = WhisperConfig(
        vocab_size=dims.n_vocab, num_mel_bins=dims.n_mels, d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer, encoder_attention_heads=dims.n_audio_head,
        decoder_layers=dims.n_text_layer, decoder_attention_heads=dims.n_text_head,
        encoder_ffn_dim=4 * dims.n_audio_state, decoder_ffn_dim=4 * dims.n_text_state,
        max_source_positions=dims.n_audio_ctx, max_target_positions=dims.n_text_ctx,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in source.state_dict().items():
        for pattern, replacement in _LAYERS.items():
            name = re.sub(pattern, replacement, name)
        tensors[f"model.{name}"] = value
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model


@cache
def tokenizer(num_languages: int = 99) -> Tokenizer:
    """OpenAI's multilingual tokenizer as tokenizers has it; not to be changed."""
    lines = (Path(whisper.__file__).parent / "assets" / "multilingual.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    letters = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    # A token of rank r was merged from the two parts that the merges before r make of it.
    merges = []
    for token, rank in ranks.items():
        parts = [token[index : index + 1] for index in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(parts[index] + parts[index + 1], rank) for index in range(len(parts) - 1)]
            index = pairs.index(min(pairs))
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        if len(parts) == 2:
            merges.append((rank, (written(parts[0]), written(parts[1]))))
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    made = Tokenizer(models.BPE(vocabulary, [pair for _, pair in sorted(merges)]))
    encoding = get_encoding("multilingual", num_languages)
    split = pre_tokenizers.Split(Regex(encoding._pat_str), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    made.decoder = decoders.ByteLevel()
    special = sorted(encoding._special_tokens.items(), key=lambda item: item[1])
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, _ in special])
    return made


def build(folder: Path, words: str = WORDS, **scripted: Any) -> ModelSpec:
    """Write a scripted checkpoint; see `whisper_scripted.network`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = network(words, **scripted)
    made = tokenizer(source.num_languages)
    made.save(str(folder / "tokenizer.json"))
    spoken = get_tokenizer(True, num_languages=source.num_languages)

    loader = WhisperLoader()
    spec = loader.get_model_spec(in_transformers(source))
    spec.register_vocabulary([str(made.id_to_token(token)) for token in range(source.dims.n_vocab)])
    spec.config.suppress_ids = list(spoken.non_speech_tokens)
    spec.config.suppress_ids_begin = [*spoken.encode(" "), spoken.eot]
    spec.config.lang_ids = list(spoken.all_language_tokens)
    spec.config.alignment_heads = [[0, 0]]
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    assert json.loads((folder / "config.json").read_text())["alignment_heads"] == [[0, 0]]
    return describe(folder, FILES, name="tiny-faster-whisper", provider="faster-whisper")
