"""The ``api`` command."""
