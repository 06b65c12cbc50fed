"""minikd: knowledge distillation of BERT classifiers in plain PyTorch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minikd.classifier import TextClassifier
    from minikd.config import TrainConfig
    from minikd.datasets import Dataset, Split, load_dataset
    from minikd.errors import MinikdError
    from minikd.experiment.results import Results, evaluate
    from minikd.experiment.running import Run
    from minikd.experiment.training import distill, train
    from minikd.losses import kd_loss
    from minikd.techniques.layer_losses import LayerLosses
    from minikd.techniques.lora import LoRA

__version__ = "0.1.0"
__all__ = ["Dataset", "LayerLosses", "LoRA", "MinikdError", "Results", "Run", "Split", "TextClassifier", "TrainConfig",
           "distill", "evaluate", "kd_loss", "load_dataset", "train"]  # fmt: skip

# Where each name is; it is imported when it is first used, so that a part of minikd needs no other part's packages.
_HOME = {
    "TextClassifier": "classifier", "Dataset": "datasets", "Split": "datasets", "load_dataset": "datasets",
    "MinikdError": "errors", "Results": "experiment.results", "evaluate": "experiment.results",
    "Run": "experiment.running", "distill": "experiment.training", "train": "experiment.training",
    "kd_loss": "losses", "LoRA": "techniques.lora",
    "LayerLosses": "techniques.layer_losses", "TrainConfig": "config",
}  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minikd' has no attribute {name!r}")
    return getattr(importlib.import_module(f"minikd.{_HOME[name]}"), name)
