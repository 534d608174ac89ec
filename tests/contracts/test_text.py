"""What every text embedder keeps to, run on the real models of the catalogue and on tiny checkpoints."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shared.errors import ModelUnavailable
from tests.checkpoints import bge_m3, entry, summed
from tests.checkpoints.xlm_roberta import LIMIT
from tests.contracts.candidates import TEXTS, fixture_of, load_candidate, refusal, sample_words
from tests.support.figures import RecordFigure
from worker.models.cache import build
from worker.models.providers.text_bge_m3 import BgeM3Embedder
from worker.models.spec import ModelSpec
from worker.models.text import TextEmbedder
from worker.models.weights.verify import locate

WEIGHTS, HEAD = "pytorch_model.bin", "sparse_linear.pt"
EMBEDDINGS = "embeddings.word_embeddings.weight"
LACKING = "expected {0} [64] in {1}, found no such tensor (1 are missing)"

embedder = fixture_of("text")
trained = fixture_of("text", trained=True)


class TestTextEmbedder:
    def test_gives_unit_vectors_of_its_dimension(self, embedder: TextEmbedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.spec.dim) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)

    def test_equal_texts_get_equal_vectors_and_others_do_not(self, embedder: TextEmbedder) -> None:
        coffee = "a cup of coffee"
        one, same, other = embedder.embed([coffee, coffee, "Ein Fuchs springt über den Hund"])
        assert one @ same > 0.99999 and one @ other < 0.9

    def test_cuts_long_texts(self, embedder: TextEmbedder) -> None:
        story = "A ship sails to an island where nobody lives. " * 400
        vectors = embedder.embed([story, story + "The end is about something else."])
        assert vectors[0] @ vectors[1] > 0.99999

    def test_counts_what_it_reads(self, embedder: TextEmbedder) -> None:
        story = "A ship sails to an island where nobody lives. " * 400
        counts = embedder.encode(["a", "a cup of coffee", story, story + "The end."]).tokens
        assert counts is not None and 2 < counts[0] + 2 <= counts[1] < counts[2] == counts[3]
        assert embedder.encode([]).tokens == ()

    def test_weighs_words_if_it_says_so(self, embedder: TextEmbedder) -> None:
        found = embedder.encode(TEXTS)
        assert np.array_equal(found.dense, embedder.embed(TEXTS))
        if not embedder.has_lexical:
            assert found.lexical is None and embedder.vocabulary_size == 0
            return
        assert found.lexical is not None and len(found.lexical) == len(TEXTS)
        assert embedder.encode([]).lexical == ()
        for weights in found.lexical:
            assert all(0 <= token < embedder.vocabulary_size for token in weights)
            assert all(isinstance(weight, float) and 0 < weight < 1e4 for weight in weights.values())
        # A text without words has none; one with words has some.
        assert found.lexical[0] and found.lexical[1] == found.lexical[2] == {}


class TestTrainedEmbedder:
    def test_finds_by_meaning(self, trained: TextEmbedder) -> None:
        truth = sample_words()
        for query, scene in (("a hot drink", "coffee"), ("rocket", "rocket"), ("a pet with fur", "cat")):
            similarity = trained.embed(truth) @ trained.embed([query])[0]
            assert scene in truth[int(similarity.argmax())]

    def test_equals_the_models_own_library(self, trained: TextEmbedder) -> None:
        library = pytest.importorskip("sentence_transformers")
        folder = str(locate(trained.spec))
        reference = library.SentenceTransformer(folder, device="cpu", local_files_only=True)
        texts = [text for text in TEXTS if "\ud83d" not in text]
        expected = reference.encode(texts, normalize_embeddings=True)
        assert (trained.embed(texts) * expected).sum(axis=1).min() > 0.99999


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> BgeM3Embedder:
    return cast(BgeM3Embedder, load_candidate("tiny-bge-m3", tmp_path_factory))


@pytest.fixture(scope="module")
def flag(tmp_path_factory: pytest.TempPathFactory) -> TextEmbedder:
    return cast(TextEmbedder, load_candidate("tiny-flagembedding", tmp_path_factory))


@pytest.fixture(scope="module")
def checkpoint(bge: BgeM3Embedder) -> ModelSpec:
    return bge.spec


class TestBgeM3:
    def test_a_repeated_word_keeps_its_greatest_weight(self, bge: BgeM3Embedder) -> None:
        text = "coffee and a cup of coffee and coffee"
        (weights,) = bge.encode([text]).lexical or ()
        encoder = bge._encoder
        (ids,) = encoder.tokenise([text])
        tokens, mask = encoder.padded([encoder.single(ids)])
        with torch.inference_mode():
            states = encoder.network(input_ids=tokens, attention_mask=mask).last_hidden_state[0, 1:-1]
        head = torch.load(locate(bge.spec, "sparse_linear.pt"), weights_only=True)
        each = states @ head["weight"][0] + head["bias"]
        expected: dict[int, float] = {}
        for token, weight in zip(ids, each.tolist(), strict=True):
            if weight > 0:
                expected[token] = max(weight, expected.get(token, 0.0))
        assert weights.keys() == expected.keys() and len(set(ids)) < len(ids)
        assert all(weights[token] == pytest.approx(expected[token], abs=1e-5) for token in weights)

    def test_reads_as_many_tokens_as_it_has_positions(self, bge: BgeM3Embedder) -> None:
        assert bge._encoder.limit == LIMIT
        row = bge._encoder.single(range(4, 4 + 10 * LIMIT))
        assert (len(row), row[0], row[-1]) == (LIMIT, 0, 2)
        # "cat" is one token; the last that is read is the one before </s>.
        whole = ["cat"] * (LIMIT - 2)
        vectors = bge.embed([" ".join([*whole, "red"]), " ".join([*whole[:-1], "red"]), " ".join(whole)])
        assert vectors[0] @ vectors[2] > 0.999999 and vectors[1] @ vectors[2] < 0.9999

    def test_long_texts_go_in_smaller_batches(self, checkpoint: ModelSpec) -> None:
        small = checkpoint.model_copy(update={"options": {"batch_tokens": 600}, "batch": 32})
        model = cast(BgeM3Embedder, build(small))
        model.load()
        shapes: list[tuple[int, int]] = []
        model._encoder.network.register_forward_pre_hook(
            lambda network, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
        )
        model.embed([*["word " * 400] * 5, *["cat"] * 40])
        assert sorted(shapes) == [(1, LIMIT), (2, LIMIT), (2, LIMIT), (8, 3), (32, 3)]
        model.unload()

    def test_cuts_where_its_options_say(self, checkpoint: ModelSpec) -> None:
        model = cast(BgeM3Embedder, build(checkpoint.model_copy(update={"options": {"max_tokens": 16}})))
        vectors = model.embed(["cat " * 14 + "red", "cat " * 14, "cat " * 13 + "red"])
        assert vectors[0] @ vectors[1] > 0.999999 and vectors[2] @ vectors[1] < 0.9999
        model.unload()

    @pytest.mark.parametrize("options", [{"max_tokens": LIMIT + 1}, {"max_tokens": 3}, {"batch_tokens": "9"}, {"beam": 1}], ids=str)  # fmt: skip
    def test_refuses_options_it_can_not_keep(self, checkpoint: ModelSpec, options: dict[str, object]) -> None:
        model = build(checkpoint.model_copy(update={"options": options}))
        with pytest.raises(ModelUnavailable, match=next(iter(options))):
            model.load()

    def test_a_full_device_halves_the_batch(self, checkpoint: ModelSpec, bge: BgeM3Embedder) -> None:
        model = cast(BgeM3Embedder, build(checkpoint))
        model.load()
        done: list[int] = []

        def fill_up(network: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
            if len(kwargs["input_ids"]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            done.append(len(kwargs["input_ids"]))

        model._encoder.network.register_forward_pre_hook(fill_up, with_kwargs=True)
        texts = ["a red bus"] * 8 + ["a cat"] * 8
        found, expected = model.encode(texts), bge.encode(texts)
        np.testing.assert_allclose(found.dense, expected.dense, atol=1e-5)
        assert found.lexical is not None and all(found.lexical)
        assert done == [2] * 8
        model.unload()

    def test_loads_the_same_weights_from_safetensors(self, bge: BgeM3Embedder, tmp_path: Path) -> None:
        bge_m3.build(tmp_path)
        old, new = tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors"
        save_file(torch.load(old, weights_only=True), new)
        old.unlink()
        files = [file.replace("pytorch_model.bin", "model.safetensors") for file in bge_m3.FILES]
        spec = entry(tmp_path, files, name="other", family="text", provider="bge-m3", dim=64, metric="cosine")
        model = cast(BgeM3Embedder, build(spec))
        assert np.array_equal(model.embed(TEXTS[:1]), bge.embed(TEXTS[:1]))
        model.unload()


class TestFlagEmbedding:
    """The other engine for the same files."""

    def test_gives_the_same_vectors_and_weights(
        self, flag: TextEmbedder, bge: BgeM3Embedder, record_figure: RecordFigure
    ) -> None:
        oddities = ["the red </s> bus <mask> <pad> is old", "coffee and a cup of coffee", "cat " * 3 * LIMIT]
        found, expected = flag.encode([*TEXTS, *oddities]), bge.encode([*TEXTS, *oddities])
        assert found.lexical is not None and expected.lexical is not None
        off = float(np.abs(found.dense - expected.dense).max())
        worst = max(
            abs(one.get(token, 0.0) - two.get(token, 0.0))
            for one, two in zip(found.lexical, expected.lexical, strict=True)
            for token in one.keys() | two.keys()
        )
        weighed = sum(map(len, found.lexical))
        figure = f"dense {off:.1e}, lexical {worst:.1e} ({weighed} weights)"
        record_figure("largest difference of BGE-M3 to FlagEmbedding", figure)
        assert weighed > 200 and off <= 1e-5 and worst <= 1e-5
        assert flag.vocabulary_size == bge.vocabulary_size

    def test_reads_no_file_that_was_not_checked(self, bge: BgeM3Embedder, tmp_path: Path) -> None:
        """It would take safetensors first, and settings of a tokenizer beside it."""
        spec = bge_m3.build(tmp_path).model_copy(update={"provider": "flagembedding"})
        tensors = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
        other = {name: torch.zeros_like(value) for name, value in tensors.items()}
        save_file(other, tmp_path / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        (tmp_path / "special_tokens_map.json").write_text('{"cls_token": "cat"}')
        model = cast(TextEmbedder, build(spec))
        np.testing.assert_allclose(model.embed(TEXTS[:12]), bge.embed(TEXTS[:12]), atol=1e-5)
        model.unload()

    def test_draws_no_progress_bars(self, checkpoint: ModelSpec, capfd: pytest.CaptureFixture[str]) -> None:
        model = cast(TextEmbedder, build(checkpoint.model_copy(update={"provider": "flagembedding"})))
        model.encode(TEXTS)
        model.unload()
        assert "%|" not in capfd.readouterr().err

    def test_its_absence_names_the_extra(
        self, checkpoint: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "FlagEmbedding", None)
        monkeypatch.delitem(sys.modules, "worker.models.providers.text_flagembedding", raising=False)
        with pytest.raises(ModelUnavailable, match="install scenefleet's extra 'flagembedding'"):
            build(checkpoint.model_copy(update={"provider": "flagembedding"}))


@pytest.fixture(params=["bge-m3", "flagembedding"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> ModelSpec:
    """A checkpoint in `tmp_path`, to be damaged, for each engine."""
    return bge_m3.build(tmp_path).model_copy(update={"provider": request.param})


class TestBrokenBgeM3:
    """Files whose checksums are those of the catalogue, and that are wrong all the same."""

    @pytest.mark.parametrize("file", ["sparse_linear.pt", "colbert_linear.pt"])
    def test_a_missing_head_is_never_random(self, spec: ModelSpec, tmp_path: Path, file: str) -> None:
        (tmp_path / file).unlink()
        assert f"expected {tmp_path / file}, found no such file" in refusal(spec)

    @pytest.mark.parametrize("file", ["sparse_linear.pt", "pytorch_model.bin"])
    def test_a_file_that_is_not_listed_is_not_read(self, spec: ModelSpec, tmp_path: Path, file: str) -> None:
        sums = {name: found for name, found in spec.sha256.items() if name != file}
        assert f"{file} among its files" in refusal(spec.model_copy(update={"sha256": sums}))

    @pytest.mark.parametrize("file", bge_m3.FILES[:-1])
    def test_a_truncated_file_is_named(self, spec: ModelSpec, tmp_path: Path, file: str) -> None:
        with (tmp_path / file).open("r+b") as stream:
            stream.truncate((tmp_path / file).stat().st_size // 2)
        said = refusal(summed(spec, tmp_path))
        assert re.search(f"in {re.escape(str(tmp_path / file))}, found (a file|one) that can't be read", said)

    def test_a_network_of_another_width_is_refused(self, spec: ModelSpec, tmp_path: Path) -> None:
        bge_m3.build(tmp_path, hidden=32)
        said = refusal(summed(spec, tmp_path))
        assert f"expected hidden_size 64 (models.yaml) in {tmp_path / 'config.json'}, found 32" in said

    @pytest.mark.parametrize(
        ("file", "name", "tensor", "said"),
        [
            (WEIGHTS, EMBEDDINGS, torch.zeros(195, 32), "expected {0} [195, 64] in {1}, found {0} [195, 32]"),
            (WEIGHTS, "encoder.layer.2.output.dense.bias", torch.zeros(64), "{0} has no place"),
            (WEIGHTS, "encoder.layer.1.output.dense.bias", None, LACKING),
            (WEIGHTS, "embeddings.LayerNorm.weight", None, LACKING),
            (HEAD, "weight", torch.zeros(1, 32), "expected {0} [1, 64] in {1}, found {0} [1, 32]"),
            (HEAD, "weight", "heavy", "expected named tensors in {1}"),
        ],
        ids=["wide", "surplus", "without a bias", "without a norm", "wide head", "no tensor"],
    )
    def test_weights_that_do_not_fit_are_named(
        self, spec: ModelSpec, tmp_path: Path, file: str, name: str, tensor: object, said: str
    ) -> None:
        path = tmp_path / file
        tensors = {**torch.load(path, weights_only=True), name: tensor}
        torch.save({name: value for name, value in tensors.items() if value is not None}, path)
        assert said.format(name, path) in refusal(summed(spec, tmp_path))

    def test_code_in_a_pickle_is_not_run(self, spec: ModelSpec, tmp_path: Path) -> None:
        class Touch:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "it ran",)

        (tmp_path / "sparse_linear.pt").write_bytes(pickle.dumps({"weight": Touch()}, protocol=2))
        assert str(tmp_path / "sparse_linear.pt") in refusal(summed(spec, tmp_path))
        assert not (tmp_path / "it ran").exists()
        pickle.loads((tmp_path / "sparse_linear.pt").read_bytes())  # noqa: S301 - to see that it would have
        assert (tmp_path / "it ran").exists()

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"model_type": "bert"}, "expected model_type 'xlm-roberta' in {}, found 'bert'"),
            ({"num_hidden_layers": "two"}, "num_hidden_layers"),
            ({"vocab_size": 100}, "expected at most 100 tokens (config.json)"),
            ({"pad_token_id": 3}, "expected <pad> with the id 3"),
        ],
        ids=str,
    )
    def test_a_configuration_that_does_not_fit_is_named(
        self, spec: ModelSpec, tmp_path: Path, change: dict[str, object], says: str
    ) -> None:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        assert says.format(path) in refusal(summed(spec, tmp_path))
