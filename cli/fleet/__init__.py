"""``scenefleet up|down|node|node-health|scale|exporter``."""
