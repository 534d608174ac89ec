"""Decoding: what a video file holds, where its scenes change, its keyframes and its audio, in one pass.

Imports only ``shared`` of ours. Nothing here knows about jobs, storage or the database.
"""
