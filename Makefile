# Two commands on a fresh machine: `make demo` and `make test`. Nothing but Python >= 3.11 and a package registry is needed.
PYTHON ?= python3
BIN := .venv/bin
TESTS := $(BIN)/pytest --numprocesses 2 --dist loadfile

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.PHONY: demo
demo: .venv/installed  ## train on the built-in synthetic photos, on the CPU
	$(BIN)/python -m defectcls.train experiment=demo

.PHONY: test
test: .venv/installed  ## lint, arrows, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(TESTS)

.PHONY: docs
docs: .venv/installed  ## the site, into build/site
	$(BIN)/mkdocs build --strict

.PHONY: test-slow
test-slow: .venv/installed  ## what takes longer, or needs DEFECTCLS_DATA and DEFECTCLS_WEIGHTS
	$(TESTS) -m 'slow and not realdata'
	if [ -n "$$DEFECTCLS_DATA" ]; then $(TESTS) -m realdata; fi

# Random weights cost what others cost.
SPEED := $(BIN)/python -m benchmarks.speed --write experiments/speed/benchmarks.csv
BARE := --measure training --measure evaluation --measure first_pass
CONCRETE := dataset=concrete_crack
SCREWS := dataset=mvtec 'dataset.categories=[screw]'

.PHONY: bench
bench: .venv/installed  ## half an hour of a CPU that does nothing else; needs DEFECTCLS_DATA and DEFECTCLS_WEIGHTS
	for model in mobilenetv2 resnet18; do \
		$(SPEED) $(BARE) $(CONCRETE) model=$$model trainer=cpu model.pretrained=false && \
		$(SPEED) $(BARE) $(SCREWS) model=$$model trainer=cpu model.pretrained=false || exit 1; done
	$(SPEED) --measure probe $(CONCRETE) model=mobilenetv2 trainer=cpu
	$(SPEED) --measure probe $(SCREWS) model=mobilenetv2 trainer=cpu
	$(BIN)/python experiments/speed/collect.py
	$(BIN)/python -m benchmarks.answer --write experiments/answer/measured.csv
	$(BIN)/python -m benchmarks.waiting --write experiments/answer/waiting.csv

# Where a GPU is at hand, these two first: ten minutes each at most, no data, no weights.
.PHONY: test-gpu
test-gpu: .venv/installed  ## what a GPU may do otherwise, into runs/gpu/checks.csv
	$(BIN)/pytest -m gpu tests/test_gpu.py tests/data/test_datamodule.py

.PHONY: bench-gpu
bench-gpu: .venv/installed  ## how fast a GPU trains and evaluates, against the bare step, into runs/gpu/speed.csv
	mkdir -p runs/gpu
	for model in resnet18 resnet50 efficientnet_lite0; do \
		$(BIN)/python -m benchmarks.speed --write runs/gpu/speed.csv --measure training --measure evaluation \
			--rounds 3 --steps 20 dataset=synthetic dataset.image_count=8000 dataset.image_side=128 image_size=224 \
			model=$$model trainer=gpu batch_size=256 model.pretrained=false || exit 1; done
