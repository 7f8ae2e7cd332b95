# Each target installs what it needs into .venv, at the versions of constraints.txt: once, and again when pyproject.toml or
# constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEMO ?= build/demo
PROCESSES ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

# Also for the isolated environment in which pip builds the package (the second variable from pip 25.3).
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

install: $(VENV)/installed-run ## install yt8m: .venv/bin/yt8m

demo: $(VENV)/installed-run ## run the complete pipeline on generated data, into build/demo (or DEMO=folder)
	$(BIN)/yt8m demo $(DEMO)

# One thread per process, because more would compete for the same cores. The tests of a file run in one process, which
# makes what they share (a model, the import of TensorFlow) once.
test: $(VENV)/installed-test ## run the tests, except slow ones (PROCESSES=2, PYTEST_ARGS=...)
	OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile $(PYTEST_ARGS)

test-all: override PYTEST_ARGS += -m ''
test-all: test ## run all tests

lint: $(VENV)/installed-lint ## run ruff, mypy, and hadolint for the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

docs: $(VENV)/installed-run ## regenerate docs/cli.md, docs/recipes.md and the figure of the method
	$(BIN)/typer yt8m.cli.main utils docs --name yt8m --title 'Command reference' --output docs/cli.md
	$(BIN)/python docs/recipe_reference.py
	$(BIN)/python docs/method_figure.py

format: $(VENV)/installed-lint ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dev: $(VENV)/installed-dev ## install all extras, and check before each commit
	$(BIN)/pre-commit install

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'yt8m needs Python 3.11 or newer; name one with `make PYTHON=/path/to/python3.11 ...`.' >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)

$(VENV)/installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing what `$*` needs into $(VENV); the first time this takes minutes.'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(if $(filter run,$*),,[$*])'
	@touch $@

# requirements.txt contains the lines of constraints.txt that yt8m without extras depends on. CUDA packages are excluded:
# whether they are needed depends on torch's build for the machine.
define PINNED_REQUIREMENTS
import json, re
name = lambda text: re.sub(r"[-_.]+", "-", text).lower()
report = json.load(open("build/requirements.json", encoding="utf-8"))
wanted = {name(package["metadata"]["name"]) for package in report["install"]} - {"yt8m"}
wanted = {package for package in wanted if not re.match(r"nvidia-|cuda-|triton", package)}
print("".join(line for line in open("constraints.txt", encoding="utf-8") if line.split("==")[0] in wanted), end="")
endef
export PINNED_REQUIREMENTS

requirements: $(BIN)/python ## regenerate requirements.txt from constraints.txt
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
