# make demo: both stages on sample data, end to end. make test: ruff and every test. Both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

STARTER := saved_models/dis_sam_starter.safetensors
SPLITS := DIS-TR DIS-VD DIS-TE1

.PHONY: install demo demo-train test clean-demo

install: $(INSTALLED)

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e ".[dev]"
	touch $@

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "" -n auto -q --durations=10

# What stands already is not made again: a second run only refines, scores and draws.
demo: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/python -m sam.generate_masks --model grabcut --data $(addprefix data/sample/,$(SPLITS))
	$(BIN)/python IS_Net/train_valid_inference_main.py mode=valid restore_model=$(STARTER) \
	  valid_datasets=sample_vd,sample_te1 valid_out_dir=saved_models/demo/maps workers=2
	$(BIN)/jupyter execute Demo.ipynb
	@echo "figures: pic/demo_test.png, pic/demo_one.png, pic/demo_all.png, and a cut-out of each photograph's object beside them"

# Both phases of the published training, from nothing, briefly, on drawings: to see that training works.
demo-train: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/python -m sam.generate_masks --model grabcut --data $(addprefix data/sample/,$(SPLITS))
	$(BIN)/python IS_Net/train_valid_inference_main.py $(if $(wildcard saved_models/demo/last.pt),restore_model=last.pt) \
	  train_datasets=sample_tr valid_datasets=sample_vd model_path=saved_models/demo \
	  cache_size=256 batch_size_train=4 lr=3e-4 gt_encoder_max_ite=40 max_ite=120 model_save_fre=60 workers=1
	$(BIN)/python IS_Net/train_valid_inference_main.py mode=valid restore_model=saved_models/demo/best.safetensors \
	  valid_datasets=sample_vd,sample_te1 valid_out_dir=saved_models/demo/maps_of_training cache_size=256 workers=2

clean-demo:
	rm -rf data/sample data/cache/sample-* saved_models/demo pic/demo_*
