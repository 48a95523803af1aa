"""Outages to try things on: the demo's embedded providers, and scenarios in virtual time."""
