"""The ``keys`` group."""
