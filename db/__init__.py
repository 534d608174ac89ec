"""Postgres: tables, sessions, the job ledger, scenes, vectors, search. Imports shared/ only."""
