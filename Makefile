# Everything a newcomer needs is Python 3.10 or later, a C++ compiler and make; the rest comes into .venv with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTHON_SOURCES := synq_fast kernels tests benchmarks examples tools setup.py
CXX_SOURCES = $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test native-test sanitize lint typecheck bench compile-check compile-check-all build format clean

# A new run each time; `synq-fast quantize --resume` is for interrupted ones.
demo: build
	rm -rf runs/demo
	$(BIN)/synq-fast quantize --bits w4a4 w3a3 --output runs/demo

# Waiting threads sleep: spinning ones starve the others on a machine with few or busy cores.
test demo: export OMP_WAIT_POLICY = passive
test: build
	$(BIN)/python -m pytest --ignore=tests/compile

# csrc without Python and torch; a build folder for each variant.
native-test: $(STAMP)
	$(call native_test,native-tests)

sanitize: $(STAMP)
	$(call native_test,native-asan,'-DSYNQ_SANITIZE=address;undefined')
	$(call native_test,native-tsan,-DSYNQ_SANITIZE=thread)

define native_test
$(BIN)/cmake -S . -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	--log-level=WARNING -DSYNQ_MODULE=OFF -DSYNQ_TESTS=ON $(2)
$(BIN)/cmake --build build/$(1) -- --quiet
$(BIN)/ctest --test-dir build/$(1) --output-on-failure --no-tests=error
endef

# Every suite; the speed-up over each rival and the losses come last.
bench: build
	$(BIN)/python -m pytest benchmarks --benchmark-quiet

# Compiles the device code without a device and inspects the result.
compile-check: build
	$(BIN)/python -m pytest tests/compile -m "not slow"

# Every specialisation of the Triton kernels too: minutes more.
compile-check-all: build
	$(BIN)/python -m pytest tests/compile

lint: typecheck
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

typecheck: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Ninja compiles what changed since the last build, usually nothing.
build: $(STAMP)
	@$(BIN)/python setup.py --quiet build_ext --inplace

# torch comes first and build isolation is off, so that the extension is built against this torch.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) 'torch>=2.6' setuptools wheel cmake ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info synq_fast/_C.* synq_fast/_build_info.json \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find synq_fast kernels tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
