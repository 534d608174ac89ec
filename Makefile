# Every task on a checkout, for people and CI. `make` lists the targets.
#
#   make demo VIDEO=path/to/film.mp4                    index your own video
#   make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu   the small CPU build of torch (Linux)
#   make demo PYTHON=/path/to/python3.12                use this Python instead of the first suitable one

VENV ?= .venv
PYTHON ?=
TORCH_INDEX_URL ?=
VIDEO ?=
# Extra arguments: make test ARGS="-k ledger -x", make bench ARGS=--quick
ARGS ?=
# Test processes that run at once, mostly waiting; 0: one after the other, in one process.
JOBS ?= 3
# Files in the order of their folders: those that start fleets first, short ones last.
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check
RUN_STAMP = $(VENV)/.installed-run
DEV_STAMP = $(VENV)/.installed-dev
# npm writes them: linters and tests of the page (which itself needs none of them), and the OpenID provider of tests.
PAGE_STAMP = web/node_modules/.package-lock.json
OIDC_STAMP = tests/support/oidc/node_modules/.package-lock.json
SOURCES = api cli db local shared tasks worker tests bench samples

.PHONY: help demo lint-page screenshots test test-quick coverage docs test-faults test-gpu test-deploy lint fmt bench up migrate install install-dev audit lock clean

help:
	@echo "make demo         index the sample video and search it, on a bare machine"
	@echo "make up           run a fleet here until Ctrl-C"
	@echo "make migrate      upgrade the schema of the database of POSTGRES_URL"
	@echo "make test         run all tests except the long fault test and those that need a GPU or containers"
	@echo "make test-quick   run the tests that start no server, load no model and decode little video: a minute"
	@echo "make coverage     run them and measure the coverage of lines and branches"
	@echo "make test-faults  process videos while processes, Redis, Postgres and the storage fail: 1,000 random kills (FAULTS_KILLS=60: fewer)"
	@echo "make test-gpu     run the tests that need an NVIDIA GPU, and measure throughput; skipped elsewhere"
	@echo "make test-deploy  build the image and test docker-compose.yml in containers"
	@echo "make lint         check format, lint, types, and imports between packages; the page's types and lint, with Node.js"
	@echo "make screenshots  photograph the page for the documentation, docs/pictures"
	@echo "make docs         build the documentation as a site, in build/docs; fails on a broken link"
	@echo "make fmt          format the code"
	@echo "make audit        check locked packages for known vulnerabilities"
	@echo "make lock         update locks/ after a change of pyproject.toml or constraints.txt"
	@echo "make bench        measure the split stage, cuts on real films, keyframes, the pipeline, the models, the ledger, searches, tenants, the API, online requests and the fleet's memory"

demo: $(RUN_STAMP)
	@set -- ; if [ -n "$$VIDEO" ]; then set -- "$$VIDEO"; fi; exec $(BIN)/python -m cli.demo "$$@"

up: $(RUN_STAMP)
	@exec $(BIN)/scenefleet up

migrate: $(RUN_STAMP)
	@$(BIN)/scenefleet db upgrade

# Tests start hundreds of programs: none of them compiles what another has compiled.
test test-quick coverage: export PYTHONDONTWRITEBYTECODE =

test: $(DEV_STAMP) $(PAGE_STAMP) $(OIDC_STAMP)
	$(PYTEST) -m "not faults and not gpu and not deploy" $(ARGS)

test-quick: $(DEV_STAMP)
	$(PYTEST) -p no:schemathesis -m "not slow and not video" tests/unit $(ARGS)

# Lines and branches of our packages that tests reach, nodes and commands they start included. Everything:
#   make coverage COVERED='-m "not faults and not gpu and not deploy"'
COVERED ?= -m "not slow" tests/unit
coverage: $(DEV_STAMP)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run $(PYTEST:$(BIN)/python%=%) $(COVERED) $(ARGS)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report | grep -E '^(Name|TOTAL)'

# Its tests have time limits of their own, of up to hours.
test-faults: $(DEV_STAMP)
	$(BIN)/python -m pytest -m faults -s -o faulthandler_timeout=0 $(ARGS)

test-gpu: $(DEV_STAMP)
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

# Needs Docker with Compose, or podman and podman-compose. SCENEFLEET_KEEP_IMAGES=1 keeps what it builds for the next time,
# SCENEFLEET_IMAGE=name tests an image that is there.
test-deploy: $(DEV_STAMP)
	TORCH_INDEX_URL="$(TORCH_INDEX_URL)" $(BIN)/python -m pytest -m deploy tests/deploy $(ARGS)

lint: $(DEV_STAMP) lint-page
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-page: $(PAGE_STAMP)
	@if [ -e $(PAGE_STAMP) ]; then set -x; npm --prefix web run --silent check; fi

screenshots: $(DEV_STAMP)
	SCENEFLEET_PICTURES="$(CURDIR)/docs/pictures" $(BIN)/python -m pytest tests/acceptance/lite/test_page_pictures.py $(ARGS)

