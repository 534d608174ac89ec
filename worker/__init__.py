"""The process that runs jobs: boot, lease, reconcile, stages, models and media."""
