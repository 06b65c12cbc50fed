"""The training loop: one for the teacher, the distilled student and the baseline student.

Mixed precision follows Micikevicius et al. 2018 (autocast, and loss scaling for fp16); the optimizer is AdamW
(Loshchilov & Hutter 2019) with BERT's linear warm-up and decay (Devlin et al. 2019, appendix A.2).
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from minikd.batching import CHUNK, Batch, TokenizedSplit, make_batches, plan_batches
from minikd.errors import MinikdError
from minikd.evaluation.memory import peak_memory_mb, reset_peak_memory
from minikd.experiment.inference import autocast, predict
from minikd.experiment.progress import Estimate
from minikd.experiment.state import StopSignal, load_state, open_log, save_state
from minikd.files import CleanUp
from minikd.losses import hard_loss, kd_loss
from minikd.metrics import confusion_matrix
from minikd.model import Classifier
from minikd.used_rows import only_used_rows

LOG_EVERY = 10  # optimizer steps


@dataclass(frozen=True)
class TrainingSettings:
    epochs: int
    batch_size: int  # examples in one forward pass
    lr: float  # peak learning rate
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1  # share of all steps in which the learning rate rises to its peak
    grad_accum: int = 1  # forward passes per optimizer step
    clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    label_smoothing: float = 0.0
    patience: int = 0  # stop after so many epochs without a better one; 0: never
    seed: int = 42
    alpha: float = 1.0  # weight of the hard loss; used where there is a teacher
    T: float = 1.0  # temperature of the soft loss
    precision: str = "fp32"


def train(
    model: Classifier,
    data: TokenizedSplit,
    validation: TokenizedSplit,
    settings: TrainingSettings,
    folder: Path,
    device: torch.device,
    *,
    teacher: Callable[[Batch], Tensor] | None = None,
    desc: str = "train",
    compile: bool = False,
    resume: bool = False,
    made_from: dict | None = None,
    track: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Trains `model` and leaves in it the weights of the epoch with the best validation accuracy (ties: lower loss).

    `teacher` maps a batch to the teacher's logits (B, C), cached or computed on the fly; without one the loss is the
    hard loss alone. `folder` receives log.jsonl and, after each epoch and on SIGINT or SIGTERM, state.pt, from which
    `resume=True` continues, provided that it records the same settings and `made_from` (data, first weights, teacher).
    `track` is given each line of that log, as a dictionary; a resumed run gives it those of its earlier part first.
    `desc` names the run in the progress bar and in messages; `compile` trains torch.compile's version of the model.
    Returns one dictionary per epoch: epoch, validation_accuracy, validation_loss, confusion; and seconds, of its steps
    and validation (of an epoch that was stopped and resumed, of both parts).
    Raises MinikdError for a loss or validation logits that are not finite and for a state that cannot be resumed,
    KeyboardInterrupt when stopped.
    """
    torch.manual_seed(settings.seed)  # dropout depends on the seed alone, not on what ran before
    model.to(device)
    steps_per_epoch = math.ceil(math.ceil(len(data) / settings.batch_size) / settings.grad_accum)
    total_steps = settings.epochs * steps_per_epoch
    # CHUNK too: a state from the middle of an epoch continues that epoch's plan
    made_from = {**(made_from or {}), "settings": asdict(settings), "chunk": CHUNK}
    step, history, best, seconds = 0, [], None, 0.0

    with CleanUp() as until_the_end:
        used = np.union1d(data.ids, data.pad_token_id)  # what batches contain
        words = until_the_end.enter_context(only_used_rows(model.encoder.embeddings, used))
        forward = torch.compile(model, dynamic=True) if compile else model
        optimizer = make_optimizer(model, settings, device)
        scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        if resume and (folder / "state.pt").exists():
            step, history, best, seconds = load_state(folder / "state.pt", made_from, model, optimizer, scaler)
        log = until_the_end.enter_context(open_log(folder / "log.jsonl", step))
        done = step // steps_per_epoch * len(data) + step % steps_per_epoch * settings.batch_size * settings.grad_accum
        bar = tqdm(total=settings.epochs * len(data), initial=done, unit="ex", desc=desc, dynamic_ncols=True)
        until_the_end.enter_context(bar)
        stop = until_the_end.enter_context(StopSignal())
        reset_peak_memory(device)
        tokens = len(data.ids) + len(validation.ids) / 3  # of an epoch; validation has no backward pass
        what = f"{desc}: {'the rest of ' if step else ''}{settings.epochs} epochs"
        estimate = Estimate(what, tokens * (settings.epochs - step / steps_per_epoch))

        def record(line: dict) -> None:
            log.write(json.dumps(line) + "\n")
            log.flush()
            if track is not None:
                track(line)

        def save(seconds: float) -> None:
            save_state(folder / "state.pt", made_from, model, optimizer, scaler, step, history, best, seconds)

        if track is not None:
            for line in read_log(folder):
                track(line)

        for epoch in range(step // steps_per_epoch, settings.epochs):
            if settings.patience and best and epoch - best["epoch"] >= settings.patience:
                bar.write(f"{desc}: no better epoch in the last {settings.patience}; stopping early")
                break
            first = step % steps_per_epoch  # > 0 in an epoch that was interrupted
            started = time.perf_counter() - (seconds if first else 0)
            plan = plan_batches(data.lengths, settings.batch_size, settings.seed, epoch)
            groups = [plan[i : i + settings.grad_accum] for i in range(0, len(plan), settings.grad_accum)]
            batches = make_batches(data, [index for group in groups[first:] for index in group], device)
            steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
            rates = [settings.lr * linear_schedule(i, total_steps, settings.warmup_ratio) for i in steps]
            model.train()
            logged_at, examples = time.perf_counter(), 0

            for group in groups[first:]:
                lr = rates[step % steps_per_epoch]
                for parameters in optimizer.param_groups:
                    parameters["lr"] = lr
                group_size = sum(len(index) for index in group)
                step_loss = 0.0
                for batch in islice(batches, len(group)):
                    with autocast(device, settings.precision):
                        logits = forward(batch.input_ids, batch.attention_mask).logits
                    if teacher is None:
                        loss = hard_loss(logits, batch.labels, settings.label_smoothing)
                    else:
                        loss = kd_loss(
                            logits, teacher(batch), batch.labels, settings.alpha, settings.T, settings.label_smoothing
                        )
                    loss = loss * (len(batch.index) / group_size)  # a group's gradient is that of one large batch
                    scaler.scale(loss).backward()
                    step_loss = step_loss + loss.detach()
                scaler.unscale_(optimizer)  # before clipping, so that the true norm is clipped
                if settings.clip:
                    clip_gradients(optimizer, settings.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                step += 1
                examples += group_size
                bar.update(group_size)
                if told := estimate.after_step(sum(int(data.lengths[index].sum()) for index in group)):
                    bar.write(told)

                if step % LOG_EVERY == 0 or step == total_steps:  # the only place that waits for the device
                    loss_value, now = float(step_loss), time.perf_counter()
                    if not math.isfinite(loss_value):
                        raise MinikdError(
                            f"{desc}: the loss became {loss_value} at step {step}; try a smaller --lr, or "
                            f"--precision fp32"
                        )
                    line = {"step": step, "epoch": step / steps_per_epoch, "loss": loss_value, "lr": lr}
                    speed = {"examples_per_second": examples / (now - logged_at)}
                    record(line | speed | {"memory_mb": peak_memory_mb(device)})
                    bar.set_postfix_str(f"loss {loss_value:.3f}, lr {lr:.1e}")
                    logged_at, examples = now, 0
                if stop.requested and step % steps_per_epoch:
                    save(time.perf_counter() - started)
                    raise KeyboardInterrupt(f"{desc}: stopped at step {step} of {total_steps}; --resume continues")

            words.shrink_rest(math.prod(1 - rate * settings.weight_decay for rate in rates))
            scores = validation_scores(model, validation, device, settings)
            history.append({"epoch": epoch + 1, **scores, "seconds": time.perf_counter() - started})
            record({"step": step, **history[-1]})
            bar.write(
                f"{desc}: epoch {epoch + 1} of {settings.epochs}, validation accuracy "
                f"{scores['validation_accuracy']:.4f}, loss {scores['validation_loss']:.4f}"
            )
            if best is None or _rank(scores) > _rank(best["scores"]):
                weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                best = {"epoch": epoch + 1, "scores": scores, "weights": weights}
            save(0.0)
            if stop.requested:
                raise KeyboardInterrupt(f"{desc}: stopped at step {step} of {total_steps}; --resume continues")

        model.load_state_dict(best["weights"])
    return history


def make_optimizer(model: nn.Module, settings: TrainingSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all trainable parameters; biases and LayerNorms, the one-dimensional ones, are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=device.type in ("cuda", "cpu"))


def clip_gradients(optimizer: torch.optim.AdamW, max_norm: float) -> None:
    """Makes the next step use gradients whose norm, over all parameters, is at most `max_norm` (Pascanu et al. 2013).

    The fused AdamW divides the gradients by `grad_scale` as it reads them. Clipping them before would read and write
    all of them once more, which on short texts is a few percent of a step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])  # foreach where the device has it: mps does not
    if optimizer.defaults["fused"]:
        optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1)
    else:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def linear_schedule(step: int, total_steps: int, warmup_ratio: float) -> float:
    """The factor on the learning rate at `step`, counted from 0.

    Up in a line to 1 at the end of the warm-up, then down in a line that would meet 0 one step after the last.
    """
    warmup = round(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return (total_steps - step) / (total_steps - warmup)


def validation_scores(model, validation: TokenizedSplit, device, settings: TrainingSettings) -> dict:
    """Accuracy, mean cross-entropy and confusion matrix (row = true label) on the validation split, in eval mode, at
    the run's precision.
    """
    logits, labels = predict(model, validation, device, settings.precision), torch.from_numpy(validation.labels)
    predicted = logits.argmax(dim=-1)
    return {
        "validation_accuracy": (predicted == labels).float().mean().item(),
        "validation_loss": hard_loss(logits, labels).item(),
        "confusion": confusion_matrix(labels, predicted, logits.shape[1]).tolist(),
    }


def read_log(folder: Path) -> list[dict]:
    """The lines of a run's log.jsonl; [] where there is none. A training line has "loss", a validation line
    "validation_loss". A line that was cut short when the run was killed is left out.
    """
    path, lines = folder / "log.jsonl", []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def _rank(scores: dict) -> tuple[float, float]:
    return scores["validation_accuracy"], -scores["validation_loss"]
