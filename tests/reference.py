"""The other side of tests/benchmark: the same classifier, data and settings with transformers and its Trainer."""

import contextlib
import io
import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from helpers import Settings

from minikd.batching import TokenizedSplit
from minikd.checkpoints.config_json import config_to_json
from minikd.checkpoints.pretrained import to_hugging_face
from minikd.model import Classifier

transformers.logging.set_verbosity_error()


def sdpa_twin(model: Classifier) -> transformers.PreTrainedModel:
    """transformers' model with the weights of `model` and its fastest attention that needs no further package."""
    config = transformers.AutoConfig.for_model(**config_to_json(model.config))
    config._attn_implementation = "sdpa"
    twin = transformers.AutoModelForSequenceClassification.from_config(config)
    twin.load_state_dict(to_hugging_face(model), strict=True)
    return twin


class Examples(torch.utils.data.Dataset):
    """The chosen examples of a tokenised split, in the form that Trainer reads: a dictionary of lists each."""

    def __init__(self, split: TokenizedSplit, chosen):
        self.rows = [
            {"input_ids": split.ids[split.offsets[i] : split.offsets[i + 1]].tolist(), "labels": int(split.labels[i])}
            for i in chosen
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i) -> dict:
        return self.rows[i]


def collator(tokenizer, pad_to: int | None = None) -> transformers.DataCollatorWithPadding:
    """Pads each batch to its longest text, or all to `pad_to`."""
    padding = {"padding": "max_length", "max_length": pad_to} if pad_to else {}
    return transformers.DataCollatorWithPadding(tokenizer, **padding)


def trainer_seconds(twin, examples: Examples, settings: Settings, tokenizer, pad_to: int | None = None) -> float:
    """Trains `twin` by Trainer as `minikd.training.fit` would; returns the seconds that Trainer reports.

    Batches are random, as by default, and padded to their longest text by DataCollatorWithPadding, or all to `pad_to`.
    Schedule, weight decay, clipping and the fused AdamW are the same; nothing is evaluated or saved.
    """
    steps = settings.epochs * -(-len(examples) // settings.batch_size)
    cpu = not torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            weight_decay=settings.weight_decay,
            warmup_steps=round(settings.warmup_ratio * steps),
            max_grad_norm=settings.clip,
            seed=settings.seed,
            bf16=settings.precision == "bf16",
            fp16=settings.precision == "fp16",
            use_cpu=cpu,
            dataloader_pin_memory=not cpu,
            optim="adamw_torch_fused",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(twin, arguments, collator(tokenizer, pad_to), examples)
        return trainer.train().metrics["train_runtime"]
