"""What a fleet has made of its videos, in a form two runs can be compared in, and what must never be left behind.

Two runs of the same videos differ in three things only: when they ran (``created_at``), the numbers of jobs, attempts and
sidecar revisions inside storage keys, which exist so that no two attempts ever write the same key, and who of the
strangers is "unknown 1": they are numbered in the order in which the videos end. Exactly these are taken out;
everything else is compared byte by byte, vectors by their cosine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.fleet import Fleet

#: ``/{job_id}.{attempt}/`` in the keys of keyframes and of temporary objects.
_ATTEMPT = re.compile(r"/\d+\.\d+/")
#: ``.r{revision}.json`` at the end of a sidecar's key.
_REVISION = re.compile(r"\.r\d+\.json$")
LEAST_COSINE = 0.9999


@dataclass
class Results:
    """Everything made of the videos, keys made neutral."""

    #: video -> (state, scenes): idx, id, times, kind, words, keyframes, language.
    videos: dict[str, Any] = field(default_factory=dict)
    #: face id -> scene, keyframe, box, landmarks, score.
    faces: dict[str, Any] = field(default_factory=dict)
    #: neutral key -> bytes, of sidecars (``created_at`` taken out) and keyframes.
    objects: dict[str, bytes] = field(default_factory=dict)
    #: (what, scene or face id, model) -> vector.
    vectors: dict[tuple[str, str, str], npt.NDArray[np.float64]] = field(default_factory=dict)


def neutral(key: str) -> str:
    """A storage key without the numbers of job, attempt and revision."""
    return _REVISION.sub(".rN.json", _ATTEMPT.sub("/J.A/", key))


def collect(fleet: Fleet) -> Results:
    """Read all results from Postgres and the storage."""
    found = Results()
    for video in fleet.rows("SELECT video_id, external_id, state, published_run, duration_s FROM videos"):
        scenes = fleet.rows(
            "SELECT idx, scene_id::text, start_s, end_s, kind, live, transcript, segments, language, keyframes,"
            " sidecar_key FROM scenes WHERE video_id = %s ORDER BY idx",
            video.pop("video_id"),
        )
        for scene in scenes:
            scene["sidecar_key"] = neutral(scene["sidecar_key"] or "")
            scene["keyframes"] = [{**shown, "key": neutral(shown["key"])} for shown in scene["keyframes"]]
        found.videos[video.pop("external_id")] = {**video, "scenes": scenes}
    for face in fleet.rows(
        "SELECT face_id::text, scene_id::text, ordinal, ts_s, box, landmarks, det_score, name AS model,"
        " vec::text FROM faces JOIN models USING (model_id)"
    ):
        found.vectors["face", face["face_id"], face["model"]] = _vector(face.pop("vec"))
        found.faces[face.pop("face_id")] = face
    for row in fleet.rows(
        "SELECT scene_id::text, ordinal, name AS model, vec::text FROM embeddings JOIN models USING (model_id)"
    ):
        found.vectors[f"embedding {row['ordinal']}", row["scene_id"], row["model"]] = _vector(row["vec"])
    for key, data in fleet.objects("sidecars").items():
        found.objects[neutral(key)] = _sidecar(data) if key.endswith(".json") else data
    return found


def _vector(text: str) -> npt.NDArray[np.float64]:
    return np.array(json.loads(text), np.float64)


def _sidecar(data: bytes) -> bytes:
    """The document's bytes, ``created_at``, strangers and the numbers inside keyframes' keys taken out."""
    text = _ATTEMPT.sub("/J.A/", data.decode())
    text = re.sub(r'"created_at": "[^"]+"', '"created_at": "T"', text)
    text = re.sub(r'\n "people": \[\n.*?\n \]', '\n "people": []', text, flags=re.DOTALL)
    return text.encode()


def differences(undisturbed: Results, disturbed: Results) -> list[str]:
    """Each thing that is not the same in both, one line each; empty when the faults changed nothing."""
    found: list[str] = []
    for name in ("videos", "faces", "objects", "vectors"):
        ours, theirs = getattr(undisturbed, name), getattr(disturbed, name)
        for key in sorted(ours.keys() | theirs.keys()):
            if key not in theirs or key not in ours:
                found.append(f"{name}: {key} is only in the {'' if key in theirs else 'un'}disturbed run")
            elif name == "vectors":
                if (cosine := _cosine(ours[key], theirs[key])) <= LEAST_COSINE:
                    found.append(f"vector {key}: cosine {cosine:.6f}")
            elif ours[key] != theirs[key]:
                found.append(f"{name}: {key} differs: {_shown(ours[key])} against {_shown(theirs[key])}")
    return found


def _cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) if a.shape == b.shape else -1.0


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."


def leftovers(fleet: Fleet, video_ids: Sequence[str] | None = None) -> list[str]:
    """What should not be there once every job (of these videos) has ended, one line each."""
    found = [f"temporary object {key}" for key in fleet.objects("tmp")]
    referenced = {
        key
        for row in fleet.rows("SELECT keyframes, sidecar_key FROM scenes")
        for key in [row["sidecar_key"], *(shown["key"] for shown in row["keyframes"])]
    }
    for row in fleet.rows("SELECT media->'sprites' AS sprites, rendition->>'key' AS rendition FROM videos"):
        sprites = row["sprites"]
        names = [sprites["index"], *sprites["sheets"]] if sprites else []
        referenced.update(sprites["prefix"] + name for name in names)
        referenced.update([row["rendition"]] if row["rendition"] else [])
    stored = set(fleet.objects("sidecars"))
    found += [f"unreferenced object {key}" for key in sorted(stored - referenced)]
    found += [f"missing object {key}" for key in sorted(referenced - stored, key=str)]
    open_jobs = fleet.rows(
        "SELECT job_id, stage, jobs.state, jobs.error FROM jobs LEFT JOIN videos USING (video_id)"
        " WHERE (jobs.state NOT IN ('done', 'skipped') OR lease_owner IS NOT NULL)"
        " AND (%(wanted)s::text[] IS NULL OR external_id = ANY(%(wanted)s))",
        wanted=None if video_ids is None else list(video_ids),
    )
    found += [f"job {row['job_id']} ({row['stage']}) is {row['state']}: {row['error']}" for row in open_jobs]
    # Every scene that has words has one vector, every other scene none; both are unique by primary key only per run.
    found += [
        f"scene {row['scene_id']} has {row['vectors']} vectors, transcript {row['transcript']!r}"
        for row in fleet.rows(
            "SELECT scene_id::text, transcript, (SELECT count(*) FROM embeddings e WHERE e.scene_id = s.scene_id)"
            " AS vectors FROM scenes s"
        )
        if row["vectors"] != bool(row["transcript"])
    ]
    return [*found, *(f"working folder {folder}" for folder in (fleet.home / "work").glob("*/*/*"))]
