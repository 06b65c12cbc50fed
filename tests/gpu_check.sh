#!/usr/bin/env bash
# What only an NVIDIA GPU can show, in parts that can be run one by one; without names all run.
#
#   MINIKD_DATA=data RESULTS=runs/gpu TEACHER=all-MiniLM-L6-v2/ bash tests/gpu_check.sh [PART ...]
#
#   suite      all tests, those of CUDA among them
#   equality   the largest differences to transformers, fp32 and fp64, on the GPU
#   benchmark  tests/benchmark: steps, epochs, feeding, distillation and memory against transformers and its Trainer
#   size       BERT-base's shape and the 4-layer student, both with random weights, on IMDb at lengths 256 and 512
#   imdb       TEACHER fine-tuned on IMDb; students of 3 and 4 of its layers, 5 seeds each
#   sst2       the same on SST-2
#
# MINIKD_DATA: folder with the corpora (default: data). RESULTS: where figures go (default: runs/gpu). TEACHER: a
# published encoder with its tokenizer, a folder or a name on the hub. Relative paths start at the project's folder.
# PYTHON: default python3. What the tests need is in tests/requirements.txt. Status 1 if a part failed.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
data=${MINIKD_DATA:-data}
results=${RESULTS:-runs/gpu}
teacher=${TEACHER:-sentence-transformers/all-MiniLM-L6-v2}
export TQDM_DISABLE=1 PYTHONUNBUFFERED=1

suite() { "$python" -m pytest -q -p no:cacheprovider -n 8 -rs; }

equality() { "$python" tests/equality.py cuda; }

benchmark() {
  "$python" tests/benchmark rate steps ratios epochs feeding distillation memory \
    --data-dir "$data" --epoch-batches 200 --output "$results/benchmark-gpu.json"
}

# random_bert FOLDER: an encoder of BERT-base's shape with random weights, and TEACHER's tokenizer.
random_bert() {
  "$python" - "$1" "$teacher" <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minikd.checkpoints.hub import model_folder
from minikd.checkpoints.pretrained import save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer, save_tokenizer
from minikd.config import BERT_BASE
from minikd.model import Classifier

torch.manual_seed(0)
folder, tokenizer = Path(sys.argv[1]), load_tokenizer(model_folder(sys.argv[2]))
save_pretrained(Classifier(BERT_BASE), folder)
weights = load_file(folder / "model.safetensors")
# Without a classifier it is an encoder to fine-tune.
save_file({k: v for k, v in weights.items() if not k.startswith("classifier")}, folder / "model.safetensors")
save_tokenizer(tokenizer, folder, "bert", BERT_BASE.max_position_embeddings)
PYTHON
}

size() {
  random_bert "$results/random-bert-base" || return
  for length in 256 512; do
    "$python" distill.py --dataset imdb --data-dir "$data" --teacher "$results/random-bert-base" --student-layers 4 \
      --student-init random --max-length "$length" --teacher-epochs 1 --epochs 1 --no-baseline \
      --output-dir "$results/size-$length" || return
  done
}

# distil CORPUS: 5 seeds of students with 3 layers of the teacher, and 5 with 4.
distil() {
  "$python" distill.py --dataset "$1" --data-dir "$data" --teacher "$teacher" --teacher-lr 5e-5 --student-layers 3 \
    --seeds 5 --output-dir "$results/$1-3" &&
    "$python" distill.py --dataset "$1" --data-dir "$data" --teacher "$results/$1-3/teacher" --student-layers 4 \
      --seeds 5 --output-dir "$results/$1-4"
}

imdb() { distil imdb; }
sst2() { distil sst2; }

[ $# -gt 0 ] || set -- suite equality benchmark size imdb sst2
for part in "$@"; do
  case $part in
    suite | equality | benchmark | size | imdb | sst2) ;;
    *) echo "tests/gpu_check.sh: no part $part; there are suite, equality, benchmark, size, imdb, sst2" >&2; exit 2 ;;
  esac
done
"$python" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)' \
  2>/dev/null || { echo "tests/gpu_check.sh: torch sees no NVIDIA GPU on this machine" >&2; exit 2; }
mkdir -p "$results"
failed=()
for part in "$@"; do
  echo "--- $part"
  time "$part" || failed+=("$part")
done
[ ${#failed[@]} -eq 0 ] || { echo "tests/gpu_check.sh: failed: ${failed[*]}" >&2; exit 1; }
