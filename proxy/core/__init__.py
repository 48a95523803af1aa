"""The decisions: standard library only; no I/O, no clock, no chance of its own.

Every function that needs time takes `now` (monotonic seconds); every function that needs chance
takes `rng`. There are no locks: one event loop runs everything and core methods are synchronous,
so each is atomic. Never `await` between a decision and its recording.
"""
