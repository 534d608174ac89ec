"""The ledger of jobs. Lock order: the row of the subject, then jobs, then queue_usage.

In reading order: ``jobs`` (what a job is about, make, insert, cancel), ``claims`` (take the next one), ``attempts`` (hold,
finish, fail it), ``subjects`` (lock, advance and find stuck videos, people and switches), ``video_runs``,
``person_runs`` and ``switch_runs`` (what follows what), ``stage_states``, ``policy``, ``usage`` (fair shares).
"""
