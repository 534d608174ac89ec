"""Clips with known cuts for the benchmarks: shots drawn at random from a seed, so tuning and report can differ.

Shots are 1.5 to 6 s of one picture, still, moved or with moving objects, some with grain or flashes, joined by hard
cuts (70%), dissolves (20%) and fades through black (10%).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from tests.support.clips import Encoding, Move, Shot, Sound, Truth, make_clip

CLIPS = Path(__file__).parent / "clips"
FPS = 30


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A file and what is true of it."""

    path: Path
    frames: int
    cuts_s: tuple[float, ...]
    gradual_s: tuple[tuple[float, float], ...]


def draw_shots(seed: int, seconds: float) -> list[Shot]:
    """Return the shots of a video of about that length."""
    rng = random.Random(seed)
    shots: list[Shot] = []
    while sum(s.frames - s.join_frames for s in shots) < seconds * FPS:
        join: Any = rng.choices(["cut", "dissolve", "fade"], [0.7, 0.2, 0.1])[0] if shots else "cut"
        overlap = 0 if join == "cut" else rng.choice([10, 15, 25, 40, 60])
        frames = rng.randint(45, 180) + 2 * overlap
        at = rng.randrange(overlap + 10, frames - 10)
        flashes = tuple(range(at, at + rng.randint(1, 4))) if rng.random() < 0.25 else ()
        shots.append(
            Shot(
                seed=seed * 1000 + len(shots),
                frames=frames,
                move=rng.choice(get_args(Move)),
                join=join,
                join_frames=overlap,
                noise=rng.choice([0, 0, 2, 4]),
                flashes=flashes,
                speed=rng.choice([0.5, 1.0, 2.0]),
            )
        )
    return [_room_for(shot, after) for shot, after in zip(shots, [*shots[1:], None], strict=True)]


def _room_for(shot: Shot, after: Shot | None) -> Shot:
    """Lengthen a shot that its joins would fill, and keep flashes out of its join with the next one."""
    overlap = after.join_frames if after else 0
    frames = max(shot.frames, shot.join_frames + overlap + 40)
    return replace(shot, frames=frames, flashes=tuple(f for f in shot.flashes if f < frames - overlap - 10))


def make(seed: int, size: tuple[int, int], seconds: float) -> Clip:
    """Return the clip, H.264 and AAC in MP4 by x264's defaults; rendered once and kept under ``bench/clips``."""
    CLIPS.mkdir(exist_ok=True)
    path = CLIPS / f"{seed}-{size[1]}p-{seconds:g}s.mp4"
    facts = path.with_suffix(".json")
    if not facts.exists():
        shots = draw_shots(seed, seconds)
        encoding = Encoding(size=size, fps=Fraction(FPS), options={"preset": "medium", "crf": "23"})
        truth: Truth = make_clip(path, shots, encoding, Sound(rate_hz=48_000))
        facts.write_text(json.dumps(asdict(truth) | {"path": path.name}))
    known = json.loads(facts.read_text())
    return Clip(
        path=path,
        frames=round(known["duration_s"] * FPS),
        cuts_s=tuple(known["cuts_s"]),
        gradual_s=tuple((start_s, end_s) for start_s, end_s in known["gradual_s"]),
    )


@dataclass(frozen=True)
class Score:
    """Counts over clips or films. A cut found inside a gradual transition is neither right nor false."""

    right: int = 0
    true: int = 0
    gradual_found: int = 0
    gradual_true: int = 0
    false: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    @property
    def f1(self) -> float:
        """2PR / (P + R) of the hard cuts; 1.0 when there are none and none is found."""
        both = self.right + self.false + self.true
        return 2 * self.right / both if both else 1.0

    @property
    def gradual_f1(self) -> float:
        """The same of gradual transitions; every false cut counts, of whatever kind."""
        both = self.gradual_found + self.false + self.gradual_true
        return 2 * self.gradual_found / both if both else 1.0


def score(
    cuts_s: Sequence[float],
    hard_s: Sequence[float],
    gradual_s: Sequence[tuple[float, float]],
    *,
    frame_s: float,
    slack_s: float,
    ambiguous_s: Sequence[tuple[float, float]] = (),
) -> Score:
    """Count hard cuts found within one frame, each true cut once, and gradual transitions with a cut inside or within ``slack_s``.

    Cuts that are left count as false, but those inside ``ambiguous_s``.
    """
    left = list(cuts_s)
    right = 0
    for cut_s in hard_s:
        near = [at_s for at_s in left if abs(at_s - cut_s) <= 1.01 * frame_s]
        if near:
            left.remove(min(near, key=lambda at_s: abs(at_s - cut_s)))
            right += 1
    gradual_found = 0
    for first_s, last_s in gradual_s:
        inside = [at_s for at_s in left if first_s - slack_s <= at_s <= last_s + slack_s]
        gradual_found += bool(inside)
        left = [at_s for at_s in left if at_s not in inside]
    return Score(
        right=right,
        true=len(hard_s),
        gradual_found=gradual_found,
        gradual_true=len(gradual_s),
        false=sum(not any(a <= at_s <= b for a, b in ambiguous_s) for at_s in left),
    )


def score_clip(clip: Clip, cuts_s: Sequence[float]) -> Score:
    """Score cuts in a made clip."""
    return score(cuts_s, clip.cuts_s, clip.gradual_s, frame_s=1 / FPS, slack_s=2.01 / FPS)
