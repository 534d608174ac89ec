"""``python -m bench.online``: what online requests to models cost and how they end under load, in five parts.

- ``rates``: 64 callers of single texts against infinity-emb over HTTP; 8 texts a message and a lone caller against the bare model.
- ``indexing``: how long an embedding takes while videos are indexed, with a text that is in the cache and with new ones.
- ``deaths``: many requests while the process that computes them is killed again and again; many equal texts.
- ``searches``: one client and several, with new queries and with the same ones.
- ``flood``: many times what the node can do, for a minute.
"""
