"""Sends events to the webhooks of users: ``addresses`` says where to, ``sending`` does it."""
