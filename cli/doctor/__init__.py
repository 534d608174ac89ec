"""``scenefleet doctor``."""
