# make setup | quickstart | hard | test | test-slow | lint | docs | constraints | house | bench | gpu-check | clean
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: setup hard test test-slow lint docs constraints house bench gpu-check quickstart clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[train,remote,deepspeed,dev]'
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/mkdocs build

# The site with the API reference, in build/site; a link that leads nowhere is an error.
docs: setup
	$(BIN)/mkdocs build

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

# What `make setup` gave here, for installs that give the same: pip install -c constraints.txt ...
constraints: setup
	{ $(BIN)/python -c "import platform as p; print('# Python', p.python_version(), p.system(), p.machine())" && \
	$(BIN)/python -m pip list --format freeze --exclude adde --exclude pip; } > constraints.txt.new
	mv constraints.txt.new constraints.txt

# How large files, functions and import chains are; docs/architecture.md says what is aimed at.
house:
	$(PYTHON) tools/house.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# From nothing to a picture of an answer; the same commands work on your own catalogue. Each says
# when there is nothing to do, and goes on where it was stopped.
quickstart: setup
	$(BIN)/python shards/build.py --catalogue wardrobe --out data/wardrobe
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no train/main.py --recipe train/recipes/quickstart.toml --resume
	$(BIN)/python train/evaluate.py --run runs/quickstart --split test
	$(BIN)/python export/to_onnx.py --run runs/quickstart --out bundles/quickstart
	$(BIN)/python export/check.py --bundle bundles/quickstart
	$(BIN)/python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe \
		--item 001949-0 --set headwear_colour=red --picture answers/quickstart.png
	@echo
	@echo "answer:  answers/quickstart.png"
	@echo "report:  runs/quickstart/report.html"
	@echo "bundle:  bundles/quickstart"

# Figures of the docs; docs/benchmarks.md is the table of them all.
bench: quickstart
	$(BIN)/python -m pip install --quiet --editable '.[train,remote,deepspeed,dev,bench]'
	$(BIN)/python benchmarks/mining.py --json docs/mining.json --plot docs/mining.png
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loader.py --json docs/loader.json
	# One compute thread: on two cores the loader's process needs the other.
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_step.py --shards data/wardrobe --json docs/training_step.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serving.py --json docs/serving.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py --json docs/scaling.json
	$(BIN)/python benchmarks/large_batch.py --json docs/large_batch.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/memory.py --json docs/memory.json
	$(BIN)/python serve_onnx/build_gallery.py --bundle bundles/quickstart \
		--catalogue data/wardrobe --out galleries/quickstart
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gallery.py --gallery galleries/quickstart \
		--json docs/gallery.json
	$(BIN)/python benchmarks/table.py

# The checks that need a GPU: they say so and fail where there is none. Figures of every card add
# up in docs/gpu_check.jsonl. OFFLINE=1 installs nothing and runs with what $(PYTHON) has; what needs
# more is skipped by name.
gpu-check:
ifdef OFFLINE
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(PYTHON) benchmarks/gpu_check.py
else
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[gpu]'
	$(BIN)/python benchmarks/gpu_check.py
endif

# The catalogue that tells methods apart; figures of README.
hard: setup
	$(BIN)/python shards/build.py --catalogue wardrobe-hard --out data/wardrobe-hard
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no train/main.py --recipe train/recipes/wardrobe_hard.toml --resume
	$(BIN)/python train/evaluate.py --run runs/wardrobe-hard --split test --queries 0
