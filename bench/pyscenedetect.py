"""One step of the three-step way, in the bench's own environment: PySceneDetect, run as a user would.

``detect content|adaptive VIDEO`` prints the cuts; ``frames VIDEO CUTS_JSON FOLDER`` stores three pictures a scene.
Imports nothing of scenefleet. Prints JSON with the CPU and wall seconds of the work, imports left out.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import time

from scenedetect import AdaptiveDetector, ContentDetector, SceneManager, open_video
from scenedetect.output import save_images


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def detect(detector: str, video: str) -> dict[str, object]:
    stream = open_video(video)
    manager = SceneManager()
    manager.add_detector(AdaptiveDetector() if detector == "adaptive" else ContentDetector())
    manager.detect_scenes(stream)
    scenes = manager.get_scene_list(start_in_scene=True)
    return {"cuts_s": [start.seconds for start, _ in scenes[1:]]}


def frames(video: str, cuts_json: str, folder: str) -> dict[str, object]:
    stream = open_video(video)
    borders_s = [0.0, *json.loads(cuts_json), stream.duration.seconds]
    times = [stream.base_timecode + border_s for border_s in borders_s]
    saved = save_images(list(itertools.pairwise(times)), stream, num_images=3, output_dir=folder)
    return {"pictures": sum(map(len, saved.values()))}


if __name__ == "__main__":
    action, *arguments = sys.argv[1:]
    wall_s, used_s = time.perf_counter(), cpu_s()
    answer = detect(*arguments) if action == "detect" else frames(*arguments)
    answer |= {"wall_s": time.perf_counter() - wall_s, "cpu_s": cpu_s() - used_s}
    print(json.dumps(answer))
