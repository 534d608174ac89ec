"""The ``scenefleet`` command. Imports db and shared; ``worker`` only lazily, to read the catalogue."""
