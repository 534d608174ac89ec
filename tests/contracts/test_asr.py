"""What every speech recogniser keeps to, run on the real models of the catalogue and on scripted checkpoints."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jiwer
import numpy as np
import numpy.typing as npt
import pytest
import torch

from shared.errors import InvalidRequest, ModelUnavailable
from tests.checkpoints import digests, faster_whisper_scripted, whisper_scripted
from tests.contracts.candidates import (
    ASSETS,
    SAMPLES,
    candidates,
    loaded,
    needs_assets,
    read_audio,
    sample_words,
)
from tests.support.figures import RecordFigure
from worker.models.asr import Transcriber, Transcript
from worker.models.base import SAMPLE_RATE_HZ, Float32
from worker.models.cache import build
from worker.models.spec import ModelSpec

JFK = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


def words_of(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in " '").split())


@pytest.fixture(scope="module")
def speech() -> Float32:
    """The sample's first scene, 8.6 s: 18 words of a synthetic voice."""
    return read_audio(SAMPLES / "demo.mp4", 8.6)


@pytest.fixture(scope="module")
def more_speech() -> Float32:
    """The sample's first 26 s: three scenes."""
    return read_audio(SAMPLES / "demo.mp4", 26.2)


@pytest.fixture(scope="module")
def truth() -> list[str]:
    return sample_words()


@pytest.fixture(scope="module", params=candidates("asr"))
def transcriber(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Transcriber]:
    yield from cast(Iterator[Transcriber], loaded(request.param, tmp_path_factory))


@pytest.fixture(scope="module")
def heard(transcriber: Transcriber, speech: Float32) -> Transcript:
    """What the transcriber makes of `speech`."""
    return transcriber.transcribe(speech)


@pytest.fixture(scope="module", params=candidates("asr", trained=True))
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Transcriber]:
    yield from cast(Iterator[Transcriber], loaded(request.param, tmp_path_factory))


class TestTrainedTranscriber:
    """What only a model that was trained can do."""

    def test_hears_the_words(self, trained: Transcriber, speech: Float32, truth: list[str]) -> None:
        heard = trained.transcribe(speech)
        assert heard.language == "en"
        assert jiwer.wer(truth[0], words_of(heard.text)) < 0.15

    @needs_assets
    def test_hears_a_human_voice(self, trained: Transcriber, record_figure: RecordFigure) -> None:
        heard = trained.transcribe(read_audio(Path(cast(str, ASSETS)) / "jfk.flac"))
        rate = jiwer.wer(words_of(JFK), words_of(heard.text))
        record_figure(f"word error rate of {trained.spec.name} on jfk.flac", f"{rate:.3f}")
        assert rate <= 0.25

    def test_loud_audio_is_clipped_not_wrapped(
        self, trained: Transcriber, speech: Float32, truth: list[str]
    ) -> None:
        loud = speech * (1.5 / np.abs(speech).max())
        assert jiwer.wer(truth[0], words_of(trained.transcribe(loud).text)) < 0.3


