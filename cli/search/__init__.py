"""``scenefleet search``."""
