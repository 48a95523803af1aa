"""What the outside sees: the endpoint, the admin listener, metrics, logs.

Observers here take the core's events. They are synchronous, raise nothing and never wait.
"""
