"""Embedded Postgres and Redis for a machine without: a private folder, a free loopback port, a password.

A server on the default port is neither used nor disturbed. Both servers are run by the process runner
(``local.process_runner``); the modules here prepare a folder, say how to start the server, and wait for its answer.
"""
