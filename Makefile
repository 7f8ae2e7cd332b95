# Each target sets up what it needs by itself, in .venv, with the versions that constraints.txt pins. Set-up happens
# once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEMO ?= build/demo
PROCESSES ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# The package itself is built in an environment that pip makes; these hold for it too (the second from pip 25.3 on).
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo test test-all lint docs format dev requirements clean clean-all

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  make %-13s %s\n' "$$target" "$$text"; done

install: $(VENV)/installed-run ## install yt8m with what it needs to run: .venv/bin/yt8m

demo: $(VENV)/installed-run ## the whole road on invented data, into build/demo (DEMO=folder for another)
	$(BIN)/yt8m demo $(DEMO)

# One thread a process, or the processes take turns on the same cores. A file's tests stay in one process, so that
# what they share (a model, an import of TensorFlow) is made once.
test: $(VENV)/installed-test ## the tests but the slow ones (PROCESSES=2, PYTEST_ARGS=...)
	OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

test-all: override PYTEST_ARGS += -m ''
test-all: test ## all tests

lint: $(VENV)/installed-lint ## ruff, mypy, and hadolint for the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

docs: $(VENV)/installed-run ## write docs/cli.md from the commands
	$(BIN)/typer yt8m.cli.main utils docs --name yt8m --title 'Command reference' --output docs/cli.md

format: $(VENV)/installed-lint ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dev: $(VENV)/installed-dev ## everything, and the checks before each commit
	$(BIN)/pre-commit install

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'yt8m needs Python 3.11 or newer; name one with `make PYTHON=/path/to/python3.11 ...`.' >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)

$(VENV)/installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing what `$*` needs into $(VENV); the first time this takes minutes.'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(if $(filter run,$*),,[$*])'
	@touch $@

# requirements.txt is those lines of constraints.txt that installing yt8m without extras calls for. CUDA's packages
# stay out: only torch knows whether its build for a machine needs them.
define PINNED_REQUIREMENTS
import json, re
name = lambda text: re.sub(r"[-_.]+", "-", text).lower()
report = json.load(open("build/requirements.json", encoding="utf-8"))
wanted = {name(package["metadata"]["name"]) for package in report["install"]} - {"yt8m"}
wanted = {package for package in wanted if not re.match(r"nvidia-|cuda-|triton", package)}
print("".join(line for line in open("constraints.txt", encoding="utf-8") if line.split("==")[0] in wanted), end="")
endef
export PINNED_REQUIREMENTS

requirements: $(BIN)/python ## write requirements.txt anew from constraints.txt
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --constraint constraints.txt \
		--report build/requirements.json .
	@$(BIN)/python -c "$$PINNED_REQUIREMENTS" > build/requirements.pins
	@sed -n '/^#/p' requirements.txt > build/requirements.txt
	@{ echo; cat build/requirements.pins; } >> build/requirements.txt
	mv build/requirements.txt requirements.txt

clean: ## delete build/, dist/ and caches
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## delete .venv too
	rm -rf $(VENV)
