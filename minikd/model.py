"""A BERT encoder and classifier by hand (Devlin et al. 2019; DistilBERT: Sanh et al. 2019).

Must equal transformers' BertForSequenceClassification and DistilBertForSequenceClassification in every hidden state,
logit and gradient; tests/core/test_model.py checks it.
Shapes in the comments: B batch, N tokens, H hidden size, A heads, D = H / A head size, C labels.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minikd.config import EncoderConfig
from minikd.dropout import Dropout, keep_mask, use_fast_dropout
from minikd.losses import mean_teacher


class QKV(NamedTuple):
    """A layer's queries, keys and values, which are all that its attention depends on: (B, A, N, D) each."""

    query: Tensor
    key: Tensor
    value: Tensor


class EncoderOutput(NamedTuple):
    last_hidden_state: Tensor  # (B, N, H), or (B, 1, H) with cls_only
    hidden_states: tuple[Tensor, ...] | None  # embeddings, then each layer's output: (B, N, H) each; the last as above
    qkv: dict[int, QKV]  # of the layers asked for, all rows


class ClassifierOutput(NamedTuple):
    logits: Tensor  # (B, C)
    hidden_states: tuple[Tensor, ...] | None = None
    qkv: dict[int, QKV] = {}


class Embeddings(nn.Module):
    """Word + learned position + segment vectors, LayerNorm, dropout."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        if input_ids.shape[1] > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens: the model has {self.position_embeddings.num_embeddings} positions"
            )
        positions = self.position_embeddings.weight[: input_ids.shape[1]]  # (N, H)
        embeddings = self.word_embeddings(input_ids) + positions  # (B, N, H)
        if self.token_type_embeddings is not None:
            if token_type_ids is None:  # a single text is all segment A
                embeddings = embeddings + self.token_type_embeddings.weight[0]
            else:
                embeddings = embeddings + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(embeddings))


class SelfAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2) with one fused query-key-value projection."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)  # rows: all of q, then k, then v
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, mask: Tensor | None, cls_only: bool, with_qkv: bool = False
    ) -> tuple[Tensor, QKV | None]:
        """`mask` is boolean (B, 1, 1, N), true at real tokens. Returns (B, N, H), or with `cls_only` (B, 1, H); and
        with `with_qkv` the queries, keys and values of all tokens."""
        projected = self.project(x, cls_only and not with_qkv)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)  # (B, A, N, D)
        qkv = QKV(q, k, v) if with_qkv else None
        if cls_only:
            q = q[:, :, :1]  # (B, A, 1, D)

        dropout_prob = self.dropout_prob if self.training else 0.0
        # On the CPU, SDPA's fused kernel knows no dropout, and in bf16 it is slower than the formula written out for
        # all but long texts.
        short = q.dtype == torch.bfloat16 and k.shape[2] <= 256
        if x.device.type == "cpu" and (dropout_prob or short):
            probs = masked_scores(q, k, mask).softmax(dim=-1).type_as(v)  # (B, A, N, N)
            if dropout_prob and use_fast_dropout(x):
                context = (probs * keep_mask(probs, dropout_prob)) @ v  # (B, A, N, D)
                context = context / (1 - dropout_prob)  # rather than the N x N probs: fewer values to divide
            else:
                context = F.dropout(probs, dropout_prob) @ v  # (B, A, N, D)
        else:
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_prob)
        return self.output(context.transpose(1, 2).flatten(2)), qkv  # heads side by side again: (B, N, H)

    def project(self, x: Tensor, cls_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, H) -> its queries, or with `cls_only` the first token's alone (B, 1, H), keys and values."""
        if not cls_only:
            return self.qkv(x).chunk(3, dim=-1)  # (B, N, H) each
        hidden_size, weight, bias = x.shape[-1], self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :1], weight[:hidden_size], bias[:hidden_size])  # (B, 1, H)
        k, v = F.linear(x, weight[hidden_size:], bias[hidden_size:]).chunk(2, dim=-1)  # (B, N, H) each
        return q, k, v


def masked_scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """q · k / √D with −∞ at padding, for q and k (B, A, N, D): product, scale and mask in one operation."""
    bias = None if mask is None else torch.where(mask, 0.0, -torch.inf).to(q.dtype)  # (B, 1, 1, N)
    bias = q.new_zeros(()) if bias is None else bias.expand(-1, q.shape[1], -1, -1).flatten(0, 1)
    masked = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(-2, -1), alpha=q.shape[-1] ** -0.5)
    return masked.unflatten(0, q.shape[:2])


