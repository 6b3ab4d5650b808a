# Three images from one file: `platform` (MLflow and Prefect servers, secrets, backups), `worker` (the whole lock;
# CPU, or CUDA with --build-arg ACCELERATOR=gpu), `serving` (what `aut serve` imports and no more).
#
# Packages are installed in builders and copied as one layer; code comes last, so that a change of code builds in seconds.
# The final layers hold no compiler and no header. Nothing is installed when a container starts.
#
#   PYTHON_IMAGE   any Debian image with CPython 3.11 or 3.12 and pip
#   ACCELERATOR    cpu: the CPU build of torch, where an index offers one; gpu: the index's own build
#   TORCH_INDEX    address of an index with the torch build you want, before either
#   EXTRAS         more packages for the worker, like a DVC remote's ("dvc-s3")
#   REVISION, CREATED, VERSION    labels
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 \
    HOME=/tmp
RUN groupadd --gid 10001 aut \
 && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin aut
# A volume takes the owner of the folder it first covers.
RUN install -d -o aut -g aut -m 0755 /artifacts /backup /cache /remote /var/lib/aut \
    /secrets /secrets/postgres /secrets/mlflow /secrets/prefect /secrets/worker /secrets/serve

# --- builders ----------------------------------------------------------------
FROM base AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
WORKDIR /build
COPY requirements.lock ./

FROM builder AS platform-builder
COPY mlflow/requirements.lock mlflow/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock -r mlflow/requirements.lock mlflow prefect sqlalchemy fastapi \
 && pip uninstall -y pip setuptools

FROM builder AS torch-builder
ARG ACCELERATOR=cpu
ARG TORCH_INDEX=""
# torch first: what comes later must find this build, not fetch another.
RUN --mount=type=cache,target=/root/.cache/pip \
    torch=$(sed -n 's/^torch==//p' requirements.lock) \
 && if [ -n "$TORCH_INDEX" ]; then pip install "torch==$torch" --index-url "$TORCH_INDEX"; \
    elif [ "$ACCELERATOR" = gpu ]; then pip install "torch==$torch"; \
    else pip install "torch==$torch+cpu" || pip install "torch==$torch"; fi

FROM base AS serving-requires
WORKDIR /build
COPY pyproject.toml docker/requires.py ./
RUN python requires.py serve > serve.txt

# Only a changed list installs anew, not every change of pyproject.toml.
FROM torch-builder AS serving-builder
COPY --from=serving-requires /build/serve.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -c requirements.lock -r serve.txt \
 && pip uninstall -y pip setuptools

FROM torch-builder AS worker-builder
ARG EXTRAS=""
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -r requirements.lock $EXTRAS \
 && pip check

# --- images ------------------------------------------------------------------
FROM base AS platform
COPY --from=platform-builder /opt/venv /opt/venv
COPY docker/entrypoint docker/healthy docker/init docker/migrate docker/backup docker/accounts mlflow/server /usr/local/bin/
COPY mlflow/basic_auth.ini /etc/mlflow/
USER aut
ENTRYPOINT ["entrypoint"]
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=12 CMD ["healthy", "5000", "/health"]
ARG REVISION=unknown CREATED=unknown VERSION=0.1.0
LABEL org.opencontainers.image.title="aut platform" \
      org.opencontainers.image.description="MLflow and Prefect servers of aut" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

FROM base AS serving
COPY --from=serving-builder /opt/venv /opt/venv
COPY docker/entrypoint docker/healthy docker/aut /usr/local/bin/
ENV PYTHONPATH=/opt/aut AUT_TRACK=off XDG_CACHE_HOME=/cache
COPY aut /opt/aut/aut
USER aut
ENTRYPOINT ["entrypoint"]
CMD ["aut", "serve", "--host", "0.0.0.0"]
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=12 CMD ["healthy", "8080", "/health/live"]
ARG REVISION=unknown CREATED=unknown VERSION=0.1.0
LABEL org.opencontainers.image.title="aut serving" \
      org.opencontainers.image.description="The registered encoder behind HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

FROM base AS worker
# git: DVC needs it, and a worker works in clones. The checkout belongs to whoever mounted it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory /checkout \
 && git config --system --add safe.directory /checkout/.git
COPY --from=worker-builder /opt/venv /opt/venv
COPY docker/entrypoint docker/healthy docker/accounts docker/aut /usr/local/bin/
# The mounted checkout comes before the image's own code: what runs is what the operator checked out.
ENV PYTHONPATH=/checkout:/opt/aut AUT_CHECKOUT=/checkout AUT_WORK=/var/lib/aut
COPY . /opt/aut
USER aut
WORKDIR /var/lib/aut
ENTRYPOINT ["entrypoint"]
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=12 CMD ["healthy", "8080", "/health"]
ARG REVISION=unknown CREATED=unknown VERSION=0.1.0
LABEL org.opencontainers.image.title="aut worker" \
      org.opencontainers.image.description="A Prefect worker with all that the graph needs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
