# make setup | quickstart | hard | test | test-slow | lint | bench | gpu-check | clean
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: setup hard test test-slow lint bench gpu-check quickstart clean

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

test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# From nothing to a picture of an answer: everything below is redone only when what it rests on
# has changed. Each line is a command that works on a catalogue of your own too.

QUICK    := runs/quickstart
ANSWER   := answers/quickstart.png

# A bundle that was written and then failed its check is not taken for done.
.DELETE_ON_ERROR:

quickstart: $(ANSWER)
	@echo
	@echo "answer:  $(ANSWER)"
	@echo "report:  $(QUICK)/report.html"
	@echo "bundle:  bundles/quickstart"

# build.json is touched to say that it was looked. Training rests on the index, which gets newer
# only where that gave other shards (and then the newest, for `make -n`).
data/wardrobe/build.json: shards/build.py $(wildcard adde/shards/*.py) | setup
	before=$$(stat -c %y $(@D)/index.json 2>/dev/null); \
	$(BIN)/python shards/build.py --catalogue wardrobe --out $(@D) && touch $@ && \
	{ test "$$before" = "$$(stat -c %y $(@D)/index.json)" || touch $(@D)/index.json; }

data/wardrobe/index.json: data/wardrobe/build.json ;

# An unfinished run goes on where it stopped; a recipe or shards that changed start afresh.
$(QUICK)/.trained: train/recipes/quickstart.toml data/wardrobe/index.json
	for new in $^; do \
		if test -e $@ || test $$new -nt $(QUICK)/config.toml; then rm -rf $(QUICK); fi; \
	done
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no train/main.py --recipe $< --run $(QUICK) --resume
	touch $@

$(QUICK)/metrics.json: $(QUICK)/.trained
	$(BIN)/python train/evaluate.py --run $(QUICK) --split test

bundles/quickstart/bundle.json: $(QUICK)/metrics.json
	$(BIN)/python export/to_onnx.py --run $(QUICK) --out bundles/quickstart
	$(BIN)/python export/check.py --bundle bundles/quickstart

$(ANSWER): bundles/quickstart/bundle.json
	$(BIN)/python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe \
		--item 001949-0 --set headwear_colour=red --picture $@

# Figures of the docs; docs/benchmarks.md is the table of them all.
bench: setup bundles/quickstart/bundle.json
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
