"""Decides the device and number format of a model, and whether it fits."""
