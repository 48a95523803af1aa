"""Fakes that behave like the real thing at its nastiest."""
