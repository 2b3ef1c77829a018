# Everything a newcomer needs: `make demo`, then `make test`. The environment is made from the lock file on first use.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9
PY := $(VENV)/bin/python

.PHONY: help install demo test lint bench lock clean

help:
	@echo 'make demo    a real model, from its source to a judged and served 4-bit endpoint'
	@echo 'make test    the whole test suite'
	@echo 'make lint    ruff and mypy'
	@echo 'make bench   what orchestration costs, in ratios of one run'
	@echo 'make lock    resolve the dependencies again'

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
	$$uv pip install -q --python $(PY) --no-deps --editable .
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/lmflows run configs/demo.yaml

test: $(STAMP)
	$(PY) -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(PY) -m tests.bench

lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-annotate \
	    --no-emit-index-url --no-emit-find-links --no-header --upgrade -q -o requirements.lock

clean:
	rm -rf $(VENV) .uv .pytest_cache .mypy_cache .ruff_cache
