"""Real films with cuts labelled by eye: the truth that the split stage's detectors are fitted to and measured on."""
