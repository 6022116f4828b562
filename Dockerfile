# syntax=docker/dockerfile:1
# One file for all images; docs/images.md has the arguments of each accelerator.
#   make images                                     all of them for the CPU, from a local wheelhouse
#   docker build --target gateway  -t terrace/gateway .
#   docker build --target runtime  -t terrace/runtime-cuda --build-arg ACCEL=cuda \
#     --build-arg BUILD_BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#     --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# BASE is what the images run on; it needs Python 3.11 or newer, and glibc no older than BUILD_BASE's.
# WHEELS=local takes dist/wheelhouse (`make wheelhouse`) instead of making one inside, so that images
# build where no package index and no public registry is reached.
ARG BASE=python:3.12-slim-bookworm
ARG BUILD_BASE=${BASE}
ARG WHEELS=build

FROM ${BUILD_BASE} AS wheels-build
ARG ACCEL=cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make python3 python3-venv
WORKDIR /src
COPY . .
RUN make wheelhouse ACCEL="${ACCEL}"

FROM scratch AS wheels-local
COPY dist/wheelhouse /src/dist/wheelhouse

FROM wheels-${WHEELS} AS wheels

# Every image is the base, one folder of Python packages and nothing else: no pip, no compiler.
FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp PATH=/opt/terrace/bin:$PATH

FROM base AS install
COPY --from=wheels /src/dist/wheelhouse /wheelhouse
WORKDIR /wheelhouse
ARG IMAGES="operator gateway runtime"
RUN for image in ${IMAGES}; do \
      python3 -m venv "/out/${image}/opt/terrace" \
      && "/out/${image}/opt/terrace/bin/python" -m pip install --no-index --no-deps --no-compile \
           --require-hashes --no-cache-dir -r "${image}.txt" \
      && "/out/${image}/opt/terrace/bin/python" -m pip uninstall -y pip setuptools \
      && find "/out/${image}/opt/terrace/bin" ! -name 'python*' -type f -delete \
      && "/out/${image}/opt/terrace/bin/python" -m compileall -q --invalidation-mode unchecked-hash \
           -s "/out/${image}" "/out/${image}/opt/terrace/lib" \
      && cp "${image}.cdx.json" "/out/${image}/opt/terrace/sbom.cdx.json" || exit 1; \
    done

FROM base AS operator
COPY --from=install /out/operator /
USER 65532:65532
ENTRYPOINT ["/opt/terrace/bin/python", "-m", "terrace.controller"]

FROM base AS gateway
COPY --from=install /out/gateway /
USER 65532:65532
ENTRYPOINT ["/opt/terrace/bin/python", "-m", "terrace.gateway"]

FROM base AS runtime
COPY --from=install /out/runtime /
USER 65532:65532
ENTRYPOINT ["/opt/terrace/bin/python", "-m", "terrace_runtime"]
