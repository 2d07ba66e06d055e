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
# at three sizes: for so many ITERATIONS, of so many samples (BATCH), at these learning rates (RATE), three of each (the last
# one goes on where there are fewer). As they stand these are for a CPU, and take hours; for a GPU and 16 cores:
#   make starter WORKERS=15 BATCH=16 RATE=1e-4 ITERATIONS="600 600 1600"
# A run that was interrupted goes on where it stopped. `make clean-starter` before other PHOTOS or CUTOUTS;
# data/README.md tells where to find photographs.
PHOTOS ?= data/sample/photos/im
CUTOUTS ?= /usr/share/tuxpaint/stamps
ITERATIONS ?= 1000 2000 600
BATCH ?= 2 1 1
RATE ?= 5e-5 6e-5 3e-5
WORKERS ?= 1
LABELED := data/self_labeled
RUNS := saved_models/starter
HARD := data/sample/hard
TRAIN_STARTER = $(BIN)/python IS_Net/train_valid_inference_main.py \
  train_datasets=$(LABELED),$(LABELED),$(LABELED),data/cutouts,sample_tr \
  valid_datasets=$(HARD)/many_parts:sim,$(HARD)/low_salience:sim,$(HARD)/touching:sim \
  backgrounds=$(firstword $(PHOTOS)) copy_paste=0.95 simulate_mask=1.0 interm_sup=False freeze_bn=True ema=0.995 \
  bce_weight=10 iou_weight=2.5 edge_weight=4 orthogonal_weight=0 random_flip_v=False model_digit=half lr_decay=cosine \
  model_save_fre=400 early_stop=1000 workers=$(WORKERS)
# train at $(1) pixels, with what stands in place $(2) of the lists above
SIZE = cache_size=$(1) max_ite=$(call PLACE,$(2),$(ITERATIONS)) batch_size_train=$(call PLACE,$(2),$(BATCH)) lr=$(call PLACE,$(2),$(RATE))
PLACE = $(or $(word $(1),$(2)),$(lastword $(2)))
# go on with run $(1), or start it from the weights $(2)
FROM = model_path=$(RUNS)/$(1) restore_model=$(if $(wildcard $(RUNS)/$(1)/last.pt),last.pt,$(2))

starter: $(INSTALLED)
	$(BIN)/python data/make_sample.py
	$(BIN)/python data/hard_scenes.py
	$(BIN)/python -m recipes.starter.import_cutouts $(CUTOUTS) --backgrounds $(firstword $(PHOTOS)) --out data/cutouts
	test -f saved_models/isnet.safetensors || $(BIN)/python recipes/starter/fetch_isnet.py
	$(BIN)/python -m recipes.starter.pseudo_label $(PHOTOS) --out $(LABELED)
	$(TRAIN_STARTER) $(call SIZE,512,1) mask_skip_logit=5 $(call FROM,512,saved_models/isnet.safetensors)
	$(BIN)/python -m IS_Net.import_weights $(RUNS)/512/last.pt $(RUNS)/512/last.safetensors
	$(TRAIN_STARTER) $(call SIZE,768,2) $(call FROM,768,$(RUNS)/512/last.safetensors)
	$(BIN)/python -m IS_Net.import_weights $(RUNS)/768/last.pt $(RUNS)/768/last.safetensors
	$(TRAIN_STARTER) $(call SIZE,1024,3) $(call FROM,1024,$(RUNS)/768/last.safetensors)
	$(BIN)/python -m IS_Net.import_weights --int8 --mask-skip-gain 1.4 $(RUNS)/1024/last.pt $(RUNS)/768/last.safetensors \
	  $(RUNS)/dis_sam_starter.safetensors

clean-starter:
	rm -rf $(LABELED) data/cutouts $(RUNS) data/cache/$(notdir $(LABELED))-* data/cache/cutouts-*

clean-demo:
	rm -rf data/sample data/cache/sample-* saved_models/demo pic/demo_*
