"""Faults: what dies, when, and what must be true afterwards. Shared by the compact run and the long one."""
