"""The training loop: one for the teacher, the distilled student and the baseline student.

Mixed precision follows Micikevicius et al. 2018 (autocast, and loss scaling for fp16); the optimizer is AdamW
(Loshchilov & Hutter 2019) with BERT's linear warm-up and decay (Devlin et al. 2019, appendix A.2). The loop prints
nothing and writes nothing: `fit` is a generator, and whoever iterates over it logs, saves and shows progress
(`minikd/experiment/running.py`).
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minikd.batching import Batch, TokenizedSplit, make_batches, plan_batches
from minikd.config import TrainConfig
from minikd.distributed import from_all, process_seed, rank, share, sum_of_all, synchronized, world_size
from minikd.errors import MinikdError, is_full_memory
from minikd.inference import autocast, compute_logits
from minikd.losses import hard_loss, kd_loss
from minikd.metrics import confusion_matrix
from minikd.model import Classifier, ClassifierOutput
from minikd.used_rows import only_used_rows


@dataclass
class TrainState:
    """A training under way: all that the rest of it depends on. Batches follow from seed, epoch and step."""

    model: Classifier
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    step: int = 0  # optimizer steps done
    history: list[dict] = field(default_factory=list)  # the figures of each epoch that is over
    best: dict | None = None  # the epoch with the best validation accuracy: "epoch", "scores", "weights"
    seconds: float = 0.0  # that the present epoch has taken so far
    loss: nn.Module | None = None  # where the loss has weights of its own, which are trained too

    def state_dict(self) -> dict:
        """What `load_state_dict` needs to continue with the same bits. To be called in all processes at once."""
        cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
        (rng, cuda_rng), *of_others = from_all((torch.get_rng_state(), cuda))
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "loss": self.loss.state_dict() if self.loss is not None else {},
            "rng": rng,
            "cuda_rng": cuda_rng,
            "rng_of_others": of_others,  # of the processes but for the first
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues from what `state_dict` returned, random numbers included where it was by as many processes. Raises
        MinikdError where that is of another model."""
        try:
            self.model.load_state_dict(state["model"])
            if self.loss is not None:
                self.loss.load_state_dict(state["loss"])
            groups = self.optimizer.state_dict()["param_groups"]  # its settings are those of this run
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
            for parameter, moments in self.optimizer.state.items():
                if not moments["exp_avg"].shape == moments["exp_avg_sq"].shape == parameter.shape:
                    raise ValueError("moments of other shapes")
            self.scaler.load_state_dict(state["scaler"])
            generators = [(state["rng"], state["cuda_rng"]), *state.get("rng_of_others", [])]
            if len(generators) == world_size():
                rng, cuda_rng = generators[rank()]
                torch.set_rng_state(rng)
                if cuda_rng and torch.cuda.is_available():
                    torch.cuda.set_rng_state(cuda_rng[0])
        except Exception as error:  # torch raises several kinds
            if is_full_memory(error):  # nothing is wrong with the state
                raise
            raise MinikdError(
                f"the saved state does not fit the model ({type(error).__name__}); run without `resume`"
            ) from None
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.seconds = state.get("seconds", 0.0)


# What a training minimises: the model's output for a batch, and that batch -> a scalar. A loss that is an nn.Module may
# have weights; they are trained with the model and are no part of it. A loss that wants more of the model than logits
# has `outputs`, arguments of `Classifier.forward`.
Loss = Callable[[ClassifierOutput, Batch], Tensor]


class Progress(NamedTuple):
    """What `fit` tells after each optimizer step, and once more after each epoch."""

    state: TrainState
    total_steps: int
    epoch: float  # epochs done, with a fraction
    lr: float  # of the last step
    loss: Tensor  # of the last step, a scalar on the device: to read it is to wait for the device
    examples: int  # read in the last step; 0 after an epoch
    tokens: int
    scores: dict | None = None  # after an epoch: its figures, the last entry of `state.history`


