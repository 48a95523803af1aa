"""Configuration: YAML and environment in, typed and frozen settings out, with every mistake at once."""
