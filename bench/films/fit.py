"""Fits the models that judge proposals (``worker/media/cuts.json``) to the films of part ``fit``.

Logistic regression by Newton's method with a weak prior. ``cheap``: a model of the detectors' features, fitted to the films, to
films composed of their shots, and to drawn ones. ``joined``: what the network's answer adds to its logit, fitted to the
doubtful proposals of the films and of composed ones. The films have few slow changes that look like a dissolve: there the detector
proposes with looser limits.

``cross_validate`` counts cuts when each fold (a third of the films, of the music video's time, and what is composed of these) is judged
by models that were fitted to the others.
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
from bench.storyboard import Score, score
from worker.media import gradual, hardcuts, verdict
from worker.media.cuts import DISSOLVE_WAIT_S, WAIT_S, CutFinder
from worker.media.gradual import Dissolve, Dissolves
from worker.media.hardcuts import HardCuts, Proposal
from worker.media.judge import Judge

MODEL = Path(verdict.__file__).parent / "cuts.json"
KINDS = {"hard": hardcuts.FEATURES, "gradual": gradual.FEATURES}
#: Priors of the weights, of standardised features.
_PRIORS = {"hard": 0.3, "gradual": 1.0}
_JOINED_PRIOR = 1.0
#: How much a doubtful proposal of a composed film counts beside one of a film.
_COMPOSED = 0.5
#: At most so many doubtful proposals of a kind are asked about in a composed film: the network is slow.
_ASKED = 5
#: Cheap probabilities outside of these are certain: cross-validated, the network's answer changes nothing for the better there.
DOUBTFUL = {"hard": (0.1, 0.8), "gradual": (0.1, 0.95)}
#: Those that the joined models are fitted to: there are few doubtful ones.
_ASKED_ABOUT = {"hard": (0.05, 0.95), "gradual": (0.05, 1.01)}
#: Looser limits of ``worker.media.gradual``, under which films give more examples of what is no dissolve.
_LOOSE = {
    "_MAX_RESIDUALS": ((6.0, 0.6, 0.45),),
    "_MIN_CHANGE": 6.0,
    "_MAX_CORRELATION": 0.9,
    "_MIN_UNEXPLAINED": 0.15,
    "_MIN_UNEXPLAINED_PURE": 0.1,
}
#: Parts that the films are divided into to judge each by models of the others.
FOLDS = 3
#: Composed films of a fold that cross-validation counts cuts in.
_JUDGED = 4
#: How far outside a gradual transition a cut is still inside it: where one begins is labelled by eye.
SLACK_S = 0.2
PROCESSES = 2
Array = NDArray[np.float64]
Models = dict[str, verdict.Verdict]


@dataclass
class Example:
    """A proposal and whether it is a cut."""

    fold: int
    features: tuple[float, ...]
    true: bool
    #: Whether it is of a film, not of a composed or drawn one.
    real: bool
    #: The network's probability.
    network: float | None = None


Examples = dict[str, list[Example]]


def examples(stream: Stream, weights: Path | None, models: Models | None) -> Examples:
    """Return the labelled proposals of a stream; with models, the doubtful ones with the network's answer."""
    with ExitStack() as stack:
        if stream.film is not None:
            for name, value in _LOOSE.items():
                stack.enter_context(mock.patch.object(gradual, name, value))
        return _examples(stream, weights, models)


