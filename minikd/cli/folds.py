"""From --folds to the experiments that it asks for: one on each fold, with flags of its own."""

import argparse
import copy
from collections.abc import Iterator

from minikd.checkpoints.hub import model_folder
from minikd.cli.models import is_finished
from minikd.cli.start import flag_values
from minikd.datasets import Dataset, data_fingerprint
from minikd.datasets.folds import folds
from minikd.distributed import by_first
from minikd.errors import MinikdError
from minikd.experiment.folds import finished_fold, fold_folders
from minikd.experiment.runs import read_run
from minikd.files import check_writable, fingerprint

# Flags that may change when folds are resumed: where things are, and how the run is watched.
FREE = ("resume", "save_minutes", "track", "output_dir", "data_dir")


def each_fold(args: argparse.Namespace, data: Dataset) -> Iterator[tuple[argparse.Namespace, Dataset, dict | None]]:
    """The flags and the data of each fold, and its figures where it is finished. Its output goes to OUTPUT/fold-1, …;
    its seed is --seed, --seed + 1, …, so that the folds differ in all that chance decides. Prints where it is. Raises
    MinikdError."""
    check_unseen(args)
    settings = {name: value for name, value in flag_values(args).items() if name not in FREE}
    made = folds(data, args.folds)
    made_from = {"settings": settings, "data": data_fingerprint(data)}
    if data.unlabelled:
        made_from["unlabelled"] = fingerprint(*data.unlabelled)
    folders = by_first(fold_folders, args.output_dir, args.folds, made_from, args.resume)
    for number, (folder, fold) in enumerate(zip(folders, made)):
        own = copy.copy(args)
        own.output_dir, own.seed = folder, args.seed + number
        by_first(check_writable, folder)
        finished = by_first(finished_fold, folder)
        sizes = ", ".join(f"{len(getattr(fold, name).texts):,} {name}" for name in ("train", "validation", "test"))
        print(f"\nfold {number + 1} of {args.folds}: {sizes}" + "; finished" * (finished is not None))
        yield own, fold, finished


def check_unseen(args: argparse.Namespace) -> None:
    """Raises MinikdError for a teacher or student that was trained on these data: it has seen what the folds test.
    Prints a warning for a fine-tuned one that does not say what it was trained on."""
    sources = [("teacher", source) for source in (args.teacher, *args.more_teachers)] + [("student", args.student)]
    for flag, source in sources:
        if source in (None, "oracle") or not is_finished(source):
            continue
        run = read_run(model_folder(source))
        if "copied_from" not in run and run.get("arguments", {}).get("dataset") == args.dataset:
            raise MinikdError(
                f"--{flag} {source}: was trained on these data, of which --folds tests every example; give the model "
                f"that it was trained from"
            )
        print(f"warning: --{flag} {source} is fine-tuned already: the figures hold only if it was on other data")