fmt: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV_STAMP)
	$(BIN)/python -m mkdocs build --strict

bench: $(DEV_STAMP)
	@$(BIN)/python -m bench.films fetch || true
	@status=0; for name in split spans films keyframes pipeline models memory idle ledger search tenants api online; do \
	  $(BIN)/python -m bench.$$name $(ARGS) || status=1; \
	done; exit $$status

install: $(RUN_STAMP)

install-dev: $(DEV_STAMP)

# Each tool in an environment of its own: neither belongs to what we lock.
audit:
	@python3 -m venv build/audit && build/audit/bin/python -m pip --quiet --disable-pip-version-check install pip-audit \
	  || { echo "audit: pip-audit could not be installed; nothing was checked"; exit 0; }; \
	python3 .ci/audit build/audit/bin/pip-audit

lock:
	@python3 -m venv build/lock && build/lock/bin/python -m pip --quiet --disable-pip-version-check install uv
	@python3 .ci/lock build/lock/bin/uv

# VIDEO reaches the recipe through the environment, so that a path may hold spaces and quotes.
export VIDEO

$(RUN_STAMP): pyproject.toml constraints.txt locks/run.txt locks/torch.txt
	@LOCK=run; $(install)
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt locks/dev.txt locks/torch.txt
	@LOCK=dev; $(install)
	@touch $@ $(RUN_STAMP)

# Without Node.js and npm it says so, and what needs them is left out: tests skip with their reason. In CI it fails.
$(PAGE_STAMP) $(OIDC_STAMP): %/node_modules/.package-lock.json: %/package-lock.json
	@if ! command -v npm >/dev/null 2>&1 || ! node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || a == 20 && b >= 19 ? 0 : 1)'; then \
	  echo "make: no npm and Node.js 20.19 or newer found: the page is not linted, and some of its tests are skipped. Install them (https://nodejs.org/en/download; Debian 13: apt-get install npm) and run make again" >&2; \
	  [ -z "$$CI" ]; \
	else npm ci --prefix $* --no-audit --no-fund && touch $@; fi

# Looks first for what it can't bring along, then makes the virtual environment and installs into it what locks/ names,
# by the sha256 of every file. A build of torch that is installed or that pip has at hand (find-links) comes before PyPI's; an
# index of other builds (TORCH_INDEX_URL) is taken at its word. Whether torch needs the CUDA libraries, it says itself.
define install
set -e; \
python=""; \
for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python); do \
  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
    python="$$candidate"; break; \
  fi; \
done; \
if [ -z "$$python" ]; then \
  echo "make: no Python 3.11, 3.12 or 3.13 found: install one (Debian, Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12), or name it with PYTHON=" >&2; exit 1; \
fi; \
if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
  echo "make: $$python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; \
fi; \
if ! command -v redis-server >/dev/null 2>&1 && ! command -v valkey-server >/dev/null 2>&1 && ! "$$python" -c 'import platform, sys; sys.exit(not (sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info < (3, 13)))'; then \
  echo "make: no redis-server found, and PyPI has none for this machine: install it (Debian, Ubuntu: apt-get install redis-server; macOS: brew install redis)" >&2; exit 1; \
fi; \
if [ -x "$(BIN)/python" ] && ! "$(BIN)/python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
  echo "make: $(VENV) was made by another Python: remove it (rm -r $(VENV)) and run make again" >&2; exit 1; \
fi; \
if [ ! -x "$(BIN)/python" ]; then "$$python" -m venv "$(VENV)"; fi; \
if [ -n "$(TORCH_INDEX_URL)" ]; then \
  $(PIP) install --no-deps --constraint constraints.txt --index-url "$(TORCH_INDEX_URL)" torch; \
else \
  $(PIP) install --quiet --no-index --no-deps --require-hashes --requirement locks/torch.txt 2>/dev/null || { \
    if [ "$$(uname -s)" = Linux ]; then \
      echo "make: PyPI's torch for Linux is the CUDA build (gigabytes); for the small one: make $(firstword $(MAKECMDGOALS)) TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu"; \
    fi; \
    $(PIP) install --no-deps --require-hashes --requirement locks/torch.txt; \
  }; \
fi; \
if "$(BIN)/python" -c 'import importlib.metadata as m, sys; sys.exit(not any("nvidia" in name for name in m.requires("torch") or []))'; then \
  $(PIP) install --no-deps --require-hashes --requirement locks/cuda.txt; \
fi; \
$(PIP) install --no-deps --require-hashes --requirement locks/$$LOCK.txt; \
$(PIP) install --no-deps --no-build-isolation --editable .; \
MODELS_DIR="$(VENV)/share/scenefleet/models" $(BIN)/scenefleet models pull transnetv2 >/dev/null || \
  echo "make: without the weights that judge doubtful cuts (30 MB) some cuts are wrong; to try again: $(BIN)/scenefleet models pull transnetv2" >&2
endef

clean:
	rm -rf $(VENV) web/node_modules .scenefleet build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis bench/out
