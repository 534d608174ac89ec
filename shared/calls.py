"""Every call of the fleet, described once: its task, the contract of its payload, its arguments and the contract of its answer.

``Client`` and ``AsyncClient`` (client.py) inherit the calls: the method of the first returns the answer, that of the second a
coroutine of it. The overloads of ``Asked`` say so to mypy and IDEs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from pydantic import BaseModel

from . import contracts, errors, routing
from .admission import Reservation
from .contracts import KeyView, PersonRef, PersonView, Receipt, VideoRef
from .contracts.base import Contract, SearchedKind, parse
from .keys import ApiKey, read_key
from .subtitles import SubtitleFormat

A = TypeVar("A", bound=BaseModel)
A_co = TypeVar("A_co", bound=BaseModel, covariant=True)
P = ParamSpec("P")


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request that is not sent yet."""

    task: str
    contract: type[Contract]
    kwargs: dict[str, Any]
    answer: type[A]
    #: False: done twice, it does more than once, or the second answer is an error.
    repeatable: bool = True
    #: Whose limit it counts for, if the payload names no user.
    user_id: str = ""

    def reservation(self, hold_s: float) -> Reservation:
        """Check the request, and return what reserves its place in the queue, for so long at most.

        Raises:
            InvalidRequest: it does not fit its contract.
        """
        parse(self.contract, self.kwargs)
        return Reservation.of(self.task, self.kwargs, hold_s, self.user_id)


class Asked(Protocol[P, A_co]):
    """A method of both clients, as type checkers see it."""

    @overload
    def __get__(self, client: BlockingCalls, owner: Any = None) -> Callable[P, A_co]: ...
    @overload
    def __get__(self, client: AsyncCalls, owner: Any = None) -> Callable[P, Coroutine[Any, Any, A_co]]: ...


