# make demo: both stages on sample data, end to end. make test: ruff and every test. Both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SAMPLE := data/sample/sample.json
DEMO := saved_models/demo
SPLITS := DIS-TR DIS-VD DIS-TE1

.PHONY: install demo test clean-demo

install: $(INSTALLED)

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e ".[test,notebook]"
	touch $@

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "" -q --durations=10

# Each step of the demo skips what stands already: a second run takes seconds, save for the figures.
demo: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/python -m sam.generate_masks --model grabcut --data $(addprefix data/sample/,$(SPLITS))
	$(BIN)/python IS_Net/train_valid_inference_main.py $(if $(wildcard $(DEMO)/last.pt),restore_model=last.pt) \
	  train_datasets=sample_tr valid_datasets=sample_vd model_path=$(DEMO) \
	  cache_size=256 batch_size_train=4 lr=3e-4 gt_encoder_max_ite=40 max_ite=120 model_save_fre=60 workers=1
	$(BIN)/python IS_Net/train_valid_inference_main.py mode=valid restore_model=$(DEMO)/best.safetensors \
	  valid_datasets=sample_vd,sample_te1 valid_out_dir=$(DEMO)/maps cache_size=256 workers=2
	$(BIN)/jupyter execute Demo.ipynb
	@echo "figures: pic/demo_test.png, pic/demo_one.png, pic/demo_all.png, and a cut-out of each photograph's object beside them"

clean-demo:
	rm -rf data/sample data/cache/sample-* $(DEMO) pic/demo_*
