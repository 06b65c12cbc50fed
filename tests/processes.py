"""What several processes give: speed side by side, bytes they exchange, padding, and on paper how far GPUs carry.

    python tests/processes.py --data-dir data
    python tests/processes.py --show data/results/processes.json     the tables of an earlier run

Trains 3 layers of MiniLM's shape on SST-2's sentences and on IMDb's reviews, in 1, 2 and 4 processes of one thread and
in one of two threads, which take turns, each started by torchrun. The figures go to data/results/processes.json, the
tables into the block `<!-- processes -->` of tests/README.md.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from benchmark.corpora import epoch_sample  # noqa: E402
from benchmark.measure import SHAPES, alternate, flops, ratio_of  # noqa: E402
from benchmark.tables import markdown, spread  # noqa: E402

from minikd import distributed  # noqa: E402
from minikd.batching import TokenizedSplit, padded_length, plan_batches  # noqa: E402
from minikd.config import BERT_BASE, BERT_SMALL, EncoderConfig, TrainConfig  # noqa: E402
from minikd.experiment.runs import environment  # noqa: E402
from minikd.experiment.torchrun import joined  # noqa: E402
from minikd.files import atomic_write, write_json  # noqa: E402
from minikd.inference import choose_device, choose_precision  # noqa: E402
from minikd.model import Classifier, count_parameters  # noqa: E402
from minikd.training import fit  # noqa: E402

SIDES = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1), "4 processes": (4, 1)}
STEPS = {"sst2": 60, "imdb": 16}  # of a measurement; the first fifth does not count
STUDENT = replace(SHAPES["MiniLM"], num_hidden_layers=3)
# On paper: a GPU's rate in practice, the host's time for a step's launches, the links within and between machines.
RATE, HOST, NVLINK, NETWORK, LATENCY = 0.4 * 989e12, 5e-3, 300e9, 50e9, 20e-6


def child(split: TokenizedSplit) -> dict:
    """Texts a second, and the seconds of an exchange of as many bytes as the gradients have."""
    device = choose_device()
    precision = choose_precision("auto", device)[0]
    torch.manual_seed(0)
    model = Classifier(STUDENT)
    config = TrainConfig(epochs=1, batch_size=32, lr=1e-4)
    moments = []
    for done in fit(model, split, split, config, device=device, precision=precision):
        if done.scores:
            break
        float(done.loss)  # waits for the device
        moments.append(time.perf_counter())
        trained = count_parameters(done.state.model)
    gradients = torch.zeros(trained, device=device)
    exchanges = []
    warm_up = len(moments) // 5
    for _ in range(5):
        began = time.perf_counter()
        float(distributed.sum_of_all(gradients)[0])
        exchanges.append(time.perf_counter() - began)
    seconds = (moments[-1] - moments[warm_up]) / (len(moments) - 1 - warm_up)
    return {"examples_per_second": 32 / seconds, "exchange": statistics.median(exchanges),
            "trained_parameters": trained}  # fmt: skip


def measure(tokens: Path, processes: int, threads: int) -> dict:
    """The figures of a fresh run in so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run([*command, __file__, "--child", str(tokens)], env=environment, capture_output=True,
                            text=True)  # fmt: skip
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def padding(lengths: np.ndarray, processes: int) -> dict:
    """How many positions all processes compute in an epoch over those that one would, and how much longer the busiest
    of a step computes than their mean."""
    device, most = torch.device("cpu"), int(lengths.max())
    plan = plan_batches(lengths, 32, seed=42)

    def positions(index: np.ndarray) -> int:
        return len(index) * padded_length(int(lengths[index].max()), most, device) if len(index) else 0

    shares = np.array([[positions(index[rank::processes]) for rank in range(processes)] for index in plan])
    whole = sum(map(positions, plan))
    busiest = shares.max(axis=1).sum() / shares.mean(axis=1).sum()
    return {"positions": float(shares.sum() / whole), "busiest": float(busiest)}


