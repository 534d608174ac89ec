"""How loud each scene is: what scenefleet has to know about it. Every process imports this, so it imports nothing heavy."""

from shared.plugins import Filter, Plugin
from shared.stage import Stage

LOUDNESS = Stage(
    name="loudness",
    queue="media",
    handler="scenefleet_loudness.stage",
    # `audio` makes the sound again in a run that repeats this stage without split.
    after=("split", "audio"),
    time_limit_s=600,
    parts="scenes",
    batch=64,
    tables=("scene_loudness",),
)
PLUGIN = Plugin(
    name="loudness",
    stages=(LOUDNESS,),
    migrations="scenefleet_loudness:migrations",
    sidecar="scenefleet_loudness.rows:describe",
    filters={"loudness": Filter(stage="loudness", condition="scenefleet_loudness.rows:at_least")},
)
