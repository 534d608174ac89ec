"""Faces in videos: tracks, whose they are by vote, and the profiles they are compared with. Knows nothing of jobs."""