def fit(
    model: Classifier,
    data: TokenizedSplit,
    validation: TokenizedSplit,
    config: TrainConfig,
    loss: Loss | None = None,
    *,
    device: torch.device,
    precision: str = "fp32",
    compile: bool = False,
    keep_last: bool = False,
    saved: dict | None = None,
) -> Generator[Progress, None, None]:
    """Trains `model` in place. At the end it has the weights of the epoch with the best validation accuracy (ties:
    the lower loss); with `keep_last` of the last epoch, for a loss that does not train the head.

    `loss`: for a student `distillation_loss`; None means cross-entropy with the labels. `saved`, the `state_dict` of an
    earlier training, is continued. `compile` trains torch.compile's version of the model. Seeds torch's random numbers.
    Iterate to the end, or close the generator: it restores the model's word embeddings. Raises MinikdError for a state
    of another model and for validation logits that are not finite.
    """
    loss = loss or (lambda output, batch: hard_loss(output.logits, batch.labels, config.label_smoothing))
    own = loss.to(device) if isinstance(loss, nn.Module) else None
    steps_per_epoch = config.steps_per_epoch(len(data))
    total_steps, epochs = config.total_steps(len(data)), config.total_epochs(len(data))
    # Dropout depends on the seed alone, not on what ran before.
    torch.manual_seed(process_seed(config.seed, saved["step"] if saved else 0))
    model.to(device)
    with only_used_rows(model.encoder.embeddings, np.union1d(data.ids, data.pad_token_id)) as table:
        batch_loss: nn.Module = BatchLoss(model, loss, device, precision, compile)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        state = TrainState(model, make_optimizer(batch_loss, config, device), scaler, loss=own)
        if saved:
            state.load_state_dict(saved)
        batch_loss = synchronized(batch_loss, unused=own is not None)

        step_loss = torch.zeros(())
        for epoch in range(len(state.history), epochs):  # `epoch`: how many are over
            if config.patience and state.best and epoch - state.best["epoch"] >= config.patience:
                break
            began = time.perf_counter() - state.seconds
            done = state.step - epoch * steps_per_epoch  # steps of an epoch that was interrupted, else 0
            steps = range(epoch * steps_per_epoch, min((epoch + 1) * steps_per_epoch, total_steps))
            plan = plan_batches(data.lengths, config.batch_size, config.seed, epoch)
            groups = [plan[i : i + config.grad_accum] for i in range(0, len(plan), config.grad_accum)]
            groups = groups[done : len(steps)]
            # A share of nothing is an example that weighs nothing: the process must take part in the step.
            shares = [share(index) if rank() < len(index) else index[:1] for group in groups for index in group]
            batches = make_batches(data, shares, device)
            rates = [config.lr * linear_schedule(step, total_steps, config.warmup_ratio) for step in steps]
            model.train()
            for group, lr in zip(groups, rates[done:]):
                examples, tokens = sum(map(len, group)), sum(int(data.lengths[index].sum()) for index in group)
                parts = [len(share(index)) / examples for index in group]
                step_loss = training_step(state, batch_loss, islice(batches, len(group)), parts, lr, config.clip)
                state.seconds = time.perf_counter() - began
                yield Progress(state, total_steps, state.step / steps_per_epoch, lr, step_loss, examples, tokens)

            table.decay_unused(math.prod(1 - rate * config.weight_decay for rate in rates))
            scores = validation_scores(model, validation, device, precision)
            figures = {"epoch": epoch + 1, "step": state.step, **scores}
            state.history.append(figures | {"seconds": time.perf_counter() - began})
            if keep_last or state.best is None or _rank(scores) > _rank(state.best["scores"]):
                weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
                state.best = {"epoch": epoch + 1, "scores": scores, "weights": weights}
            state.seconds = 0.0
            epochs_done = state.step / steps_per_epoch
            yield Progress(state, total_steps, epochs_done, rates[-1], step_loss, 0, 0, state.history[-1])

        assert state.best is not None  # there was at least one epoch
        model.load_state_dict(state.best["weights"])


