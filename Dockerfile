# One image for all services; the command chooses which one runs. Built by BuildKit and by the classic builder alike.

ARG VERSION=0.1.0
# By its digest for a build that can be repeated: docs/containers.md.
ARG BASE=python:3.12-slim

FROM ${BASE} AS builder
ARG VERSION
ARG UV_VERSION=0.13.8
ENV UV_NO_CACHE=1
RUN pip install --quiet --no-cache-dir --root-user-action=ignore "uv==${UV_VERSION}"
# The dependencies come first: this layer changes with the lock file only.
COPY locks/runtime.lock /build/
RUN uv venv --quiet --python "$(command -v python3)" /opt/venv \
 && VIRTUAL_ENV=/opt/venv uv pip sync --quiet --require-hashes --only-binary :all: --compile-bytecode /build/runtime.lock
COPY shared /app/shared
COPY order_service /app/order_service
COPY inventory_service /app/inventory_service
COPY payment_service /app/payment_service
COPY provisioning_service /app/provisioning_service
COPY notification_service /app/notification_service
COPY simulation /app/simulation
COPY chaos /app/chaos
COPY operations /app/operations
COPY docs/runbooks /app/operations/console/runbooks
COPY deploy/container /app/container
# The packages are copied, not installed; this makes their version available, for example to traces.
RUN mkdir /app/ordersaga-${VERSION}.dist-info \
 && printf 'Metadata-Version: 2.1\nName: ordersaga\nVersion: %s\n' "${VERSION}" >/app/ordersaga-${VERSION}.dist-info/METADATA
# Compiled here because the user that runs the services may not write to /app.
RUN /opt/venv/bin/python -m compileall -q /app && chmod -R a+rX /app && chmod 755 /app/container/ordersaga

FROM ${BASE}
# Nothing is installed from here on: neither pip nor apt is left for whoever gets into a container. `|| true`: a base may
# have its pip from Debian, which dpkg removes, or have no dpkg.
RUN python3 -m pip uninstall --quiet --yes --root-user-action=ignore pip >/dev/null 2>&1 || true; \
    dpkg --purge --force-all python3-pip apt >/dev/null 2>&1 || true
RUN groupadd --gid 10001 ordersaga \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin ordersaga
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /app /app
# A volume that is mounted here for the first time gets this owner.
RUN install -d -o 10001 -g 10001 -m 700 /var/lib/ordersaga /var/lib/ordersaga/secrets
# A published port reaches only the container's own address, so services listen on all addresses.
ENV PATH=/app/container:/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORDERSAGA_HTTP_HOST=0.0.0.0
WORKDIR /app
# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-S", "/app/container/healthcheck.py", "/healthz"]
CMD ["sh", "-c", "cat /app/container/usage.txt >&2; exit 2"]
# Last, because they change with each revision.
ARG VERSION
ARG REVISION=unknown
ARG BASE
LABEL org.opencontainers.image.title="ordersaga" \
      org.opencontainers.image.description="The services, the console and the command line of ordersaga" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.licenses="Apache-2.0"
