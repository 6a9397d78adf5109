# Everything a newcomer needs is Python 3.10 or later, a C++ compiler and make; the rest comes into .venv with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONSTRAINTS := constraints.txt
EXTRAS := dev
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	$(CONSTRAINTS:%=--constraint %)
# A worker for each core; idle ones take over what busy ones have not begun.
PARALLEL := --numprocesses auto --dist worksteal
PYTHON_SOURCES := synq_fast kernels tests benchmarks examples tools setup.py
CXX_SOURCES = $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# What must hold with any torch.
CONFORMANCE := tests/conformance tests/ops tests/kernels tests/emulation tests/compile tests/quant tests/finetune

.PHONY: demo test bench-test docs wheel native-test sanitize lint typecheck bench compile-check compile-check-all build format clean \
	newest oldest conformance

# A new run each time; `synq-fast quantize --resume` is for interrupted ones.
demo: build
	rm -rf runs/demo
	$(BIN)/synq-fast quantize --bits w4a4 w3a3 w2a2 --output runs/demo

# Waiting threads sleep: spinning ones starve the others on a machine with few or busy cores.
test bench-test demo conformance: export OMP_WAIT_POLICY = passive
# Hundreds of processes import the same files, which are compiled once, also where that is switched off.
test bench-test conformance compile-check: export PYTHONDONTWRITEBYTECODE =
test: build
	$(BIN)/python -m pytest $(PARALLEL) --ignore=tests/compile --ignore=tests/benchmarks

# The benchmarks and what they compare with, on small inputs.
bench-test: build
	$(BIN)/python -m pytest $(PARALLEL) tests/benchmarks

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
$(BIN)/ctest --test-dir build/$(1) --parallel --output-on-failure --no-tests=error
endef

# Every suite; the speed-up over each rival and the losses come last.
bench: build
	$(BIN)/python -m pytest benchmarks --benchmark-quiet

# Compiles the device code without a device and inspects the result.
compile-check: build
	$(BIN)/python -m pytest $(PARALLEL) tests/compile -m "not slow"

# Every specialisation of the Triton kernels too: minutes more.
compile-check-all: build
	$(BIN)/python -m pytest $(PARALLEL) tests/compile

# The newest releases of everything, and what pyproject.toml declares as the oldest. Each works in a copy of
# the tree, with an environment of its own, because an extension lies beside its sources. Data stays where it is.
newest: MEMBERS = CONSTRAINTS= PIP_FLAGS='--upgrade --upgrade-strategy eager'
oldest: MEMBERS = CONSTRAINTS=lower-bounds.txt
newest oldest: export SYNQ_FAST_DATA ?= $(abspath ../shared/data)
newest oldest:
	mkdir -p build/$@
	find build/$@ -mindepth 1 -maxdepth 1 ! -name build ! -name .venv -exec rm -rf {} +
	git ls-files -z --cached --others --exclude-standard \
		| xargs -0 sh -c 'for f; do test ! -e "$$f" || echo "$$f"; done' sh \
		| tar --create --files-from=- | tar --extract --directory=build/$@
	$(PYTHON) .ci/lower_bounds.py > build/$@/lower-bounds.txt
	cd build/$@ && rm -f $(STAMP) && $(MAKE) conformance EXTRAS=test,timm $(MEMBERS)

conformance: export SYNQ_FAST_REQUIRE_NATIVE = 1
conformance: build
	$(BIN)/synq-fast info
	$(BIN)/python -m pytest $(PARALLEL) $(CONFORMANCE)

# A source archive and a wheel in dist/, the wheel tried where there is no compiler.
wheel: build
	rm -rf dist
	$(BIN)/python -m build --no-isolation --sdist --wheel > build/wheel.log 2>&1 || { cat build/wheel.log; false; }
	.ci/check_wheel dist/*.whl

# Pages of docs/ with the reference made from docstrings; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: typecheck
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/lint-imports --no-logo
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
$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch setuptools wheel cmake ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info synq_fast/_C.* synq_fast/_build_info.json \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find synq_fast kernels tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} +
