"""``scenefleet db``."""
