"""Bare engines: what a script without scenefleet would write to get the same results from the same libraries.

Each class loads its weights by the library's own loader and computes the same inputs with the same number of threads, in
batches of the same size. Inputs come decoded, texts sorted by length. What the bare engine leaves out (finding speech,
aligning faces, lexical weights as a dictionary, reading from the storage and the database) counts as ours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worker.models.base import SAMPLE_RATE_HZ, Float32, Uint8
from worker.models.spec import ModelSpec
from worker.models.weights.verify import locate


class Bare(ABC):
    """An engine, loaded."""

    def __init__(self, spec: ModelSpec, threads: int) -> None:
        self.spec, self.batch, self.threads = spec, spec.batch, threads
        torch.set_num_threads(threads)
        self.load()

    def file(self, name: str = "") -> Path:
        return locate(self.spec, name)

    @abstractmethod
    def load(self) -> None: ...

    def prepare(self, inputs: Any) -> Any:
        """What is done to the inputs before the clock runs."""
        return inputs

    @abstractmethod
    def run(self, inputs: Any) -> None:
        """Compute all of them."""


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


class BarePocketSphinx(Bare):
    """The decoder on the windows that our gate finds; the gate itself is not timed."""

    def load(self) -> None:
        from pocketsphinx import Decoder

        folder = self.file()
        self.decoder = Decoder(
            hmm=str(folder / "en-us"), lm=str(folder / "en-us.lm.bin"), dict=str(folder / "cmudict-en-us.dict"),
            samprate=SAMPLE_RATE_HZ, frate=100, loglevel="FATAL",
        )  # fmt: skip

    def prepare(self, inputs: Float32) -> list[bytes]:
        from worker.models.providers import asr_pocketsphinx as ours

        windows = find_windows(
            self.spec, inputs, max_window_s=ours.MAX_WINDOW_S, max_gap_s=ours.MAX_GAP_S, pad_s=ours.PAD_S
        )
        return [(window * 32767).astype("<i2").tobytes() for window in windows]

    def run(self, inputs: list[bytes]) -> None:
        for window in inputs:
            self.decoder.reinit_feat()
            self.decoder.start_utt()
            self.decoder.process_raw(window, full_utt=True)
            self.decoder.end_utt()
            assert self.decoder.hyp() is not None and list(self.decoder.seg())


class BareWhisper(Bare):
    """openai-whisper's `transcribe` on the windows that our gate finds, with its own loader."""

    def load(self) -> None:
        import whisper

        (path,) = (self.file(file) for file in self.spec.all_files if file.endswith(".pt"))
        self.model = whisper.load_model(str(path), device="cpu")

    def prepare(self, inputs: Float32) -> list[Float32]:
        from worker.models.providers import asr_windows as ours

        return find_windows(
            self.spec, inputs, max_window_s=ours.MAX_WINDOW_S, max_gap_s=ours.MAX_GAP_S, pad_s=ours.PAD_S
        )

    def run(self, inputs: list[Float32]) -> None:
        for window in inputs:
            said = self.model.transcribe(
                window, language="en", temperature=0.0, condition_on_previous_text=False, word_timestamps=True,
                no_speech_threshold=None, fp16=False,
            )  # fmt: skip
            assert said["text"]


def find_windows(spec: ModelSpec, audio: Float32, **limits: float) -> list[Float32]:
    """The windows of speech that our models are given."""
    from worker.models.providers.vad import VoiceActivityDetector, plan_windows

    gate = VoiceActivityDetector(locate(spec, "package:silero_vad/data/silero_vad.jit"))
    windows = plan_windows(gate.probabilities(audio), samples=len(audio), **limits)
    assert windows
    return [audio[start:end] for start, end in windows]


class BareMiniLm(Bare):
    """transformers' own tokenizer and model; mean of the tokens, length 1."""

    def load(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.file())
        self.model = AutoModel.from_pretrained(self.file()).eval()

    def run(self, inputs: Sequence[str]) -> None:
        for texts in batches(sorted(inputs, key=len), self.batch):
            tokens = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            with torch.inference_mode():
                states = self.model(**tokens).last_hidden_state
                mask = tokens["attention_mask"].unsqueeze(-1)
                means = (states * mask).sum(1) / mask.sum(1)
                torch.nn.functional.normalize(means, dim=1).numpy()


class BareBgeM3(Bare):
    """transformers' XLM-RoBERTa: the dense vector, and the lexical head's weight of every token."""

    def load(self) -> None:
        from transformers import AutoTokenizer, XLMRobertaModel

        self.tokenizer = AutoTokenizer.from_pretrained(self.file())
        self.model = XLMRobertaModel.from_pretrained(self.file(), add_pooling_layer=False).eval()
        self.sparse = torch.nn.Linear(self.model.config.hidden_size, 1)
        self.sparse.load_state_dict(torch.load(self.file("sparse_linear.pt"), weights_only=True))

    def run(self, inputs: Sequence[str]) -> None:
        for texts in batches(sorted(inputs, key=len), self.batch):
            tokens = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=8192, return_tensors="pt"
            )
            with torch.inference_mode():
                states = self.model(**tokens).last_hidden_state
                torch.nn.functional.normalize(states[:, 0], dim=1).numpy()
                torch.relu(self.sparse(states)).numpy()


