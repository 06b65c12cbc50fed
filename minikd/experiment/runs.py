"""A training run on disk: what it was made from, when it is finished, and when it can be used again.

A run's folder is a model folder in Hugging Face's layout plus run.json and log.jsonl. While it is being made,
everything is in FOLDER/.partial; at the end that becomes FOLDER/.finished, whose files move up, run.json last. So a
folder with a run.json is complete, and a run that was killed while its files moved loses nothing.
"""

import json
import platform
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy
import safetensors
import tokenizers
import torch

import minikd
from minikd.batching import TokenizedSplit, padding_share, plan_batches
from minikd.checkpoints.adapters import save_adapters
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.config import EncoderConfig
from minikd.errors import MinikdError
from minikd.evaluation.costs import training_memory_mb
from minikd.experiment.inference import model_fingerprint
from minikd.experiment.state import differences
from minikd.experiment.tracking import Tracking
from minikd.files import write_json
from minikd.model import Classifier, count_parameters
from minikd.techniques.lora import add_lora, merge_lora, trainable_parameters, training_state_mb
from minikd.tokenizer import Tokenizer
from minikd.training import TrainingSettings, train


def train_or_reuse(
    name: str,
    model: Classifier,
    tokenizer: Tokenizer,
    data: TokenizedSplit,
    validation: TokenizedSplit,
    settings: TrainingSettings,
    folder: Path,
    device: torch.device,
    arguments: dict,
    *,
    teacher=None,
    teacher_key: str = "",
    compile: bool = False,
    resume: bool = False,
    reuse: bool = False,
    lora: dict | None = None,
    base: str | None = None,
    tracking: Tracking | None = None,
) -> Classifier:
    """Trains `model` into `folder`, and returns it, on the CPU, with the weights of its best epoch.

    With `lora` (the arguments of `add_lora`) only adapters and head are trained, and merged into the model, which is
    then an ordinary one; where its first weights are the checkpoint `base`, they are saved in `folder`/adapter too, in
    PEFT's layout. `tracking` receives the lines of log.jsonl.

    With `reuse` or `resume`, a finished run in `folder` that was made from the same data, initial weights, settings
    and teacher (`teacher_key`) is loaded instead; with `resume`, an interrupted one is continued. Prints which of
    these happened.
    """
    if lora:
        torch.manual_seed(settings.seed)  # the adapters' first weights
        full = training_state_mb(model)
        add_lora(model, **lora)
    made_from = {
        "data": data.fingerprint,
        "validation": validation.fingerprint,
        "labels": list(model.config.labels),
        "initial_weights": model_fingerprint(model),
        "config": model.config.to_dict(),
        "teacher": teacher_key,
        "settings": asdict(settings),
    }
    if lora:
        made_from["lora"] = lora
    finish_publishing(folder)
    partial, tracking, config = folder / ".partial", tracking or Tracking(None, folder), arguments | asdict(settings)
    if (reuse or resume) and _is_finished(name, folder, made_from, must_fit=resume):
        tracking.start(folder, model.config.labels, config)
        return from_pretrained(folder)
    if resume and not (partial / "state.pt").exists():
        print(f"{name}: nothing to resume in {folder}; training from the start")
    if partial.exists() and not resume:
        print(f"{name}: the interrupted run in {folder} is discarded (--resume continues one, given the same flags)")
        shutil.rmtree(partial)

    _announce(name, model, data, settings, device)
    if lora:
        print(f"{name}: with all weights trained, these would take {full:,.0f} MiB")
    peak = training_memory_mb(model, data, settings, device, lora)  # before there is a training that a kill could lose
    history = train(
        model,
        data,
        validation,
        settings,
        partial,
        device,
        teacher=teacher,
        desc=name,
        compile=compile,
        resume=resume,
        made_from=made_from,
        track=tracking.start(folder, model.config.labels, config, log_folder=partial),
    )
    record = {
        "name": name,
        "made_from": made_from,
        "trained_parameters": trainable_parameters(model),
        "training_peak_mb": peak,
        "history": history,
        "arguments": arguments,
    }
    if lora and base:
        save_adapters(model, partial / "adapter", base)
    merge_lora(model)  # nothing to do without adapters
    save_pretrained(model, partial)
    tokenizer.save(partial, model.config.model_type, model.config.max_position_embeddings)
    write_json(partial / "run.json", record | environment(device))
    publish(partial, folder)
    return model.cpu()  # a GPU's memory is for what trains next


