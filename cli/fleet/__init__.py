"""``scenefleet up|down|node|node-health``."""
