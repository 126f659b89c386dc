# make demo        the whole path, from a rendered log to a localized query (see README.md)
# make test        all tests but the slow ones
# make test-slow   all slow tests: packaging, training, long runs
# make test-reference  as make test, with the reference kernels instead of the compiled ones
# make check       format, lint, types, fast tests
# make static      format, lint, types
# make format      format the code
# make accuracy    maps of real images against matching the whole database (DATA=folder of scenes)
# make fuzz        mutated files for everything that reads what others wrote (MINUTES=10)
# make sanitize    calls of the compiled kernels that do not fit, under GCC's sanitizers (CALLS=400)
# make updates     map updates in a simulated building: table and plot
# make results-status  which records of benchmarks are older than the code they measure
# make docs        the documents as a site in build/site, with all links checked
# make picture     the picture of the README
# make colcon      build with colcon into build/colcon
# make venv        the virtual environment that all of these use
# make kernels     the compiled kernels, in place (part of all of these)
#
# Variables: PYTHON (3.11 or 3.12), VENV (an environment to make or to use again),
# PYTEST_FLAGS, PARALLEL (empty: one process), DEMO_OUTPUT, MINUTES, CALLS, SCENES.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
DEMO_OUTPUT ?= demo_output
DATA ?= ../shared/data
PYTEST_FLAGS ?=
# Tests of one file stay together: what a module's fixtures build is built once.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile
SCENES ?=
MINUTES ?= 10
CALLS ?= 400
# The first that runs: a name on the PATH may be an empty shell of a version manager.
PYTHON ?= $(shell for candidate in python3.12 python3.11 python3; do \
	if $$candidate -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		>/dev/null 2>&1; then echo $$candidate; break; fi; done)

REQUIREMENTS := requirements/runtime.txt requirements/ros.txt requirements/dev.txt
# tf2_msgs is not among the wheels of rclpy; this module compiles its one message (needs gcc).
TYPE_SUPPORT := $(wildcard d2s_ros/ros/message_support.py)
KERNELS := build/kernels.stamp
BIN := $(VENV)/bin
STAMP := $(VENV)/.d2s_ros_requirements $(KERNELS) $(BIN)/d2s
SOURCES := d2s_ros test setup.py $(wildcard launch benchmarks tools examples)

.PHONY: help venv kernels demo accuracy updates fuzz sanitize test test-slow test-reference check static format-check lint types fast-tests format docs picture results-status colcon clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

venv: $(STAMP)

kernels: $(KERNELS)

# Without a compiler this says so, and the package works without its compiled part.
$(KERNELS): $(wildcard d2s_ros/kernels/c/*) setup.py \
		$(VENV)/.d2s_ros_requirements
	$(BIN)/python setup.py --quiet build_ext --inplace
	@mkdir -p $(@D) && touch $@

$(VENV)/.d2s_ros_requirements: $(REQUIREMENTS) $(TYPE_SUPPORT)
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: no Python 3.11 or 3.12 with the venv module found;" \
			"install python3.11-venv or set PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@if ! [ -x $(BIN)/python ]; then echo "Making $(VENV) with $(PYTHON)"; \
		$(PYTHON) -m venv $(VENV); fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(addprefix -r ,$(REQUIREMENTS))
	$(if $(TYPE_SUPPORT),$(BIN)/python -m d2s_ros.ros.message_support)
	@touch $@

# The command `d2s`, and `import d2s_ros` from everywhere, both of this folder.
$(BIN)/d2s: setup.py $(VENV)/.d2s_ros_requirements
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m d2s_ros.cli.main demo --output $(DEMO_OUTPUT)

accuracy: $(STAMP)
	PYTHONPATH=. $(BIN)/python benchmarks/accuracy.py $(DATA) --check 1.5 $(if $(SCENES),--scenes $(SCENES))

updates: $(STAMP)
	PYTHONPATH=. $(BIN)/python benchmarks/map_update.py --plot map_updates.png

# Ends with 1 if an input ended a process, raised what is not documented, or took too much.
fuzz: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m tools.fuzz --minutes $(MINUTES) --save build/fuzz

# Ends with 1 if a sanitizer ended a call, or one raised what is not documented.
sanitize: $(STAMP)
	PYTHONPATH=. $(BIN)/python -m tools.sanitize --calls $(CALLS)

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not gpu' $(PYTEST_FLAGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

# PYTEST_FLAGS may name folders, as .ci/run does.
test-reference: $(STAMP)
	D2S_KERNELS=reference $(BIN)/python -m pytest $(PARALLEL) -m 'not slow and not gpu' $(PYTEST_FLAGS)

check: static fast-tests

static: format-check lint types

format-check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)

# Of test/, what is None fails a test by itself, and lists that begin empty need no type.
types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases --allow-untyped-defs --allow-incomplete-defs \
		--no-strict-optional --disable-error-code var-annotated --cache-dir .mypy_cache/test test
	MYPYPATH=.:benchmarks $(BIN)/mypy --explicit-package-bases --allow-untyped-defs \
		--allow-incomplete-defs $(wildcard benchmarks tools examples)

# Fast: neither slow, nor nodes over DDS, nor a GPU.
fast-tests: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not slow and not ros and not gpu' $(PYTEST_FLAGS)

format: $(STAMP)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# The site has an environment of its own, so that that of the tests stays small.
DOCS_VENV ?= build/docs_venv

$(DOCS_VENV)/.requirements: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

docs: $(DOCS_VENV)/.requirements
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@if grep -rlE '<(script|link|img|iframe)[^>]* src="https?://' --include=*.html build/site; then \
		echo "these pages load something from elsewhere" >&2; exit 1; fi
	@echo "build/site/index.html"

results-status:
	@PYTHONPATH=. $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/records.py

PICTURE := build/picture
PICTURE_SIZE := --seed 11 --width 480 --height 360 --quiet

picture: $(STAMP)
	rm -rf $(PICTURE)
	$(BIN)/d2s simulate $(PICTURE)/mapping --frames 40 --trajectory lawnmower $(PICTURE_SIZE)
	$(BIN)/d2s simulate $(PICTURE)/queries --frames 16 --trajectory random --trajectory-seed 5 $(PICTURE_SIZE)
	$(BIN)/d2s build-map $(PICTURE)/mapping --map $(PICTURE)/map --budget quick --quiet
	$(BIN)/python tools/readme_picture.py $(PICTURE)/map $(PICTURE)/queries docs/images/localization.png

colcon: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" colcon --log-base build/colcon/log build \
		--packages-select d2s_ros --build-base build/colcon/build \
		--install-base build/colcon/install

clean:
	rm -rf build install log demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		d2s_ros/kernels/*.so
	find d2s_ros test -name __pycache__ -type d -prune -exec rm -rf {} +
