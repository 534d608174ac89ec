"""People of a user: who they are, where they are seen, and what humans said about it. Every query is scoped by user.

Lock order: people's rows (by id), then jobs, then videos (by id), then the user's lock (``unknowns``).
"""
