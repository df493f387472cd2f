# make train   a model trained with stock PyTorch and with fusedtrain, side by side     TRAIN_ARGS="--task text"
# make test    the whole suite                                                         PYTEST_ARGS="-k optim"
# make bench   speed ratios against PyTorch, measured on this machine                   BENCH_ARGS=...
# make readme-tables  the README's figures, from the measurements in benchmarks/results
# make lint    ruff, mypy, clang-format        make format   mend what they can
# make wheel   a wheel in dist/                make clean    forget the environments and everything built
# make test-floor, make test-newest            the suite under the oldest and the newest torch, with the wheel built here
# make cuda-check  every CUDA kernel compiled for every architecture, and what came out compared with what is expected;
#                  make cuda-check CUDA_CHECK_ARGS=--write makes that anew
# make cuda-build  the whole extension, with CUDA, against the oldest torch: compiled, linked, loaded. Needs no GPU
#
# Each makes what it needs first: the pinned environment in .venv, then the native library. FUSEDTRAIN_BUILD as in setup.py.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2
TRAIN_ARGS ?=
BENCH_ARGS ?=
CUDA_CHECK_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
NATIVE := setup.py setup_cuda.py $(shell find csrc -type f)
CXX_FILES = $(shell find csrc tests/cuda_on_cpu benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# Two processes with one thread each are faster than one process with two: most tests are small.
RUN_TESTS = OMP_NUM_THREADS=1 PATH="$(abspath $(1))/bin:$$PATH"

.PHONY: train test bench readme-tables lint format wheel test-floor test-newest cuda-check cuda-build build clean
.DELETE_ON_ERROR:

train: build
	$(BIN)/python -m fusedtrain train $(TRAIN_ARGS)

test: build
	$(call RUN_TESTS,$(VENV)) $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: build
	$(BIN)/python benchmarks/ratios.py $(BENCH_ARGS)

readme-tables: $(VENV)/requirements.stamp
	$(BIN)/python benchmarks/readme_tables.py

lint: $(VENV)/requirements.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/requirements.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

build: $(VENV)/native.stamp

# Every file of requirements/ is pinned, and the pins are for 3.11 and up; the package itself runs on 3.10.
define MAKE_ENVIRONMENT
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "the pinned environment needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
endef

$(VENV)/requirements.stamp: requirements/dev.txt requirements/test.txt
	$(call MAKE_ENVIRONMENT,$(VENV),-r requirements/dev.txt)
	touch $@

# The package is linked into the environment once; its native parts are built in place, where ninja does only what changed.
$(VENV)/linked.stamp: $(VENV)/requirements.stamp pyproject.toml
	FUSEDTRAIN_BUILD=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/native.stamp: $(VENV)/linked.stamp $(NATIVE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python setup.py --quiet build_ext --inplace
	@if [ -e fusedtrain/_C.so ]; then touch $@; fi  # without it the next make tries again

wheel dist/wheel.stamp: $(VENV)/requirements.stamp $(NATIVE) pyproject.toml $(shell find fusedtrain -name '*.py')
	rm -rf dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	touch dist/wheel.stamp
	@ls dist/*.whl

# One binary, three torches: these environments get the wheel that was built against the torch of .venv, and PYTHONSAFEPATH
# keeps the source tree off sys.path, so that the suite cannot import anything else.
define TEST_WHEEL
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
PYTHONSAFEPATH=1 $(1)/bin/python -m fusedtrain env
PYTHONSAFEPATH=1 $(call RUN_TESTS,$(1)) $(1)/bin/python -m pytest $(PYTEST_ARGS)
endef

.venv-floor/requirements.stamp: requirements/floor.txt requirements/test.txt
	$(call MAKE_ENVIRONMENT,.venv-floor,-r requirements/floor.txt)
	touch $@

test-floor: dist/wheel.stamp .venv-floor/requirements.stamp
	$(call TEST_WHEEL,.venv-floor)

test-newest: dist/wheel.stamp
	$(call MAKE_ENVIRONMENT,.venv-newest,--upgrade -r requirements/newest.txt)
	$(call TEST_WHEEL,.venv-newest)

cuda-check: $(VENV)/requirements.stamp
	$(BIN)/python scripts/check_cuda.py $(CUDA_CHECK_ARGS)

# The torch of .venv-floor is one for CUDA. The package goes into a folder of its own, and the tests of it look there.
cuda-build: .venv-floor/requirements.stamp
	rm -rf build/cuda/package
	FUSEDTRAIN_BUILD=cuda PATH="$(abspath .venv-floor)/bin:$$PATH" .venv-floor/bin/python setup.py --quiet build \
	    --build-base build/cuda --build-lib build/cuda/package
	PYTHONSAFEPATH=1 PYTHONPATH=build/cuda/package .venv-floor/bin/python -m fusedtrain env
	PYTHONSAFEPATH=1 PYTHONPATH=build/cuda/package .venv-floor/bin/python -m pytest -v -s -p no:cacheprovider \
	    tests/test_symbols.py tests/test_cuda_library.py

clean:
	rm -rf .venv .venv-floor .venv-newest build dist *.egg-info fusedtrain/*.so fusedtrain/_build_info.json
