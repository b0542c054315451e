# One line per target: `make help`. Needs Python 3.11 or newer with its venv module, make, and a package index.

PYTHON ?= python3
BIN := .venv/bin
PACKAGES := fl_contract privacy strategies fl_host fl_client fl_server
# CI has time for the slow tests and for deployed federations too, not for killing their parts.
FAST := $(if $(CI),,not slow and not deployment and )not chaos
# And two cores. The tests of a file stay together: those that start Flower and Ray do so one after the other.
PROCESSES := $(if $(CI),-n 2 --dist loadfile --no-loadscope-reorder)

HOST_TOOLS := iproute2 nftables tinyproxy-bin

# Nothing we start may call home, or install packages at run time.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0

# The stamps say what .venv holds; a development environment is also good enough to run.
RUNTIME := .venv/.installed
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup host-tools check test test-all demo bundle constraints clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(DEV) ## Create .venv with the development tools
	@echo "ready: .venv ($$($(BIN)/python --version))"

host-tools: ## Install what tests of separate hosts run (Debian, as root); those tests are skipped without it
	@dpkg --status $(HOST_TOOLS) >/dev/null 2>&1 && exit; \
	install="apt-get install --yes --no-install-recommends $(HOST_TOOLS)"; export DEBIAN_FRONTEND=noninteractive; \
	$$install || { apt-get update && $$install; } || echo "not installed: $(HOST_TOOLS)"

check: $(DEV) ## Format, lint, types, import contracts; names the command that fixes what failed
	@status=0; failed=; \
	step() { \
		fix=$$1; shift; echo "== $$*"; \
		"$$@" || { status=1; failed="$$failed\n  $$* failed; fix: $$fix"; }; \
	}; \
	step "$(BIN)/ruff format ." $(BIN)/ruff format --check .; \
	step "$(BIN)/ruff check --fix ." $(BIN)/ruff check .; \
	step "correct the types named above, then $(BIN)/mypy" $(BIN)/mypy; \
	step "move the import named above (contracts: pyproject.toml), then $(BIN)/lint-imports" $(BIN)/lint-imports --no-logo; \
	printf '%b\n' "$${failed:-all checks passed}"; exit $$status

test: $(DEV) ## Fast tests and doctests; in CI (CI=true) the slow ones and deployed federations too
	$(BIN)/pytest $(PROCESSES) --doctest-modules -m "$(FAST)" $(PACKAGES) tests

test-all: $(DEV) ## All tests, slow, deployment and chaos included, with coverage
	$(BIN)/pytest --doctest-modules --cov --cov-report=term-missing:skip-covered $(PACKAGES) tests

demo: $(RUNTIME) ## One private federated run of four hospitals on real patients' data, with its report
	@$(BIN)/fl-server simulate

bundle: $(RUNTIME) ## Build the Flower bundle in dist/ and list what is in it
	@rm -f dist/*.fab; mkdir -p dist
	@cd dist && ../$(BIN)/flwr build --app ..
	@$(BIN)/python -m zipfile -l dist/*.fab

constraints: $(DEV) ## Resolve newer versions into constraints.txt
	@sed -n '/^#/p' constraints.txt > .venv/constraints.new
	@printf '%s\n' uv hatchling editables | $(BIN)/uv pip compile --quiet --python $(BIN)/python --upgrade --prerelease disallow \
		--no-header --no-annotate --all-extras pyproject.toml - >> .venv/constraints.new
	@mv .venv/constraints.new constraints.txt

clean: ## Remove .venv, caches and built bundles; keep runs/
	rm -rf .venv dist build htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# uv is fast, pip is everywhere: when uv cannot be had or cannot reach the index, pip installs the same versions.
# The constraints bind the build of our own package too (uv: --build-constraints; pip: only through its variable).
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Consilium needs Python 3.11 or newer; PYTHON=$(PYTHON) is not." >&2; \
		echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
		echo "$(PYTHON) cannot create .venv: install its venv module (Debian: apt install python3-venv)," >&2; \
		echo "or name another Python: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@{ $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)" && \
		$(BIN)/uv pip install --python $(BIN)/python -c constraints.txt -b constraints.txt -e '$(1)'; } || { \
		echo "uv could not install; pip tries the same versions" >&2; \
		PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -e '$(1)'; }
endef

$(RUNTIME): pyproject.toml constraints.txt
	$(call install,.)
	@touch $(RUNTIME)

$(DEV): pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(RUNTIME) $(DEV)
