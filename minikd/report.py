"""The comparison of models: a row of figures each, on screen and in results files.

`python -m minikd.report` writes the README's tables anew from data/results/*.json;
`python -m minikd.report --collect NAME RESULTS.json …` makes such a file from the results of several seeds.
"""

import argparse
import csv
import io
import json
import statistics
from pathlib import Path

import torch

from minikd.bag_of_words import bag_of_words
from minikd.batching import TokenizedSplit
from minikd.datasets import Dataset, Split, data_fingerprint
from minikd.datasets.sample import bayes_accuracy
from minikd.efficiency import measure_speed, model_size
from minikd.files import UserError, atomic_write, write_json
from minikd.inference import predict
from minikd.metrics import classification_metrics, kl_to_truth
from minikd.model import Classifier
from minikd.runs import environment

ROOT = Path(__file__).parents[1]

LATENCY = "{:.3f}"  # milliseconds

# heading on screen, key in results.json, format; a column without a value in any row is left out
COLUMNS = (
    ("parameters", "parameters", "{:,.0f}"),
    ("MiB", "size_mb", "{:.2f}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("F1", "f1", "{:.4f}"),
    ("precision", "precision", "{:.4f}"),
    ("recall", "recall", "{:.4f}"),
    ("KL to truth", "kl_to_truth", "{:.4f}"),
    ("ms/sample", "latency_ms", LATENCY),
    ("speed-up", "speed_up", "{:.2f}×"),
    ("retention", "retention", "{:.1%}"),
)
COMPARISONS = ("speed_up", "retention")  # with the first row, and meaningless where it is the only one


def evaluate_models(
    models: dict[str, tuple[Path, Classifier, TokenizedSplit]],
    split: Split,
    device: torch.device,
    precision: str,
    output_dir: Path | None = None,
) -> list[dict]:
    """One row of figures per model (name: path, model, the split in its tokens). `speed_up` and `retention` (of
    accuracy) compare with the first.

    With `output_dir`, also writes predictions-<name>.csv there: index, label, predicted, prob_<label>… in the split's
    order.
    """
    rows, labels = [], torch.tensor(split.labels)
    speeds = measure_speed([m for _, m, _ in models.values()], [t for _, _, t in models.values()], device, precision)
    for (name, (path, model, tokens)), speed in zip(models.items(), speeds):
        logits = predict(model.to(device), tokens, device, precision, desc=f"evaluate {name}")
        row = {"name": name, "path": str(path), **model_size(model)}
        row |= classification_metrics(labels, logits.argmax(dim=-1), logits.shape[1]) | speed
        if split.probabilities is not None:
            row["kl_to_truth"] = kl_to_truth(logits, torch.from_numpy(split.probabilities))
        first = rows[0] if rows else row
        row["speed_up"] = first["latency_ms"] / row["latency_ms"]
        row["retention"] = row["accuracy"] / first["accuracy"] if first["accuracy"] else None
        rows.append(row)
        if output_dir is not None:
            write_predictions(output_dir / f"predictions-{name}.csv", labels, logits, model.config.labels)
    return rows


def write_predictions(path: Path, labels: torch.Tensor, logits: torch.Tensor, names: tuple[str, ...]) -> None:
    """A CSV line per example: index, label, predicted (both by name), and the probability of each label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "predicted", *(f"prob_{name}" for name in names)])
    for index, (label, probs) in enumerate(zip(labels.tolist(), logits.softmax(dim=-1).tolist())):
        predicted = max(range(len(names)), key=probs.__getitem__)
        writer.writerow([index, names[label], names[predicted], *(f"{prob:.6f}" for prob in probs)])
    atomic_write(path, text.getvalue())


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table that also reads well on screen; a list of values (seeds) becomes mean ± std."""
    columns = [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    if len(rows) == 1:
        columns = [column for column in columns if column[1] not in COMPARISONS]
    cells = [["model", *(heading for heading, _, _ in columns)]]
    cells += [[row["name"], *(_cell(row.get(key), form) for _, key, form in columns)] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(_pad(text, width, i) for i, (text, width) in enumerate(zip(line, widths))) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)


def _cell(value, form: str) -> str:
    if value is None:
        return "–"
    if not isinstance(value, list):
        return form.format(value)
    if form == LATENCY:  # a busy moment of the machine is no property of the model
        return form.format(statistics.median(value))
    mean = form.format(statistics.mean(value))
    return mean if len(set(value)) == 1 else f"{mean} ± {form.format(statistics.stdev(value)).rstrip('×')}"


def notes(results: dict) -> str:
    """What stands under the table: the simple baseline, the ceiling where it is known, machine and settings."""
    lines = []
    if results.get("bag_of_words"):
        lines.append(
            f"bag of words (logistic regression): accuracy {_cell(results['bag_of_words']['accuracy'], '{:.4f}')}"
        )
    if results.get("best_possible_accuracy"):
        lines.append(f"best possible, from the known probabilities: accuracy {results['best_possible_accuracy']:.4f}")
    seeds = results.get("seeds") or [results["arguments"].get("seed")]
    settings = [
        f"{results['dataset']}, {results['split']} split of {results['examples']:,}",
        f"{results['precision']} on {results['device']} ({results['threads']} threads)",
        f"{len(seeds)} seeds, mean ± std" if len(seeds) > 1 else f"seed {seeds[0]}",
        "ms/sample in batches of 32",
    ]
    if len(results["models"]) > 1:
        settings.append("speed-up and retention of accuracy against the first row")
    lines.append("; ".join(text for text in settings if text != "seed None"))  # evaluate.py has no seed
    return "\n".join(lines)


def results_of(rows: list[dict], data: Dataset, split_name: str, arguments: dict, device: torch.device) -> dict:
    """Everything that results.json holds: the rows, the simple baseline, the ceiling where known, machine and flags."""
    split = getattr(data, split_name)
    results = {"dataset": data.name, "split": split_name, "examples": len(split.labels), "models": rows}
    if split_name == "test":
        results["bag_of_words"] = bag_of_words(data)
    if split.probabilities is not None:
        results["best_possible_accuracy"] = bayes_accuracy(split)
    results |= {"precision": arguments["precision"], "arguments": arguments, "data_fingerprint": data_fingerprint(data)}
    return results | environment(device)


def write_results(results: dict, output_dir: Path | None) -> None:
    """Prints table and notes, and leaves results.json and results.md in `output_dir` if there is one."""
    text = f"{table(results['models'])}\n\n{notes(results)}"
    if output_dir is not None:  # first the files: printing can fail where the terminal cannot show a character
        write_json(output_dir / "results.json", results)
        atomic_write(output_dir / "results.md", text + "\n")
    print(f"\n{text}\n")
    if output_dir is not None:
        print(f"results: {output_dir / 'results.md'}, {output_dir / 'results.json'}")


def collect(files: list[Path]) -> dict:
    """One result from those of several seeds: every figure becomes the list of its values.

    Raises UserError if they differ in data, machine, models or flags (seed and folders apart).
    """
    runs = [_read(file) for file in files]
    for file, run in zip(files, runs):
        for key in ("dataset", "data_fingerprint", "split", "precision", "device"):
            if run[key] != runs[0][key]:
                raise UserError(f"{file}: {key} {run[key]} differs from {runs[0][key]} in {files[0]}")
        if [row["name"] for row in run["models"]] != [row["name"] for row in runs[0]["models"]]:
            raise UserError(f"{file}: has other models than {files[0]}")
        one, first = _flags(run), _flags(runs[0])
        other = sorted(key for key in one.keys() | first.keys() if one.get(key) != first.get(key))
        if other:
            raise UserError(f"{file}: was made with other flags than {files[0]}: {', '.join(other)}")
    if len({run["arguments"].get("seed") for run in runs}) < len(runs):
        raise UserError(f"--collect: two of the files have the same seed: {', '.join(map(str, files))}")
    result = {key: value for key, value in runs[0].items() if key not in ("models", "arguments")}
    result["seeds"] = [run["arguments"].get("seed") for run in runs]
    result["arguments"] = _flags(runs[0])
    result["models"] = []
    for rows in zip(*(run["models"] for run in runs)):
        values = {key: [row[key] for row in rows] for key in rows[0] if key not in ("name", "path")}
        constant = {key: column[0] for key, column in values.items() if key in ("parameters", "size_mb")}
        result["models"].append({"name": rows[0]["name"], **values, **constant})
    return result


def _flags(run: dict) -> dict:
    """The flags that must be the same over all seeds: not the seed, nor where things lie on a disk."""
    return {k: v for k, v in run["arguments"].items() if k not in ("seed", "output_dir", "data_dir", "resume")}


def readme_with_tables(readme: str, results_dir: Path) -> str:
    """The README's text with each table between `<!-- results NAME -->` and `<!-- end -->` made anew from NAME.json."""
    parts = readme.split("<!-- results ")
    for i, part in enumerate(parts[1:], 1):
        name, rest = part.split(" -->", 1)
        _, after = rest.split("<!-- end -->", 1)
        results = _read(results_dir / f"{name}.json")
        lines = notes(results).replace("\n", "  \n")
        parts[i] = f"{name} -->\n{table(results['models'])}\n\n{lines}\n<!-- end -->{after}"
    return "<!-- results ".join(parts)


def _read(path: Path) -> dict:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not a results file ({error})") from None
    needed = {"models", "arguments", "dataset", "data_fingerprint", "split", "precision", "device"}
    if not isinstance(results, dict) or not needed <= results.keys() or not isinstance(results["models"], list):
        raise UserError(f"{path}: is not a results file (it lacks some of {', '.join(sorted(needed))})")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m minikd.report", description=__doc__.split("\n\n")[1])
    parser.add_argument("--collect", metavar="NAME", help="write data/results/NAME.json from the files given")
    parser.add_argument("files", nargs="*", type=Path, metavar="RESULTS.json")
    args = parser.parse_args()
    if bool(args.collect) != bool(args.files):
        parser.error("--collect NAME and the RESULTS.json files go together")
    if args.collect:
        write_json(ROOT / "data" / "results" / f"{args.collect}.json", collect(args.files))
    readme = ROOT / "README.md"
    atomic_write(readme, readme_with_tables(readme.read_text(encoding="utf-8"), ROOT / "data" / "results"))


if __name__ == "__main__":
    from minikd.cli import run

    run(main)
