"""Layer losses: the student learns from the teacher's hidden states and attention, not from its logits alone.

Which of the student's layers imitates which of the teacher's is the layer map. The losses themselves, with their
formulas and papers, are in `minikd/losses.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minikd.batching import Batch
from minikd.classifier import TextClassifier
from minikd.config import EncoderConfig, TrainConfig, check_settings, setting
from minikd.errors import MinikdError
from minikd.inference import autocast
from minikd.losses import attention_loss, attention_scores, cls_loss, hidden_loss, kd_loss, relation_loss, score_loss
from minikd.model import ClassifierOutput
from minikd.student import seeded

LAYER_LOSSES = ("hidden_loss", "cls_loss", "score_loss", "attention_loss", "value_loss", "relation_loss")


@dataclass(frozen=True)
class LayerLosses:
    """The weight of each loss, 0 for none, and between which layers. Raises MinikdError for a value out of its range.

    Those of hidden states, [CLS], scores and attention are averaged over all pairs of the map; values and relations are
    compared in its last pair alone.
    """

    hidden_loss: float = setting(
        0.0, help="weight of the relative squared error of hidden states (TinyBERT, Jiao et al. 2020)"
    )
    cls_loss: float = setting(
        0.0, help="weight of the squared distance of normalised [CLS] vectors (PKD, Sun et al. 2019)"
    )
    score_loss: float = setting(
        0.0,
        help="weight of the relative squared error of attention scores before the softmax (TinyBERT); needs equal "
        "numbers of attention heads",
    )
    attention_loss: float = setting(
        0.0,
        help="weight of the KL of attention after the softmax (MiniLM, Wang et al. 2020; of several layers: Wang et "
        "al. 2023); needs equal numbers of attention heads",
    )
    value_loss: float = setting(0.0, help="weight of the KL of value relations of the last pair of layers (MiniLM)")
    relation_loss: float = setting(
        0.0,
        help="weight of the mean KL of query, key and value relations of the last pair of layers (MiniLMv2, Wang et "
        "al. 2021)",
    )
    layer_map: str = setting(
        "uniform",
        help="which layer of the student imitates which of the teacher: uniform (evenly spaced, as in "
        "TinyBERT), top (the teacher's last layers), or pairs such as 0:2,1:5, the student's layer first, from 0",
    )
    relation_heads: int = setting(
        0, help="heads into which values and relations are split; must divide both widths; 0: the teacher's"
    )
    logit_loss: float = setting(1.0, help="weight of the loss on the logits; 0: layer losses alone")

    def __post_init__(self) -> None:
        check_settings(self)
        if not any(getattr(self, name) for name in LAYER_LOSSES):
            raise MinikdError("layer losses: all have weight 0; give one of them a weight, or leave them out")


def layer_pairs(layer_map: str, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """The pairs (layer of the student, layer of the teacher) of a `LayerLosses.layer_map`, counted from 0, in the order
    of the student's layers. Raises MinikdError for pairs that do not exist.

    uniform: TinyBERT's, layer i of S, counted from 1, imitates i · T / S; where that is no whole number, the one below.
    """
    count = student_layers
    if layer_map in ("uniform", "top"):
        if student_layers > teacher_layers:
            raise MinikdError(
                f"`layer_map` {layer_map}: the student has {student_layers} layers and the teacher {teacher_layers}; "
                f"give the pairs"
            )
        if layer_map == "top":
            return [(i, teacher_layers - count + i) for i in range(count)]
        return [(i, (i + 1) * teacher_layers // count - 1) for i in range(count)]
    try:
        pairs = sorted((int(one), int(other)) for one, other in (pair.split(":") for pair in layer_map.split(",")))
    except ValueError:
        raise MinikdError(
            f"`layer_map` {layer_map!r}: must be uniform, top, or pairs of layers such as 0:1,1:3"
        ) from None
    if len({one for one, _ in pairs}) < len(pairs):
        raise MinikdError(f"`layer_map` {layer_map}: a layer of the student imitates one of the teacher's, not several")
    for one, other in pairs:
        if not (0 <= one < student_layers and 0 <= other < teacher_layers):
            raise MinikdError(
                f"`layer_map` {layer_map}: there is no pair {one}:{other}; the student's layers are numbered 0 to "
                f"{student_layers - 1} and the teacher's 0 to {teacher_layers - 1}"
            )
    return pairs


class LayerLoss(nn.Module):
    """The weighted sum of the layer losses, from both models' outputs for a batch.

    Where widths differ, the student's hidden states are first multiplied by a learned matrix (TinyBERT's W_h), the one
    weight of this module. Raises MinikdError for what these two models do not have.
    """

    def __init__(self, settings: LayerLosses, student: EncoderConfig, teacher: EncoderConfig):
        super().__init__()
        self.settings = settings
        self.pairs = layer_pairs(settings.layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
        self.heads = settings.relation_heads or teacher.num_attention_heads
        own, other = student.hidden_size, teacher.hidden_size
        if settings.score_loss or settings.attention_loss:
            if student.num_attention_heads != teacher.num_attention_heads:
                raise MinikdError(
                    f"`{'score_loss' if settings.score_loss else 'attention_loss'}`: the student has "
                    f"{student.num_attention_heads} attention heads and the teacher {teacher.num_attention_heads}; "
                    f"use `relation_loss`, whose heads are those of `relation_heads`"
                )
        if (settings.value_loss or settings.relation_loss) and (own % self.heads or other % self.heads):
            raise MinikdError(
                f"`relation_heads` {self.heads}: must divide the widths of student and teacher, {own} and {other}"
            )
        projects = own != other and (settings.hidden_loss or settings.cls_loss)
        self.projection = nn.Linear(own, other, bias=False) if projects else None
        self.student_outputs = self._outputs([one for one, _ in self.pairs], student.num_hidden_layers)
        self.teacher_outputs = self._outputs([other for _, other in self.pairs], teacher.num_hidden_layers)

    def _outputs(self, layers: list[int], count: int) -> dict:
        """What the losses need of a model with so many layers besides its logits: arguments of `Classifier.forward`."""
        of_all = self.settings.score_loss or self.settings.attention_loss
        of_the_last = self.settings.value_loss or self.settings.relation_loss
        return {
            "cls_only": not (self.settings.hidden_loss and count - 1 in layers),
            "output_hidden_states": bool(self.settings.hidden_loss or self.settings.cls_loss),
            "output_qkv": tuple(layers if of_all else layers[-1:] if of_the_last else ()),
        }

    def forward(self, student: ClassifierOutput, teacher: ClassifierOutput, mask: Tensor | None) -> Tensor:
        """Outputs of both models for a batch, with what `student_outputs` and `teacher_outputs` name, and the batch's
        mask (B, N) -> scalar."""
        return torch.stack([*self._of_pairs(student, teacher, mask), *self._of_last(student, teacher, mask)]).sum()

    def _of_pairs(self, student: ClassifierOutput, teacher: ClassifierOutput, mask: Tensor | None) -> Iterator[Tensor]:
        """The weighted losses that are averaged over all pairs."""
        weights, share = self.settings, 1 / len(self.pairs)
        for one, other in self.pairs:
            if weights.hidden_loss or weights.cls_loss:  # the first hidden states are the embeddings
                own, taught = student.hidden_states[one + 1], teacher.hidden_states[other + 1]
            if weights.hidden_loss:
                yield share * weights.hidden_loss * hidden_loss(self._projected(own), taught, mask)
            if weights.cls_loss:
                yield share * weights.cls_loss * cls_loss(self._projected(own[:, 0]), taught[:, 0])
            if weights.score_loss or weights.attention_loss:
                scores = [attention_scores(qkv.query, qkv.key) for qkv in (student.qkv[one], teacher.qkv[other])]
            if weights.score_loss:
                yield share * weights.score_loss * score_loss(*scores, mask)
            if weights.attention_loss:
                yield share * weights.attention_loss * attention_loss(*scores, mask)

    def _of_last(self, student: ClassifierOutput, teacher: ClassifierOutput, mask: Tensor | None) -> Iterator[Tensor]:
        """The weighted losses of the last pair."""
        one, other = self.pairs[-1]
        if weight := self.settings.value_loss:
            yield weight * relation_loss(student.qkv[one].value, teacher.qkv[other].value, self.heads, mask)
        if weight := self.settings.relation_loss:
            for own, taught in zip(student.qkv[one], teacher.qkv[other]):
                yield weight / 3 * relation_loss(own, taught, self.heads, mask)

    def _projected(self, hidden: Tensor) -> Tensor:
        return hidden if self.projection is None else self.projection(hidden.to(self.projection.weight.dtype))


class LayerDistillation(nn.Module):
    """The `loss` with which `minikd.training.fit` trains a student: layer losses, and `kd_loss` by the weight
    `logit_loss`. The teacher computes its hidden states and logits anew in each step, in one pass.

    Raises MinikdError for a teacher of another tokenizer, and as `LayerLoss` does.
    """

    def __init__(self, settings: LayerLosses, student: TextClassifier, teacher: TextClassifier, config: TrainConfig,
                 alpha: float, T: float, soft: str = "kl"):  # fmt: skip
        super().__init__()
        if teacher.tokenizer.vocab != student.tokenizer.vocab:
            raise MinikdError("layer losses: the teacher's tokenizer is not the student's, so their tokens differ")
        with seeded(config.seed):  # the first weights of the projection
            self.layers = LayerLoss(settings, student.model.config, teacher.model.config)
        self.outputs, self.weight = self.layers.student_outputs, settings.logit_loss
        self.on_logits = {"alpha": alpha, "T": T, "label_smoothing": config.label_smoothing, "soft": soft}
        model = teacher.model.eval().to(student.device)

        def outputs_of(batch: Batch) -> ClassifierOutput:
            with torch.no_grad(), autocast(student.device, student.precision):
                return model(batch.input_ids, batch.attention_mask, **self.layers.teacher_outputs)

        self.teacher = outputs_of  # a function, so that the teacher's weights are none of this module's

    def forward(self, output: ClassifierOutput, batch: Batch) -> Tensor:
        taught = self.teacher(batch)
        total = self.layers(output, taught, batch.attention_mask)
        if self.weight:
            total = total + self.weight * kd_loss(output.logits, taught.logits, batch.labels, **self.on_logits)
        return total
