"""TextClassifier: a model with its tokenizer and labels, for use."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from minikd.batching import tokenize
from minikd.config import EncoderConfig, bert_like
from minikd.errors import MinikdError
from minikd.inference import choose_device, choose_precision, compute_logits, converted, unchanged, versions
from minikd.model import Classifier, Ensemble
from minikd.student import (
    PRETRAINED_SMALL,
    has_bert_vocabulary,
    plan_student,
    seeded,
    student_from_teacher,
)
from minikd.tokenizer import Tokenizer, train_wordpiece

FEW = 32  # texts up to which the converted model is kept between calls; for more, converting takes no noticeable time


class TextClassifier:
    """Gives each text one of `labels`.

    Texts are truncated to `max_length` tokens ([CLS] and [SEP] counted; None: 256, or as many as the model has
    positions). `device` is auto, cpu, cuda or mps; `precision`, the format of the matrix products, is auto, fp32, bf16
    or fp16. Raises MinikdError where the parts do not fit each other or this machine.
    """

    def __init__(
        self,
        model: Classifier,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
    ):
        self.model, self.tokenizer = model, tokenizer
        self.max_length = min(256, model.config.max_position_embeddings) if max_length is None else max_length
        self.device = device if isinstance(device, torch.device) else choose_device(device)
        self.precision = choose_precision(precision, self.device)[0]
        self.source: str | None = None  # the checkpoint whose weights these are
        self._kept: tuple[tuple, list, Classifier] | None = None  # see `_ready`
        check_tokenizer(tokenizer, model.config, "the model", self.max_length)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels; output i of the model stands for the i-th."""
        return self.model.config.labels

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path,
        *,
        labels: tuple[str, ...] | None = None,
        label_order: Sequence[str] | None = None,
        seed: int = 42,
        max_length: int | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> "TextClassifier":
        """The classifier in a folder of Hugging Face's layout (or of LoRA adapters), or of a name on its hub.

        `labels` are those of the data: needed for a bare encoder, which gets a new head from the seed. A head that is
        there keeps its weights; its outputs are put into the order of `labels`, by name. Where the checkpoint does not
        name them, `label_order` does: the labels in the order of its outputs. Raises MinikdError.
        """
        from minikd.checkpoints.load import load_classifier  # the files of others are not part of the core

        with seeded(seed):
            model, tokenizer = load_classifier(name_or_dir, labels, label_order)
        classifier = cls(model, tokenizer, max_length=max_length, device=device, precision=precision)
        classifier.source = str(name_or_dir)
        return classifier

    @classmethod
    def from_scratch(
        cls,
        texts: list[str],
        labels: tuple[str, ...],
        *,
        layers: int = 4,
        hidden: int = 256,
        vocab_size: int = 30522,
        max_length: int = 128,
        seed: int = 42,
        device: str = "auto",
        precision: str = "auto",
        **shape: Any,
    ) -> "TextClassifier":
        """A new classifier of random weights, whose vocabulary is learned from `texts`.

        `shape`: further fields of `EncoderConfig`, such as hidden_dropout_prob.
        """
        tokenizer = train_wordpiece(texts, vocab_size)
        like = EncoderConfig(
            vocab_size=tokenizer.vocab_size, max_position_embeddings=max(max_length, 3), labels=tuple(labels)
        )
        config = replace(bert_like(hidden, layers, like), **shape)
        with seeded(seed):
            model = Classifier(config)
        return cls(model, tokenizer, max_length=max_length, device=device, precision=precision)

    @classmethod
    def ensemble(cls, members: Sequence["TextClassifier"]) -> "TextClassifier":
        """Several classifiers as one, to be evaluated and distilled from: its probabilities are the mean of theirs.

        Raises MinikdError where their labels, vocabularies or lengths differ.
        """
        members = list(members)
        if not members or not all(isinstance(one, TextClassifier) for one in members):
            raise MinikdError("ensemble: give a list of TextClassifiers")
        first = members[0]
        for one in members:
            if (one.labels, one.max_length) != (first.labels, first.max_length):
                raise MinikdError("ensemble: the members' labels and `max_length` must be the same")
            check_same_vocabulary(one.tokenizer, first.tokenizer, "ensemble")
        return first._with(cast(Classifier, Ensemble([one.model for one in members])))

    @property
    def members(self) -> list["TextClassifier"]:
        """Those of an ensemble; of any other classifier, itself."""
        if not isinstance(self.model, Ensemble):
            return [self]
        return [self._with(cast(Classifier, one)) for one in self.model.members]

    def make_student(
        self,
        layers: int | list[int] = 4,
        *,
        hidden: int | None = None,
        init: str = "auto",
        head: bool = False,
        seed: int = 42,
    ) -> "TextClassifier":
        """A smaller classifier with the same tokenizer and labels, to be distilled or trained.

        `layers`: how many, or which of this model's, counted from 0. `hidden`: its width; None: this model's. `init`:
        its first weights, "teacher" (layers of this model), "pretrained" (published ones, downloaded on first use),
        "random", or "auto", the first of these that fits. The output layer is new, or with `head`, where layers of this
        model are taken, a copy of this model's. `seed` decides whatever is random.
        With BERT-base, 4 layers mean the published 512-wide BERT_SMALL (`plan_student`): init="teacher" takes layers.

        A fair baseline is made before this model is fine-tuned: afterwards, layers and head hold what it has learned.
        """
        if self.model.config.quantization or isinstance(self.model, Ensemble):
            what = "an ensemble" if isinstance(self.model, Ensemble) else "quantised"
            raise MinikdError(f"the model is {what} and has no layers to take; make students of its original or member")
        plan = plan_student(self.model.config, layers, hidden, init, has_bert_vocabulary(self.tokenizer))
        if head and plan.init != "teacher":
            raise MinikdError(f"`head`: this student's first weights are {plan.init}; only layers of this model fit it")
        if plan.init == "teacher":
            model = student_from_teacher(self.model, plan.layers, seed, head)
        elif plan.init == "random":
            with seeded(seed):
                model = Classifier(plan.config)
        else:
            from minikd.checkpoints.load import load_classifier

            with seeded(seed):
                model, tokenizer = load_classifier(PRETRAINED_SMALL, self.labels)
            check_same_vocabulary(tokenizer, self.tokenizer, PRETRAINED_SMALL)
        return self._with(model)

    def logits(self, texts: list[str], *, desc: str = "") -> Tensor:
        """The model's outputs for each text, fp32 (N, C) on the CPU; `desc` shows a progress bar."""
        tokens = tokenize(check_texts(texts), None, self.tokenizer, self.max_length)
        model = self._ready() if len(tokens) <= FEW else self.model.to(self.device)
        return compute_logits(model, tokens, self.device, self.precision, desc)

    def _ready(self) -> Classifier:
        """The model on its device, its matrices converted to `precision` ahead, for as long as no weight changes: to
        move and convert them takes longer than a short text."""
        made_for, weights = (self.device, self.precision), versions(self.model.parameters())
        if self._kept is None or self._kept[0] != made_for or not unchanged(self._kept[1], weights):
            model, weights = self.model.to(self.device), versions(self.model.parameters())
            ready = model if self.precision == "fp32" else converted(model, self.precision).eval()
            self._kept = made_for, weights, ready
        return self._kept[2]

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """The probability of each label for each text, (N, C)."""
        return self.logits(texts).softmax(dim=-1).numpy()

    def predict(self, texts: list[str]) -> list[str]:
        """The most probable label of each text."""
        return [self.labels[i] for i in self.logits(texts).argmax(dim=-1).tolist()]

    def save(self, folder: str | Path) -> None:
        """Writes the model and its tokenizer to `folder`, in Hugging Face's layout."""
        from minikd.checkpoints.load import save_classifier

        if isinstance(self.model, Ensemble):
            raise MinikdError("save: the model is an ensemble; save its members")
        save_classifier(self.model, self.tokenizer, Path(folder))

    def _with(self, model: Classifier) -> "TextClassifier":
        """Another model with this one's tokenizer and settings."""
        return TextClassifier(
            model, self.tokenizer, max_length=self.max_length, device=self.device, precision=self.precision
        )