def distillation_loss(
    teacher: Tensor | Callable[[Batch], Tensor],
    alpha: float,
    T: float,
    label_smoothing: float = 0.0,
    soft: str = "kl",
) -> Loss:
    """The `loss` with which `fit` trains a student: `kd_loss`, with all its settings.

    `teacher`: its logits (N, C) on the training split, on the device, or a function that computes those of a batch. The
    rows are looked up by the examples' place in the split, never by their place in the batch: batches are shuffled.
    """

    def loss(output: ClassifierOutput, batch: Batch) -> Tensor:
        teacher_logits = teacher[batch.index] if isinstance(teacher, Tensor) else teacher(batch)
        return kd_loss(output.logits, teacher_logits, batch.labels, alpha, T, label_smoothing, soft=soft)

    return loss


class BatchLoss(nn.Module):
    """A batch -> its loss, a scalar. The model and a loss that has weights are parts of one module, so that
    DistributedDataParallel finds all weights, and the optimizer as well."""

    def __init__(self, model: Classifier, loss: Loss, device: torch.device, precision: str, compile: bool = False):
        super().__init__()
        self.model = torch.compile(model, dynamic=True) if compile else model
        self.loss, self.outputs, self.autocast = loss, getattr(loss, "outputs", {}), autocast(device, precision)

    def forward(self, batch: Batch) -> Tensor:
        with self.autocast:
            output = self.model(batch.input_ids, batch.attention_mask, **self.outputs)
        return self.loss(output, batch)


def training_step(
    state: TrainState,
    batch_loss: nn.Module,
    batches: Iterable[Batch],
    weights: Sequence[float],
    lr: float,
    clip: float,
) -> Tensor:
    """One optimizer step on the examples of all `batches`: forward, loss, backward, clip, step. Returns their mean
    loss, a scalar on the device.

    `weights`: of each batch, the share of the step's examples that it holds: the gradient is that of one large batch.
    Over all processes they add up to 1; the gradients are averaged with those of the last batch.
    """
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = lr
    step_loss: Any = 0.0
    for i, (batch, weight) in enumerate(zip(batches, weights), start=1):
        waits = isinstance(batch_loss, DistributedDataParallel) and i < len(weights)
        with batch_loss.no_sync() if waits else nullcontext():  # type: ignore[operator]
            loss = batch_loss(batch) * weight
            state.scaler.scale(loss * world_size()).backward()  # the average over processes divides by it
        step_loss = step_loss + loss.detach()
    state.scaler.unscale_(state.optimizer)  # before clipping, so that the true norm is clipped
    if clip:
        clip_gradients(state.optimizer, clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.step += 1
    return sum_of_all(step_loss)


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all trainable parameters. Biases and LayerNorms, the one-dimensional ones, are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=device.type in ("cuda", "cpu"))


def clip_gradients(optimizer: torch.optim.AdamW, max_norm: float) -> None:
    """Limits the norm of all gradients together to `max_norm` in the next step (Pascanu et al. 2013).

    The fused AdamW divides the gradients by `grad_scale` as it reads them. Clipping them before would read and write
    all of them once more, which on short texts is a few percent of a step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])  # foreach where the device has it: mps does not
    if optimizer.defaults["fused"]:
        optimizer.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1)  # type: ignore[attr-defined]
    else:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def linear_schedule(step: int, total_steps: int, warmup_ratio: float) -> float:
    """The factor on the learning rate at `step`, counted from 0.

    It rises in a line to 1 at the end of the warm-up, then falls in a line that would reach 0 one step after the last.
    """
    warmup = round(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return (total_steps - step) / (total_steps - warmup)


def validation_scores(model: Classifier, validation: TokenizedSplit, device: torch.device, precision: str) -> dict:
    """Accuracy, mean cross-entropy and confusion matrix (row = true label) on the validation split, in eval mode."""
    logits, labels = compute_logits(model, validation, device, precision), torch.from_numpy(validation.labels)
    predicted = logits.argmax(dim=-1)
    return {
        "validation_accuracy": (predicted == labels).float().mean().item(),
        "validation_loss": hard_loss(logits, labels).item(),
        "confusion": confusion_matrix(labels, predicted, logits.shape[1]).tolist(),
    }


def _rank(scores: dict) -> tuple[float, float]:
    return scores["validation_accuracy"], -scores["validation_loss"]