def _examples(stream: Stream, weights: Path | None, models: Models | None) -> Examples:
    hard, dissolves, judge = HardCuts(), Dissolves(), Judge(weights or Path(), every=False)
    found: Examples = {kind: [] for kind in KINDS}
    waiting: list[Proposal] = []
    mixed: list[Dissolve] = []
    asked = dict.fromkeys(KINDS, 0)

    def note(kind: str, features: tuple[float, ...], true: bool | None, from_s: float, to_s: float) -> None:
        if true is None:
            return
        example = Example(stream.fold_at(from_s), features, true, real=stream.film is not None)
        if models is not None:
            low, high = _ASKED_ABOUT[kind]
            if low < models[kind].cheaply(features) < high and (example.real or asked[kind] < _ASKED):
                asked[kind] += 1
                example.network = judge.ask(from_s, to_s).chance
        found[kind].append(example)

    def take(proposals: Sequence[Proposal], seen: Sequence[Dissolve], until_s: float) -> None:
        waiting.extend(proposals)
        while waiting and waiting[0].ts_s <= until_s:
            p = waiting.pop(0)
            note("hard", p.features, _is_hard(stream, p.ts_s), p.ts_s, p.ts_s)
        mixed.extend(seen)
        while mixed and mixed[0].seen_s <= until_s + WAIT_S - DISSOLVE_WAIT_S:
            d = mixed.pop(0)
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
    if _within(at_s, stream.fades_s, 0.0):
        return False
    unclear = [*stream.gradual_s, *stream.ambiguous_s]
    return None if _within(at_s, unclear, 2.01 * stream.frame_s) or at_s <= 0.3 else False


def _is_gradual(stream: Stream, at_s: float, from_s: float, to_s: float) -> bool | None:
    if _within(at_s, stream.fades_s, 2.01 * stream.frame_s):
        return False  # each half of a fade looks as one at an end of the film does, and ``Fades`` finds both
    if _within(at_s, stream.gradual_s, 2.01 * stream.frame_s):
        return True
    if any(from_s - 0.3 <= cut_s <= to_s + 0.3 for cut_s in stream.hard_s) or _within(
        at_s, stream.ambiguous_s, 0.1
    ):
        return None  # a hard cut says what happened there
    return False


def regress(rows: Array, true: Array, counts: Array, prior: float, known: Array | None = None) -> Array:
    """Return bias and weights of the logistic regression of ``true`` [n] on ``rows`` [n, f].

    ``counts`` [n]: how much each counts. ``known`` [n]: a part of the logits that is not fitted.
    """
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    x = np.column_stack([np.ones(len(rows)), (rows - mean) / spread])
    weights, given = np.zeros(x.shape[1]), np.zeros(len(rows)) if known is None else known
    penalty = prior * np.diag([0.0, *([1.0] * rows.shape[1])])
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(x @ weights + given, -30, 30)))
        slope = x.T @ (counts * (true - p)) - penalty @ weights
        curve = (x * (counts * p * (1 - p))[:, None]).T @ x + penalty + 1e-6 * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        weights += step / max(1.0, np.abs(step).max() / 2)
    return np.concatenate([[weights[0] - (weights[1:] * mean / spread).sum()], weights[1:] / spread])


def fit_cheap(found: Sequence[Examples], without: int | None = None) -> Models:
    """Return the cheap models of all folds but one; the network's answer changes nothing in them."""
    models = {}
    for kind, features in KINDS.items():
        known = [e for one in found for e in one[kind] if e.fold != without]
        rows, true = np.array([e.features for e in known]), np.array([float(e.true) for e in known])
        weights = regress(rows, true, np.ones(len(rows)), _PRIORS[kind])
        models[kind] = verdict.Verdict(features, _rounded(weights), (0.0, 0.0), DOUBTFUL[kind])
    return models


def fit_joined(models: Models, found: Sequence[Examples], without: int | None = None) -> Models:
    """Return the models with what the network's answer adds, as the folds but one have it."""
    joined = {}
    for kind, model in models.items():
        asked = [e for one in found for e in one[kind] if e.network is not None and e.fold != without]
        rows = np.array([[verdict.logit(e.network or 0.0)] for e in asked])
        cheap = np.array([verdict.logit(model.cheaply(e.features)) for e in asked])
        counts = np.array([1.0 if e.real else _COMPOSED for e in asked])
        bias, weight = regress(rows, np.array([float(e.true) for e in asked]), counts, _JOINED_PRIOR, cheap)
        joined[kind] = replace(model, joined=_rounded([bias, weight]))
    return joined


