"""Metrics and health of nodes and of the fleet. Imports nothing of the worker process, which calls it."""
