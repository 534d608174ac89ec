"""Embeds pictures and texts in one space with SigLIP (google/siglip-so400m-patch14-384 and its siblings).

Source of the method: transformers' `SiglipModel`, `SiglipTokenizer` and `SiglipImageProcessor`, which a contract test
compares with. Their own loaders are not used: they draw missing weights at random, and the tokenizer wants sentencepiece.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import SiglipConfig, SiglipModel

from shared.errors import ModelFailure, ModelUnavailable
from worker.models.base import Float32, Uint8
from worker.models.batching import in_order
from worker.models.providers.packed import pack_linears
from worker.models.providers.tensors import describe, fill, read_json, read_tensors, refused
from worker.models.providers.tokens import read_tokenizer
from worker.models.vision import VisionEmbedder

#: Ends every text and fills it up: the model was trained on texts of full length.
_END = "</s>"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: Threads that scale pictures: Pillow releases the GIL, and a GPU needs some hundred a second.
_SCALING_THREADS = 8


@dataclass(frozen=True)
class _Scaling:
    """What is done to a picture before the network: `preprocessor_config.json`."""

    side_px: int
    resample: Image.Resampling
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def scale(self, image: Uint8) -> Uint8:
        """uint8 [H, W, 3] to uint8 [side_px, side_px, 3], without keeping the aspect ratio."""
        return np.asarray(Image.fromarray(image).resize((self.side_px, self.side_px), self.resample))


class SiglipEmbedder(VisionEmbedder):
    """SigLIP. Pictures are scaled while the device computes those before them, at most one batch ahead."""

    _tokenizer: Tokenizer
    _model: SiglipModel
    _scaling: _Scaling
    _end_id = 0
    _text_length = 0
    #: The calibration: a match's log-odds are scale * cosine + bias.
    _scale = 0.0
    _bias = 0.0

    def _load(self) -> None:
        if unknown := self.spec.options.keys() - {"tag_threshold"}:
            raise ModelUnavailable(
                f"Model {self.spec.name} has the option {min(unknown)!r} in models.yaml, which SigLIP does not know;"
                " remove it"
            )
        # A wrong one fails the load, not a job.
        _ = self.tag_threshold
        torch.set_num_threads(self.threads)
        config = self._read_config()
        self._scaling = self._read_scaling(config.vision_config.image_size)
        size = config.text_config.vocab_size
        self._tokenizer, ids = read_tokenizer(self.spec, self._file("tokenizer.json"), size, [_END])
        self._end_id = ids[_END]
        self._text_length = config.text_config.max_position_embeddings
        path = self._file("model.safetensors")
        tensors = read_tensors(self.spec, path)
        with torch.device("meta"):
            model = SiglipModel(config)
        # The positions are a constant that old releases stored.
        constants = [name for name in tensors if name.endswith(".position_ids")]
        fill(self.spec, model, tensors, path, unused=constants)
        for part in (model.text_model.embeddings, model.vision_model.embeddings):
            # Constants of the network, not in the file: device `meta` made them without content.
            part.position_ids = torch.arange(part.position_ids.shape[-1]).unsqueeze(0)
        self._scale = float(tensors["logit_scale"].double().exp())
        self._bias = float(tensors["logit_bias"])
        device, dtype = self.placement.device, self.placement.dtype
        self._model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
        pack_linears(self._model, device, dtype)

    def _warm_up(self) -> None:
        side_px = self._scaling.side_px
        self._embed_images([np.zeros((side_px, side_px, 3), np.uint8)] * self.spec.batch)
        self._embed_texts(["warm up"] * self.spec.batch)

    def _embed_images(self, images: Sequence[Uint8]) -> Float32:
        model, scaling = self._model, self._scaling
        vectors = np.empty((len(images), self.dim), np.float32)
        mean, std = (
            torch.tensor(row, device=model.device).view(3, 1, 1) for row in (scaling.mean, scaling.std)
        )
        scaled: dict[int, Future[Uint8]] = {}
        begun = 0

        with ThreadPoolExecutor(min(self.threads, _SCALING_THREADS), "scaling") as pool:

            def work(chosen: list[int]) -> None:
                nonlocal begun
                ahead = min(chosen[-1] + 1 + self.spec.batch, len(images))
                for index in range(begun, ahead):
                    scaled[index] = pool.submit(scaling.scale, images[index])
                begun = max(begun, ahead)
                pixels = torch.from_numpy(np.stack([scaled[index].result() for index in chosen]))
                with torch.inference_mode():
                    # On the device: bytes are a quarter of the floats to send, and the arithmetic is nothing there.
                    values = pixels.to(model.device).permute(0, 3, 1, 2).float() * scaling.rescale
                    found = model.get_image_features(((values - mean) / std).to(model.dtype))
                    vectors[chosen] = self._unit(found.pooler_output)
                # Only now: a batch that did not fit comes again.
                for index in chosen:
                    del scaled[index]

            self._compute(in_order(len(images), self.spec.batch), work)
        return vectors

    def _embed_texts(self, texts: Sequence[str]) -> Float32:
        model = self._model
        ids = self._tokens(texts)
        vectors = np.empty((len(ids), self.dim), np.float32)

        def work(chosen: list[int]) -> None:
            tokens = torch.tensor([ids[index] for index in chosen]).to(model.device)
            with torch.inference_mode():
                # No mask: in training, too, every place counted.
                vectors[chosen] = self._unit(model.get_text_features(tokens).pooler_output)

        self._compute(in_order(len(ids), self.spec.batch), work)
        return vectors

    def _match(self, images: Float32, texts: Float32) -> Float32:
        odds = self._scale * (images.astype(np.float64) @ texts.T.astype(np.float64)) + self._bias
        # Below -700 exp overflows, and the answer is 0 for long.
        likely: Float32 = (1 / (1 + np.exp(-odds.clip(-700, None)))).astype(np.float32)
        return likely

    def _unit(self, vectors: torch.Tensor) -> Float32:
        found: Float32 = torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()
        if not np.isfinite(found).all():
            raise ModelFailure(
                f"Model {self.spec.name} gave vectors that are not finite in {self.placement.dtype}; "
                "use dtype bfloat16 or float32 in models.yaml"
            )
        return found

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, each text cut or filled up to full length. Source: `SiglipTokenizer.canonicalize_text`.

        The canonical form is made here, whether the tokenizer's file asks for it or not; it leaves no special token a
        text may spell out.
        """
        plain = [" ".join(text.lower().translate(_PUNCTUATION).split()) for text in texts]
        rows = []
        for encoding in self._tokenizer.encode_batch_fast(plain, add_special_tokens=False):
            ids = encoding.ids[: self._text_length - 1]
            rows.append(ids + [self._end_id] * (self._text_length - len(ids)))
        return rows

    def _read_config(self) -> SiglipConfig:
        path = self._file("config.json")
        document = read_json(self.spec, path, model_type="siglip")
        text = document.get("text_config")
        if isinstance(text, dict):
            # Not used; their defaults lie outside the vocabulary, and transformers warns of them.
            document["text_config"] = {**text, "bos_token_id": None, "eos_token_id": None}
        try:
            config = SiglipConfig.from_dict(document)
            # Of the text tower the projection, of the vision tower the network itself is as wide as the common space.
            widths = (config.text_config.projection_size, config.vision_config.hidden_size)
        except Exception as error:
            raise refused(self.spec, path, "the settings of a SigLIP model", describe(error)) from error
        if widths != (self.dim, self.dim):
            found = f"{widths[0]} (text), {widths[1]} (vision)"
            raise refused(self.spec, path, f"vectors of {self.dim} numbers (dim)", found)
        return config

    def _read_scaling(self, side_px: int) -> _Scaling:
        path = self._file("preprocessor_config.json")
        document = read_json(self.spec, path)
        try:
            size = (int(document["size"]["height"]), int(document["size"]["width"]))
            found = _Scaling(
                side_px=side_px,
                resample=Image.Resampling(document.get("resample", Image.Resampling.BICUBIC)),
                rescale=float(document.get("rescale_factor", 1 / 255)),
                mean=tuple(float(value) for value in document["image_mean"]),
                std=tuple(float(value) for value in document["image_std"]),
            )
            steps = all(document.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
        except (KeyError, TypeError, ValueError) as error:
            raise refused(self.spec, path, "size, image_mean and image_std", describe(error)) from error
        if size != (side_px, side_px):
            raise refused(self.spec, path, f"pictures of {side_px}x{side_px} px", f"{size[1]}x{size[0]}")
        if not steps or len(found.mean) != 3 or len(found.std) != 3 or 0 in found.std:
            expected = "pictures scaled and normalised by 3 colours"
            raise refused(self.spec, path, expected, "another preprocessing")
        return found
