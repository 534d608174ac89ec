"""``scenefleet people``."""
