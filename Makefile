# Every target sets up what it needs; `make help` lists them. Setting up is quiet on stdout, so that
# benchmarks print their JSON lines alone there. TERRACE_LLAMA_WHEEL=PATH uses a wheel you built.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
PY := $(BIN)/python
BENCH := PYTHONPATH=tests $(PY) -m bench
# The wheel in use is part of the stamp's name: another one is another environment.
STAMP := .venv/.init-$(if $(TERRACE_LLAMA_WHEEL),$(shell cksum <<<'$(TERRACE_LLAMA_WHEEL)' | cut -d' ' -f1),locked)
BUILD_SCRIPTS := $(wildcard runtime_image/build/*.py)
CRD_FOLDERS := crds charts/terrace/charts/crds/files
MYPY_PATHS := operator runtime_image tests .ci

# The first Python that is new enough, the environment's own before others; a shim that cannot run
# does not count.
define FIND_PYTHON
for name in "$${PYTHON:-}" $(PY) python3.11 python3.12 python3.13 python3; do \
	if [ -n "$$name" ] && "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then python=$$name; break; fi; \
done; \
if [ -z "$${python:-}" ]; then \
	echo "error: Terrace needs Python 3.11 or newer; found $$(python3 --version 2>&1 || true)." \
		"Install one (Debian 12: apt-get install python3 python3-venv) or set PYTHON=/path/to/python3." >&2; \
	exit 1; \
fi
endef

# uv from the PATH, else one of our own from PyPI.
define FIND_UV
uv=$$(command -v uv || true); \
if [ -z "$$uv" ]; then \
	uv=.uv/bin/uv; \
	if [ ! -x $$uv ]; then \
		echo "fetching uv into .uv/"; \
		"$$python" -m venv .uv; .uv/bin/python -m pip install -q --disable-pip-version-check 'uv>=0.8,<1'; \
	fi; \
fi
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: init
init: $(STAMP) ## Make the environment in .venv/ (builds llama.cpp the first time, about 4 minutes)
	@:

# A .venv whose Python is gone (moved, upgraded) is made again.
$(STAMP): uv.lock pyproject.toml $(BUILD_SCRIPTS) $(if $(wildcard $(PY)),,rebuild-environment)
	@{ $(FIND_PYTHON); $(FIND_UV); \
	"$$uv" sync --quiet --frozen --inexact --no-install-package llama-cpp-python --python "$$python"; \
	wheel=$$(UV="$$uv" $(PY) runtime_image/build/wheel.py); \
	"$$uv" pip install --quiet --python $(PY) --no-deps --reinstall "$$wheel"; \
	rm -f .venv/.init-*; touch $@; \
	echo "the environment is ready: .venv/"; } >&2

.PHONY: rebuild-environment
rebuild-environment:

ACCEL := cpu
BUILDER := $(or $(firstword $(foreach b,docker podman buildah,$(shell command -v $(b)))),docker)
IMAGE_PREFIX := terrace/
IMAGE_TAG := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

.PHONY: wheelhouse
wheelhouse: ## All wheels of the images in dist/wheelhouse (ACCEL=cpu|cuda|rocm|vulkan|sycl|cann|musa|openvino)
	@{ $(FIND_PYTHON); $(FIND_UV); \
	"$$uv" sync --quiet --frozen --inexact --no-install-package llama-cpp-python --python "$$python"; \
	UV="$$uv" $(PY) runtime_image/build/wheelhouse.py --accelerator $(ACCEL) dist/wheelhouse; } >&2

.PHONY: images
images: wheelhouse ## The three images (BASE=IMAGE, BUILDER=docker|podman|buildah, BUILDER_FLAGS=)
	base=$${BASE:-python:$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-slim-bookworm}; \
	for image in operator gateway runtime; do \
		$(BUILDER) build $(BUILDER_FLAGS) --target $$image --build-arg WHEELS=local \
			--build-arg "BASE=$$base" --tag $(IMAGE_PREFIX)$$image:$(IMAGE_TAG) .; \
	done

# As root on Linux, with buildah and debootstrap; what has not changed is not made again.
.PHONY: image-archives
image-archives: wheelhouse ## The three images as OCI archives in dist/images, without docker and without a registry
	@$(PY) runtime_image/build/archives.py dist/images

.PHONY: release
release: init ## All that a release publishes, in dist/release (IMAGES=yes|no, ALLOW_DIRTY=1)
	@UV="$${UV:-$$(command -v uv || echo .uv/bin/uv)}" $(PY) runtime_image/build/release/make.py \
		--images $(or $(IMAGES),auto)

.PHONY: check
check: init ## Lint, format, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(MYPY_PATHS)
	$(BIN)/lint-imports
	$(PY) -m terrace.api.crd --check $(CRD_FOLDERS)

.PHONY: format
format: init ## Rewrite the code as the formatter wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: test
test: init ## The fast tests: no network, no cluster, under two minutes
	$(BIN)/pytest -n 2 --dist loadfile tests/unit tests/property --ignore=tests/unit/bench $(PYTEST_ARGS)

.PHONY: simulation
simulation: init ## Controller and engine under faults in virtual time, replicas as processes
	$(BIN)/pytest tests/simulation $(PYTEST_ARGS)

# Tests have time limits of their own that no build fits into.
.PHONY: programs
programs: init ## Get the control plane's programs (builds them where releases are out of reach)
	@$(PY) -c "from terrace.local import binaries as b, versions as v; \
	b.find_binaries([name for name in v.GO_PACKAGES if name != 'kwok'], None, print)"

.PHONY: test-cluster
test-cluster: programs ## Against a real control plane on this machine
	$(BIN)/pytest tests/cluster $(PYTEST_ARGS)

# What depends on the API server's version, on the oldest that the pinned programs can play;
# docs/compatibility.md tells of the rest. TERRACE_K8S_BIN=DIR KUBERNETES= tries programs of your own.
KUBERNETES := 1.33
COMPAT_TESTS := $(addprefix tests/cluster/test_,crds.py chart_rights.py controller.py gateway.py older_kubernetes.py)
.PHONY: test-compat
test-compat: programs ## Against an older Kubernetes (KUBERNETES=1.33)
	$(BIN)/pytest $(COMPAT_TESTS) $(if $(KUBERNETES),--kubernetes $(KUBERNETES)) \
		--deselect tests/cluster/test_controller.py::test_fifty_models_at_once_become_ready $(PYTEST_ARGS)

.PHONY: test-e2e
test-e2e: programs ## The whole chain: kubectl apply to streamed answer
	$(BIN)/pytest tests/e2e $(PYTEST_ARGS)

# What users run: our images under containerd and kubelet. Only root on Linux has the namespaces for it.
.PHONY: e2e
e2e: $(if $(filter Linux-0,$(shell uname)-$(shell id -u)),programs image-archives) ## The images, and the whole chain on two real nodes made of them
	@if [ "$$(uname)-$$(id -u)" = Linux-0 ]; then \
		PYTHONPATH=tests $(PY) -m support.tiny_image; \
		$(BIN)/pytest tests/images tests/kubelet --durations=0 --durations-min=1 $(PYTEST_ARGS); \
	else echo "make e2e: nothing to do, real nodes need root on Linux"; fi

.PHONY: tool-programs
tool-programs: programs
	@PYTHONPATH=tests $(PY) -m gitops.programs
	@PYTHONPATH=tests $(PY) -m chart.programs

# With programs that others wrote: Helm 3 and 4, promtool, Argo CD's and Flux's evaluators, pip.
.PHONY: test-tools
test-tools: tool-programs ## Chart, GitOps, dashboards and alerts, docs, release, each judged by the tools that users have; benchmarks
	$(BIN)/pytest $(wildcard tests/chart tests/gitops tests/observability tests/docs tests/release tests/unit/bench) $(PYTEST_ARGS)

# The Vulkan build goes before the environment's own; without VK_ICD_FILENAMES it is Mesa's software
# device, which llama.cpp skips unless it is named, and which crashes in some batches of fused kernels.
.PHONY: test-device
test-device: init ## On a second device, without a GPU in software (builds llama.cpp for Vulkan once)
	@wheel=$$($(PY) runtime_image/build/wheel.py --accelerator vulkan); \
	site=.local/device/$$(basename "$$(dirname "$$wheel")"); \
	[ -d "$$site" ] || { $(PY) -m zipfile -e "$$wheel" "$$site.new"; mv "$$site.new" "$$site"; }; \
	export VK_ICD_FILENAMES="$${VK_ICD_FILENAMES-$$(echo /usr/share/vulkan/icd.d/lvp_icd.*.json)}"; \
	GGML_VK_VISIBLE_DEVICES=0 GGML_VK_DISABLE_FUSION=1 PYTHONPATH="$$PWD/$$site" $(BIN)/pytest tests/device $(PYTEST_ARGS)

.PHONY: test-all
test-all: init ## Everything that must pass, with the time of each stage
	@$(PY) .ci/stages.py

.PHONY: golden
golden: init ## Rewrite the expected manifests from the examples; review the diff like code
	TERRACE_GOLDEN=write $(BIN)/pytest -q tests/unit -k golden

.PHONY: crds
crds: init ## Generate crds/ and the chart's copy from terrace/api
	$(PY) -m terrace.api.crd $(CRD_FOLDERS)

.PHONY: pages
pages: init ## Make the pages of docs/ that come from code
	$(PY) -m terrace.planner.crd_page docs/crd-reference.md
	$(PY) -m terrace.planner.config_page docs/runtime-config.md
	$(PY) -m terrace.planner.disruption docs/disruption.md
	$(PY) -m terrace.planner.accelerator_page docs/accelerators.md
	$(PY) -m terrace.cli.settings_page docs/settings.md
	PYTHONPATH=tests $(PY) -m observability.metrics_page docs/metrics.md
	PYTHONPATH=tests $(PY) -m chart.values_page docs/chart.md

.PHONY: hooks
hooks: init ## Run the fast checks before each commit
	$(BIN)/pre-commit install

.PHONY: demo
demo: init ## From kubectl apply to a streamed answer, on this machine (KEEP=1 leaves it up)
	@$(PY) -m terrace.cli demo $(if $(filter-out 0,$(KEEP)),--keep)

# CASES='decode-*,cancel' runs some, LAYOUT=both tells of the other KV layout too, ROUNDS=9 takes longer.
.PHONY: bench-engine
bench-engine: $(if $(REPORT),plots,init) ## Our runtime against llama-server, case by case (QUICK=1: a glance; REPORT=DIR)
	@$(BENCH).engine $(if $(filter-out 0,$(QUICK)),--quick) $(if $(CASES),--cases '$(CASES)') \
		$(if $(LAYOUT),--layout $(LAYOUT)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(LIMIT),--limit $(LIMIT)) \
		$(if $(REPORT),--report $(REPORT))

.PHONY: plots
plots: init
	@{ $(FIND_PYTHON); $(FIND_UV); \
	"$$uv" sync --quiet --frozen --inexact --group bench --no-install-package llama-cpp-python --python "$$python"; } >&2

.PHONY: bench-gateway
bench-gateway: init ## What the gateway adds to a request (QUICK=1 for a glance)
	@$(BENCH).gateway_overhead $(if $(filter-out 0,$(QUICK)),--quick)

# The device case runs on the Vulkan build, made once (see test-device); CASES='estimate-*' runs some.
.PHONY: bench-planner
bench-planner: init ## Plans against llama.cpp's own report and real replicas (REPORT=DIR)
	@$(BENCH).planner $(if $(CASES),--cases '$(CASES)') $(if $(REPORT),--report $(REPORT))

.PHONY: bench-kernels
bench-kernels: init ## The images' kernels, chosen at start, against a build for this CPU alone (ROUNDS=15)
	@$(BENCH).kernels $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: fuzz
fuzz: init ## Hostile model headers for SECONDS (60)
	PYTHONPATH=tests $(PY) -m support.header_fuzz $(or $(SECONDS),60)

.PHONY: bench-operator
bench-operator: programs ## The operator at scale, with a bare client as the peer (MODELS=100 for a glance)
	@$(BENCH).operator_scale $(if $(CASES),--cases '$(CASES)') $(if $(MODELS),--models $(MODELS)) \
		$(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: clean
clean: ## Remove what the tools made here; .venv/ and the cache of builds stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .local dist
	find operator runtime_image tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +
