"""Whether requests are to be traced, by OpenTelemetry's own environment variables.

Tracing is on where `OTEL_TRACES_EXPORTER` names an exporter or an OTLP endpoint is set; its packages (the
extra `sidestep[otel]`) are imported only then, by `edge.tracing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.edge.traces import Traces

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def exporters(environ: Mapping[str, str]) -> list[str]:
    """Return the exporters that are wanted, by their entry points' names; none if tracing is off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not asked:
        asked = "otlp" if any(environ.get(name, "").strip() for name in ENDPOINTS) else "none"
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), "http/protobuf")
    otlp = "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"
    names = [name.strip() for name in asked.split(",")]
    return [otlp if name == "otlp" else name for name in names if name not in ("", "none")]


def traces_from(
    environ: Mapping[str, str], clock: Callable[[], float], wall: Callable[[], float]
) -> tuple[Traces | None, str]:
    """Return what traces requests, if that is wanted, and what stands in the way, empty if nothing.

    A proxy must not fail to start because somebody set a variable for all that runs on a cluster.
    """
    names = exporters(environ)
    if not names:
        return None, ""
    try:
        from proxy.edge.tracing import Tracing, provider_for
    except ImportError:
        return None, "Traces are wanted, but OpenTelemetry is not installed: pip install 'sidestep[otel]'."
    try:
        return Tracing(provider_for(names, environ), clock, wall), ""
    except LookupError as error:
        return None, f"Traces are wanted, but there is no exporter {error}."