def check_texts(texts: list[str]) -> list[str]:
    """`texts` as a list. Raises MinikdError for a single text, none, or what is no text."""
    if isinstance(texts, str):
        raise MinikdError("texts: give a list of texts, not a single one")
    texts = list(texts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise MinikdError("texts: give a list of at least one text (str)")
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise MinikdError("texts: half of a surrogate pair, which is no valid Unicode, is in one of them")
    return texts


def check_tokenizer(tokenizer: Tokenizer, config: EncoderConfig, name: str, max_length: int) -> None:
    """Raises MinikdError where the model `name` has no embedding for a token, or no position for the longest text."""
    if tokenizer.vocab_size > config.vocab_size:
        raise MinikdError(
            f"{name}: the tokenizer has {tokenizer.vocab_size} tokens but the model embeds {config.vocab_size}; "
            f"vocab.txt or tokenizer.json is from another model"
        )
    if max_length > config.max_position_embeddings:
        raise MinikdError(f"`max_length` {max_length}: {name} has {config.max_position_embeddings} positions at most")


def check_same_vocabulary(own: Tokenizer, other: Tokenizer, name: str) -> None:
    """Raises MinikdError where the model `name` does not read the ids that the other tokenizer gives."""
    if own.vocab != other.vocab:
        raise MinikdError(
            f"{name}: its vocabulary is not the teacher's; name a model that has it, or start from random weights"
        )
