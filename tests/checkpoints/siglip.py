"""A SigLIP of two layers, 64 px and 32 numbers, with a sentencepiece vocabulary trained here."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.checkpoints import entry
from worker.models.spec import ModelSpec

SIDE_PX = 64
DIM = 32
_TEXT = (
    "this is a photo of cat dog rocket coffee astronaut moon cup street car people house tree sky water mountain beach "
    "table chair red green blue yellow small large old young man woman child hand face book phone computer screen text"
)
#: The ids of SigLIP's own vocabulary, T5's: filling up by </s>, as the tokenizer's configuration says.
_PAD, _END, _UNKNOWN = 0, 1, 2


def build(folder: Path) -> ModelSpec:
    """Write the checkpoint. Random weights: nothing it says means anything, but other inputs give other vectors."""
    # Seconds to import, in every test process that collects its tests.
    import torch
    from transformers import SiglipConfig, SiglipModel

    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder)
    tower = {"hidden_size": DIM, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 200, "max_position_embeddings": 64, "projection_size": DIM}
    ends = {"bos_token_id": None, "eos_token_id": _END}
    vision = {"image_size": SIDE_PX, "patch_size": 16}
    config = SiglipConfig(text_config={**tower, **text, **ends}, vision_config={**tower, **vision})
    generator = torch.Generator().manual_seed(11)
    model = SiglipModel(config)
    with torch.no_grad():
        # As transformers draws them, all texts would be alike.
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.5, generator=generator)
        # Odds around even, so that some labels hold for some pictures.
        model.logit_scale.fill_(float(np.log(10)))
        model.logit_bias.fill_(-1.0)
    model.save_pretrained(folder, safe_serialization=True)
    document: dict[str, Any] = {"do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
    document |= {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"}
    document |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0.00392156862745098}
    document |= {"size": {"height": SIDE_PX, "width": SIDE_PX}}
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    files = ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"]
    return entry(
        folder, files, name="tiny-siglip", family="vision", provider="siglip", dim=DIM, metric="cosine", batch=8
    )  # fmt: skip


def _write_tokenizer(folder: Path) -> None:
    """`spiece.model`, and the `tokenizer.json` that says the same."""
    words = _TEXT.split()
    chance = np.random.default_rng(5)
    lines = (" ".join(chance.choice(words, 8)) for _ in range(400))
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=trained, vocab_size=200, hard_vocab_limit=False, model_type="unigram",
        normalization_rule_name="nmt_nfkc", pad_id=_PAD, eos_id=_END, unk_id=_UNKNOWN, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(trained.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(vocabulary, _UNKNOWN, byte_fallback=False))
    punctuation = normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"), "")
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    steps = [normalizers.Lowercase(), punctuation, spaces, normalizers.Strip(), normalizers.NFKC()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    ends = [("</s>", _END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
