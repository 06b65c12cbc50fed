"""An experiment repeated in folds: which of them are finished, and their results as one."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from minikd.checkpoints.reading import reading
from minikd.datasets import Split
from minikd.errors import MinikdError
from minikd.evaluation.comparison import merge_seeds
from minikd.evaluation.folds import compare_folds
from minikd.experiment.results import Results, read_results
from minikd.experiment.state import differences
from minikd.files import parse_json, read_text, write_json

# Of each fold the same, and so of all of them; figures are pooled one by one.
COMMON = ("dataset", "split", "labels", "precision", "device", "threads", "versions", "first_weights")

TIMED_ON = ("tokens_per_example", "padded_tokens")


def fold_folders(output: Path, K: int, made_from: dict, resume: bool) -> list[Path]:
    """The folders of K folds in `output`, whose folds.json records what they are made from: {"settings", "data"}.

    A fold is finished when its results.json is there. With `resume` those of the same origin stay; without, they are
    removed. Raises MinikdError where they are of other origin.
    """
    folders, record = [output / f"fold-{k + 1}" for k in range(K)], output / "folds.json"
    made_from = json.loads(json.dumps(made_from))  # as in the file
    if resume and record.exists():
        try:
            old = parse_json(read_text(record))
        except ValueError:
            old = None
        if differs := ", ".join(differences(old, made_from)):
            raise MinikdError(
                f"`resume`: the folds in {output} were made from other settings ({differs}); give the same settings, "
                f"or run without `resume` to make them anew"
            )
        return folders
    for stale in output.glob("fold-*/results.json"):
        stale.unlink()
    write_json(record, made_from)
    return folders


def finished_fold(folder: Path) -> dict | None:
    """The figures of a fold that is finished, else None. Raises MinikdError for figures that cannot be pooled."""
    path = folder / "results.json"
    if not path.exists():
        return None
    results = read_results(path)
    with reading(path, "holds figures that cannot be pooled ({})"):
        str(pool_folds([results, results], results["arguments"]))
    return results


def pool_folds(folds: Sequence[dict], arguments: dict) -> Results:
    """The results of K folds as one, from the values of each: `Results.values` after `describe`, or the content
    of a results.json.

    A model's figures are lists over the folds; confusion matrices are added, reliability bins pooled, and
    `significance` is that of `compare_folds`. "folds" is K, "examples" the sum, "seeds" those of all folds, "chosen"
    the alpha and T of each fold where it swept over several; loss curves are the first fold's. `arguments` are the
    flags of the command. Raises MinikdError for folds of several seeds.
    """
    first = folds[0]
    if any(len(fold.get("seeds", [None])) > 1 for fold in folds):
        raise MinikdError("folds of several seeds cannot be pooled: give another seed to each fold instead")
    values = {key: first[key] for key in COMMON if key in first} | {"arguments": arguments, "folds": len(folds)}
    values["examples"] = sum(fold["examples"] for fold in folds)
    values["seeds"] = [seed for fold in folds for seed in fold.get("seeds", [None])]
    values["models"] = [_pool_rows([fold["models"][i] for fold in folds]) for i in range(len(first["models"]))]
    if "bag_of_words" in first:
        words = [fold["bag_of_words"] for fold in folds]
        values["bag_of_words"] = {key: [one[key] for one in words] for key in words[0]}
    if "significance" in first:
        values["significance"] = _pool_comparison([fold["significance"] for fold in folds], folds)
    if "comparisons" in first:
        values["comparisons"] = [
            {"models": part["models"]} | _pool_comparison([fold["comparisons"][i] for fold in folds], folds)
            for i, part in enumerate(first["comparisons"])
        ]
    if "sweep" in first:
        values["chosen"] = [fold["sweep"]["chosen"] for fold in folds]
    if "curves" in first:
        values["curves"] = first["curves"]
    if "found_finished" in first:
        values["found_finished"] = list(dict.fromkeys(name for fold in folds for name in fold["found_finished"]))
    return Results(values, {}, Split([], []))


def _pool_comparison(of_folds: list[dict], folds: Sequence[dict]) -> dict:
    """One comparison of two models in each fold -> that over all folds."""
    pairs = [(one["seeds"][0]["only_a"], one["seeds"][0]["only_b"]) for one in of_folds]
    counts = [(a, b, fold["examples"]) for (a, b), fold in zip(pairs, folds)]
    return compare_folds(counts, statistics.fmean(fold["training_examples"] for fold in folds))


def _pool_rows(rows: list[dict]) -> dict:
    """A model's row, from its rows in the folds. A whole number that is the same in all, such as its parameters, stays
    one number; of the tokens that times were measured on there is the mean; a figure that a fold lacks is left out."""
    names = [key for key in rows[0] if key not in ("name", "path") and all(row.get(key) is not None for row in rows)]
    merged = merge_seeds([{key: row[key] for key in names} for row in rows])
    for key in names:
        if isinstance(rows[0][key], int) and len(set(merged[key])) == 1:
            merged[key] = rows[0][key]
    merged |= {key: round(statistics.fmean(row[key] for row in rows)) for key in TIMED_ON if key in names}
    return {"name": rows[0]["name"], "path": ""} | merged
