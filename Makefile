# Everything a newcomer needs: `make demo`, then `make test`. The environment is made from the lock file on first use.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9
PY := $(VENV)/bin/python
# a file of tests stays in one worker, and the longest ones come first (tests/conftest.py)
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
# `make coverage COVERED=` measures the whole suite, children included, and takes longer than it
COVERED := -m 'not slow and not soak'
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links --no-header \
    --upgrade -q

.PHONY: help install demo test test-fast soak coverage test-gpu lint bench bench-gpu lock clean

help:
	@echo 'make demo    a real model, from its source to a judged and served 4-bit endpoint'
	@echo 'make test    the whole test suite'
	@echo 'make test-fast    what needs no model and no server, in about a minute'
	@echo 'make soak    kills, races and faults at random moments, many times each: before a release'
	@echo 'make coverage    how much of the code the quick tests run; COVERED= for the whole suite'
	@echo 'make lint    ruff, mypy and what may import what'
	@echo 'make bench   what orchestration costs, how fast text is scored, how often a slower server is found,'
	@echo '             and S3 transfers beside the AWS command line: ratios of one run'
	@echo 'make test-gpu, make bench-gpu    the same on a machine with an NVIDIA GPU'
	@echo 'make lock    resolve the dependencies again, and those of the engine runtimes'

install: $(STAMP)

# uv makes and fills the environment; a uv on the PATH is taken, else it goes into a small environment of its own.
$(STAMP): requirements.lock pyproject.toml
	@set -e; uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then \
	    uv=.uv/bin/uv; \
	    [ -x $$uv ] || { python3 -m venv .uv && .uv/bin/python -m pip install -q 'uv==$(UV_VERSION)'; } \
	        || { echo 'python3 -m venv does not work here: install your system'"'"'s python3-venv package, or uv' >&2; exit 1; }; \
	fi; \
	echo 'installing the locked environment (7.5 GB on disk)'; \
	$$uv venv -q --allow-existing --python '>=3.11,<3.14' $(VENV); \
	$$uv pip sync -q --compile-bytecode --python $(PY) --require-hashes requirements.lock; \
	$$uv pip install -q --python $(PY) --no-deps --editable .; \
	$(PY) -m compileall -q artifacts configs flows tasks
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/lmflows run configs/demo.yaml

test: $(STAMP)
	$(PY) -m pytest $(WORKERS)

test-fast: $(STAMP)
	$(PY) -m pytest $(WORKERS) -m 'not slow and not soak' tests

soak: $(STAMP)
	LMFLOWS_TEST_SOAK=1 $(PY) -m pytest -m soak --timeout 3600

coverage: $(STAMP)
	@rm -rf build/coverage && mkdir -p build/coverage
	$(PY) -m coverage run -m pytest $(WORKERS) $(COVERED) tests
	@$(PY) -m coverage combine -q && $(PY) -m coverage report

lint: $(STAMP)
	$(VENV)/bin/ruff format -q --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo --no-cache

bench: $(STAMP)
	$(PY) -m benchmarks.orchestration
	$(PY) -m benchmarks.scoring
	$(PY) -m benchmarks.load
	$(PY) -m benchmarks.s3

test-gpu: $(STAMP)
	$(PY) -m pytest tests/gpu

# Writes docs/benchmarks/<gpu>.md. The runtimes come first: making them takes minutes and no GPU.
bench-gpu: $(STAMP)
	$(VENV)/bin/lmflows engines prepare lmdeploy-0.12.3 lmdeploy-0.18.0
	$(PY) -m benchmarks.gpu.measure --out build/bench-gpu
	$(PY) -m benchmarks.gpu.write_up build/bench-gpu

lock:
	$(COMPILE) pyproject.toml --extra dev -o requirements.lock
	@set -e; for file in configs/runtimes/*.in; do echo $$file; $(COMPILE) $$file -o $${file%.in}.lock; done

clean:
	rm -rf $(VENV) .uv .pytest_cache .mypy_cache .ruff_cache
