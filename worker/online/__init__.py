"""Online requests of a model's node: buffered, batched across callers, computed together, answered one by one.

``operations`` says what a request task computes, ``buffer`` chooses the next batch, ``dispatcher`` (main process) fills the
buffer and sends batches to the pool, ``batch`` (pool child) computes them, ``overload`` refuses what is too much.
"""
