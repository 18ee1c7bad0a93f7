# Everything happens in .venv, from constraints.txt; only Python 3.11 or newer and make are needed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo docs test test-all test-frameworks test-gpu coverage lint format bench floor wheel clean

help:
	@echo "make demo      set up, train the six methods on the built-in data, write the report"
	@echo "make test      set up, run the tests"
	@echo "make test-all  the tests that take longer, too"
	@echo "make test-frameworks  those with Lightning, transformers, optax and other frameworks"
	@echo "make docs      the site, in build/docs; every example of it is run"
	@echo "make test-gpu  the tests for a GPU; PYTHON=python3 sets nothing up"
	@echo "make coverage  branch coverage of the library, 95 % or more"
	@echo "make lint      ruff and mypy"
	@echo "make bench     benchmarks; nothing else should run beside them"
	@echo "make floor     the core's tests on the oldest torch that is supported"
	@echo "make wheel     wheel and sdist into dist/, checked and installed in a clean environment"

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "znorm needs Python 3.11 or newer, found " + sys.version.split()[0] + "; say make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about 2 GB with the CPU build of torch; minutes)"
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[lab,medical,cpu,onnx,dev]'
	@touch $@

demo: setup
	$(BIN)/znorm compare --seeds 2 --out runs/demo

# One process a core, four at most; what measures time runs by itself.
BESIDE := --numprocesses auto --maxprocesses 4 --dist worksteal --quiet
test: setup
	$(BIN)/python -m pytest $(BESIDE) -m 'not slow and not gpu and not alone'
	$(BIN)/python -m pytest --quiet -m 'alone and not slow'

# An environment of its own that sees what is in .venv, too.
define on_top
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
endef

# Heavy ones, that the tests of wrappers and trainers are for: in an environment of their own, on
# top of .venv, since libraries there import them where they find them.
FRAMEWORKS := .venv-frameworks/bin/python
.venv-frameworks/.ready: .venv/.ready
	@echo "installing Lightning, transformers, jax and others into .venv-frameworks (1 GB)"
	$(call on_top,.venv-frameworks)
	@PIP_CONSTRAINT=constraints.txt $(FRAMEWORKS) -m pip install --quiet --disable-pip-version-check \
	  accelerate jax 'jsonargparse[signatures]' lightning optax peft pytorch-ignite schedulefree \
	  transformers
	@# Its models need torchvision, which would bring another torch; its optimizers do not.
	@PIP_CONSTRAINT=constraints.txt $(FRAMEWORKS) -m pip install --quiet --disable-pip-version-check \
	  --no-deps timm
	@touch $@

test-frameworks: setup .venv-frameworks/.ready
	PYTHONPATH=src $(FRAMEWORKS) -m pytest --quiet -m slow tests/frameworks

# Sphinx and its theme, on top of .venv in the same way.
.venv-docs/.ready: .venv/.ready
	@echo "installing Sphinx into .venv-docs"
	$(call on_top,.venv-docs)
	@PIP_CONSTRAINT=constraints.txt .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[docs]'
	@touch $@

# A broken link, a public name without its docstring or an example that fails is an error. Pages on
# frameworks are run where these are installed, by make test-frameworks.
docs: setup .venv-docs/.ready
	$(BIN)/python -m pytest $(BESIDE) -m 'not gpu' tests/test_docs.py tests/test_examples.py src/znorm
	rm -rf build/docs
	PYTHONPATH=src .venv-docs/bin/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet \
	  --builder html docs build/docs
	@echo "open build/docs/index.html"

test-all: coverage test-frameworks docs
	.venv-docs/bin/python -m pytest --quiet -m slow tests/test_site.py
	ZNORM_KERNELS=reference $(BIN)/python -m pytest $(BESIDE) tests/test_every_optimizer.py \
	  tests/test_set_ups.py tests/transforms tests/optim
	$(BIN)/python -m pytest $(BESIDE) -m 'slow and not alone' --ignore tests/frameworks --ignore tests/test_docs.py
	$(BIN)/python -m pytest --quiet -m 'slow and alone' --ignore tests/frameworks

coverage: setup
	$(BIN)/python -m pytest $(BESIDE) -m 'not slow and not gpu and not alone' --cov --cov-report=term-missing:skip-covered --cov-fail-under=95 \
	  tests src/znorm --ignore tests/lab --ignore src/znorm/lab --ignore tests/test_docs.py \
	  --ignore tests/test_examples.py

# With PYTHON given, that interpreter as it is: machines with a GPU are often offline.
ifeq ($(origin PYTHON),command line)
test-gpu:
	CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONPATH=src $(PYTHON) -m pytest -rs tests/gpu tests/lab/training/test_on_gpu.py -m gpu
else
test-gpu: setup
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest -rs tests/gpu tests/lab/training/test_on_gpu.py -m gpu
endif

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/exactness.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/sharded.py
	$(BIN)/python benchmarks/parts.py
	$(BIN)/python benchmarks/train.py

floor:
	@test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check torch==2.6.0 numpy numba hypothesis pytest pytorch_optimizer expecttest
	PYTHONPATH=src .venv-floor/bin/python -m pytest tests src/znorm --ignore src/znorm/lab \
	  --ignore tests/lab --ignore tests/test_docs.py --ignore tests/test_examples.py

# With torch alone first: the core must not need more.
wheel: export PIP_CONSTRAINT := constraints.txt
wheel:
	rm -rf dist .venv-build .venv-wheel
	$(PYTHON) -m venv .venv-build
	.venv-build/bin/python -m pip install --quiet --disable-pip-version-check build hatchling twine
	.venv-build/bin/python -m build --no-isolation
	.venv-build/bin/twine check --strict dist/*
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	.venv-wheel/bin/python -I -W ignore -c 'import torch, znorm; znorm.z_score_([torch.randn(8)]); print(znorm.__file__)'
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check "$$(echo dist/*.whl)[lab]"
	.venv-wheel/bin/znorm --help

clean:
	rm -rf .venv .venv-build .venv-docs .venv-floor .venv-frameworks .venv-wheel dist build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
