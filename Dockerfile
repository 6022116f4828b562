# syntax=docker/dockerfile:1
# Stages: build -> base -> operator | gateway | runtime. One image each:
#   docker build --target operator -t terrace/operator:0.1.0 .
#   docker build --target gateway  -t terrace/gateway:0.1.0 .
#   docker build --target runtime  -t terrace/runtime:0.1.0 .
# BASE is an argument so that images build where no public registry is reached; it needs Python 3.11+.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir "uv>=0.8"
ENV PATH=/opt/uv/bin:$PATH UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY . .
# Every stage installs the locked versions and nothing else; llama.cpp comes as our own portable wheel.
RUN uv venv /opt/operator && VIRTUAL_ENV=/opt/operator uv sync --frozen --active --no-dev --no-editable --extra operator
RUN uv venv /opt/gateway && VIRTUAL_ENV=/opt/gateway uv sync --frozen --active --no-dev --no-editable --extra gateway
RUN uv venv /opt/runtime \
    && VIRTUAL_ENV=/opt/runtime uv sync --frozen --active --no-dev --no-editable --extra runtime --no-install-package llama-cpp-python \
    && VIRTUAL_ENV=/opt/runtime uv pip install --no-deps "$(python3 runtime_image/build/wheel.py)"

FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532

FROM base AS operator
COPY --from=build /opt/operator /opt/operator
ENTRYPOINT ["/opt/operator/bin/python", "-m", "terrace.controller"]

FROM base AS gateway
COPY --from=build /opt/gateway /opt/gateway
ENTRYPOINT ["/opt/gateway/bin/python", "-m", "terrace.gateway"]

FROM base AS runtime
USER root
# llama.cpp's CPU backend is built with OpenMP.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
USER 65532:65532
COPY --from=build /opt/runtime /opt/runtime
ENTRYPOINT ["/opt/runtime/bin/python", "-m", "terrace_runtime"]
