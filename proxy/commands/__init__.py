"""The commands, one module each: `add_flags`, `run`, and a docstring that is the help text."""
