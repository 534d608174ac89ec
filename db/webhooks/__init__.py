"""Webhooks: which there are (``registry``), and the events that each is to be told of (``deliveries``).

Neither imports ``db.ledger``, which records events; ``db.ledger.webhook_runs`` makes the jobs that deliver them.
"""