class FeedForward(nn.Module):
    """Two linear layers with the exact (erf) GELU between them, at each position alone."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.intermediate(x)
        in_place = None if torch.is_grad_enabled() else hidden  # no gradient, no need to keep GELU's input
        return self.output(F.gelu(hidden, out=in_place))  # type: ignore[call-arg]


class EncoderLayer(nn.Module):
    """A post-LN block: LayerNorm(x + dropout(sublayer(x))), for attention and then for the feed-forward network."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_dropout = Dropout(config.attention_output_dropout)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_dropout = Dropout(config.hidden_dropout_prob)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, mask: Tensor | None, cls_only: bool = False, with_qkv: bool = False
    ) -> tuple[Tensor, QKV | None]:
        attended, qkv = self.attention(x, mask, cls_only, with_qkv)
        if cls_only:
            x = x[:, :1]  # (B, 1, H): from here on every operation works on each position alone
        x = self.attention_norm(x + self.attention_dropout(attended))
        x = self.feed_forward_norm(x + self.feed_forward_dropout(self.feed_forward(x)))
        return x, qkv


class Encoder(nn.Module):
    """Embeddings and a stack of layers."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cls_only: bool = False,
        output_hidden_states: bool = False,
        output_qkv: Collection[int] = (),
    ) -> EncoderOutput:
        """input_ids (B, N); attention_mask (B, N), 1 at real tokens (at least one a text) and 0 at padding, or None
        where nothing is padded. Raises ValueError for more tokens than the model has positions.

        `cls_only`: the last layer computes its first row alone. On request every layer's output is kept, and the
        queries, keys and values of the layers in `output_qkv`, counted from 0.
        """
        # (B, N) -> (B, 1, 1, N): broadcast over heads and queries. SDPA is fastest without a mask, hence None.
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.embeddings(input_ids, token_type_ids)
        hidden_states, all_qkv = [x] if output_hidden_states else [], {}
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            x, qkv = layer(x, mask, cls_only=cls_only and last, with_qkv=i in output_qkv)
            if output_hidden_states:  # kept only on request: each is as large as the layer's own memory
                hidden_states.append(x)
            if qkv is not None:
                all_qkv[i] = qkv
        return EncoderOutput(x, tuple(hidden_states) if output_hidden_states else None, all_qkv)


class Classifier(nn.Module):
    """The encoder with a classification head on its [CLS] vector.

    The head reads one row of the last layer's output. That row's query meets the keys and values of all tokens, but its
    attention output, LayerNorms and feed-forward network need no other row, and outputs that nothing reads get no
    gradient. So the last layer computes keys and values for all tokens and everything else for [CLS] alone: the same
    logits and gradients (with dropout: the same in distribution). Of that layer's 12·H² multiply-adds a token only the
    2·H² of keys and values remain.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)  # DistilBERT calls it pre_classifier
        self.activation = {"tanh": torch.tanh, "relu": torch.relu}[config.head_activation]
        self.dropout = Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, initializer_range) for every matrix, zero for biases and the padding row (modeling_bert's rule)."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        cls_only: bool | None = None,
        output_hidden_states: bool = False,
        output_qkv: Collection[int] = (),
    ) -> ClassifierOutput:
        """Logits (B, C) for input_ids (B, N); on request hidden states, and queries, keys and values, as in `Encoder`.

        `cls_only`: whether the last layer computes its first row alone; None: unless hidden states are wanted.
        """
        encoded = self.encoder(
            input_ids,
            attention_mask,
            token_type_ids,
            cls_only=not output_hidden_states if cls_only is None else cls_only,
            output_hidden_states=output_hidden_states,
            output_qkv=output_qkv,
        )
        pooled = self.dropout(self.activation(self.pooler(encoded.last_hidden_state[:, 0])))  # (B, H)
        # In fp32 also under autocast: the 8 bits of a bf16 logit give many texts the same value for two labels.
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.classifier(pooled.to(self.classifier.weight.dtype))  # (B, C)
        return ClassifierOutput(logits, encoded.hidden_states, encoded.qkv)


class Ensemble(nn.Module):
    """Several classifiers as one, whose probabilities are the mean of theirs. They read the same ids."""

    def __init__(self, members: Sequence[Classifier]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config = members[0].config

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ClassifierOutput:
        """Logits (B, C), with the mean probabilities of the members, for input_ids (B, N)."""
        logits = [member(input_ids, attention_mask).logits for member in self.members]
        return ClassifierOutput(mean_teacher(torch.stack(logits)))


def count_parameters(model: nn.Module) -> int:
    """Number of scalars in all parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
