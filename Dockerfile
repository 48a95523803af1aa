# Sidestep in a container: `docker build -t sidestep .`, and docs/deploy.md for the rest.
#
# BASE is any image with Python 3.11 or newer and CA certificates, the same for both stages. The default
# follows the patch releases of its Python and its Debian, so that building again brings their security
# fixes; to stay on one base give its digest: `--build-arg BASE=python@sha256:...`.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
WORKDIR /src

# What is installed is what the locks say, by hash. Only the build needs pip, so only /opt/build has it.
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip --disable-pip-version-check install --no-cache-dir --no-deps --only-binary :all: \
        --require-hashes --requirement requirements-build.lock \
    && python3 -m venv --without-pip /opt/sidestep \
    && /opt/build/bin/pip --disable-pip-version-check --python /opt/sidestep/bin/python install --no-cache-dir \
        --no-deps --only-binary :all: --require-hashes --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY proxy proxy
RUN /opt/build/bin/pip --disable-pip-version-check wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --disable-pip-version-check --python /opt/sidestep/bin/python install \
        --no-cache-dir --no-deps --no-index /dist/*.whl \
    && mkdir /empty

# Nothing is run from here on: the base needs no shell.
FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Sidestep" \
      org.opencontainers.image.description="A failover proxy for LLM APIs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"

COPY --from=build /opt/sidestep /opt/sidestep
# The only place where anything is written: mount a volume there, or none. With a read-only root and no
# volume, what would be kept is kept in memory.
COPY --from=build --chown=65532:65532 /empty /var/lib/sidestep

ENV PATH=/opt/sidestep/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/var/lib/sidestep \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Where the configuration is looked for.
WORKDIR /etc/sidestep
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 7380
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["sidestep", "health"]
ENTRYPOINT ["sidestep"]
CMD ["serve"]
