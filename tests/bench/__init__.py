"""`python -m tests.bench`: what the proxy costs, beside nginx's `proxy_pass` in the same run.

Everything runs on this machine's loopback. The mock upstream and the load share one core, the system
under test has another to itself, so that its CPU time is its own. CPU is what the kernel charged to the
processes under test; wall-clock figures on a shared machine are only comparable within one run.
"""
