# Two commands on a fresh machine: `make demo` and `make test`. Nothing but Python >= 3.11 and a package registry is needed.
PYTHON ?= python3
BIN := .venv/bin

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.PHONY: demo
demo: .venv/installed  ## train on the built-in synthetic photos, on the CPU
	$(BIN)/python -m defectcls.train experiment=demo

.PHONY: test
test: .venv/installed  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

.PHONY: test-slow
test-slow: .venv/installed  ## what takes longer, or needs DEFECTCLS_DATA and DEFECTCLS_WEIGHTS
	$(BIN)/pytest -m 'slow and not realdata'
	if [ -n "$$DEFECTCLS_DATA" ]; then $(BIN)/pytest -m realdata; fi

# Random weights cost what others cost.
SPEED := model.pretrained=false 'measure=[training,evaluation,first_pass]'
BENCHMARK := $(BIN)/python -m defectcls.benchmark

.PHONY: bench
bench: .venv/installed  ## 25 minutes of a CPU that does nothing else; needs DEFECTCLS_DATA and DEFECTCLS_WEIGHTS
	$(BENCHMARK) -m dataset=concrete_crack model=mobilenetv2,resnet18 trainer=cpu $(SPEED)
	$(BENCHMARK) -m dataset=mvtec 'dataset.categories=[screw]' model=mobilenetv2,resnet18 trainer=cpu $(SPEED)
	$(BENCHMARK) dataset=concrete_crack model=mobilenetv2 trainer=cpu 'measure=[probe,start]'
	$(BENCHMARK) dataset=mvtec 'dataset.categories=[screw]' model=mobilenetv2 trainer=cpu 'measure=[probe,start]'

.PHONY: bench-gpu
bench-gpu: .venv/installed  ## the same on a GPU, with drawn photos: needs no data and no weights
	$(BENCHMARK) -m dataset=synthetic dataset.images=8000 dataset.image_side=224 model=resnet18,resnet50 trainer=gpu \
		batch_size=256 steps=20 $(SPEED)
