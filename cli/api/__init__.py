"""The ``api`` command and the ``keys`` group."""