def _rounded(weights: Sequence[float] | Array) -> tuple[float, ...]:
    return tuple(round(float(weight), 5) for weight in weights)


def collect_streams(composed: int, drawn: int, seed: int) -> list[Stream]:
    """Return the films of part ``fit``, films composed of their shots, and drawn ones."""
    found: list[Stream] = []
    pools: list[list[list[streams.Image]]] = [[] for _ in range(FOLDS)]
    for number, film in enumerate(f for f in truth.films() if f.part == "fit" and f.path.exists()):
        # The music video has as many shots as all others.
        folds = tuple(range(FOLDS)) if len(film.hard) > 100 else (number % FOLDS,)
        found.append(streams.of_film(film, folds))
        for fold, shots in zip(folds, streams.shots_of(film, len(folds)), strict=True):
            pools[fold] += shots * (1 if len(folds) > 1 else 2)
    for number in range(composed):
        fold = number % FOLDS
        found.append(streams.compose(f"composed {number}", fold, pools[fold], seed + number))
    return found + [streams.made(seed + 5000 + n, 20.0, n % FOLDS) for n in range(drawn)]


def save(models: Models) -> None:
    document = {kind: {name: list(value) for name, value in vars(m).items()} for kind, m in models.items()}
    MODEL.write_text(json.dumps(document, indent=1) + "\n")


def propose() -> list[Examples]:
    """Return what the cheap models are fitted to: all proposals; some minutes."""
    with Pool(PROCESSES) as pool:
        return pool.starmap(
            examples, [(stream, None, None) for stream in collect_streams(120, 24, 1)], chunksize=1
        )


def ask(weights: Path, models: Models) -> list[Examples]:
    """Return the examples of films, and of films composed of them, with the network's answers to the doubtful ones; some minutes."""
    with Pool(PROCESSES) as pool:
        return pool.starmap(
            examples, [(stream, weights, models) for stream in collect_streams(36, 0, 3000)], chunksize=1
        )


def cross_validate(
    weights: Path, proposed: Sequence[Examples], asked: Sequence[Examples]
) -> dict[str, Score]:
    """Count cuts, by film and of the composed ones together, when each fold is judged by models of the others; some minutes."""
    known = collect_streams(_JUDGED * FOLDS, 0, 7000)
    jobs = []
    for fold in range(FOLDS):
        models = fit_joined(fit_cheap(proposed, fold), asked, fold)
        jobs += [(stream, weights, models, fold) for stream in known if fold in stream.folds]
    with Pool(PROCESSES) as pool:
        scores = pool.starmap(_score, jobs, chunksize=1)
    sums: dict[str, Score] = {}
    for (stream, *_), one in zip(jobs, scores, strict=True):
        name = stream.name if stream.film is not None else "composed"
        sums[name] = sums.get(name, Score()) + one
    return sums


def _score(stream: Stream, weights: Path, models: Models, fold: int) -> Score:
    """Count the cuts of a stream in one fold's part of its time."""
    with mock.patch.object(verdict, "load", lambda kind, features: models[kind]):
        finder = CutFinder(Judge(weights, every=False))
    cuts = [cut for look in stream.looks() for cut in finder.feed(look.ts_s, look.thumb)] + finder.flush()
    return score(
        [cut.ts_s for cut in cuts if stream.fold_at(cut.ts_s) == fold],
        [cut_s for cut_s in stream.hard_s if stream.fold_at(cut_s) == fold],
        [span for span in stream.gradual_s if stream.fold_at(span[0]) == fold],
        frame_s=stream.frame_s,
        slack_s=SLACK_S,
        ambiguous_s=stream.ambiguous_s,
    )


def load(path: Path) -> list[Examples]:
    """Return examples that ``store`` wrote."""
    return [
        {
            kind: [Example(**{**e, "features": tuple(e["features"])}) for e in found]
            for kind, found in one.items()
        }
        for one in json.loads(path.read_text())
    ]


def store(found: Sequence[Examples], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([{kind: [vars(e) for e in es] for kind, es in one.items()} for one in found]))
