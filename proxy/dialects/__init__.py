"""Pure translations between wire shapes and values: bytes in, values out; standard library and msgspec.

`endpoints` is the table of operations, `openai` reads a call and writes errors, `scan` finds the
spans of a JSON document's top-level values, `sse` cuts a stream into events, `streams` reads those
events, `answers` reads complete bodies, `errors` turns every known error shape into an `Outcome`.
"""