class BareFlagEmbedding(Bare):
    """FlagEmbedding's own class as its page says to use it: dense vectors and lexical weights."""

    def load(self) -> None:
        from FlagEmbedding import BGEM3FlagModel

        self.model = BGEM3FlagModel(str(self.file()), devices="cpu", use_fp16=False)

    def run(self, inputs: Sequence[str]) -> None:
        found = self.model.encode(
            list(inputs), batch_size=self.batch, max_length=8192, return_dense=True, return_sparse=True
        )
        assert len(found["lexical_weights"]) == len(inputs)


class BareReranker(Bare):
    """transformers' XLM-RoBERTa for sequence classification on pairs; the inputs are a query and its documents."""

    def load(self) -> None:
        from transformers import AutoTokenizer, XLMRobertaForSequenceClassification

        self.tokenizer = AutoTokenizer.from_pretrained(self.file())
        self.model = XLMRobertaForSequenceClassification.from_pretrained(self.file()).eval()

    def run(self, inputs: Sequence[str]) -> None:
        query, documents = inputs[0], inputs[1:]
        for texts in batches(sorted(documents, key=len), self.batch):
            tokens = self.tokenizer(
                [query] * len(texts), list(texts), padding=True, truncation=True, max_length=8192,
                return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                torch.sigmoid(self.model(**tokens).logits.squeeze(1)).numpy()


class BareSiglip(Bare):
    """transformers' image processor and model."""

    def load(self) -> None:
        from transformers import SiglipModel
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        self.processor = SiglipImageProcessorPil.from_pretrained(self.file())
        self.model = SiglipModel.from_pretrained(self.file()).eval()

    def run(self, inputs: Sequence[Uint8]) -> None:
        for pictures in batches(inputs, self.batch):
            pixels = self.processor(list(pictures), return_tensors="pt")["pixel_values"]
            with torch.inference_mode():
                found = self.model.get_image_features(pixel_values=pixels).pooler_output
                torch.nn.functional.normalize(found, dim=1).numpy()


class BareDlib(Bare):
    """dlib's detector, landmarks and descriptor, on pictures of the detector's size."""

    def load(self) -> None:
        import cv2
        import dlib

        cv2.setNumThreads(self.threads)
        self.detector = dlib.get_frontal_face_detector()
        self.predictor = dlib.shape_predictor(str(self.file("models/shape_predictor_5_face_landmarks.dat")))
        self.descriptor = dlib.face_recognition_model_v1(
            str(self.file("models/dlib_face_recognition_resnet_model_v1.dat"))
        )

    def prepare(self, inputs: Sequence[Uint8]) -> list[Uint8]:
        import cv2

        from worker.models.providers.face_dlib import _scale

        return [
            np.ascontiguousarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
            for picture in inputs
            for scale in [_scale(max(picture.shape[:2]))]
        ]

    def run(self, inputs: Sequence[Uint8]) -> None:
        import dlib

        chips = []
        for picture in inputs:
            boxes, _, _ = self.detector.run(picture, 0, 0.3)
            chips += [
                dlib.get_face_chip(picture, self.predictor(picture, box), size=150, padding=0.25)
                for box in boxes
            ]
        for some in batches(chips, self.batch):
            np.array(self.descriptor.compute_face_descriptor(list(some)))


class BareAdaFace(Bare):
    """YuNet by OpenCV, and the recogniser on faces that are cut out and aligned beforehand."""

    def load(self) -> None:
        import cv2

        from worker.models.providers.face_ir import IrNetwork

        (weights,) = (self.file(file) for file in self.spec.all_files if file.endswith(".ckpt"))
        (detector,) = (self.file(file) for file in self.spec.all_files if file.endswith(".onnx"))
        cv2.setNumThreads(self.threads)
        self.detector = cv2.FaceDetectorYN.create(str(detector), "", (640, 640), 0.6, 0.3, 5000)
        self.network = IrNetwork(str(self.spec.options["architecture"]))
        from argparse import Namespace

        with torch.serialization.safe_globals([Namespace]):
            state = torch.load(weights, weights_only=True)["state_dict"]
        own = {
            name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")
        }
        self.network.load_state_dict(own)
        self.network.eval()

    def prepare(self, inputs: Sequence[Uint8]) -> tuple[list[Uint8], list[Float32]]:
        from worker.models.providers.face_adaface import preprocess
        from worker.models.providers.face_align import align
        from worker.models.providers.face_yunet import YuNetDetector

        (path,) = (self.file(file) for file in self.spec.all_files if file.endswith(".onnx"))
        detector = YuNetDetector(self.spec, path)
        chips = []
        for picture in inputs:
            found = [align(picture, face.landmarks) for face in detector.detect(picture)]
            chips += [chip for chip in found if chip is not None]
        assert chips
        return list(inputs), [preprocess(some) for some in batches(chips, self.batch)]

    def run(self, inputs: tuple[list[Uint8], list[Float32]]) -> None:
        import cv2

        pictures, faces = inputs
        for picture in pictures:
            scale = min(1.0, 640 / max(picture.shape[:2]))
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            self.detector.setInputSize((small.shape[1], small.shape[0]))
            self.detector.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        for some in faces:
            with torch.inference_mode():
                self.network(torch.from_numpy(some))[0].numpy()


#: By provider.
ENGINES: dict[str, type[Bare]] = {
    "pocketsphinx": BarePocketSphinx,
    "openai-whisper": BareWhisper,
    "minilm": BareMiniLm,
    "bge-m3": BareBgeM3,
    "flagembedding": BareFlagEmbedding,
    "bge-reranker": BareReranker,
    "siglip": BareSiglip,
    "dlib": BareDlib,
    "adaface": BareAdaFace,
}
