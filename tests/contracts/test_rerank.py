"""What every reranker keeps to, run on tiny checkpoints in the real format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from shared.errors import InvalidRequest
from tests.checkpoints import bge_reranker, summed
from tests.checkpoints.xlm_roberta import LIMIT
from tests.contracts.candidates import fixture_of, load_candidate, refusal
from tests.support.figures import RecordFigure
from worker.models.providers.rerank_bge import BgeReranker
from worker.models.text import Reranker
from worker.models.weights.verify import locate

QUERY = "a hot drink in the morning"
#: Written with the words of the checkpoint's vocabulary.
PLAIN = [
    "a cup of coffee",
    "the red bus is on the road",
    "a large dog sits in the garden and nobody is there",
    "the quick brown fox jumps over the lazy dog " * 4,
    "snow on the mountain",
] + [f"{'the river and ' * (n % 9)}the old man {n}" for n in range(30)]
DOCUMENTS = [*PLAIN, "", " ", "Ein Fuchs springt über den Hund", "子犬が走る 🚀", "tab\tand\nline\x00"]


reranker = fixture_of("rerank")


class TestReranker:
    def test_scores_lie_between_0_and_1_and_differ(self, reranker: Reranker) -> None:
        scores = reranker.rerank(QUERY, DOCUMENTS)
        assert scores.shape == (len(DOCUMENTS),) and scores.dtype == np.float32
        assert scores.min() >= 0 and scores.max() <= 1 and len(set(scores.round(4))) > len(DOCUMENTS) / 2

    def test_the_query_matters(self, reranker: Reranker) -> None:
        difference = reranker.rerank(QUERY, PLAIN) - reranker.rerank("the night train", PLAIN)
        assert np.abs(difference).max() > 0.01

    def test_half_a_surrogate_pair_is_text(self, reranker: Reranker) -> None:
        assert reranker.rerank("half a \ud83d pair", ["half a \ud83d pair"]).shape == (1,)

    @pytest.mark.parametrize("query", [3, None])
    def test_refuses_a_query_that_is_not_text(self, reranker: Reranker, query: Any) -> None:
        with pytest.raises(InvalidRequest):
            reranker.rerank(query, ["a"])


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> BgeReranker:
    return cast(BgeReranker, load_candidate("tiny-bge-reranker", tmp_path_factory))


class TestBgeReranker:
    def test_equals_transformers(self, bge: BgeReranker, record_figure: RecordFigure) -> None:
        documents = [*DOCUMENTS, "the lazy dog " * 300]
        tokenizer = AutoTokenizer.from_pretrained(locate(bge.spec))
        network = AutoModelForSequenceClassification.from_pretrained(locate(bge.spec)).eval()
        expected = []
        for document in documents:
            cut = {"truncation": "only_second", "max_length": LIMIT}
            pair = tokenizer([(QUERY, document)], return_tensors="pt", **cut)
            with torch.no_grad():
                expected.append(float(torch.sigmoid(network(**pair).logits)))
        off = float(np.abs(bge.rerank(QUERY, documents) - np.asarray(expected)).max())
        record_figure("largest difference of the reranker to transformers", f"{off:.1e}")
        assert off <= 1e-5

    def test_equals_the_models_own_library(self, bge: BgeReranker, record_figure: RecordFigure) -> None:
        from FlagEmbedding import FlagReranker

        # Version 1.4 on transformers 5 turns ids into text and back, which changes letters the vocabulary lacks: only
        # texts without.
        library = FlagReranker(str(locate(bge.spec)), use_fp16=False, devices="cpu")
        pairs = [(QUERY, document) for document in PLAIN]
        expected = library.compute_score(pairs, normalize=True, max_length=LIMIT, batch_size=8)
        off = float(np.abs(bge.rerank(QUERY, PLAIN) - np.asarray(expected)).max())
        record_figure("largest difference of the reranker to FlagEmbedding", f"{off:.1e}")
        assert off <= 1e-5

    def test_only_the_document_is_cut(self, bge: BgeReranker) -> None:
        document = "cat " * LIMIT
        one, two = bge.rerank(QUERY, [document, document + "the end is red"])
        assert one == pytest.approx(two, abs=1e-6)
        query = "dog " * (LIMIT // 2)
        asked, other = bge.rerank(query + "red", [document]), bge.rerank(query + "boat", [document])
        assert abs(asked - other).max() > 1e-5

    def test_a_query_without_end_leaves_room_for_the_document(self, bge: BgeReranker) -> None:
        query = "dog " * (3 * LIMIT)
        one, two = bge.rerank(query, ["a red boat", "snow and wind " * 200])
        assert 0 <= one <= 1 and abs(one - two) > 1e-5
        assert bge.rerank(query + "red", ["a red boat"])[0] == pytest.approx(one, abs=1e-6)


class TestBrokenBgeReranker:
    """Files whose checksums are those of the catalogue, and that are wrong all the same."""

    def test_a_network_with_several_outputs_is_refused(self, tmp_path: Path) -> None:
        said = refusal(bge_reranker.build(tmp_path, labels=3))
        assert f"expected one label (id2label) in {tmp_path / 'config.json'}, found 3" in said

    def test_a_missing_head_is_never_random(self, tmp_path: Path) -> None:
        spec, path = bge_reranker.build(tmp_path), tmp_path / "model.safetensors"
        kept = {name: value.clone() for name, value in load_file(path).items() if "classifier." not in name}
        save_file(kept, path)
        found = f"expected classifier.dense.weight [64, 64] in {path}, found no such tensor (4 are missing)"
        assert found in refusal(summed(spec, tmp_path))
