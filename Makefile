# make demo: both stages on the sample data. make test: ruff and all tests. Both install what they need into .venv.
# make bench: the table of speed (benchmarks/README.md). make demo-train: both phases of the training, briefly.
# make fuzz: damaged files, 50,000 cases. make chaos: trainings that are killed 200 times.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

STARTER := saved_models/dis_sam_starter.safetensors
SPLITS := DIS-TR DIS-VD DIS-TE1

.PHONY: install demo demo-train test bench fuzz chaos clean-demo

install: $(INSTALLED)

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e ".[dev]"
	touch $@

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "" -n auto --dist worksteal -q --durations=10

# Existing sample data and masks are kept: a second run only refines, scores and draws.
demo: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/dis-sam masks --model box --data $(addprefix data/sample/,$(SPLITS))
	$(BIN)/dis-sam valid restore_model=$(STARTER) \
	  valid_datasets=sample_vd,sample_te1 valid_out_dir=saved_models/demo/maps passes=2 workers=2
	$(BIN)/jupyter execute Demo.ipynb
	@echo "figures: pic/demo_test.png, pic/demo_one.png, pic/demo_all.png, and a cut-out of each photograph's object beside them"

# Both phases of the published training for a few minutes, from random weights, on the sample data.
demo-train: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/dis-sam masks --model box --data $(addprefix data/sample/,$(SPLITS))
	$(BIN)/dis-sam train $(if $(wildcard saved_models/demo/last.pt),restore_model=last.pt) \
	  train_datasets=sample_tr valid_datasets=sample_vd model_path=saved_models/demo \
	  cache_size=256 batch_size_train=4 lr=3e-4 gt_encoder_max_ite=40 max_ite=120 model_save_fre=60 workers=1
	$(BIN)/dis-sam valid restore_model=saved_models/demo/best.safetensors \
	  valid_datasets=sample_vd,sample_te1 valid_out_dir=saved_models/demo/maps_of_training cache_size=256 workers=2

# DEVICE=cuda runs the GPU's side; BENCHMARKS="predict cut" runs some of them.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(BENCHMARKS) --device $(or $(DEVICE),auto)

fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.fuzz_files --cases 50000

chaos: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.chaos --kills 200

clean-demo:
	rm -rf data/sample data/cache/sample-* saved_models/demo pic/demo_*
