"""People of a user: profiles, tracks, decisions of humans, erasure. Every query is scoped by user.

Lock order: people's rows (by id), then jobs, then videos (by id), then the user's lock (``unknowns``).
"""
