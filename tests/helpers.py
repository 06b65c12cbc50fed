"""What tests of the training share: the loop by itself, and a run in a folder, on tokens rather than texts."""

from dataclasses import dataclass, fields

from minikd.classifier import TextClassifier
from minikd.config import TrainConfig
from minikd.experiment.caches import cached_logits
from minikd.experiment.running import Run, run_training
from minikd.experiment.training import Objective, train_on_tokens
from minikd.techniques.lora import LoRA
from minikd.training import distillation_loss


@dataclass(frozen=True)
class Settings(TrainConfig):
    """A training's settings with those of its loss and the precision."""

    alpha: float = 1.0
    T: float = 1.0
    precision: str = "fp32"

    def __post_init__(self):
        self.config()  # checks the others

    def config(self) -> TrainConfig:
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})


def train(model, data, validation, settings, folder, device, *, teacher=None, desc="train", made_from=None, track=None,
          **options):  # fmt: skip
    """The loop, with its log and state in `folder` itself. Returns the history."""
    loss = None if teacher is None else distillation_loss(teacher, settings.alpha, settings.T, settings.label_smoothing)
    made_from = (made_from or {}) | {"settings": vars(settings)}
    run = BareRun(folder, desc, made_from=made_from, **options)
    if track:
        run.tracking = Track(track)
    return run_training(model, data, validation, settings.config(), loss, run, device, settings.precision)


class BareRun(Run):
    """A run whose files are in its folder itself while it trains."""

    partial = property(lambda self: self.folder)


class Track:
    """A tracking whose every run is the function."""

    def __init__(self, function):
        self.start = lambda *_, **__: function


def train_or_reuse(name, model, tokenizer, data, validation, settings, folder, device, arguments, *, teacher=None,
                   teacher_key="", lora=None, base=None, tracking=None, **options):  # fmt: skip
    """A run in `folder`, or what is finished there. Returns the model."""
    classifier = TextClassifier(model, tokenizer, max_length=16, device=device, precision=settings.precision)
    classifier.source = base
    run = Run(folder, name, arguments=arguments, **options | ({"tracking": tracking} if tracking else {}))
    loss = None if teacher is None else distillation_loss(teacher, settings.alpha, settings.T, settings.label_smoothing)
    objective = Objective(loss, settings.alpha, settings.T, teacher_key)
    train_on_tokens(classifier, data, validation, settings.config(), run, lora and LoRA(**lora), objective)
    return classifier.model


def teacher_logits(teacher, split, path, device, precision):
    """A teacher's logits, by way of the file at `path`."""
    return cached_logits(teacher, split, device, precision, "teacher logits", path)
