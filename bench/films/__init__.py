"""Real films with cuts labelled by eye: the truth that the split stage's detectors are fitted to and measured on."""

import os

# As in a decoding process; before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
