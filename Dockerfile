# syntax=docker/dockerfile:1
# One file for all images; docs/images.md has the arguments of each accelerator.
#   make images                                     all of them for the CPU, from a local wheelhouse
#   make image-archives                             as files, without docker and without a registry
#   docker build --target gateway  -t terrace/gateway .
#   docker build --target runtime  -t terrace/runtime-cuda --build-arg ACCEL=cuda \
#     --build-arg BUILD_BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 \
#     --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# BASE is what the images run on; it needs Python 3.11 or newer, no shell, and glibc no older than
# BUILD_BASE's. INSTALL_BASE fills /opt/terrace: it needs a shell and the same Python at the same
# path. WHEELS=local takes dist/wheelhouse (`make wheelhouse`) instead of making one inside, so that
# images build where no package index and no public registry is reached.
ARG BASE=python:3.12-slim-bookworm
ARG BUILD_BASE=${BASE}
ARG INSTALL_BASE=${BASE}
ARG WHEELS=build

FROM ${BUILD_BASE} AS wheels-build
ARG ACCEL=cpu
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make python3 python3-venv
WORKDIR /src
COPY . .
RUN make wheelhouse ACCEL="${ACCEL}"

FROM scratch AS wheels-local
COPY dist/wheelhouse/locked /src/dist/wheelhouse/locked
COPY dist/wheelhouse/own /src/dist/wheelhouse/own

FROM wheels-${WHEELS} AS wheels

# What uv.lock decides: a layer of its own, which our edits leave as it is. Headers, static libraries
# and the tests of libraries are for those who build on them; of Pillow, which decodes images that
# clients send, what could read other formats, fonts and colour profiles stays out of their reach.
FROM ${INSTALL_BASE} AS packages
COPY --from=wheels /src/dist/wheelhouse/locked /wheelhouse
WORKDIR /wheelhouse
ARG IMAGES="operator gateway runtime"
RUN mv pip-*.whl /pip.whl \
    && for image in ${IMAGES}; do \
      venv="/out/${image}/opt/terrace" \
      && python3 -m venv --without-pip "${venv}" \
      && PYTHONPATH=/pip.whl "${venv}/bin/python" -m pip install --quiet --no-index --no-deps --no-compile \
           --require-hashes --no-cache-dir -r "${image}.txt" \
      && find "${venv}/bin" ! -name 'python*' -type f -delete \
      && rm -rf "${venv}/include" \
      && find "${venv}/lib" -type d \( -name tests -o -name include \) -prune -exec rm -rf {} + \
      && find "${venv}/lib" -type f \( -name '*.a' -o -name '*.h' -o -name '*.c' -o -name '*.pyx' \
           -o -name '*.pxd' -o -name '*.pyi' \) -delete \
      && find "${venv}/lib" -type f \( -path '*/PIL/_avif.*' -o -path '*/PIL/_imagingft.*' \
           -o -path '*/PIL/_imagingcms.*' -o -path '*/PIL/_imagingtk.*' -o -path '*/pillow.libs/libavif-*' \
           -o -path '*/pillow.libs/libfreetype-*' -o -path '*/pillow.libs/libharfbuzz-*' \
           -o -path '*/pillow.libs/liblcms2-*' -o -path '*/pillow.libs/libbrotli*' \
           -o -path '*/pillow.libs/libpng16-*' \) -delete \
      && "${venv}/bin/python" -m compileall -q --invalidation-mode unchecked-hash \
           -s "/out/${image}" "${venv}/lib" || exit 1; \
    done

# And what every edit of ours changes.
FROM packages AS own
COPY --from=wheels /src/dist/wheelhouse/own /own
WORKDIR /own
ARG IMAGES="operator gateway runtime"
RUN PYTHONPATH=/pip.whl python3 -m pip install --quiet --no-index --no-deps --no-compile \
      --require-hashes --no-cache-dir --target /own-out/all/site-packages -r own.txt \
    && rm -rf /own-out/all/site-packages/bin \
    && packages="$(python3 -c 'import sys; print("opt/terrace/lib/python%d.%d" % sys.version_info[:2])')" \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /own-out/all \
         -p "/${packages}" /own-out/all \
    && for image in ${IMAGES}; do \
      mkdir -p "/own-out/${image}/${packages}" \
      && cp -r /own-out/all/site-packages "/own-out/${image}/${packages}/" \
      && install -m 644 "${image}.cdx.json" "/own-out/${image}/opt/terrace/sbom.cdx.json" || exit 1; \
    done && rm -rf /own-out/all

# Every image is the base, one folder of Python packages and nothing else: no pip, no compiler.
FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp PATH=/opt/terrace/bin:$PATH

FROM base AS operator
COPY --from=packages /out/operator /
COPY --from=own /own-out/operator /
USER 65532:65532
ENTRYPOINT ["/opt/terrace/bin/python", "-m", "terrace.controller"]

FROM base AS gateway
COPY --from=packages /out/gateway /
COPY --from=own /own-out/gateway /
USER 65532:65532
ENTRYPOINT ["/opt/terrace/bin/python", "-m", "terrace.gateway"]

FROM base AS runtime
COPY --from=packages /out/runtime /
COPY --from=own /own-out/runtime /
USER 65532:65532
ENTRYPOINT ["/opt/terrace/bin/python", "-m", "terrace_runtime"]
