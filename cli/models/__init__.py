"""``scenefleet models``."""
