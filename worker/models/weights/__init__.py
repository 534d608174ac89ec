"""Downloads, verifies and records the files of models."""
