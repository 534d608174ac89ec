"""A Whisper checkpoint in OpenAI's format that always says one sentence, at known times, whatever it hears.

The decoder adds nothing to what its positions say: the outputs of its attention and its MLP are zero. The positional embedding
of each step holds the code of the token to say next (one number of the vector per token), so the most likely token is the
script's. A second part of it holds a place in time, as the sinusoids by which the encoder marks its frames; cross-attention
compares the two, so the alignment puts each word where the script has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from whisper.audio import N_FRAMES
from whisper.model import ModelDimensions, Whisper, sinusoids
from whisper.tokenizer import Tokenizer, get_tokenizer

from tests.checkpoints import entry
from worker.models.spec import ModelSpec

WORDS = "Seven green rockets leave the harbour before the storm."
#: How long each token of the script takes.
TOKEN_S = 0.4
SILERO = "package:silero_vad/data/silero_vad.jit"
GATE = {SILERO: "e1122837f4154c511485fe0b9c64455f7b929c96fbb8d79fbdb336383ebd3720"}
#: Numbers of the vector for codes of tokens, and for time.
_CODES, _TIME = 160, 64
#: Size of a code in the positional embedding, against 1 of the token before.
_LOUD = 20.0
_STEPS_PER_S = 50


def network(
    words: str = WORDS, *, language: str = "en", no_speech: bool = False, rivals: int = 0, layers: int = 1, heads: int = 1,
    n_vocab: int = 51865, n_mels: int = 80, width: int = 0, audio_layers: int = 1,
) -> Whisper:  # fmt: skip
    """The network of a scripted checkpoint, float32.

    Args:
        words: what it says, as one segment; up to about 100 tokens, each word kept apart by a space.
        language: what it takes every voice for.
        no_speech: whether it is sure, at the same time, that no one speaks.
        rivals: other tokens that are almost as likely at every step; 3 make it unsure of itself.
        layers, heads: of the decoder.
        width: of the network; 0: as narrow as can be, and the encoder has one head. `audio_layers`: of the encoder.
    """
    audio_heads = heads if width else 1
    width = width or _CODES + _TIME
    width += -width % (2 * heads)
    torch.manual_seed(0)
    heard, said = (width, audio_heads, audio_layers), (n_vocab, 448, width, heads, layers)
    model = Whisper(ModelDimensions(n_mels, N_FRAMES // 2, *heard, *said))
    chosen = {"num_languages": model.num_languages, "language": language, "task": "transcribe"}
    tokenizer = get_tokenizer(model.is_multilingual, **chosen)
    with torch.no_grad():
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            for layer in (block.attn.out, block.cross_attn and block.cross_attn.out, block.mlp[2]):
                if layer is not None:
                    layer.weight.zero_()
                    layer.bias.zero_()
        _mark_time(model)
        _write_script(model, tokenizer, " " + words.strip(), no_speech=no_speech, rivals=rivals)
    return model.eval()


def _mark_time(model: Whisper) -> None:
    """The encoder gives nothing but its frames' places; keys and queries of cross-attention are the places alone."""
    encoder = model.encoder
    for conv in (encoder.conv1, encoder.conv2):
        conv.weight.zero_()
        conv.bias.zero_()
    encoder.positional_embedding.zero_()
    encoder.positional_embedding[:, _CODES : _CODES + _TIME] = sinusoids(N_FRAMES // 2, _TIME, 1000)
    for block in model.decoder.blocks:
        attention = block.cross_attn
        # Gentle: the alignment compares how much each token attends to a frame, also where none of them does.
        for layer, gain in ((attention.query, 0.25), (attention.key, 1.0)):
            layer.weight.zero_()
            for number in range(_CODES, _CODES + _TIME):
                layer.weight[number, number] = gain
        attention.query.bias.zero_()


def _write_script(model: Whisper, tokenizer: Tokenizer, text: str, *, no_speech: bool, rivals: int) -> None:
    decoder, spoken = model.decoder, tokenizer.encode(text)
    end = tokenizer.timestamp_begin + round(len(spoken) * TOKEN_S * _STEPS_PER_S)
    script = [tokenizer.timestamp_begin, *spoken, end, tokenizer.eot]
    others = tokenizer.encode(" one two three four five six")[:rivals]
    # Numbers of the vector are given out in order of need.
    codes = {token: code for code, token in enumerate(dict.fromkeys(script + others))}
    language = tokenizer.language_token if model.is_multilingual else tokenizer.eot
    codes.setdefault(language, len(codes))
    codes.setdefault(tokenizer.no_speech, len(codes))
    assert len(codes) <= _CODES, f"{len(codes)} different tokens do not fit into {_CODES}"

    decoder.token_embedding.weight.zero_()
    for token, code in codes.items():
        decoder.token_embedding.weight[token, code] = 1.0
    # After the layer norm a code is about as large as the root of the width: the gain makes it 40 nats, certainty.
    decoder.ln.weight.fill_(40 / model.dims.n_text_state**0.5)
    decoder.ln.weight[_CODES:] = 0
    decoder.ln.bias.zero_()

    places = sinusoids(N_FRAMES // 2, _TIME, 1000)
    positions = decoder.positional_embedding
    positions.zero_()
    first = len(tokenizer.sot_sequence) - 1
    for step in range(positions.shape[0]):
        said = min(max(0, step - first), len(script) - 1)
        for loudness, token in [(_LOUD, script[said]), *((_LOUD * 0.999, other) for other in others)]:
            if token == script[said] or said not in (0, len(script) - 1):
                positions[step, codes[token]] = loudness
        # The word after `n` tokens begins there; the first step says the time the segment starts at.
        frame = min(round(max(0, said - 1) * TOKEN_S * _STEPS_PER_S), N_FRAMES // 2 - 1)
        positions[step, _CODES : _CODES + _TIME] = places[frame] * 3
    # The step of <|startoftranscript|> tells the language, and whether anybody speaks.
    positions[0, :_CODES] = 0
    positions[0, codes[language]] = _LOUD
    positions[0, codes[tokenizer.no_speech]] = _LOUD * 1.5 if no_speech else 0


def build(folder: Path, words: str = WORDS, *, file: str = "scripted.pt", **scripted: Any) -> ModelSpec:
    """Write a scripted checkpoint, in half precision as OpenAI's are; see `network`."""
    model = network(words, **scripted)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.half() for key, value in model.state_dict().items()}
    torch.save({"dims": asdict(model.dims), "model_state_dict": tensors}, folder / file)
    return describe(folder, [file], name="tiny-whisper", provider="openai-whisper")


def describe(folder: Path, files: Iterable[str], **fields: Any) -> ModelSpec:
    """The catalogue entry of a scripted checkpoint."""
    options = {"translate": False, "language": None}
    return entry(folder, files, family="asr", memory_mb=1000, options=options, sha256=GATE, **fields)