def _is_finished(name: str, folder: Path, made_from: dict, must_fit: bool) -> bool:
    """Whether `folder` holds a finished run that was made from the same; says so, or what differs. Raises MinikdError
    if it `must_fit` and does not."""
    if not all((folder / file).exists() for file in ("run.json", "model.safetensors", "tokenizer.json")):
        return False
    differs = differences(read_run(folder).get("made_from"), made_from)
    if not differs:
        print(f"{name}: using {folder}, made from the same settings")
        return True
    if must_fit and not (folder / ".partial").exists():
        raise MinikdError(
            f"--resume: {folder} was made from other settings ({', '.join(differs)}); give the same flags, or run "
            f"without --resume to train it anew"
        )
    print(f"{name}: {folder} was made from other settings ({', '.join(differs)}); training anew")
    return False


def _announce(name: str, model: Classifier, data: TokenizedSplit, settings: TrainingSettings, device) -> None:
    """Prints what is about to be trained, on what, and what it takes."""
    ours, random = (
        padding_share(
            data.lengths, plan_batches(data.lengths, settings.batch_size, settings.seed, 0, by_length), device
        )
        for by_length in (True, False)
    )
    total, trained = count_parameters(model), trainable_parameters(model)
    share = f" ({trained:,} of them trained, {trained / total:.1%})" if trained < total else ""
    print(
        f"{name}: {total:,} parameters{share}, {len(data):,} examples, {settings.epochs} epochs, "
        f"{data.lengths.mean():.0f} tokens an example; padding {ours:.1%} (in random batches {random:.1%}); weights, "
        f"gradients and optimizer state at most {training_state_mb(model):,.0f} MiB"
    )


def check_tokenizer(tokenizer: Tokenizer, config: EncoderConfig, name, max_length: int) -> None:
    """Raises MinikdError where the model `name` has no embedding for a token, or no position for the longest text."""
    if tokenizer.vocab_size > config.vocab_size:
        raise MinikdError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} tokens but the model embeds {config.vocab_size}; "
            f"vocab.txt or tokenizer.json is from another model"
        )
    if max_length > config.max_position_embeddings:
        raise MinikdError(f"--max-length {max_length}: {name} has {config.max_position_embeddings} positions at most")


def check_not_source(output: Path, flag: str, source, allowed: str | None = None) -> None:
    """Raises MinikdError where a run into `output` would write over the model it starts from: the folder itself, or one
    of the folders of models in it, but for the one that is `allowed`."""
    if not source or not Path(source).exists() or not Path(source).resolve().is_relative_to(output.resolve()):
        return
    first = (*Path(source).resolve().relative_to(output.resolve()).parts, "")[0]
    if first != allowed and (first in ("", "teacher", "distilled", "baseline", "sweep") or first.startswith("seed-")):
        raise MinikdError(f"{flag} {source}: the run would write over it; give another --output-dir")


def publish(partial: Path, folder: Path) -> None:
    """Moves the files of a finished run from `partial` into `folder`, in place of those of an older run.

    With the first rename the run is finished: after a kill in what follows, `finish_publishing` does the rest.
    """
    partial.replace(folder / ".finished")
    finish_publishing(folder)


def finish_publishing(folder: Path) -> None:
    """Does what is left of a `publish` into `folder` that was killed; mostly nothing.

    At no moment is there a mixture of two runs that could be taken for a model: the weights of the old one go before
    anything else, and run.json, which says that a folder is complete, goes first of the old and comes last of the new.
    """
    finished = folder / ".finished"
    if not finished.exists():
        return
    if (finished / "config.json").exists():  # it moves first: nothing has been moved yet
        for name in ("run.json", "model.safetensors"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "adapter", ignore_errors=True)
    order = {"config.json": 0, "run.json": 2}
    for path in sorted(finished.iterdir(), key=lambda path: order.get(path.name, 1)):
        if path.name != "state.pt" and path.suffix != ".tmp":  # .tmp: a file that was being written at a kill
            path.replace(folder / path.name)
    shutil.rmtree(finished)


def read_run(folder: Path) -> dict:
    """The run.json of a folder; {} where there is none that can be read."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return run if isinstance(run, dict) and isinstance(run.get("arguments"), dict) else {}
    except (OSError, ValueError):
        return {}


def trained_before(moment: float, folder: Path) -> bool:
    """Whether the model in `folder` was trained before `moment` (in seconds of `time.time()`) or elsewhere: copied from
    another folder, or put there by the user, without a run.json."""
    run = folder / "run.json"
    return "copied_from" in read_run(folder) or not run.exists() or run.stat().st_mtime < moment


def environment(device: torch.device) -> dict:
    """Versions and machine, as run.json and results.json record them."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {_processor()}",
        "threads": torch.get_num_threads(),
        "versions": {
            "minikd": minikd.__version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": numpy.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def _processor() -> str:
    """The processor's name; Linux tells it in /proc/cpuinfo only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
