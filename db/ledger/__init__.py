"""The ledger of jobs. Lock order: the row of the subject, then jobs, then queue_usage.

In reading order: ``jobs`` (create, insert, cancel), ``claims`` (take the next job), ``attempts`` (hold, finish, fail it),
``subjects`` (lock, advance and find stuck videos, people and switches), ``video_runs``, ``person_runs`` and
``switch_runs`` (which job follows which), ``stage_states``, ``policy``, ``usage`` (fair shares).
"""
