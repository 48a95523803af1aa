"""Pooled HTTP/1.1 connections to upstreams.

Reads from the bottom up: `http1` is one connection and its exchange, `dns` finds addresses, `dial`
opens connections, `pool` keeps idle ones. A failure is an exception that names its phase, because the
phase decides whether a retry is safe; `proxy.transport.upstream` turns it into an `Outcome`.
"""
