"""Fits the models that judge proposals (``worker/media/cuts.json``) to the films of part ``fit``.

Logistic regression by Newton's method with a weak prior. ``cheap``: a model of the detectors' features, fitted to the films, to
films composed of their shots, and to drawn ones. ``joined``: one of its logit and the network's answers, fitted to the
doubtful proposals of the films and of composed ones. The films have few slow changes that look like a dissolve: there the detector
proposes with looser limits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from bench.films import streams, truth
from bench.films.streams import Stream
from worker.media import gradual, hardcuts, verdict
from worker.media.cuts import WAIT_S
from worker.media.gradual import Dissolve, Dissolves
from worker.media.hardcuts import HardCuts, Proposal
from worker.media.judge import Judge

MODEL = Path(verdict.__file__).parent / "cuts.json"
#: Prior of the weights, of standardised features.
_PRIOR = 0.3
#: How much a doubtful proposal of a composed film counts beside one of a film.
_COMPOSED = 0.5
#: At most so many doubtful proposals of a kind are asked about in a composed film: the network is slow.
_ASKED = 5
#: Cheap probabilities outside of these are certain enough: of the proposals of all streams few are wrong there.
DOUBTFUL = {"hard": (0.02, 0.99), "gradual": (0.02, 1.01)}
#: Limits of ``worker.media.gradual`` under which films give examples of what is no dissolve.
_LOOSE = {
    "_MAX_RESIDUALS": ((6.0, 0.6, 0.45),),
    "_MIN_CHANGE": 6.0,
    "_MAX_CORRELATION": 0.9,
    "_MIN_UNEXPLAINED": 0.15,
    "_MIN_UNEXPLAINED_PURE": 0.1,
    "_MAX_PLATEAU": 0.6,
}
PROCESSES = 3
Array = NDArray[np.float64]


@dataclass
class Example:
    """A proposal and whether it is a cut."""

    group: str
    features: tuple[float, ...]
    true: bool
    #: The network's answer.
    network: tuple[float, float, float] | None = None


def examples(
    stream: Stream,
    weights: Path | None,
    doubtful: dict[str, verdict.Verdict] | None,
    loose: bool = False,
) -> dict[str, list[Example]]:
    """Return the labelled proposals of a stream; with models, the doubtful ones with the network's answer.

    ``loose``: only those of dissolves, proposed with looser limits.
    """
    if not loose:
        return _examples(stream, weights, doubtful)
    with ExitStack() as stack:
        for name, value in _LOOSE.items():
            stack.enter_context(mock.patch.object(gradual, name, value))
        return {**_examples(stream, weights, doubtful), "hard": []}


def _examples(
    stream: Stream, weights: Path | None, doubtful: dict[str, verdict.Verdict] | None
) -> dict[str, list[Example]]:
    hard, dissolves, judge = HardCuts(), Dissolves(), Judge(weights or Path(), every=False)
    found: dict[str, list[Example]] = {"hard": [], "gradual": []}
    waiting: list[Proposal] = []
    asked = {"hard": 0, "gradual": 0}

    def note(kind: str, features: tuple[float, ...], true: bool | None, from_s: float, to_s: float) -> None:
        if true is None:
            return
        example = Example(stream.group, features, true)
        if doubtful is not None:
            models = doubtful[kind]
            is_asked = stream.film is not None or asked[kind] < _ASKED
            if is_asked and models.is_doubtful(models.cheaply(features)):
                asked[kind] += 1
                example.network = judge.ask(from_s, to_s).features
        found[kind].append(example)

    def take(proposals: Sequence[Proposal], seen: Sequence[Dissolve], until_s: float) -> None:
        waiting.extend(proposals)
        while waiting and waiting[0].ts_s <= until_s:
            p = waiting.pop(0)
            note("hard", p.features, _is_hard(stream, p.ts_s), p.ts_s, p.ts_s)
        for d in seen:
            span = d.cut.mixed_from_s, d.cut.mixed_to_s
            note("gradual", d.features, _is_gradual(stream, d.cut.ts_s, *span), *span)

    for look in stream.looks():
        judge.feed(look.ts_s, look.thumb)
        take(hard.feed(look.ts_s, look.thumb), dissolves.feed(look.ts_s, look.thumb), look.ts_s - WAIT_S)
    take(hard.flush(), dissolves.flush(), float("inf"))
    return found


def _within(at_s: float, spans: Sequence[tuple[float, float]], slack_s: float) -> bool:
    return any(first_s - slack_s <= at_s <= last_s + slack_s for first_s, last_s in spans)


def _is_hard(stream: Stream, at_s: float) -> bool | None:
    """Whether a hard cut is there; None: it does not count."""
    nearest_s = min((abs(at_s - cut_s) for cut_s in stream.hard_s), default=1.0)
    if nearest_s <= 1.51 * stream.frame_s:
        return True if nearest_s <= 0.51 * stream.frame_s else None
    unclear = [*stream.gradual_s, *stream.ambiguous_s]
    return None if _within(at_s, unclear, 2.01 * stream.frame_s) or at_s <= 0.3 else False


def _is_gradual(stream: Stream, at_s: float, from_s: float, to_s: float) -> bool | None:
    if _within(at_s, stream.gradual_s, 2.01 * stream.frame_s):
        return True
    if any(from_s - 0.3 <= cut_s <= to_s + 0.3 for cut_s in stream.hard_s) or _within(
        at_s, stream.ambiguous_s, 0.1
    ):
        return None  # a hard cut says what happened there
    return False


def regress(rows: Array, true: Array, counts: Array, prior: float) -> Array:
    """Return bias and weights of the logistic regression of ``true`` [n] on ``rows`` [n, f]; ``counts`` [n]: how much each counts."""
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    x = np.column_stack([np.ones(len(rows)), (rows - mean) / spread])
    weights = np.zeros(x.shape[1])
    penalty = prior * np.diag([0.0, *([1.0] * rows.shape[1])])
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (counts * (true - p)) - penalty @ weights
        curve = (x * (counts * p * (1 - p))[:, None]).T @ x + penalty + 1e-6 * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights += step / max(1.0, np.abs(step).max() / 2)
    return np.concatenate([[weights[0] - (weights[1:] * mean / spread).sum()], weights[1:] / spread])


def fit_cheap(kind: str, known: Sequence[Example], features: tuple[str, ...]) -> verdict.Verdict:
    rows, true = np.array([e.features for e in known]), np.array([float(e.true) for e in known])
    weights = regress(rows, true, np.ones(len(rows)), _PRIOR)
    return verdict.Verdict(features, tuple(weights), (0.0, 1.0, 0.0, 0.0, 0.0), DOUBTFUL[kind])


def fit_joined(models: verdict.Verdict, known: Sequence[Example]) -> verdict.Verdict:
    asked = [e for e in known if e.network is not None]
    rows = np.array([(verdict.logit(models.cheaply(e.features)), *(e.network or ())) for e in asked])
    counts = np.array([_COMPOSED if e.group.startswith("composed") else 1.0 for e in asked])
    weights = regress(rows, np.array([float(e.true) for e in asked]), counts, 1.0)
    return verdict.Verdict(models.features, models.cheap, tuple(weights), models.doubtful)


def collect_streams(part: str, composed: int, drawn: int, seed: int) -> list[Stream]:
    """Return the films of a part, films composed of their shots, and drawn ones."""
    here = [film for film in truth.films() if film.part == part and film.path.exists()]
    found = [streams.of_film(film) for film in here]
    by_film = {film.file: streams.shots_of(film) for film in here}
    music = by_film.get("music-video.mp4", [])
    # The music video has as many shots as all others: its thirds are groups of their own.
    groups = [music[i::3] for i in range(3) if music] or [[]]
    others = [shot for name, shots in by_film.items() if name != "music-video.mp4" for shot in shots]
    for number in range(composed):
        group = number % len(groups)
        pool = groups[group] + [others[i] for i in range(len(others)) if i % len(groups) == group] * 2
        found.append(streams.compose(f"composed {number}", f"composed {group}", pool, seed + number))
    return found + [streams.made(seed + 5000 + number, 20.0) for number in range(drawn)]


def save(models: dict[str, verdict.Verdict]) -> None:
    document = {
        kind: {
            "features": list(m.features),
            "cheap": [round(w, 5) for w in m.cheap],
            "joined": [round(w, 5) for w in m.joined],
            "doubtful": [round(d, 5) for d in m.doubtful],
        }
        for kind, m in models.items()
    }
    MODEL.write_text(json.dumps(document, indent=1) + "\n")


KINDS = {"hard": hardcuts.FEATURES, "gradual": gradual.FEATURES}


def fit(composed: int = 120, drawn: int = 24) -> dict[str, verdict.Verdict]:
    """Fit the cheap models; about ten minutes. Those that join the network's answers must be fitted again afterwards."""
    with Pool(PROCESSES) as pool:
        known = collect_streams("fit", composed, drawn, 1)
        found = pool.starmap(examples, ((stream, None, None) for stream in known), chunksize=1)
    return {
        kind: fit_cheap(kind, [e for one in found for e in one[kind]], features)
        for kind, features in KINDS.items()
    }


