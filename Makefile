# Everything happens in the virtual environment $(VENV); a VENV or PYTHON of the environment or the command line is used instead.
VENV   ?= .venv
PYTHON ?= python3
RUN    := $(VENV)/bin/python
# Two processes with a thread each; a file's tests stay together, as they share models.
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -n 2 --dist loadfile
NBS    ?=
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help demo test browser check pytest notebooks export readme docs clean

help:  ## show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.installed  ## install, then edit drawn scenes with the mini model and print a table
	$(VENV)/bin/fastedit demo

test: $(VENV)/.installed-dev browser  ## install the dev extras, then run every check and every test
	@status=0; HF_HUB_OFFLINE=1 $(RUN) .ci/nb.py check || status=1; \
	$(PYTEST) || status=1; exit $$status

# tests/test_browser.py wants Chromium: root gets it where there is apt-get; elsewhere these tests say that they are skipped.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0; \
	command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || exit 0; \
	echo "installing chromium for the browser tests"; export DEBIAN_FRONTEND=noninteractive; \
	get="timeout 240 apt-get -qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=60"; \
	{ $$get update; $$get install -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 </dev/null || \
	  echo "chromium could not be installed: the browser tests will be skipped"

check: $(VENV)/.installed-dev  ## the checks of notebooks, modules and README alone
	HF_HUB_OFFLINE=1 $(RUN) .ci/nb.py check

pytest: $(VENV)/.installed-dev  ## the pytest suite alone
	$(PYTEST)

notebooks: $(VENV)/.installed-dev  ## run notebooks anew and save their outputs (NBS="nbs/a.ipynb nbs/b.ipynb" for some)
	$(RUN) .ci/nb.py execute $(NBS)

export: $(VENV)/.installed-dev  ## write fastedit/*.py from the notebooks
	PATH="$(abspath $(VENV))/bin:$$PATH" nbdev-export

readme: $(VENV)/.installed-dev  ## write README.md from nbs/index.ipynb
	$(RUN) .ci/nb.py readme

docs: $(VENV)/.installed-dev  ## build the site into _docs from the executed notebooks (nothing is run or fetched)
	$(RUN) -m pip install -q -c constraints.txt -e '.[docs]'
	$(RUN) .ci/site/build.py

clean:  ## remove caches and build outputs, keep the environment
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fastedit needs Python 3.10 or newer: give one with 'make PYTHON=python3.11 ...'"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -f $(RUN); echo "could not create $(VENV): the venv module is missing (on Debian: apt-get install python3-venv)"; exit 1; }

# -e: the environment always runs the code of this checkout. Extras of the dev install stay when demo's stamp is renewed.
$(VENV)/.installed: settings.ini setup.py pyproject.toml constraints.txt | $(RUN)
	$(RUN) -m pip install -q -c constraints.txt -e .
	@$(RUN) -c 'import cv2' || { echo "OpenCV lacks a system library (on Debian: apt-get install libgl1 libglib2.0-0)"; exit 1; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@
