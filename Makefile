# The two commands: `make engines` (checkpoint → per-rank engines → a line of text) and `make test`.
MODEL     ?= examples/tiny-v3
TENSOR    ?= 2
PIPELINE  ?= 1
PRECISION ?= int8
PROMPTS   ?= $(MODEL)/prompts.txt
HELDOUT   ?= $(MODEL)/prompts-heldout.txt
PROMPT    ?= The nice thing about computers is
PYTHON    ?= python3
# TensorRT's folder; where none is given its session and plugins are compiled by headers of 10.14, which a Python wheel has.
TENSORRT_ROOT ?=
# The library of our TensorRT plugins, such as build/cpp/libmoetrt-plugins.so: with it routing and experts are its kernels.
PLUGINS   ?=
# Our kernels for CPUs, which `engines` builds where it can; OPS= leaves all to ONNX Runtime's own.
OPS       ?= build/ops/libmoetrt-ops.so
# More options of benchmarks/speed.py, such as --get-llama-cpp.
SPEED     ?=
# How long cpp-fuzz looks, over all readers.
SECONDS   ?= 60

# Quantised engines of ONNX Runtime are made from float32 graphs, those of TensorRT from float16 ones; one table serves both.
SCHEME   := $(filter int%,$(PRECISION))
BACKEND  ?= ort
FLOAT    := $(if $(SCHEME),$(if $(filter tensorrt%,$(BACKEND)),fp16,fp32),$(PRECISION))
HALF     := $(if $(filter fp32,$(FLOAT)),,-$(FLOAT))
OUT      := build/$(notdir $(abspath $(MODEL)))-tp$(TENSOR)-pp$(PIPELINE)
# One folder of engines for each precision: `engines` is the default one's.
ENGINES  := $(OUT)/engines$(if $(filter int8,$(PRECISION)),,-$(PRECISION))
FLOATS   := $(OUT)/graphs$(HALF)
GRAPHS   := $(if $(SCHEME),$(OUT)/graphs-$(SCHEME)$(HALF),$(FLOATS))
TABLE    := $(OUT)/calibration.json
MEASURE  := $(if $(HALF),,$(if $(wildcard $(HELDOUT)),--held-out $(HELDOUT)))
CPP       = $(shell find engines/cpp examples/cpp -name '*.[ch]' -o -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
BIN      := .venv/bin
# TensorRT-RTX asks for this name once it meets a plugin; its wheel lacks it (docs/kernels.md).
RTX_NAME  = ln -sf libtensorrt_rtx.so.1 $$($(BIN)/python -c 'import tensorrt_rtx_libs; print(tensorrt_rtx_libs.__path__[0])')/libtensorrt_rtx.so
HEADERS   = -DMOETRT_INCLUDE=$(CURDIR)/build/cpp-headers/include -DTENSORRT_ROOT=$(or $(abspath $(TENSORRT_ROOT)),$$([ -f build/tensorrt-headers/.ready ] && echo $(CURDIR)/build/tensorrt-headers))
# A line of text by the engines of a backend.
LINE      = $(BIN)/moetrt run $(ENGINES)/$(1) --prompt "$(PROMPT)" --max-tokens 48
# Of TensorRT's backends those that run here.
RUNNING   = $(BIN)/python -c 'from engines.doctor import diagnose; print(*(name for name, able in diagnose().backends.items() if able.runs and name.startswith("tensorrt")))'
READY    := .venv/.ready
# Every backend that installs here, and TensorRT where a GPU is, which it needs to build; asked once, when a recipe needs it.
BACKENDS ?= $(eval BACKENDS := ort $(shell $(BIN)/python -c 'import tensorrt_rtx_bindings' 2>/dev/null && echo tensorrt-rtx) $(shell $(BIN)/python -c 'import tensorrt; from engines.probe import find_nvidia; raise SystemExit(not find_nvidia().gpus)' 2>/dev/null && echo tensorrt))$(BACKENDS)
# What ONNX Runtime's CPU kernels have no type for is left to TensorRT.
TAKING    = $(if $(filter bf16,$(FLOAT)),$(filter-out ort,$(BACKENDS)),$(BACKENDS))

.PHONY: setup ops graphs calibration quantized engine engines compare compare-run cpp cpp-sanitized cpp-lint cpp-fuzz cpp-tensorrt test bench gpu lint help
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: MODEL=$(MODEL) TENSOR=$(TENSOR) PIPELINE=$(PIPELINE) PRECISION=$(PRECISION) BACKENDS='ort tensorrt-rtx' PLUGINS=$(PLUGINS) TENSORRT_ROOT=$(TENSORRT_ROOT) OPS=$(OPS)"

setup: $(READY) ## Make .venv with everything that the other targets need

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[export,ort,test]'
	$(BIN)/pip install --quiet --editable '.[tensorrt-rtx]' && $(RTX_NAME) || echo "TensorRT-RTX does not install here; its engines and tests are skipped." >&2
	touch $@

graphs: setup
	$(BIN)/moetrt export $(MODEL) --output $(FLOATS) --tensor $(TENSOR) --pipeline $(PIPELINE) --precision $(FLOAT)

calibration: graphs ## Ranges of MODEL's activations over its prompts (PROMPTS)
	$(BIN)/moetrt calibrate $(FLOATS) --prompts $(PROMPTS) --output $(TABLE)

quantized: graphs
	$(BIN)/moetrt quantize $(FLOATS) --table $(TABLE) --scheme $(SCHEME) --output $(GRAPHS) $(MEASURE)

engine: $(if $(SCHEME),quantized,graphs)
	$(BIN)/moetrt build $(GRAPHS) --backend $(BACKEND) --output $(ENGINES)/$(BACKEND) $(addprefix --plugins ,$(if $(filter tensorrt%,$(BACKEND)),$(PLUGINS),$(if $(filter ort,$(BACKEND)),$(wildcard $(OPS)))))

engines: $(if $(SCHEME),calibration,graphs) ## Export MODEL, quantise it, build its engines for BACKENDS, end with a line of text
	@$(if $(filter fp16 bf16,$(PRECISION)),,$(if $(filter build/%,$(OPS)),$(MAKE) --no-print-directory ops || echo "Our kernels for CPUs cannot be built here (why stands above): ONNX Runtime's own are taken." >&2))
	$(if $(strip $(TAKING)),,@echo "Error: none of the backends '$(BACKENDS)' computes in $(FLOAT); it takes tensorrt or tensorrt-rtx, or PRECISION=fp32, fp16, int8." >&2; exit 1)
	set -e; for backend in $(TAKING); do $(MAKE) --no-print-directory engine BACKEND=$$backend; done
	$(if $(filter ort,$(TAKING)),$(call LINE,ort),@for backend in $(if $(filter 1,$(TENSOR)),$$($(RUNNING))); do [ ! -d $(ENGINES)/$$backend ] || { $(call LINE,$$backend) || exit; shown=1; }; done; \
	[ "$$shown" ] || echo "A line of text: skipped, none of '$(strip $(TAKING))' runs on this machine in Python (moetrt doctor).")

compare: engines ## Engines against transformers, with a page of what was seen; against TensorRT's plans, run where a GPU is, else without running them
	$(BIN)/moetrt compare $(MODEL) $(ENGINES)/ort --prompts $(HELDOUT) --report $(OUT)/report.html
	@if [ -d $(ENGINES)/tensorrt-rtx ]; then $(BIN)/moetrt compare $(ENGINES)/ort $(ENGINES)/tensorrt-rtx --build-only; fi
	@for backend in $$($(RUNNING)); do if [ -f $(ENGINES)/$$backend/manifest.json ]; then $(MAKE) --no-print-directory compare-run BACKEND=$$backend || exit; ran=1; fi; done; \
	[ "$$ran" ] || echo "Running TensorRT's engines: skipped, it needs a CUDA device that they run on (moetrt doctor)."

compare-run: # of one TensorRT, in segments where there are several tensor ranks, which Python cannot run whole (docs/decisions/0010)
	$(if $(filter 1,$(TENSOR)),,$(BIN)/moetrt build $(GRAPHS) --backend $(BACKEND) --segments --output $(ENGINES)/$(BACKEND)-segments)
	$(BIN)/moetrt compare $(ENGINES)/ort $(ENGINES)/$(BACKEND)$(if $(filter 1,$(TENSOR)),,-segments) --prompts $(HELDOUT)

ops: setup ## Build our kernels for CPUs alone: build/ops/libmoetrt-ops.so, for `moetrt build --plugins`
	engines/cpp/dependencies.sh build/cpp-headers
	cmake -S engines/cpp -B build/ops -DMOETRT_INCLUDE=$(CURDIR)/build/cpp-headers/include -DMOETRT_CUDA=OFF -DBUILD_TESTING=OFF
	cmake --build build/ops --parallel 2 --target moetrt-ops

cpp: setup ## Build the C++ runtime in build/cpp and run its own tests (headers come from Debian packages)
	engines/cpp/dependencies.sh build/cpp-headers
	$(if $(TENSORRT_ROOT),,PYTHON=$(PYTHON) engines/cpp/tensorrt-headers.sh build/tensorrt-headers || echo "TensorRT's headers cannot be had: its session and plugins are left out." >&2)
	cmake -S engines/cpp -B build/cpp $(HEADERS)
	cmake --build build/cpp --parallel 2
	ctest --test-dir build/cpp --output-on-failure

cpp-sanitized: cpp ## The same under the address and undefined-behaviour sanitizers, in build/cpp-sanitized
	cmake -S engines/cpp -B build/cpp-sanitized $(HEADERS) -DMOETRT_CUDA=OFF -DMOETRT_SANITIZE=address,undefined
	cmake --build build/cpp-sanitized --parallel 2
	ctest --test-dir build/cpp-sanitized --output-on-failure

cpp-lint: setup cpp ## Check the C++ runtime, its program, the kernels and the plugins by clang-tidy (engines/cpp/.clang-tidy); warnings are errors
	$(BIN)/run-clang-tidy.py -clang-tidy-binary $(BIN)/clang-tidy -config-file engines/cpp/.clang-tidy -p build/cpp -j 2 -quiet -hide-progress '/engines/cpp/(src|tools|kernels|ops|plugins)/.*[.]cpp$$'

cpp-fuzz: setup ## Fuzz the readers of the C++ runtime for SECONDS in all, in build/cpp-fuzz (clang comes from Debian packages)
	engines/cpp/dependencies.sh build/cpp-headers
	engines/cpp/fuzz/clang.sh build/clang
	cmake -S engines/cpp -B build/cpp-fuzz -DMOETRT_INCLUDE=$(CURDIR)/build/cpp-headers/include -DMOETRT_CUDA=OFF -DBUILD_TESTING=OFF -DMOETRT_FUZZ=ON -DCMAKE_CXX_COMPILER=$(CURDIR)/build/clang/bin/clang++
	cmake --build build/cpp-fuzz --parallel 2 --target moetrt-fuzz
	$(BIN)/python tests/cpp/seeds.py build/cpp-fuzz/seeds
	CLANG=build/clang engines/cpp/fuzz/run.sh build/cpp-fuzz $(SECONDS)

cpp-tensorrt: cpp ## TensorRT's session against libraries that stand for TensorRT's, under the thread sanitizer, in build/cpp-tensorrt
	cmake -S engines/cpp -B build/cpp-tensorrt $(HEADERS) -DMOETRT_CUDA=OFF -DMOETRT_SANITIZE=thread
	cmake --build build/cpp-tensorrt --parallel 2 --target moetrt-tensorrt-tests
	ctest --test-dir build/cpp-tensorrt --output-on-failure -R tensorrt

test: setup ## Run the tests, a worker for each core; files stay whole, for what their tests share (without workers: .venv/bin/pytest)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

bench: setup ops ## Time and memory of export, speed beside transformers and llama.cpp (build/bench.json), as ratios measured on this machine
	$(BIN)/python benchmarks/export_671b.py
	$(BIN)/python benchmarks/export_throughput.py
	$(BIN)/python benchmarks/int8_speed.py
	$(BIN)/python benchmarks/speed.py $(SPEED)

gpu: setup ## What only a GPU can show: tests marked gpu, the kernels under compute-sanitizer, benchmarks of kernels and of ONNX Runtime on CUDA
	@$(BIN)/python -c 'from engines.probe import find_nvidia; gpus = find_nvidia().gpus; print(*gpus or ("Error: no CUDA device here; make gpu is for a machine that has one.",), sep="\n"); raise SystemExit(not gpus)'
	$(MAKE) --no-print-directory cpp
	$(BIN)/python -m pytest -m gpu -rs
	@if command -v compute-sanitizer > /dev/null; then for tool in memcheck racecheck synccheck; do \
	compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest tests/kernels/test_kernels.py -m gpu || exit; done; \
	else echo "The kernels under compute-sanitizer: skipped, it is not on PATH (the CUDA toolkit has it)."; fi
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/cuda.py

lint: setup ## Check the style of Python, and how C++ and CUDA are formatted
	$(BIN)/ruff check .
	$(BIN)/clang-format --style=file:engines/cpp/.clang-format --dry-run -Werror $(CPP)