def _cheap_models() -> dict[str, verdict.Verdict]:
    """The models of ``cuts.json``, with the doubts of this fit."""
    return {
        kind: replace(verdict.load(kind, features), doubtful=DOUBTFUL[kind])
        for kind, features in KINDS.items()
    }


def ask(weights: Path, composed: int = 36) -> list[dict[str, list[Example]]]:
    """Return the examples of films, and of films composed of them, with the network's answers; about ten minutes."""
    models = _cheap_models()
    with Pool(PROCESSES) as pool:
        known = collect_streams("fit", composed, 0, 3000)
        films = [stream for stream in known if stream.film is not None]
        jobs = [(stream, weights, models, False) for stream in known]
        return pool.starmap(
            examples, [*jobs, *((film, weights, models, True) for film in films)], chunksize=1
        )


def fit_network(asked: Sequence[dict[str, list[Example]]]) -> dict[str, verdict.Verdict]:
    """Fit the models that join the network's answers with the cheap probabilities of ``cuts.json``."""
    return {
        kind: fit_joined(models, [e for found in asked for e in found[kind]])
        for kind, models in _cheap_models().items()
    }


def cross_validate(asked: Sequence[dict[str, list[Example]]], kind: str) -> dict[str, int]:
    """Count right, false and missed proposals when every group is judged by models fitted to the others."""
    known = [e for found in asked for e in found[kind]]
    counts = {"right": 0, "false": 0, "missed": 0}
    for group in sorted({e.group for e in known}):
        others = [e for e in known if e.group != group]
        models = fit_joined(fit_cheap(kind, others, KINDS[kind]), others)
        for e in known:
            if e.group == group:
                chance = models.cheaply(e.features)
                if e.network is not None:
                    chance = models.jointly(chance, e.network)
                found = chance >= 0.5
                counts["right"] += found and e.true
                counts["false"] += found and not e.true
                counts["missed"] += e.true and not found
    return counts