class TestTranscriber:
    def test_is_the_same_whatever_came_before(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        """Other sound, and a transcription that was ended."""

        class LeaseGone(Exception):
            pass

        def stop(_: float) -> None:
            raise LeaseGone

        with pytest.raises(LeaseGone):
            transcriber.transcribe(speech, on_step=stop)
        backwards = speech[: 4 * SAMPLE_RATE_HZ : -1][: 4 * SAMPLE_RATE_HZ].copy()
        transcriber.transcribe(
            backwards + np.random.default_rng(0).normal(0, 0.02, len(backwards)).astype(np.float32)
        )
        assert transcriber.transcribe(speech) == heard

    def test_is_the_same_in_a_new_instance(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        other = cast(Transcriber, build(transcriber.spec))
        assert other.transcribe(speech) == heard
        other.unload()

    def test_long_speech_comes_in_pieces_with_words_in_order(
        self, transcriber: Transcriber, more_speech: Float32
    ) -> None:
        steps: list[float] = []
        heard = transcriber.transcribe(more_speech, on_step=steps.append)
        # A heartbeat has to fit in between pieces.
        assert len(steps) > len(heard.segments) >= 3
        assert steps == sorted(steps) and steps[0] > 0 and steps[-1] == 1.0
        before_s = 0.0
        for segment in heard.segments:
            assert segment.words and segment.text == " ".join(word.text for word in segment.words)
            assert (segment.start_s, segment.end_s) == (segment.words[0].start_s, segment.words[-1].end_s)
            for word in segment.words:
                assert before_s <= word.start_s < word.end_s
                assert 0.0 <= word.probability <= 1.0
                assert word.text.strip() == word.text != ""
                before_s = word.end_s
        assert before_s <= len(more_speech) / SAMPLE_RATE_HZ

    def test_words_lie_where_they_are_spoken(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        moved = np.concatenate([np.zeros(5 * SAMPLE_RATE_HZ, np.float32), speech])
        found = transcriber.transcribe(moved)
        assert found.segments[0].start_s == pytest.approx(heard.segments[0].start_s + 5, abs=0.1)

    def test_offset_moves_every_time(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        here, there = heard, transcriber.transcribe(speech, offset_s=3600.5)
        assert here.segments
        for one, two in zip(here.segments, there.segments, strict=True):
            assert two.text == one.text
            assert two.start_s == pytest.approx(one.start_s + 3600.5, abs=1e-3)
            for a, b in zip(one.words, two.words, strict=True):
                assert (b.text, b.probability) == (a.text, a.probability)
                assert (b.start_s, b.end_s) == pytest.approx((a.start_s + 3600.5, a.end_s + 3600.5), abs=1e-3)

    @pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.01, 0.032, 1.0, 30.0])
    def test_silence_has_no_segments(self, transcriber: Transcriber, seconds: float) -> None:
        steps: list[float] = []
        silence = np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)
        heard = transcriber.transcribe(silence, on_step=steps.append)
        assert heard.segments == () and heard.text == "" and heard.language is None
        assert steps[-1] == 1.0

    @pytest.mark.parametrize("level", [0.001, 0.03, 0.3])
    def test_noise_has_no_words(self, transcriber: Transcriber, level: float) -> None:
        noise = np.random.default_rng(7).normal(0, level, 10 * SAMPLE_RATE_HZ).astype(np.float32)
        assert transcriber.transcribe(noise).segments == ()

    def test_a_tone_has_no_words(self, transcriber: Transcriber) -> None:
        time_s = np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
        assert (
            transcriber.transcribe((0.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)).segments == ()
        )

    def test_result_is_plain_json(self, heard: Transcript) -> None:
        words = json.loads(json.dumps(heard.to_dict()))["segments"][0]["words"]
        assert words[0]["text"] == heard.text.split()[0]

    @pytest.mark.parametrize(
        "audio",
        [
            np.zeros((2, 16_000), np.float32),
            np.zeros(16_000, np.int16),
            np.zeros(16_000, np.float64),
            np.full(16_000, np.nan, np.float32),
            np.full(16_000, np.inf, np.float32),
        ],
        ids=["stereo", "int16", "float64", "nan", "inf"],
    )
    def test_refuses_other_audio(self, transcriber: Transcriber, audio: npt.NDArray[np.float32]) -> None:
        with pytest.raises(InvalidRequest):
            transcriber.transcribe(audio)


Build = Callable[..., ModelSpec]
BUILDERS = [
    pytest.param(whisper_scripted.build, id="openai-whisper"),
    pytest.param(faster_whisper_scripted.build, id="faster-whisper"),
]


@pytest.fixture
def opened() -> Iterator[Callable[..., Transcriber]]:
    """Loads a model of a catalogue entry with some fields changed; lets go of it at the end."""
    made: list[Transcriber] = []

    def load(spec: ModelSpec, **changes: Any) -> Transcriber:
        made.append(cast(Transcriber, build(spec.model_copy(update=changes))))
        made[-1].load()
        return made[-1]

    yield load
    for transcriber in made:
        transcriber.unload()


@pytest.mark.parametrize("build_checkpoint", BUILDERS)
class TestScriptedWhisper:
    """What a Whisper says is known here, so that what is made of it can be checked to the word."""

    Opened = Callable[..., Transcriber]

    def test_says_the_script_once_a_window_at_the_scripts_times(
        self, build_checkpoint: Build, tmp_path: Path, opened: Opened, more_speech: Float32
    ) -> None:
        script = "A well-known ship, the Aurora, sails at 10.30."
        heard = opened(build_checkpoint(tmp_path, script)).transcribe(more_speech)
        # The sample's scenes are further apart than a window reaches.
        assert [segment.text for segment in heard.segments] == [script] * 3
        assert [word.text for word in heard.segments[0].words] == script.split()
        for segment in heard.segments:
            lengths = [word.end_s - word.start_s for word in segment.words]
            assert all(whisper_scripted.TOKEN_S * 0.5 <= length <= 2.5 for length in lengths[1:-1])
            assert all(word.probability > 0.99 for word in segment.words)
            assert segment.rejected is None

    @pytest.mark.parametrize("language", ["de", "ja"])
    def test_detects_the_language(
        self, build_checkpoint: Build, tmp_path: Path, opened: Opened, speech: Float32, language: str
    ) -> None:
        heard = opened(build_checkpoint(tmp_path, language=language)).transcribe(speech)
        assert heard.language == language and heard.segments

    def test_a_language_that_is_given_is_not_detected(
        self, build_checkpoint: Build, tmp_path: Path, opened: Opened, speech: Float32
    ) -> None:
        spec = build_checkpoint(tmp_path, language="de")
        assert opened(spec, options={"language": "fr"}).transcribe(speech).language == "fr"

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ({"words": "thank you " * 20}, "repetition"),
            ({"words": "go on go on go on go on"}, "repetition"),
            ({"no_speech": True, "rivals": 3}, "no speech"),
            ({"rivals": 3}, "low confidence"),
            # Sure of its words: they count, whatever it thinks of the sound (openai-whisper's rule).
            ({"no_speech": True}, None),
        ],
        ids=["long loop", "short loop", "no speech", "unsure", "sure of words"],
    )
    def test_words_not_to_be_believed_are_kept_and_say_why(
        self,
        build_checkpoint: Build,
        tmp_path: Path,
        opened: Opened,
        speech: Float32,
        script: dict[str, Any],
        reason: str | None,
    ) -> None:
        heard = opened(build_checkpoint(tmp_path, **script)).transcribe(speech)
        assert heard.segments and {segment.rejected for segment in heard.segments} == {reason}
        assert all(segment.words for segment in heard.segments)
        assert (heard.text == "") == (reason is not None)
        assert heard.language == ("en" if reason is None else None)

    def test_translates_only_when_told_to(
        self, build_checkpoint: Build, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = build_checkpoint(tmp_path)
        assert spec.options["translate"] is False
        for options, task in (
            ({}, "transcribe"),
            ({"translate": False}, "transcribe"),
            ({"translate": True}, "translate"),
        ):
            transcriber = opened(spec, options=options)
            asked: list[str] = []
            engine: Any = vars(transcriber)["_model"]
            transcribe = engine.transcribe

            def note(*audio: Any, transcribe: Any = transcribe, asked: list[str] = asked, **said: Any) -> Any:
                asked.append(said["task"])
                return transcribe(*audio, **said)

            monkeypatch.setattr(engine, "transcribe", note)
            transcriber.warm_up()
            assert set(asked) == {task}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"tranlate": True}, "an option 'tranlate' that provider"),
            ({"translate": "yes"}, "a wrong option translate ('yes'"),
            ({"language": "xx"}, "does not know the language 'xx'"),
        ],
    )
    def test_refuses_options_it_does_not_know(
        self, build_checkpoint: Build, tmp_path: Path, opened: Opened, options: dict[str, Any], said: str
    ) -> None:
        spec = build_checkpoint(tmp_path)
        with pytest.raises(ModelUnavailable) as refusal:
            opened(spec, options=options)
        assert spec.name in str(refusal.value) and said in str(refusal.value)
        assert "\n" not in str(refusal.value)

    def test_needs_no_network(
        self,
        build_checkpoint: Build,
        tmp_path: Path,
        opened: Opened,
        speech: Float32,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        spec = build_checkpoint(tmp_path)

        def refuse(*_: Any, **__: Any) -> Any:
            raise AssertionError("the network was asked")

        for name in ("connect", "connect_ex", "sendto"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        assert opened(spec).transcribe(speech).segments

    def test_a_truncated_file_is_named(self, build_checkpoint: Build, tmp_path: Path, opened: Opened) -> None:
        spec = build_checkpoint(tmp_path)
        file = next(file for file in spec.all_files if file.endswith((".pt", ".bin")))
        data = (tmp_path / file).read_bytes()
        for keep in (0, 1000, len(data) // 2, len(data) - 100):
            (tmp_path / file).write_bytes(data[:keep])
            with pytest.raises(ModelUnavailable) as refusal:
                opened(spec, sha256={**spec.sha256, **digests(tmp_path, [file])})
            message = str(refusal.value)
            assert spec.name in message and str(tmp_path / file) in message and "\n" not in message, message
            assert "expected" in message and "found" in message


class TestWhisperCheckpoint:
    """Checkpoints in OpenAI's format that are not what they should be."""

    Opened = Callable[..., Transcriber]

    @pytest.mark.parametrize(
        ("name", "layers", "heads", "mels", "count"),
        [("large-v3", 32, 20, 128, 10), ("turbo", 4, 20, 128, 6), ("medium", 24, 16, 80, 6)],
    )
    @pytest.mark.parametrize("told_by", ["file", "revision", "option"])
    def test_has_the_alignment_heads_of_its_name(
        self,
        tmp_path: Path,
        opened: Opened,
        name: str,
        layers: int,
        heads: int,
        mels: int,
        count: int,
        told_by: str,
    ) -> None:
        file = {"turbo": "large-v3-turbo"}.get(name, name) if told_by == "file" else "weights"
        spec = whisper_scripted.build(
            tmp_path,
            file=f"{file}.pt",
            layers=layers,
            heads=heads,
            n_mels=mels,
            n_vocab=51866 if mels == 128 else 51865,
        )
        found = opened(
            spec,
            revision=f"openai-{name}" if told_by == "revision" else "mine",
            options={"alignment_heads": name} if told_by == "option" else {},
        )
        alignment = vars(found)["_model"].alignment_heads.to_dense()
        assert tuple(alignment.shape) == (layers, heads)
        # Published with the engine; by default they would be all heads of the last half of the layers.
        assert int(alignment.sum()) == count

    def test_another_checkpoint_has_the_heads_of_the_last_layers(
        self, tmp_path: Path, opened: Opened
    ) -> None:
        found = opened(whisper_scripted.build(tmp_path, layers=4, heads=2))
        assert (
            vars(found)["_model"].alignment_heads.to_dense().tolist() == [[False] * 2] * 2 + [[True] * 2] * 2
        )

    @pytest.mark.parametrize("change", ["file", "option"])
    def test_a_checkpoint_of_another_shape_than_its_name_is_refused(
        self, tmp_path: Path, opened: Opened, change: str
    ) -> None:
        spec = whisper_scripted.build(tmp_path, file="medium.pt" if change == "file" else "mine.pt")
        with pytest.raises(
            ModelUnavailable, match=r"Whisper (medium|turbo) in .*\.pt, found .* 1 layers of 1 heads"
        ):
            opened(spec, options={} if change == "file" else {"alignment_heads": "turbo"})

    def test_an_english_model_is_english_and_does_not_translate(
        self, tmp_path: Path, opened: Opened, speech: Float32
    ) -> None:
        spec = whisper_scripted.build(tmp_path, n_vocab=51864)
        heard = opened(spec).transcribe(speech)
        assert (heard.language, heard.text) == ("en", whisper_scripted.WORDS)
        with pytest.raises(ModelUnavailable, match="can't translate"):
            opened(spec, options={"translate": True})
        with pytest.raises(ModelUnavailable, match="does not know the language 'de'"):
            opened(spec, options={"language": "de"})

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (
                lambda stored: stored["model_state_dict"].pop("decoder.ln.weight"),
                "expected decoder.ln.weight",
            ),
            (lambda stored: stored["model_state_dict"].update(extra=torch.zeros(1)), "extra has no place"),
            (lambda stored: stored["dims"].update(n_text_layer=2), "expected decoder.blocks.1."),
            (lambda stored: stored["dims"].update(n_text_ctx=100), "[100, "),
            (lambda stored: stored["dims"].update(n_vocab=1000), "n_vocab 51864 or 51865 or 51866"),
            (lambda stored: stored["dims"].update(n_mels=40), "n_mels 80 or 128"),
            (lambda stored: stored["dims"].pop("n_mels"), "dims with whole numbers"),
            (lambda stored: stored.pop("dims"), "a Whisper checkpoint (dims, model_state_dict)"),
            (lambda stored: stored.update(dims=3), "dims with whole numbers"),
            (lambda stored: stored.update(model_state_dict=3), "named tensors"),
            (lambda stored: stored.update(dims=Path("/")), "can't be read"),
        ],
    )
    def test_a_mismatched_file_says_what_was_expected(
        self, tmp_path: Path, opened: Opened, damage: Callable[[dict[str, Any]], Any], said: str
    ) -> None:
        spec = whisper_scripted.build(tmp_path)
        path = tmp_path / "scripted.pt"
        stored = torch.load(path, weights_only=True)
        damage(stored)
        torch.save(stored, path)
        with pytest.raises(ModelUnavailable) as refusal:
            opened(spec, sha256={**spec.sha256, **digests(tmp_path, ["scripted.pt"])})
        message = str(refusal.value)
        assert said in message and str(path) in message and spec.name in message and "\n" not in message, (
            message
        )


class TestFasterWhisperFolder:
    """Folders that faster-whisper would fill by a download, or misread."""

    Opened = Callable[..., Transcriber]

    def test_computes_in_8_bits_when_told_to(self, tmp_path: Path, opened: Opened, speech: Float32) -> None:
        found = opened(faster_whisper_scripted.build(tmp_path), options={"compute_type": "int8"})
        assert vars(found)["_model"].model.compute_type == "int8_float32"
        assert found.transcribe(speech).text == faster_whisper_scripted.WORDS

    def test_does_without_a_download_where_the_tokenizer_is_missing(
        self, tmp_path: Path, opened: Opened
    ) -> None:
        spec = faster_whisper_scripted.build(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        sums = {file: digest for file, digest in spec.sha256.items() if file != "tokenizer.json"}
        with pytest.raises(ModelUnavailable, match=r"expected .*tokenizer\.json, found no such file"):
            opened(spec, sha256=sums)

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("tokenizer.json", "{", "tokenizer.json"),
            ("tokenizer.json", "no JSON", "tokenizer.json"),
            ("config.json", "{", "config.json"),
            ("preprocessor_config.json", "{", "preprocessor_config.json"),
            ("preprocessor_config.json", '{"feature_size": 128}', "expected feature_size 80"),
        ],
    )
    def test_a_file_of_something_else_is_named(
        self, tmp_path: Path, opened: Opened, file: str, content: str, said: str
    ) -> None:
        spec = faster_whisper_scripted.build(tmp_path)
        (tmp_path / file).write_text(content)
        with pytest.raises(ModelUnavailable) as refusal:
            opened(spec, sha256={**spec.sha256, **digests(tmp_path, [file])})
        assert said in str(refusal.value) and "\n" not in str(refusal.value)
