"""A search: planned, asked of the model queues, answered from one snapshot of the database."""
