"""The ``scenefleet`` command. A package per group of commands; `db`, `local` and `worker.models` are imported when a command runs."""