def on_paper(config: EncoderConfig, tokens: int, batch: int, gpus: int) -> dict:
    """A step's seconds on so many GPUs, eight a machine, and what bounds it. Each computes its share of the batch, the
    backward pass while gradients are exchanged in a ring; launching takes the host's time whatever the share."""
    compute = flops(config, max(batch // gpus, 1), tokens, training=True) / RATE
    with torch.device("meta"):
        gradient_bytes = 4 * count_parameters(Classifier(config))
    link = NVLINK if gpus <= 8 else NETWORK
    exchange = 2 * (gpus - 1) / gpus * gradient_bytes / link + LATENCY * math.log2(gpus)
    parts = {"host": HOST, "arithmetic": compute, "network": compute / 3 + exchange}
    bound = max(parts, key=parts.get)
    return {"seconds": parts[bound], "bound": bound}


def tables(figures: dict) -> str:
    """The Markdown of all figures."""
    made, first, rows = figures["environment"], next(iter(SIDES)), []
    for corpus, speeds in figures["speeds"].items():
        for name, (processes, _) in SIDES.items():
            of_side = [one["examples_per_second"] for one in speeds[name]]
            ratio = ratio_of(of_side, [one["examples_per_second"] for one in speeds[first]])
            step = 32_000 / statistics.median(of_side)
            exchange = 1000 * statistics.median(one["exchange"] for one in speeds[name])
            sent = 2 * (processes - 1) / processes * 4 * speeds[name][0]["trained_parameters"] / 2**20
            exchanged = [f"{sent:.0f}", f"{exchange:.0f}"] if processes > 1 else ["–", "–"]
            cells = [f"{corpus}, {name}", f"{statistics.median(of_side):.0f}", spread(ratio), f"{step:.0f}"]
            rows.append(cells + exchanged)
    header = ["3 layers of MiniLM, 32 texts a step", "texts/s", "of one thread", "ms a step"]
    side_by_side = markdown(header + ["MiB sent a step, each", "ms to exchange them alone"], rows)
    rows = [
        [corpus, *(f"{of[n]['positions']:.1%}, {of[n]['busiest']:.1%}" for n in ("2", "4", "8"))]
        for corpus, of in figures["padding"].items()
    ]
    wasted = markdown(["positions, relative to one process; busiest process over the mean", "2", "4", "8"], rows)
    rows = []
    for row in figures["paper"]:
        steps = [row["gpus"][n] for n in ("1", "8", "64")]
        rows.append([row["name"], str(row["batch"]), *(f"{1000 * s['seconds']:.1f}, {s['bound']}" for s in steps)])
    paper = markdown(["ms a step, and what bounds it", "batch", "1 GPU", "8 GPUs", "64 GPUs"], rows)
    return (
        f"{side_by_side}\n\n{made['device']}, {figures['cores']} cores, precision {figures['precision']}, torch "
        f"{made['versions']['torch']}; {len(speeds[first])} rounds, in turns; texts of at "
        f"most 128 (sst2) and 512 (imdb) tokens\n\n{wasted}\n\n{paper}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="(default: data)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: 3)")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only make the tables anew")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with joined():
            arrays = np.load(args.child)
            found = child(TokenizedSplit(arrays["ids"], arrays["offsets"], arrays["labels"], 0, "sample"))
            if distributed.rank() == 0:
                print(json.dumps(found))
        return
    path = args.show or ROOT / "data/results/processes.json"
    if not args.show:
        write_json(path, measured(args))
    text = tables(json.loads(path.read_text(encoding="utf-8")))
    print(text)
    readme = ROOT / "tests/README.md"
    block = f"<!-- processes -->\n{text}\n<!-- end -->"
    old = readme.read_text(encoding="utf-8")
    atomic_write(readme, re.sub("<!-- processes -->\n.*?<!-- end -->", lambda _: block, old, flags=re.DOTALL))


def measured(args: argparse.Namespace) -> dict:
    """All figures."""
    args.quick, args.epoch_batches = False, None
    samples = {name: epoch_sample(args, name, 500)[0] for name in ("sst2", "fpb", "imdb")}
    tokens, speeds = ROOT / "data/.processes.npz", {}
    try:
        for name, steps in STEPS.items():
            split = samples[name].part(0, 32 * steps)
            np.savez(tokens, ids=split.ids, offsets=split.offsets, labels=split.labels)
            sides = {side: lambda side=side: measure(tokens, *SIDES[side]) for side in SIDES}
            speeds[name] = alternate(sides, args.rounds)
    finally:
        tokens.unlink(missing_ok=True)
    device = choose_device()
    work = [("BERT-base, SST-2", BERT_BASE, 32), ("BERT-base, IMDb", BERT_BASE, 256),
            ("4-layer student, SST-2", BERT_SMALL, 32), ("4-layer student, IMDb", BERT_SMALL, 256)]  # fmt: skip
    paper = [
        {"name": name, "batch": batch,
         "gpus": {str(n): on_paper(config, tokens, batch, n) for n in (1, 8, 64)}}
        for name, config, tokens in work for batch in (32, 2048)
    ]  # fmt: skip
    return {
        "environment": environment(device),
        "cores": os.cpu_count(),
        "precision": choose_precision("auto", device)[0],
        "speeds": speeds,
        "padding": {name: {str(n): padding(sample.lengths, n) for n in (2, 4, 8)} for name, sample in samples.items()},
        "paper": paper,
    }


if __name__ == "__main__":
    main()