def call(build: Callable[Concatenate[Any, P], Call[A]]) -> Asked[P, A]:
    """Make a method that asks for the call that ``build`` describes."""

    @wraps(build)
    def ask(self: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._ask(build(self, *args, **kwargs))

    return cast("Asked[P, A]", ask)


class Calls:
    """The calls. A subclass has ``_ask``, which sends a ``Call`` and returns its answer."""

    @call
    def process(self, video_id: str, user_id: str, storage_key: str, *, priority: int = 0) -> Call[Receipt]:
        """Process a stored video; call again until it returns a receipt."""
        kwargs = {**_video(video_id, user_id), "storage_key": storage_key, "priority": priority}
        return Call(routing.VIDEO_PROCESS, contracts.ProcessVideo, kwargs, Receipt)

    @call
    def status(self, video_id: str, user_id: str) -> Call[contracts.VideoStatus]:
        return Call(routing.VIDEO_STATUS, VideoRef, _video(video_id, user_id), contracts.VideoStatus)

    @call
    def videos(
        self,
        user_id: str,
        *,
        states: Sequence[contracts.ListedState] = (),
        after: str | None = None,
        limit: int = 50,
    ) -> Call[contracts.VideoPage]:
        """Return a page of the user's videos, newest first; ``states``: only those in one of these states."""
        kwargs = {"user_id": user_id, "states": list(states), "after": after, "limit": limit}
        return Call(routing.VIDEO_LIST, contracts.ListVideos, kwargs, contracts.VideoPage)

    @call
    def failures(
        self, user_id: str, *, video_id: str | None = None, after: int | None = None, limit: int = 100
    ) -> Call[contracts.FailurePage]:
        """Return a page of the jobs of the user's videos, or of one, that failed for good, newest first."""
        kwargs = {"user_id": user_id, "video_id": video_id, "after": after, "limit": limit}
        return Call(routing.VIDEO_FAILURES, contracts.ListFailures, kwargs, contracts.FailurePage)

    @call
    def changes(
        self, user_id: str, *, since: str | None = None, keys: Sequence[str] | None = None, limit: int = 200
    ) -> Call[contracts.VideoChanges]:
        """Return the user's videos, or what has changed of them since the ``as_of`` of an earlier answer."""
        kwargs = {
            "user_id": user_id, "since": since, "keys": None if keys is None else list(keys), "limit": limit
        }  # fmt: skip
        return Call(routing.VIDEO_CHANGES, contracts.WatchVideos, kwargs, contracts.VideoChanges)

    @call
    def upload(
        self, video_id: str, user_id: str, filename: str = "video", *, expires_s: int = 900
    ) -> Call[contracts.UploadSlot]:
        """Get the storage key for a video: PUT it to the answer's URL, or store it under the key, then ``process``."""
        kwargs = {**_video(video_id, user_id), "filename": filename, "expires_s": expires_s}
        return Call(routing.VIDEO_UPLOAD, contracts.UploadVideo, kwargs, contracts.UploadSlot)

    @call
    def scenes(
        self, video_id: str, user_id: str, *, after_idx: int = -1, limit: int = 200
    ) -> Call[contracts.ScenePage]:
        kwargs = {**_video(video_id, user_id), "after_idx": after_idx, "limit": limit}
        return Call(routing.VIDEO_SCENES, contracts.ListScenes, kwargs, contracts.ScenePage)

    @call
    def timeline(
        self, video_id: str, user_id: str, *, after_idx: int = -1, limit: int = 100
    ) -> Call[contracts.TimelinePage]:
        """Return a page of a video's published scenes as a player shows them: words, people and text with their times."""
        kwargs = {**_video(video_id, user_id), "after_idx": after_idx, "limit": limit}
        return Call(routing.VIDEO_TIMELINE, contracts.ShowTimeline, kwargs, contracts.TimelinePage)

    @call
    def media(self, video_id: str, user_id: str) -> Call[contracts.VideoMedia]:
        """Return which file of a video a browser plays, and where its sprites are."""
        return Call(routing.VIDEO_MEDIA, VideoRef, _video(video_id, user_id), contracts.VideoMedia)

    @call
    def subtitles(
        self, video_id: str, user_id: str, *, format: SubtitleFormat = "srt"
    ) -> Call[contracts.Subtitles]:
        """Return the transcript of a video as the content of a subtitle file."""
        kwargs = {**_video(video_id, user_id), "format": format}
        return Call(routing.VIDEO_SUBTITLES, contracts.MakeSubtitles, kwargs, contracts.Subtitles)

    @call
    def cancel(self, video_id: str, user_id: str) -> Call[Receipt]:
        return Call(routing.VIDEO_CANCEL, VideoRef, _video(video_id, user_id), Receipt)

    @call
    def retry(self, video_id: str, user_id: str) -> Call[Receipt]:
        return Call(routing.VIDEO_RETRY, VideoRef, _video(video_id, user_id), Receipt)

    @call
    def rerun(
        self, video_id: str, user_id: str, stages: Sequence[str] = (), *, missing: bool = False
    ) -> Call[Receipt]:
        """Process again. ``missing``: only stages that the published run lacks; not accepted if there are none."""
        kwargs = {**_video(video_id, user_id), "stages": list(stages), "missing": missing}
        return Call(routing.VIDEO_RERUN, contracts.RerunVideo, kwargs, Receipt, repeatable=False)

    @call
    def delete(self, video_id: str, user_id: str) -> Call[Receipt]:
        return Call(routing.VIDEO_DELETE, VideoRef, _video(video_id, user_id), Receipt)

    @call
    def search(
        self,
        /,
        user_id: str,
        query: str | None = None,
        *,
        mode: contracts.SearchMode = "hybrid",
        limit: int | None = None,
        video_id: str | None = None,
        **options: Any,
    ) -> Call[contracts.SearchAnswer]:
        """Return the user's matching published scenes, best first.

        ``options``: any other field of ``SearchScenes``, as JSON has it: ``like_scene``, ``image_key``, ``weights``,
        ``min_score``, ``cursor``, ``rerank``, ``persons``, ``video_ids``, ``from_s``, ``languages``, ...
        """
        kwargs = {"user_id": user_id, "query": query, "mode": mode, "limit": limit, "video_id": video_id}
        return Call(
            routing.SEARCH_SCENES, contracts.SearchScenes, {**kwargs, **options}, contracts.SearchAnswer
        )

    @call
    def create_person(self, user_id: str, name: str, *, person_id: str | None = None) -> Call[PersonView]:
        """Create a person, or return the existing one of this name or id."""
        kwargs = {"user_id": user_id, "name": name, "person_id": person_id}
        return Call(routing.PEOPLE_CREATE, contracts.CreatePerson, kwargs, PersonView)

    @call
    def people(
        self,
        user_id: str,
        *,
        kind: Literal["named", "unknown"] | None = None,
        after: str | None = None,
        limit: int = 200,
    ) -> Call[contracts.PeoplePage]:
        """Return a page of the user's people, by name."""
        kwargs = {"user_id": user_id, "kind": kind, "after": after, "limit": limit}
        return Call(routing.PEOPLE_LIST, contracts.ListPeople, kwargs, contracts.PeoplePage)

    @call
    def person(self, user_id: str, person_id: str) -> Call[PersonView]:
        """Return one person, also an erased one."""
        return Call(routing.PEOPLE_GET, PersonRef, _person(user_id, person_id), PersonView)

    @call
    def rename_person(self, user_id: str, person_id: str, name: str) -> Call[PersonView]:
        kwargs = {**_person(user_id, person_id), "name": name}
        return Call(routing.PEOPLE_RENAME, contracts.RenamePerson, kwargs, PersonView)

    @call
    def delete_person(self, user_id: str, person_id: str) -> Call[PersonView]:
        """Erase a person; ``person`` returns the receipt."""
        return Call(routing.PEOPLE_DELETE, PersonRef, _person(user_id, person_id), PersonView)

    @call
    def add_photo(
        self,
        user_id: str,
        person_id: str,
        *,
        extension: Literal["jpg", "jpeg", "png", "webp"] = "jpg",
        expires_s: int | None = None,
    ) -> Call[contracts.PhotoView]:
        """Reserve a photo upload: store it under the answer's key, or PUT it to its URL, then ``enroll``."""
        kwargs = {**_person(user_id, person_id), "extension": extension, "expires_s": expires_s}
        return Call(
            routing.PEOPLE_ADD_PHOTO, contracts.AddPhoto, kwargs, contracts.PhotoView, repeatable=False
        )

    @call
    def photos(self, user_id: str, person_id: str) -> Call[contracts.PhotoList]:
        return Call(routing.PEOPLE_PHOTOS, PersonRef, _person(user_id, person_id), contracts.PhotoList)

    @call
    def remove_photo(self, user_id: str, person_id: str, photo_id: str) -> Call[PersonView]:
        kwargs = {**_person(user_id, person_id), "photo_id": photo_id}
        return Call(routing.PEOPLE_REMOVE_PHOTO, contracts.PhotoRef, kwargs, PersonView, repeatable=False)

    @call
    def enroll(self, user_id: str, person_id: str) -> Call[PersonView]:
        """Check the new photos, then match all videos; ``person`` returns the progress."""
        return Call(
            routing.PEOPLE_ENROLL, PersonRef, _person(user_id, person_id), PersonView, repeatable=False
        )

    @call
    def cancel_enrolment(self, user_id: str, person_id: str) -> Call[PersonView]:
        return Call(
            routing.PEOPLE_CANCEL, PersonRef, _person(user_id, person_id), PersonView, repeatable=False
        )

    @call
    def faces(
        self, user_id: str, person_id: str, *, after: str | None = None, limit: int = 200
    ) -> Call[contracts.FacePage]:
        """Return a page of the tracks that show a person."""
        kwargs = {**_person(user_id, person_id), "after": after, "limit": limit}
        return Call(routing.PEOPLE_FACES, contracts.ListFaces, kwargs, contracts.FacePage)

    @call
    def judge_faces(
        self, user_id: str, person_id: str, track_ids: Sequence[str], *, is_person: bool
    ) -> Call[PersonView]:
        """Confirm or reject that faces are this person's; matching never overrides it."""
        kwargs = {**_person(user_id, person_id), "track_ids": list(track_ids), "is_person": is_person}
        return Call(routing.PEOPLE_JUDGE, contracts.JudgeFaces, kwargs, PersonView, repeatable=False)

    @call
    def merge_people(self, user_id: str, person_id: str, into: str) -> Call[PersonView]:
        """Merge two people and return the one that remains."""
        kwargs = {**_person(user_id, person_id), "into": into}
        return Call(routing.PEOPLE_MERGE, contracts.MergePeople, kwargs, PersonView, repeatable=False)

    @call
    def split_person(
        self, user_id: str, person_id: str, track_ids: Sequence[str], *, name: str | None = None
    ) -> Call[PersonView]:
        """Move some faces of a person to a new person and return it."""
        kwargs = {**_person(user_id, person_id), "track_ids": list(track_ids), "name": name}
        return Call(routing.PEOPLE_SPLIT, contracts.SplitPerson, kwargs, PersonView, repeatable=False)

    @call
    def people_events(
        self, user_id: str, *, before: int | None = None, limit: int = 100
    ) -> Call[contracts.EventList]:
        """Return the changes of the user's people, newest first."""
        kwargs = {"user_id": user_id, "before": before, "limit": limit}
        return Call(routing.PEOPLE_EVENTS, contracts.ListEvents, kwargs, contracts.EventList)

    @call
    def undo(self, user_id: str, event_id: int) -> Call[PersonView]:
        """Undo a change of people."""
        kwargs = {"user_id": user_id, "event_id": event_id}
        return Call(routing.PEOPLE_UNDO, contracts.UndoEvent, kwargs, PersonView, repeatable=False)

    @call
    def transcribe(
        self, user_id: str, storage_key: str, *, start_s: float = 0.0, end_s: float | None = None
    ) -> Call[contracts.TranscribedAudio]:
        """Transcribe at most a minute of a stored audio or video file, between two times in seconds."""
        kwargs = {"user_id": user_id, "storage_key": storage_key, "start_s": start_s, "end_s": end_s}
        return Call(routing.ASR_TRANSCRIBE, contracts.TranscribeAudio, kwargs, contracts.TranscribedAudio)

    @call
    def embed_texts(
        self, texts: Sequence[str], *, lexical: bool = False, model: str | None = None, user_id: str = ""
    ) -> Call[contracts.TextVectors]:
        """Embed texts for search by meaning; ``lexical``: also return lexical weights.

        ``model``: a model of the catalogue; default: the active one. ``user_id``: whose limit it counts for.
        """
        # Base64 costs both sides a tenth of JSON's numbers.
        kwargs = {"texts": list(texts), "lexical": lexical, "model": model, "encoding": "base64"}
        return Call(
            routing.TEXT_EMBED, contracts.EncodeTexts, kwargs, contracts.UnpackedVectors, user_id=user_id
        )

    @call
    def rerank(
        self, query: str, documents: Sequence[str], *, user_id: str = ""
    ) -> Call[contracts.RerankScores]:
        """Score how well each document answers the query. The first call of a node loads the model, up to a minute."""
        kwargs = {"query": query, "documents": list(documents)}
        return Call(
            routing.TEXT_RERANK, contracts.RerankDocuments, kwargs, contracts.RerankScores, user_id=user_id
        )

    @call
    def embed_vision_texts(
        self, texts: Sequence[str], *, model: str | None = None, user_id: str = ""
    ) -> Call[contracts.TextVectors]:
        """Embed short texts in the space of pictures, for visual search."""
        kwargs = {"texts": list(texts), "model": model}
        return Call(
            routing.VISION_EMBED_TEXTS, contracts.EmbedTexts, kwargs, contracts.TextVectors, user_id=user_id
        )

    @call
    def embed_images(
        self, user_id: str, storage_keys: Sequence[str], *, model: str | None = None
    ) -> Call[contracts.ImageVectors]:
        """Embed at most 16 stored pictures or keyframes of the user."""
        kwargs = {"user_id": user_id, "storage_keys": list(storage_keys), "model": model}
        return Call(routing.VISION_EMBED_IMAGES, contracts.EmbedImages, kwargs, contracts.ImageVectors)

    @call
    def detect_faces(
        self, user_id: str, storage_keys: Sequence[str], *, vectors: bool = False
    ) -> Call[contracts.DetectedFaces]:
        """Find faces in at most 16 stored pictures of the user."""
        kwargs = {"user_id": user_id, "storage_keys": list(storage_keys), "vectors": vectors}
        return Call(routing.FACE_DETECT, contracts.DetectFaces, kwargs, contracts.DetectedFaces)

    @call
    def models(self, kind: SearchedKind) -> Call[contracts.ModelsState]:
        """Return the active model of a kind, and the progress of an open switch."""
        return Call(routing.MODELS_STATE, contracts.ModelKind, {"kind": kind}, contracts.ModelsState)

    @call
    def switch_model(
        self, kind: SearchedKind, to: str, *, dry_run: bool = False
    ) -> Call[contracts.ModelsState]:
        """Start a switch to another model; ``models`` returns its progress, ``activate_model`` completes it."""
        kwargs = {"kind": kind, "to": to, "dry_run": dry_run}
        return Call(
            routing.MODELS_SWITCH, contracts.SwitchModel, kwargs, contracts.ModelsState, repeatable=False
        )

    @call
    def model_samples(
        self, kind: SearchedKind, user_id: str, count: int = 20
    ) -> Call[contracts.ModelSamples]:
        """Return some scenes of the user to test a model with."""
        kwargs = {"kind": kind, "user_id": user_id, "count": count}
        return Call(routing.MODELS_SAMPLES, contracts.SampleScenes, kwargs, contracts.ModelSamples)

    @call
    def retry_switch(self, kind: SearchedKind) -> Call[contracts.ModelsState]:
        """Run the failed jobs of a switch again."""
        return Call(
            routing.MODELS_RETRY, contracts.ModelKind, {"kind": kind}, contracts.ModelsState, repeatable=False
        )

    @call
    def activate_model(self, kind: SearchedKind) -> Call[contracts.ModelsState]:
        """Activate the new model of a switch."""
        return Call(
            routing.MODELS_ACTIVATE,
            contracts.ModelKind,
            {"kind": kind},
            contracts.ModelsState,
            repeatable=False,
        )

    @call
    def rollback_model(self, kind: SearchedKind) -> Call[contracts.ModelsState]:
        """Activate the old model again."""
        return Call(
            routing.MODELS_ROLLBACK,
            contracts.ModelKind,
            {"kind": kind},
            contracts.ModelsState,
            repeatable=False,
        )

    @call
    def discard_model(self, kind: SearchedKind, *, now: bool = False) -> Call[contracts.ModelsState]:
        """Delete the vectors of the model that is not active, which ends the switch."""
        return Call(
            routing.MODELS_DISCARD,
            contracts.DiscardModel,
            {"kind": kind, "now": now},
            contracts.ModelsState,
            repeatable=False,
        )

    @call
    def fleet(self) -> Call[contracts.FleetState]:
        """Return the nodes, queues, failures and switches of the whole fleet."""
        return Call(routing.FLEET_STATE, contracts.FleetQuery, {}, contracts.FleetState)

    @call
    def retry_failures(self, error_class: str) -> Call[contracts.Retried]:
        """Run the failed jobs of every user's videos again that failed with this class of error."""
        kwargs = {"error_class": error_class}
        return Call(routing.FLEET_RETRY, contracts.RetryFailures, kwargs, contracts.Retried, repeatable=False)

    @call
    def store_key(
        self, key: ApiKey, user_id: str, *, operator: bool = False, name: str = ""
    ) -> Call[KeyView]:
        """Store an API key of ``make_key`` for a user: its id and the hash of its secret."""
        kwargs = {
            "key_id": key.key_id,
            "secret_sha256": key.secret_sha256,
            "user_id": user_id,
            "operator": operator,
            "name": name,
        }
        return Call(routing.KEYS_CREATE, contracts.CreateKey, kwargs, KeyView, repeatable=False)

    @call
    def keys(self, user_id: str | None = None) -> Call[contracts.KeyList]:
        """Return the newest keys of a user, or of every user, also ended ones."""
        return Call(routing.KEYS_LIST, contracts.ListKeys, {"user_id": user_id}, contracts.KeyList)

    @call
    def end_key(self, key_id: str) -> Call[KeyView]:
        """Refuse a key from now on. An API process that has just checked it accepts it for up to 30 s."""
        return Call(routing.KEYS_END, contracts.EndKey, {"key_id": key_id}, KeyView)

    @call
    def check_key(self, text: str) -> Call[KeyView]:
        """Return whose API key this is; raises ``errors.NotFound`` if it is not valid."""
        key = read_key(text)
        if key is None:
            raise errors.NotFound("the API key is not valid: it is mistyped")
        kwargs = {"key_id": key.key_id, "secret_sha256": key.secret_sha256}
        return Call(routing.KEYS_CHECK, contracts.CheckKey, kwargs, KeyView)

    @call
    def create_webhook(
        self, user_id: str, url: str, *, events: Sequence[str] = (), secret: str | None = None
    ) -> Call[contracts.WebhookView]:
        """Create a webhook, or change the one of this URL; only this answer has its secret. ``events``: empty: all."""
        kwargs = {"user_id": user_id, "url": url, "events": list(events), "secret": secret}
        return Call(routing.WEBHOOKS_CREATE, contracts.CreateWebhook, kwargs, contracts.WebhookView)

    @call
    def webhooks(self, user_id: str) -> Call[contracts.WebhookList]:
        """Return the user's webhooks, without their secrets."""
        kwargs = {"user_id": user_id}
        return Call(routing.WEBHOOKS_LIST, contracts.ListWebhooks, kwargs, contracts.WebhookList)

    @call
    def delete_webhook(self, user_id: str, webhook_id: str) -> Call[contracts.DeletedWebhook]:
        """Delete a webhook and its deliveries."""
        kwargs = {"user_id": user_id, "webhook_id": webhook_id}
        return Call(
            routing.WEBHOOKS_DELETE, contracts.WebhookRef, kwargs, contracts.DeletedWebhook, repeatable=False
        )

    @call
    def webhook_deliveries(
        self,
        user_id: str,
        *,
        webhook_id: str | None = None,
        state: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> Call[contracts.DeliveryPage]:
        """Return a page of deliveries, newest first."""
        kwargs = {
            "user_id": user_id, "webhook_id": webhook_id, "state": state, "before": before, "limit": limit
        }  # fmt: skip
        return Call(routing.WEBHOOKS_DELIVERIES, contracts.ListDeliveries, kwargs, contracts.DeliveryPage)

    @call
    def resend_delivery(self, user_id: str, delivery_id: int) -> Call[contracts.DeliveryView]:
        """Send an event again, with the same id."""
        kwargs = {"user_id": user_id, "delivery_id": delivery_id}
        return Call(
            routing.WEBHOOKS_RESEND,
            contracts.ResendDelivery,
            kwargs,
            contracts.DeliveryView,
            repeatable=False,
        )


class BlockingCalls(Calls):
    """Calls that return their answer."""


class AsyncCalls(Calls):
    """Calls that return a coroutine of their answer."""


def _video(video_id: str, user_id: str) -> dict[str, Any]:
    return {"video_id": video_id, "user_id": user_id}


def _person(user_id: str, person_id: str) -> dict[str, Any]:
    return {"user_id": user_id, "person_id": person_id}
