"""The ledger: jobs, claims, runs. Lock order: the row of the subject, then jobs, then queue_usage."""
