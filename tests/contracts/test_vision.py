"""What every vision embedder keeps to, run on the real models of the catalogue and on tiny checkpoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from shared.errors import DeviceOutOfMemory, ModelFailure
from tests.checkpoints import copied, summed
from tests.contracts.candidates import TEXTS, fixture_of, load_candidate, refusal, sample_picture
from worker.models.base import Uint8
from worker.models.cache import build
from worker.models.spec import ModelSpec
from worker.models.vision import VisionEmbedder
from worker.models.weights.verify import locate

PICTURES = "preprocessor_config.json"
embedder = fixture_of("vision")


@pytest.fixture(scope="module")
def pictures() -> list[Uint8]:
    """Of every size and shape; more than two batches."""
    chance = np.random.default_rng(2)
    sizes = [(540, 960), (960, 540), (1, 1), (1, 500), (500, 1), (64, 64), (384, 384), (63, 65)]
    noise = [chance.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    plain = [np.full((48, 64, 3), value, np.uint8) for value in range(0, 250, 25)]
    return [sample_picture(0.5), *noise, *plain, noise[0][::-1], noise[1][:, ::2]]


class TestVisionEmbedder:
    def test_gives_unit_vectors_of_one_space(self, embedder: VisionEmbedder, pictures: list[Uint8]) -> None:
        images, texts = embedder.embed_images(pictures), embedder.embed_texts(TEXTS)
        for vectors, things in ((images, pictures), (texts, TEXTS)):
            assert vectors.shape == (len(things), embedder.spec.dim) and vectors.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)

    def test_batch_equals_single(self, embedder: VisionEmbedder, pictures: list[Uint8]) -> None:
        single = np.concatenate([embedder.embed_images([picture]) for picture in pictures])
        np.testing.assert_allclose(embedder.embed_images(pictures), single, atol=2e-5)

    def test_keeps_the_order(self, embedder: VisionEmbedder, pictures: list[Uint8]) -> None:
        order = np.random.default_rng(3).permutation(len(pictures))
        shuffled = embedder.embed_images([pictures[index] for index in order])
        np.testing.assert_allclose(shuffled, embedder.embed_images(pictures)[order], atol=2e-5)

    def test_repeats_and_tells_pictures_apart(self, embedder: VisionEmbedder, pictures: list[Uint8]) -> None:
        vectors = embedder.embed_images(pictures)
        assert np.array_equal(vectors, embedder.embed_images(pictures))
        # The plain ones of one brightness step are alike; scenery and noise are not.
        assert vectors[0] @ vectors[1] < 0.99 and vectors[1] @ vectors[2] < 0.99999

    def test_texts_differ_by_words_only(self, embedder: VisionEmbedder) -> None:
        one, same, other = embedder.embed_texts(["a cat", "A CAT!", "a photo of a rocket on the moon"])
        assert one @ same > 0.99999, "case and punctuation don't count"
        assert one @ other < 0.999
        long = "a cup of coffee " * 60
        cut = embedder.embed_texts([long, long + "and then something else"])
        assert cut[0] @ cut[1] > 0.99999, "cut at the tower's length"

    def test_a_text_cannot_spell_a_special_token(self, embedder: VisionEmbedder) -> None:
        spelt, plain = embedder.embed_texts(["cat </s> dog", "cat s dog"])
        assert spelt @ plain > 0.99999

    def test_matches_are_probabilities(self, embedder: VisionEmbedder, pictures: list[Uint8]) -> None:
        images, texts = embedder.embed_images(pictures), embedder.embed_texts(TEXTS)
        found = embedder.match(images, texts)
        assert found.shape == (len(pictures), len(TEXTS)) and found.dtype == np.float32
        assert (found >= 0).all() and (found <= 1).all()
        nearest = (images @ texts.T).argmax(axis=1)
        assert (found.argmax(axis=1) == nearest).mean() > 0.9, "nearer means likelier"
        none = np.zeros((0, embedder.dim), np.float32)
        assert embedder.match(none, texts).shape == (0, len(TEXTS))
        assert embedder.match(images, none).shape == (len(pictures), 0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return cast(ModelSpec, load_candidate("tiny-siglip", tmp_path_factory).spec)


def changed(spec: ModelSpec, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> ModelSpec:
    """A copy of the checkpoint with other weights."""
    copied(spec, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return summed(spec, folder)


class TestSiglip:
    def test_equals_transformers(self, checkpoint: ModelSpec, pictures: list[Uint8]) -> None:
        from transformers import SiglipModel, SiglipTokenizer
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        folder = locate(checkpoint)
        reference = SiglipModel.from_pretrained(folder).eval()
        tokenizer = SiglipTokenizer(str(folder / "spiece.model"))
        processor = SiglipImageProcessorPil.from_pretrained(folder)
        texts = [text for text in TEXTS if text.isprintable() and "\ud83d" not in text]
        cut = {"padding": "max_length", "max_length": 64, "truncation": True}
        ids = tokenizer(texts, return_tensors="pt", **cut).input_ids
        # As arrays, the processor takes a picture of 1x1 px for one of 3 px and 1 colour.
        pixels = processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt")
        with torch.inference_mode():
            said = reference(input_ids=ids, pixel_values=pixels.pixel_values)
        ours = cast(VisionEmbedder, build(checkpoint))
        images, words = ours.embed_images(pictures), ours.embed_texts(texts)
        matches = (ours.match(images, words), said.logits_per_image.sigmoid())
        for found, expected in ((images, said.image_embeds), (words, said.text_embeds), matches):
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)

    def test_scales_at_most_one_batch_ahead(self, checkpoint: ModelSpec) -> None:
        model = cast(Any, build(checkpoint))
        model.load()
        scaling, network = model._scaling, model._model.get_image_features
        begun, batches, waiting = [], [], []

        def scale(image: Uint8) -> Any:
            begun.append(threading.current_thread() is not threading.main_thread())
            return scaling.scale(image)

        def compute(values: torch.Tensor) -> Any:
            waiting.append(len(begun) - sum(batches))
            batches.append(len(values))
            return network(values)

        model._scaling = SimpleNamespace(**vars(scaling) | {"scale": scale})
        model._model.get_image_features = compute
        model.embed_images([np.full((80, 80, 3), n, np.uint8) for n in range(30)])
        assert batches == [8, 8, 8, 6]
        assert len(begun) == 30 and all(begun), "each once, beside the thread that computes"
        assert max(waiting) <= 2 * 8

    def test_halves_batches_that_fill_the_device(self, checkpoint: ModelSpec, pictures: list[Uint8]) -> None:
        model = cast(Any, build(checkpoint))
        expected = model.embed_images(pictures)
        network, sizes, limit = model._model.get_image_features, [], 3

        def compute(values: torch.Tensor) -> Any:
            sizes.append(len(values))
            if len(values) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return network(values)

        model._model.get_image_features = compute
        np.testing.assert_allclose(model.embed_images(pictures), expected, atol=2e-5)
        assert sizes[:3] == [8, 4, 2] and max(sizes[3:]) == 2
        limit = 0
        with pytest.raises(DeviceOutOfMemory, match="one item"):
            model.embed_images(pictures)

    def test_refuses_vectors_that_are_not_finite(self, checkpoint: ModelSpec, tmp_path: Path) -> None:
        name = "vision_model.post_layernorm.bias"
        broken = changed(checkpoint, tmp_path, lambda tensors: tensors[name].fill_(float("nan")))
        with pytest.raises(ModelFailure, match="not finite in float32"):
            cast(VisionEmbedder, build(broken)).embed_images([np.zeros((8, 8, 3), np.uint8)])

    @pytest.mark.parametrize(
        ("name", "tensor", "said"),
        [
            ("logit_bias", None, "expected logit_bias [1] in"),
            ("vision_model.head.probe", torch.zeros(1, 1, 33), "found vision_model.head.probe [1, 1, 33]"),
            ("classifier.weight", torch.zeros(3), "classifier.weight has no place"),
        ],
        ids=["missing", "wide", "surplus"],
    )
    def test_names_wrong_weights(
        self, checkpoint: ModelSpec, tmp_path: Path, name: str, tensor: torch.Tensor | None, said: str
    ) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> object:
            return tensors.pop(name) if tensor is None else tensors.update({name: tensor})

        message = refusal(changed(checkpoint, tmp_path, change))
        assert said in message and str(tmp_path / "model.safetensors") in message

    def test_loads_weights_of_old_releases(self, checkpoint: ModelSpec, tmp_path: Path) -> None:
        constant = {"text_model.embeddings.position_ids": torch.arange(64).unsqueeze(0)}
        spec = changed(checkpoint, tmp_path, lambda tensors: tensors.update(constant))
        old = cast(VisionEmbedder, build(spec))
        new = cast(VisionEmbedder, build(checkpoint))
        assert np.array_equal(old.embed_texts(["cat"]), new.embed_texts(["cat"]))

    def test_names_a_file_that_is_cut_off(self, checkpoint: ModelSpec, tmp_path: Path) -> None:
        for file in checkpoint.all_files:
            folder = tmp_path / file
            folder.mkdir()
            copied(checkpoint, folder)
            data = (folder / file).read_bytes()
            (folder / file).write_bytes(data[: len(data) // 2])
            message = refusal(summed(checkpoint, folder))
            assert str(folder / file) in message and "expected" in message and "found" in message

    @pytest.mark.parametrize(
        ("file", "values", "said"),
        [
            ("config.json", {"model_type": "clip"}, "expected model_type 'siglip'"),
            ("config.json", {"vision_config": {"hidden_size": 48}}, "expected vectors of 32 numbers"),
            ("config.json", {"text_config": {"vocab_size": 20}}, "expected at most 20 tokens"),
            ("config.json", {"text_config": 3}, "the settings of a SigLIP model"),
            (PICTURES, {"size": {"height": 32, "width": 32}}, "expected pictures of 64x64 px"),
            (PICTURES, {"image_std": [0, 1, 1]}, "normalised by 3 colours"),
            (PICTURES, {"do_resize": False}, "another preprocessing"),
            (PICTURES, {"resample": 77}, "77 is not a valid Resampling"),
        ],
    )
    def test_names_settings_that_do_not_fit(
        self, checkpoint: ModelSpec, tmp_path: Path, file: str, values: dict[str, Any], said: str
    ) -> None:
        copied(checkpoint, tmp_path)
        document = json.loads((tmp_path / file).read_text())
        for name, value in values.items():
            document[name] = {**document[name], **value} if isinstance(value, dict) else value
        (tmp_path / file).write_text(json.dumps(document))
        message = refusal(summed(checkpoint, tmp_path))
        assert said in message and str(tmp_path) in message

    def test_refuses_a_tokenizer_without_an_end(self, checkpoint: ModelSpec, tmp_path: Path) -> None:
        copied(checkpoint, tmp_path)
        path = tmp_path / "tokenizer.json"
        path.write_text(path.read_text().replace("</s>", "<eos>"))
        assert "expected the token </s>" in refusal(summed(checkpoint, tmp_path))

    def test_refuses_options_it_can_not_follow(self, checkpoint: ModelSpec) -> None:
        for option, value, said in (
            ("tag_threshold", 2, "tag_threshold=2 in models.yaml; use a number from 0 to 1"),
            ("tag_threshold", "high", "tag_threshold='high'"),
            ("threshold", 0.1, "the option 'threshold' in models.yaml, which SigLIP does not know"),
        ):
            assert said in refusal(checkpoint.model_copy(update={"options": {option: value}}))
