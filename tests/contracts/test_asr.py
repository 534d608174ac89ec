"""What every speech recogniser keeps to, run on the real models of the catalogue and on scripted checkpoints."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import jiwer
import numpy as np
import pytest
import torch

from shared.errors import InvalidRequest
from tests.checkpoints import faster_whisper_scripted, summed, whisper_scripted
from tests.contracts.candidates import SAMPLES, fixture_of, read_audio, refusal, sample_words
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


transcriber = fixture_of("asr")
trained = fixture_of("asr", trained=True)


@pytest.fixture(scope="module")
def heard(transcriber: Transcriber, speech: Float32) -> Transcript:
    """What the transcriber makes of `speech`."""
    return transcriber.transcribe(speech)


class TestTrainedTranscriber:
    """What only a model that was trained can do."""

    def test_hears_the_words(self, trained: Transcriber, speech: Float32) -> None:
        heard = trained.transcribe(speech)
        assert heard.language == "en"
        assert jiwer.wer(sample_words()[0], words_of(heard.text)) < 0.15

    def test_hears_a_human_voice(
        self, trained: Transcriber, assets: Path, record_figure: RecordFigure
    ) -> None:
        heard = trained.transcribe(read_audio(assets / "jfk.flac"))
        rate = jiwer.wer(words_of(JFK), words_of(heard.text))
        record_figure(f"word error rate of {trained.spec.name} on jfk.flac", f"{rate:.3f}")
        assert rate <= 0.25

    def test_loud_audio_is_clipped_not_wrapped(self, trained: Transcriber, speech: Float32) -> None:
        loud = speech * (1.5 / np.abs(speech).max())
        assert jiwer.wer(sample_words()[0], words_of(trained.transcribe(loud).text)) < 0.3


class TestTranscriber:
    def test_keeps_no_state(self, transcriber: Transcriber, speech: Float32, heard: Transcript) -> None:
        """Other sound, and a transcription that was ended."""

        class LeaseGone(Exception):
            pass

        def stop(_: float) -> None:
            raise LeaseGone

        with pytest.raises(LeaseGone):
            transcriber.transcribe(speech, on_step=stop)
        backwards = speech[: 4 * SAMPLE_RATE_HZ : -1][: 4 * SAMPLE_RATE_HZ]
        noise = np.random.default_rng(0).normal(0, 0.02, len(backwards)).astype(np.float32)
        transcriber.transcribe(backwards + noise)
        assert transcriber.transcribe(speech) == heard

    def test_new_instances_agree(self, transcriber: Transcriber, speech: Float32, heard: Transcript) -> None:
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

    def test_times_follow_speech(self, transcriber: Transcriber, speech: Float32, heard: Transcript) -> None:
        moved = np.concatenate([np.zeros(5 * SAMPLE_RATE_HZ, np.float32), speech])
        found = transcriber.transcribe(moved)
        assert found.segments[0].start_s == pytest.approx(heard.segments[0].start_s + 5, abs=0.1)

    def test_offset_moves_times(self, transcriber: Transcriber, speech: Float32, heard: Transcript) -> None:
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

    def test_what_is_not_speech_has_no_words(self, transcriber: Transcriber) -> None:
        time_s = np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
        noise, tone = np.random.default_rng(7).normal(0, 1, len(time_s)), np.sin(2 * np.pi * 440 * time_s)
        for sound in (noise * 0.001, noise * 0.03, noise * 0.3, tone * 0.5):
            assert transcriber.transcribe(sound.astype(np.float32)).segments == ()

    def test_refuses_other_audio(self, transcriber: Transcriber) -> None:
        others = [np.zeros(16_000, np.int16), np.zeros(16_000), np.zeros((2, 16_000), np.float32)]
        for audio in (*others, *(np.full(16_000, value, np.float32) for value in (np.nan, np.inf))):
            with pytest.raises(InvalidRequest):
                transcriber.transcribe(audio)


def opened(spec: ModelSpec, **changes: Any) -> Any:
    """The loaded model of a catalogue entry with some fields changed."""
    model = build(spec.model_copy(update=changes))
    model.load()
    return model


@pytest.mark.parametrize("engine", [whisper_scripted, faster_whisper_scripted], ids=["openai", "faster"])
class TestScriptedWhisper:
    """What a Whisper says is known here, so that what is made of it can be checked to the word."""

    def test_says_the_script_once_a_window_at_the_scripts_times(
        self, engine: Any, tmp_path: Path, more_speech: Float32
    ) -> None:
        script = "A well-known ship, the Aurora, sails at 10.30."
        heard = opened(engine.build(tmp_path, script)).transcribe(more_speech)
        # The sample's scenes are further apart than a window reaches.
        assert [segment.text for segment in heard.segments] == [script] * 3
        assert [word.text for word in heard.segments[0].words] == script.split()
        for segment in heard.segments:
            lengths = [word.end_s - word.start_s for word in segment.words]
            assert all(whisper_scripted.TOKEN_S * 0.5 <= length <= 2.5 for length in lengths[1:-1])
            assert all(word.probability > 0.99 for word in segment.words)
            assert segment.rejected is None

    @pytest.mark.parametrize("language", ["de", "ja"])
    def test_detects_the_language_unless_it_is_given(
        self, engine: Any, tmp_path: Path, speech: Float32, language: str
    ) -> None:
        spec = engine.build(tmp_path, language=language)
        heard = opened(spec).transcribe(speech)
        assert heard.language == language and heard.segments
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
        self, engine: Any, tmp_path: Path, speech: Float32, script: dict[str, Any], reason: str | None
    ) -> None:
        heard = opened(engine.build(tmp_path, **script)).transcribe(speech)
        assert heard.segments and {segment.rejected for segment in heard.segments} == {reason}
        assert all(segment.words for segment in heard.segments)
        assert (heard.text == "") == (reason is not None)
        assert heard.language == ("en" if reason is None else None)

    def test_translates_only_when_told_to(self, engine: Any, tmp_path: Path) -> None:
        spec = engine.build(tmp_path)
        for told, task in ((None, "transcribe"), (False, "transcribe"), (True, "translate")):
            transcriber = opened(spec, options={} if told is None else {"translate": told})
            asked = Mock(wraps=transcriber._model.transcribe)
            transcriber._model.transcribe = asked
            transcriber.warm_up()
            assert {call.kwargs["task"] for call in asked.call_args_list} == {task}

    def test_refuses_options_it_does_not_know(self, engine: Any, tmp_path: Path) -> None:
        spec = engine.build(tmp_path)
        for option, value, said in (
            ("tranlate", True, "an option 'tranlate' that provider"),
            ("translate", "yes", "a wrong option translate ('yes'"),
            ("language", "xx", "does not know the language 'xx'"),
        ):
            assert said in refusal(spec.model_copy(update={"options": {option: value}}))

    def test_needs_no_network(
        self, engine: Any, tmp_path: Path, speech: Float32, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = engine.build(tmp_path)

        refuse = Mock(side_effect=AssertionError("the network was asked"))
        for name in ("connect", "connect_ex", "sendto"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        assert opened(spec).transcribe(speech).segments

    def test_a_truncated_file_is_named(self, engine: Any, tmp_path: Path) -> None:
        spec = engine.build(tmp_path)
        file = tmp_path / next(file for file in spec.all_files if file.endswith((".pt", ".bin")))
        data = file.read_bytes()
        for keep in (0, 1000, len(data) // 2, len(data) - 100):
            file.write_bytes(data[:keep])
            message = refusal(summed(spec, tmp_path))
            assert str(file) in message and "expected" in message and "found" in message, message


class TestWhisperCheckpoint:
    """Checkpoints in OpenAI's format that are not what they should be."""

    @pytest.mark.parametrize(
        ("name", "layers", "heads", "mels", "count"),
        [("large-v3", 32, 20, 128, 10), ("turbo", 4, 20, 128, 6), ("medium", 24, 16, 80, 6)],
    )
    def test_has_the_alignment_heads_of_its_name(
        self, tmp_path: Path, name: str, layers: int, heads: int, mels: int, count: int
    ) -> None:
        """Told by the file's name, the revision or the option."""
        named = {"turbo": "large-v3-turbo"}.get(name, name)
        shape = {"layers": layers, "heads": heads, "n_mels": mels, "n_vocab": 51866 if mels == 128 else 51865}
        by_file = whisper_scripted.build(tmp_path, file=f"{named}.pt", **shape)
        (tmp_path / f"{named}.pt").with_name("weights.pt").hardlink_to(tmp_path / f"{named}.pt")
        other = whisper_scripted.describe(tmp_path, ["weights.pt"], name="other", provider="openai-whisper")
        for spec, changes in (
            (by_file, {"revision": "mine"}),
            (other, {"revision": f"openai-{name}"}),
            (other, {"revision": "mine", "options": {"alignment_heads": name}}),
        ):
            alignment = opened(spec, **changes)._model.alignment_heads.to_dense()
            assert tuple(alignment.shape) == (layers, heads)
            # Published with the engine; by default they would be all heads of the last half of the layers.
            assert int(alignment.sum()) == count

    def test_another_checkpoint_has_the_heads_of_the_last_layers(self, tmp_path: Path) -> None:
        found = opened(whisper_scripted.build(tmp_path, layers=4, heads=2))._model.alignment_heads.to_dense()
        assert found.tolist() == [[False] * 2] * 2 + [[True] * 2] * 2

    def test_a_checkpoint_of_another_shape_than_its_name_is_refused(self, tmp_path: Path) -> None:
        for file, options in (("medium.pt", {}), ("mine.pt", {"alignment_heads": "turbo"})):
            spec = whisper_scripted.build(tmp_path, file=file).model_copy(update={"options": options})
            assert re.search(r"Whisper (medium|turbo) in .*\.pt, found .* 1 layers of 1 heads", refusal(spec))

    def test_an_english_model_is_english_and_never_translates(self, tmp_path: Path, speech: Float32) -> None:
        spec = whisper_scripted.build(tmp_path, n_vocab=51864)
        heard = opened(spec).transcribe(speech)
        assert (heard.language, heard.text) == ("en", whisper_scripted.WORDS)
        assert "can't translate" in refusal(spec.model_copy(update={"options": {"translate": True}}))
        german = spec.model_copy(update={"options": {"language": "de"}})
        assert "does not know the language 'de'" in refusal(german)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda file: file["model_state_dict"].pop("decoder.ln.weight"), "expected decoder.ln.weight"),
            (lambda file: file["model_state_dict"].update(extra=torch.zeros(1)), "extra has no place"),
            (lambda file: file["dims"].update(n_text_layer=2), "expected decoder.blocks.1."),
            (lambda file: file["dims"].update(n_text_ctx=100), "[100, "),
            (lambda file: file["dims"].update(n_vocab=1000), "n_vocab 51864 or 51865 or 51866"),
            (lambda file: file["dims"].update(n_mels=40), "n_mels 80 or 128"),
            (lambda file: file["dims"].pop("n_mels"), "dims with whole numbers"),
            (lambda file: file.pop("dims"), "a Whisper checkpoint (dims, model_state_dict)"),
            (lambda file: file.update(dims=3), "dims with whole numbers"),
            (lambda file: file.update(model_state_dict=3), "named tensors"),
            (lambda file: file.update(dims=Path("/")), "can't be read"),
        ],
    )
    def test_a_mismatched_file_says_what_was_expected(
        self, tmp_path: Path, damage: Callable[[dict[str, Any]], Any], said: str
    ) -> None:
        spec = whisper_scripted.build(tmp_path)
        path = tmp_path / "scripted.pt"
        stored = torch.load(path, weights_only=True)
        damage(stored)
        torch.save(stored, path)
        message = refusal(summed(spec, tmp_path))
        assert said in message and str(path) in message, message


class TestFasterWhisperFolder:
    """Folders that faster-whisper would fill by a download, or misread."""

    def test_computes_in_8_bits_when_told_to(self, tmp_path: Path, speech: Float32) -> None:
        found = opened(faster_whisper_scripted.build(tmp_path), options={"compute_type": "int8"})
        assert found._model.model.compute_type == "int8_float32"
        assert found.transcribe(speech).text == faster_whisper_scripted.WORDS

    def test_does_without_a_download_where_the_tokenizer_is_missing(self, tmp_path: Path) -> None:
        spec = faster_whisper_scripted.build(tmp_path)
        (tmp_path / "tokenizer.json").unlink()
        sums = {file: digest for file, digest in spec.sha256.items() if file != "tokenizer.json"}
        message = refusal(spec.model_copy(update={"sha256": sums}))
        assert f"expected {tmp_path / 'tokenizer.json'}, found no such file" in message

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
    def test_a_wrong_file_is_named(self, tmp_path: Path, file: str, content: str, said: str) -> None:
        spec = faster_whisper_scripted.build(tmp_path)
        (tmp_path / file).write_text(content)
        assert said in refusal(summed(spec, tmp_path))
