"""One module per noun; each exports ``router``, which api/app.py mounts: under /api/v1, or where clients of other services call it."""
