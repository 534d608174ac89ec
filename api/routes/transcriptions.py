"""Transcribes a sound, as OpenAI's clients ask for it."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field

from api import dialects, sounds
from api.dialects import InvalidParameter
from api.forms import read_form
from api.limits import stream_body
from api.parameters import Ask, Who
from api.served_models import ServedModels, served_models
from api.uploads import Uploads
from shared.contracts import Segment
from shared.subtitles import make_cues, render

router = APIRouter(tags=["drop-in"], responses=dialects.responses("openai"))

#: Of a form, for what is not the file.
FORM_BYTES = 256 * 1024
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
GRANULARITIES = ("segment", "word")
#: Fields that change nothing here.
WITHOUT_EFFECT = ("language", "temperature")
_NUMBER = re.compile(r"[-+]?[0-9]{1,400}(\.[0-9]{0,400})?([eE][-+]?[0-9]{1,3})?", re.ASCII)


class Duration(BaseModel):
    """What was heard."""

    type: Literal["duration"] = "duration"
    seconds: int


class Transcription(BaseModel):
    """The answer of `json`."""

    text: str
    usage: Duration


class TranscribedSegment(BaseModel):
    """Words spoken without a long pause."""

    id: int
    seek: int = Field(description="Start, hundredths of a second")
    start: float
    end: float
    text: str
    tokens: list[int] = Field([], description="Always empty")
    temperature: float = 0.0
    avg_logprob: float = Field(description="Mean logarithm of the words' probabilities")
    compression_ratio: float
    no_speech_prob: float = Field(0.0, description="Always 0: what is not speech is left out")


class TranscribedWord(BaseModel):
    """A word with its times in seconds."""

    word: str
    start: float
    end: float


class VerboseTranscription(BaseModel):
    """The answer of `verbose_json`."""

    task: Literal["transcribe"] = "transcribe"
    language: str = Field(description="ISO 639-1 code; `und`: no speech")
    duration: float
    text: str
    segments: list[TranscribedSegment] | None = None
    words: list[TranscribedWord] | None = None
    usage: Duration


_TEXT = {"schema": {"type": "string"}}
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "model"],
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "At most 25 MiB and 1500 s"},
        "model": {"type": "string", "minLength": 1},
        "response_format": {"enum": list(FORMATS), "default": "json"},
        "timestamp_granularities[]": {"type": "array", "items": {"enum": list(GRANULARITIES)}},
        "language": {"type": "string", "description": "Without effect: the model tells the language"},
        "temperature": {"type": "number", "description": "Without effect"},
        "stream": {"enum": ["false"]},
    },
}


@router.post(
    "/v1/audio/transcriptions",
    response_model=Transcription | VerboseTranscription,
    responses={200: {"content": {"text/plain": _TEXT, "application/x-subrip": _TEXT, "text/vtt": _TEXT}}},
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def transcribe_sound(
    request: Request, who: Who, ask: Ask, served: Annotated[ServedModels, Depends(served_models)]
) -> Response:
    """Transcribe a sound, or the sound of a video. The file is removed before the answer."""
    uploads: Uploads = request.app.state.uploads
    storage = request.app.state.storage
    with request.app.state.sounds.hold(who.user_id):
        async with sounds.receiving(storage, uploads, who.user_id) as sound:
            body = stream_body(request, sounds.MAX_SOUND_BYTES + FORM_BYTES)
            fields = await read_form(request, body, "file", sound.write)
            if fields.get("model", [""])[-1]:
                await served.find(fields["model"][-1], "asr")
            wanted = read_options(fields)
            await sound.finish()
            heard = await sounds.transcribe(ask, who.user_id, sound)
    return answer(heard, wanted)


class Options(BaseModel):
    """What a form asks for."""

    model: str
    format: str
    granularities: tuple[str, ...]


def read_options(fields: dict[str, list[str]]) -> Options:
    """Check the fields of a form.

    Raises:
        InvalidParameter: one is missing, unknown or not acceptable.
    """
    left = dict(fields)
    asked = tuple(left.pop("timestamp_granularities[]", []) + left.pop("timestamp_granularities", []))
    given = {name: values[-1] for name, values in left.items()}
    model, format = given.pop("model", ""), given.pop("response_format", "json")
    if not model:
        raise InvalidParameter("model is missing: name one of GET /v1/models", "model")
    if format not in FORMATS:
        raise InvalidParameter(
            f"response_format={format[:60]!a} is not known: use one of {', '.join(FORMATS)}",
            "response_format",
        )
    for name in asked:
        if name not in GRANULARITIES:
            raise InvalidParameter(
                f"timestamp_granularities={name[:60]!a} is not known: use word or segment",
                "timestamp_granularities",
            )
    if asked and format != "verbose_json":
        raise InvalidParameter(
            f"timestamp_granularities needs response_format=verbose_json, not {format}: change one of them",
            "timestamp_granularities",
        )
    if given.pop("stream", "false").lower() != "false":
        raise InvalidParameter("stream=true is not supported: leave it out, the answer comes whole", "stream")
    if not _NUMBER.fullmatch(given.get("temperature", "0")):
        raise InvalidParameter("temperature is no number: leave it out, it has no effect", "temperature")
    for name, value in given.items():
        if name not in WITHOUT_EFFECT and value:
            raise InvalidParameter(f"the field {name[:60]!a} is not supported: leave it out", name[:60])
    return Options(model=model, format=format, granularities=asked or ("segment",))


def answer(heard: sounds.Heard, wanted: Options) -> Response:
    """A transcript in the form that was asked for."""
    if wanted.format == "text":
        return PlainTextResponse(heard.text + "\n")
    if wanted.format in ("srt", "vtt"):
        cues = make_cues([[segment.model_dump() for segment in heard.segments]])
        kind = "text/vtt" if wanted.format == "vtt" else "application/x-subrip"
        return Response(render(cues, "vtt" if wanted.format == "vtt" else "srt"), media_type=kind)
    usage = Duration(seconds=math.ceil(heard.duration_s))
    if wanted.format == "json":
        return JSONResponse(Transcription(text=heard.text, usage=usage).model_dump())
    words = itertools.chain.from_iterable(segment.words for segment in heard.segments)
    verbose = VerboseTranscription(
        language=heard.language or "und",
        duration=round(heard.duration_s, 3),
        text=heard.text,
        segments=[_segment(number, segment) for number, segment in enumerate(heard.segments)]
        if "segment" in wanted.granularities
        else None,
        words=[TranscribedWord(word=word.text.strip(), start=word.start_s, end=word.end_s) for word in words]
        if "word" in wanted.granularities
        else None,
        usage=usage,
    )
    return JSONResponse(verbose.model_dump(exclude_none=True))


def _segment(number: int, segment: Segment) -> TranscribedSegment:
    text = segment.text.encode("utf-8", "replace")
    logs = [math.log(max(word.probability, 1e-10)) for word in segment.words]
    return TranscribedSegment(
        id=number,
        seek=round(segment.start_s * 100),
        start=segment.start_s,
        end=segment.end_s,
        text=segment.text,
        avg_logprob=sum(logs) / len(logs) if logs else 0.0,
        # As Whisper computes it.
        compression_ratio=len(text) / len(zlib.compress(text)),
    )
