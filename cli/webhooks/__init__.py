"""The ``webhooks`` group."""
