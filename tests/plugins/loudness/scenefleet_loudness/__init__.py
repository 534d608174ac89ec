"""How loud each scene is: the stage, family and model. Every node imports this, so it imports nothing heavy."""

from shared.plugins import Family, Filter, Plugin
from shared.stage import Stage

LOUDNESS = Stage(
    name="loudness",
    queue="loudness",
    handler="scenefleet_loudness.stage",
    # `audio` extracts the sound again in a run that repeats this stage without split.
    after=("split", "audio"),
    time_limit_s=600,
    parts="scenes",
    batch=64,
    tables=("scene_loudness",),
)
PLUGIN = Plugin(
    name="loudness",
    stages=(LOUDNESS,),
    families=(Family("loudness", ("loudness",), has_model=True),),
    providers={("loudness", "rms"): "scenefleet_loudness.stage:RmsMeter"},
    models="scenefleet_loudness:models.yaml",
    migrations="scenefleet_loudness:migrations",
    sidecar="scenefleet_loudness.rows:describe",
    filters={"loudness": Filter(stage="loudness", condition="scenefleet_loudness.rows:at_least")},
)
