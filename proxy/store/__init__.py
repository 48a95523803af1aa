"""The embedded state: one SQLite file, off the event loop. Losing it loses memories, never requests."""
