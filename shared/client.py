"""The typed client: what an API process calls. Loads neither an ML engine nor SQLAlchemy.

Without scenefleet installed, send the same tasks by name::

    Celery(broker=REDIS_URL, backend=REDIS_URL).send_task(
        "tasks.video.process", queue="search",
        kwargs={"video_id": "v1", "user_id": "u1", "storage_key": "uploads/u1/v1/film.mp4"})
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from celery import Celery
from celery.states import EXCEPTION_STATES, READY_STATES
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from redis.exceptions import RedisError

from . import contracts, errors, routing
from .broker import HidingAMQP, broker_config
from .contracts import KeyView, PersonRef, PersonView, Receipt, VideoRef
from .contracts.base import Contract, SearchedKind, parse
from .keys import make_key, read_key
from .subtitles import SubtitleFormat

R = TypeVar("R", bound=BaseModel)


class Client:
    """Sends requests to one fleet; safe to share between threads.

    Every call raises ``BrokerUnavailable`` if Redis is unavailable, ``errors.Outage`` if no answer arrived within
    ``timeout_s`` (sending again is harmless), or the error class of the fleet's answer.
    """

    def __init__(self, redis_url: str, *, timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self._app = Celery("scenefleet-client", amqp=HidingAMQP, set_as_current=False)
        self._app.conf.update(broker_config(redis_url))
        self._app.backend.on_task_call = _not_subscribed

    def process(self, video_id: str, user_id: str, storage_key: str, *, priority: int = 0) -> Receipt:
        """Process a stored video; call again until it returns a receipt."""
        kwargs = {**_video(video_id, user_id), "storage_key": storage_key, "priority": priority}
        return self._ask(routing.VIDEO_PROCESS, contracts.ProcessVideo, kwargs, Receipt)

    def status(self, video_id: str, user_id: str) -> contracts.VideoStatus:
        return self._ask(routing.VIDEO_STATUS, VideoRef, _video(video_id, user_id), contracts.VideoStatus)

    def videos(
        self,
        user_id: str,
        *,
        states: Sequence[contracts.ListedState] = (),
        after: str | None = None,
        limit: int = 50,
    ) -> contracts.VideoPage:
        """Return a page of the user's videos, newest first; ``states``: only those in one of these states."""
        kwargs = {"user_id": user_id, "states": list(states), "after": after, "limit": limit}
        return self._ask(routing.VIDEO_LIST, contracts.ListVideos, kwargs, contracts.VideoPage)

    def failures(
        self, user_id: str, *, video_id: str | None = None, after: int | None = None, limit: int = 100
    ) -> contracts.FailurePage:
        """Return a page of the jobs of the user's videos, or of one, that failed for good, newest first."""
        kwargs = {"user_id": user_id, "video_id": video_id, "after": after, "limit": limit}
        return self._ask(routing.VIDEO_FAILURES, contracts.ListFailures, kwargs, contracts.FailurePage)

    def changes(
        self, user_id: str, *, since: str | None = None, keys: Sequence[str] | None = None, limit: int = 200
    ) -> contracts.VideoChanges:
        """Return the user's videos, or what has changed of them since the ``as_of`` of an earlier answer."""
        kwargs = {
            "user_id": user_id, "since": since, "keys": None if keys is None else list(keys), "limit": limit
        }  # fmt: skip
        return self._ask(routing.VIDEO_CHANGES, contracts.WatchVideos, kwargs, contracts.VideoChanges)

    def upload(
        self, video_id: str, user_id: str, filename: str = "video", *, expires_s: int = 900
    ) -> contracts.UploadSlot:
        """Get the storage key for a video: PUT it to the answer's URL, or store it under the key, then ``process``."""
        kwargs = {**_video(video_id, user_id), "filename": filename, "expires_s": expires_s}
        return self._ask(routing.VIDEO_UPLOAD, contracts.UploadVideo, kwargs, contracts.UploadSlot)

    def scenes(
        self, video_id: str, user_id: str, *, after_idx: int = -1, limit: int = 200
    ) -> contracts.ScenePage:
        kwargs = {**_video(video_id, user_id), "after_idx": after_idx, "limit": limit}
        return self._ask(routing.VIDEO_SCENES, contracts.ListScenes, kwargs, contracts.ScenePage)

    def timeline(
        self, video_id: str, user_id: str, *, after_idx: int = -1, limit: int = 100
    ) -> contracts.TimelinePage:
        """Return a page of a video's published scenes as a player shows them: words, people and text with their times."""
        kwargs = {**_video(video_id, user_id), "after_idx": after_idx, "limit": limit}
        return self._ask(routing.VIDEO_TIMELINE, contracts.ShowTimeline, kwargs, contracts.TimelinePage)

    def media(self, video_id: str, user_id: str) -> contracts.VideoMedia:
        """Return which file of a video a browser plays, and where its sprites are."""
        return self._ask(routing.VIDEO_MEDIA, VideoRef, _video(video_id, user_id), contracts.VideoMedia)

    def subtitles(
        self, video_id: str, user_id: str, *, format: SubtitleFormat = "srt"
    ) -> contracts.Subtitles:
        """Return the transcript of a video as the content of a subtitle file."""
        kwargs = {**_video(video_id, user_id), "format": format}
        return self._ask(routing.VIDEO_SUBTITLES, contracts.MakeSubtitles, kwargs, contracts.Subtitles)

    def cancel(self, video_id: str, user_id: str) -> Receipt:
        return self._ask(routing.VIDEO_CANCEL, VideoRef, _video(video_id, user_id), Receipt)

    def retry(self, video_id: str, user_id: str) -> Receipt:
        return self._ask(routing.VIDEO_RETRY, VideoRef, _video(video_id, user_id), Receipt)

    def rerun(
        self, video_id: str, user_id: str, stages: Sequence[str] = (), *, missing: bool = False
    ) -> Receipt:
        """Process again. ``missing``: only stages that the published run lacks; not accepted if there are none."""
        kwargs = {**_video(video_id, user_id), "stages": list(stages), "missing": missing}
        return self._ask(routing.VIDEO_RERUN, contracts.RerunVideo, kwargs, Receipt)

    def delete(self, video_id: str, user_id: str) -> Receipt:
        return self._ask(routing.VIDEO_DELETE, VideoRef, _video(video_id, user_id), Receipt)

    def search(
        self,
        user_id: str,
        query: str | None = None,
        *,
        mode: contracts.SearchMode = "hybrid",
        limit: int | None = None,
        video_id: str | None = None,
        **options: Any,
    ) -> contracts.SearchAnswer:
        """Return the user's matching published scenes, best first.

        ``options``: any other field of ``SearchScenes``, as JSON has it: ``like_scene``, ``image_key``, ``weights``,
        ``min_score``, ``cursor``, ``rerank``, ``persons``, ``video_ids``, ``from_s``, ``languages``, ...
        """
        kwargs = {"user_id": user_id, "query": query, "mode": mode, "limit": limit, "video_id": video_id}
        return self._ask(
            routing.SEARCH_SCENES, contracts.SearchScenes, {**kwargs, **options}, contracts.SearchAnswer
        )

    def create_person(self, user_id: str, name: str, *, person_id: str | None = None) -> PersonView:
        """Create a person, or return the existing one of this name or id."""
        kwargs = {"user_id": user_id, "name": name, "person_id": person_id}
        return self._ask(routing.PEOPLE_CREATE, contracts.CreatePerson, kwargs, PersonView)

    def people(
        self,
        user_id: str,
        *,
        kind: Literal["named", "unknown"] | None = None,
        after: str | None = None,
        limit: int = 200,
    ) -> contracts.PeoplePage:
        """Return a page of the user's people, by name."""
        kwargs = {"user_id": user_id, "kind": kind, "after": after, "limit": limit}
        return self._ask(routing.PEOPLE_LIST, contracts.ListPeople, kwargs, contracts.PeoplePage)

    def person(self, user_id: str, person_id: str) -> PersonView:
        """Return one person, also an erased one."""
        return self._ask(routing.PEOPLE_GET, PersonRef, _person(user_id, person_id), PersonView)

    def rename_person(self, user_id: str, person_id: str, name: str) -> PersonView:
        kwargs = {**_person(user_id, person_id), "name": name}
        return self._ask(routing.PEOPLE_RENAME, contracts.RenamePerson, kwargs, PersonView)

    def delete_person(self, user_id: str, person_id: str) -> PersonView:
        """Erase a person; ``person`` returns the receipt."""
        return self._ask(routing.PEOPLE_DELETE, PersonRef, _person(user_id, person_id), PersonView)

    def add_photo(
        self,
        user_id: str,
        person_id: str,
        *,
        extension: Literal["jpg", "jpeg", "png", "webp"] = "jpg",
        expires_s: int | None = None,
    ) -> contracts.PhotoView:
        """Reserve a photo upload: store it under the answer's key, or PUT it to its URL, then ``enroll``."""
        kwargs = {**_person(user_id, person_id), "extension": extension, "expires_s": expires_s}
        return self._ask(routing.PEOPLE_ADD_PHOTO, contracts.AddPhoto, kwargs, contracts.PhotoView)

    def photos(self, user_id: str, person_id: str) -> contracts.PhotoList:
        return self._ask(routing.PEOPLE_PHOTOS, PersonRef, _person(user_id, person_id), contracts.PhotoList)

    def remove_photo(self, user_id: str, person_id: str, photo_id: str) -> PersonView:
        kwargs = {**_person(user_id, person_id), "photo_id": photo_id}
        return self._ask(routing.PEOPLE_REMOVE_PHOTO, contracts.PhotoRef, kwargs, PersonView)

    def enroll(self, user_id: str, person_id: str) -> PersonView:
        """Check the new photos, then match all videos; ``person`` returns the progress."""
        return self._ask(routing.PEOPLE_ENROLL, PersonRef, _person(user_id, person_id), PersonView)

    def cancel_enrolment(self, user_id: str, person_id: str) -> PersonView:
        return self._ask(routing.PEOPLE_CANCEL, PersonRef, _person(user_id, person_id), PersonView)

    def faces(
        self, user_id: str, person_id: str, *, after: str | None = None, limit: int = 200
    ) -> contracts.FacePage:
        """Return a page of the tracks that show a person."""
        kwargs = {**_person(user_id, person_id), "after": after, "limit": limit}
        return self._ask(routing.PEOPLE_FACES, contracts.ListFaces, kwargs, contracts.FacePage)

    def judge_faces(
        self, user_id: str, person_id: str, track_ids: Sequence[str], *, is_person: bool
    ) -> PersonView:
        """Confirm or reject that faces are this person's; matching never overrides it."""
        kwargs = {**_person(user_id, person_id), "track_ids": list(track_ids), "is_person": is_person}
        return self._ask(routing.PEOPLE_JUDGE, contracts.JudgeFaces, kwargs, PersonView)

    def merge_people(self, user_id: str, person_id: str, into: str) -> PersonView:
        """Merge two people and return the one that remains."""
        kwargs = {**_person(user_id, person_id), "into": into}
        return self._ask(routing.PEOPLE_MERGE, contracts.MergePeople, kwargs, PersonView)

    def split_person(
        self, user_id: str, person_id: str, track_ids: Sequence[str], *, name: str | None = None
    ) -> PersonView:
        """Move some faces of a person to a new person and return it."""
        kwargs = {**_person(user_id, person_id), "track_ids": list(track_ids), "name": name}
        return self._ask(routing.PEOPLE_SPLIT, contracts.SplitPerson, kwargs, PersonView)

    def people_events(
        self, user_id: str, *, before: int | None = None, limit: int = 100
    ) -> contracts.EventList:
        """Return the changes of the user's people, newest first."""
        kwargs = {"user_id": user_id, "before": before, "limit": limit}
        return self._ask(routing.PEOPLE_EVENTS, contracts.ListEvents, kwargs, contracts.EventList)

    def undo(self, user_id: str, event_id: int) -> PersonView:
        """Undo a change of people."""
        kwargs = {"user_id": user_id, "event_id": event_id}
        return self._ask(routing.PEOPLE_UNDO, contracts.UndoEvent, kwargs, PersonView)

    def transcribe(
        self, user_id: str, storage_key: str, *, start_s: float = 0.0, end_s: float | None = None
    ) -> contracts.TranscribedAudio:
        """Transcribe at most a minute of a stored audio or video file, between two times in seconds."""
        kwargs = {"user_id": user_id, "storage_key": storage_key, "start_s": start_s, "end_s": end_s}
        return self._ask(
            routing.ASR_TRANSCRIBE, contracts.TranscribeAudio, kwargs, contracts.TranscribedAudio
        )

    def embed_texts(
        self, texts: Sequence[str], *, lexical: bool = False, model: str | None = None
    ) -> contracts.TextVectors:
        """Embed texts for search by meaning; ``lexical``: also return lexical weights.

        ``model``: a model of the catalogue; default: the active one.
        """
        kwargs = {"texts": list(texts), "lexical": lexical, "model": model}
        return self._ask(routing.TEXT_EMBED, contracts.EncodeTexts, kwargs, contracts.TextVectors)

    def rerank(self, query: str, documents: Sequence[str]) -> contracts.RerankScores:
        """Score how well each document answers the query. The first call of a node loads the model, up to a minute."""
        kwargs = {"query": query, "documents": list(documents)}
        return self._ask(routing.TEXT_RERANK, contracts.RerankDocuments, kwargs, contracts.RerankScores)

    def embed_vision_texts(self, texts: Sequence[str], *, model: str | None = None) -> contracts.TextVectors:
        """Embed short texts in the space of pictures, for visual search."""
        kwargs = {"texts": list(texts), "model": model}
        return self._ask(routing.VISION_EMBED_TEXTS, contracts.EmbedTexts, kwargs, contracts.TextVectors)

    def embed_images(
        self, user_id: str, storage_keys: Sequence[str], *, model: str | None = None
    ) -> contracts.ImageVectors:
        """Embed at most 16 stored pictures or keyframes of the user."""
        kwargs = {"user_id": user_id, "storage_keys": list(storage_keys), "model": model}
        return self._ask(routing.VISION_EMBED_IMAGES, contracts.EmbedImages, kwargs, contracts.ImageVectors)

    def detect_faces(
        self, user_id: str, storage_keys: Sequence[str], *, vectors: bool = False
    ) -> contracts.DetectedFaces:
        """Find faces in at most 16 stored pictures of the user."""
        kwargs = {"user_id": user_id, "storage_keys": list(storage_keys), "vectors": vectors}
        return self._ask(routing.FACE_DETECT, contracts.DetectFaces, kwargs, contracts.DetectedFaces)

    def models(self, kind: SearchedKind) -> contracts.ModelsState:
        """Return the active model of a kind, and the progress of an open switch."""
        return self._ask(routing.MODELS_STATE, contracts.ModelKind, {"kind": kind}, contracts.ModelsState)

    def switch_model(self, kind: SearchedKind, to: str, *, dry_run: bool = False) -> contracts.ModelsState:
        """Start a switch to another model; ``models`` returns its progress, ``activate_model`` completes it."""
        kwargs = {"kind": kind, "to": to, "dry_run": dry_run}
        return self._ask(routing.MODELS_SWITCH, contracts.SwitchModel, kwargs, contracts.ModelsState)

    def model_samples(self, kind: SearchedKind, user_id: str, count: int = 20) -> contracts.ModelSamples:
        """Return some scenes of the user to test a model with."""
        kwargs = {"kind": kind, "user_id": user_id, "count": count}
        return self._ask(routing.MODELS_SAMPLES, contracts.SampleScenes, kwargs, contracts.ModelSamples)

    def retry_switch(self, kind: SearchedKind) -> contracts.ModelsState:
        """Run the failed jobs of a switch again."""
        return self._ask(routing.MODELS_RETRY, contracts.ModelKind, {"kind": kind}, contracts.ModelsState)

    def activate_model(self, kind: SearchedKind) -> contracts.ModelsState:
        """Activate the new model of a switch."""
        return self._ask(routing.MODELS_ACTIVATE, contracts.ModelKind, {"kind": kind}, contracts.ModelsState)

    def rollback_model(self, kind: SearchedKind) -> contracts.ModelsState:
        """Activate the old model again."""
        return self._ask(routing.MODELS_ROLLBACK, contracts.ModelKind, {"kind": kind}, contracts.ModelsState)

    def discard_model(self, kind: SearchedKind, *, now: bool = False) -> contracts.ModelsState:
        """Delete the vectors of the model that is not active, which ends the switch."""
        return self._ask(
            routing.MODELS_DISCARD, contracts.DiscardModel, {"kind": kind, "now": now}, contracts.ModelsState
        )

    def fleet(self) -> contracts.FleetState:
        """Return the nodes, queues, failures and switches of the whole fleet."""
        return self._ask(routing.FLEET_STATE, contracts.FleetQuery, {}, contracts.FleetState)

    def retry_failures(self, error_class: str) -> contracts.Retried:
        """Run the failed jobs of every user's videos again that failed with this class of error."""
        kwargs = {"error_class": error_class}
        return self._ask(routing.FLEET_RETRY, contracts.RetryFailures, kwargs, contracts.Retried)

    def create_key(self, user_id: str, *, operator: bool = False, name: str = "") -> tuple[str, KeyView]:
        """Make an API key for a user. Returns its text, which is shown only here, and what is stored of it."""
        key = make_key()
        kwargs = {
            "key_id": key.key_id,
            "secret_sha256": key.secret_sha256,
            "user_id": user_id,
            "operator": operator,
            "name": name,
        }
        return key.text, self._ask(routing.KEYS_CREATE, contracts.CreateKey, kwargs, KeyView)

    def keys(self, user_id: str | None = None) -> contracts.KeyList:
        """Return the newest keys of a user, or of every user, also ended ones."""
        return self._ask(routing.KEYS_LIST, contracts.ListKeys, {"user_id": user_id}, contracts.KeyList)

    def end_key(self, key_id: str) -> KeyView:
        """Refuse a key from now on. An API process that has just checked it accepts it for up to 30 s."""
        return self._ask(routing.KEYS_END, contracts.EndKey, {"key_id": key_id}, KeyView)

    def check_key(self, text: str) -> KeyView:
        """Return whose API key this is; raises ``errors.NotFound`` if it is not valid."""
        key = read_key(text)
        if key is None:
            raise errors.NotFound("the API key is not valid: it is mistyped")
        kwargs = {"key_id": key.key_id, "secret_sha256": key.secret_sha256}
        return self._ask(routing.KEYS_CHECK, contracts.CheckKey, kwargs, KeyView)

    def create_webhook(
        self, user_id: str, url: str, *, events: Sequence[str] = (), secret: str | None = None
    ) -> contracts.WebhookView:
        """Create a webhook, or change the one of this URL; only this answer has its secret. ``events``: empty: all."""
        kwargs = {"user_id": user_id, "url": url, "events": list(events), "secret": secret}
        return self._ask(routing.WEBHOOKS_CREATE, contracts.CreateWebhook, kwargs, contracts.WebhookView)

    def webhooks(self, user_id: str) -> contracts.WebhookList:
        """Return the user's webhooks, without their secrets."""
        kwargs = {"user_id": user_id}
        return self._ask(routing.WEBHOOKS_LIST, contracts.ListWebhooks, kwargs, contracts.WebhookList)

    def delete_webhook(self, user_id: str, webhook_id: str) -> contracts.DeletedWebhook:
        """Delete a webhook and its deliveries."""
        kwargs = {"user_id": user_id, "webhook_id": webhook_id}
        return self._ask(routing.WEBHOOKS_DELETE, contracts.WebhookRef, kwargs, contracts.DeletedWebhook)

    def webhook_deliveries(
        self,
        user_id: str,
        *,
        webhook_id: str | None = None,
        state: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> contracts.DeliveryPage:
        """Return a page of deliveries, newest first."""
        kwargs = {
            "user_id": user_id, "webhook_id": webhook_id, "state": state, "before": before, "limit": limit
        }  # fmt: skip
        return self._ask(
            routing.WEBHOOKS_DELIVERIES, contracts.ListDeliveries, kwargs, contracts.DeliveryPage
        )

    def resend_delivery(self, user_id: str, delivery_id: int) -> contracts.DeliveryView:
        """Send an event again, with the same id."""
        kwargs = {"user_id": user_id, "delivery_id": delivery_id}
        return self._ask(routing.WEBHOOKS_RESEND, contracts.ResendDelivery, kwargs, contracts.DeliveryView)

    def send(
        self, task: str, contract: type[Contract], kwargs: dict[str, Any], *, task_id: str | None = None
    ) -> str:
        """Check a request and send it; return the id under which its answer is stored.

        ``task_id``: the id to use, so that a caller can look out for the answer before it sends.
        """
        parse(contract, kwargs)
        with _broker_errors():
            result = self._app.send_task(
                task,
                kwargs=kwargs,
                queue=routing.TASK_QUEUE[task],
                expires=self.timeout_s,
                retry=False,
                **({"task_id": task_id} if task_id else {}),
            )
        # Nothing to unsubscribe when the handle is collected, possibly after Redis has stopped.
        result.backend = None
        return str(result.id)

    def answer_key(self, task_id: str) -> str:
        """The Redis key that will hold the answer; also the channel on which it is published."""
        key: bytes = self._app.backend.get_key_for_task(task_id)
        return key.decode()

    def decode(self, stored: bytes, answer: type[R]) -> R | None:
        """Read what is stored under ``answer_key``; None: the task has not ended. Raises the error of the answer."""
        meta: dict[str, Any] = self._app.backend.decode_result(stored)
        return _read(meta, answer) if meta["status"] in READY_STATES else None

    def no_answer(self, task: str) -> errors.Outage:
        """The error for an answer that did not come in time."""
        node = routing.TASK_QUEUE[task].partition(".")[0]
        return errors.Outage(
            f"no answer to {task} in {self.timeout_s:g} s: is a `{node}` node running? Sending again is harmless"
        )

    def _ask(self, task: str, contract: type[Contract], kwargs: dict[str, Any], answer: type[R]) -> R:
        task_id = self.send(task, contract, kwargs)
        with _broker_errors():
            meta = self._wait(task_id, task)
        return _read(meta, answer)

    def _wait(self, task_id: str, task: str) -> dict[str, Any]:
        """Poll for the answer: Celery's subscription for results can't be shared between threads."""
        deadline = time.monotonic() + self.timeout_s
        pause_s = 0.002
        while True:
            meta: dict[str, Any] = self._app.backend.get_task_meta(task_id)
            if meta["status"] in READY_STATES:
                self._app.backend.forget(task_id)
                return meta
            if time.monotonic() > deadline:
                raise self.no_answer(task)
            time.sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)


def _video(video_id: str, user_id: str) -> dict[str, Any]:
    return {"video_id": video_id, "user_id": user_id}


def _person(user_id: str, person_id: str) -> dict[str, Any]:
    return {"user_id": user_id, "person_id": person_id}


def _not_subscribed(producer: Any, task_id: str) -> None:
    """Answers are polled, not subscribed to."""


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        raise errors.BrokerUnavailable(
            f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
        ) from error


def _read(meta: Mapping[str, Any], answer: type[R]) -> R:
    """The answer of a task that has ended; raises the error it has ended with."""
    if meta["status"] in EXCEPTION_STATES:
        raise _known(meta["result"])
    return answer.model_validate(meta["result"], strict=False)


def _known(error: object) -> Exception:
    """Return the scenefleet error for an error rebuilt by the result backend."""
    kind = getattr(errors, type(error).__name__, None)
    if isinstance(kind, type) and issubclass(kind, errors.ScenefleetError):
        return kind(str(error))
    return error if isinstance(error, Exception) else errors.Retryable(f"the fleet answered with {error!r}")
