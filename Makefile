# `make demo` and `make test` are the two commands a newcomer types; both build .venv if it is not there.
PYTHON ?= python3
UV := .venv/bin/uv
BIN := .venv/bin
BACKEND := $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))

.PHONY: install demo test test-slow test-faults test-gpu check bench docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(UV) pip install --quiet --python $(BIN)/python $(BACKEND) -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/antiphon run demo

test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -m slow

test-faults: install
	$(BIN)/python -m pytest -m faults -s

test-gpu: install
	$(BIN)/python -m pytest -m gpu -rs tests/gpu

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	for other in "--platform darwin" "--python-version 3.12" "--python-version 3.13"; do \
	    $(BIN)/mypy --config-file .ci/mypy.ini --cache-dir .mypy_cache/other $$other || exit 1; done

bench: install
	$(BIN)/python -m pytest -m bench -s tests/bench

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf .venv build *.egg-info
