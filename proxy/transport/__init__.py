"""Everything that awaits an upstream's socket."""
