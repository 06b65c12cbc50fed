"""Training without the rows of the word-embedding table that the training texts do not use.

A token that occurs in no training text gets no gradient. The moments that AdamW keeps of its row stay 0, and all that
a step does to the row is to shrink it by weight decay: w ← (1 − lr · decay) · w. So such rows can be left out of
gradient, norm, moments and step, and be shrunk once an epoch, by the product of those factors. The result is the same
but for rounding (and for steps that loss scaling skips in fp16, in which AdamW would not shrink them). In a small model
the table is half of all weights, and the texts of SST-2 use 11,541 of BERT's 30,522 tokens: there an epoch of the
4-layer student takes about a twentieth less time on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minikd.files import CleanUp
from minikd.model import Embeddings


class CompactEmbedding(nn.Module):
    """Replaces a table of word embeddings (V, H) in training: token ids (B, N) -> vectors (B, N, H).

    `weight` (U, H), the rows of the `ids` in use and that of the table's padding, is trained, but for this padding,
    which gets no gradient; `rest` (V - U, H) serves the texts of the validation split, which may hold other tokens.
    `ids` must contain all that training batches do, the tokenizer's [PAD] included: a model's config may name another
    row for padding, or none.
    """

    rest: Tensor
    row_of: Tensor

    def __init__(self, table: nn.Embedding, ids: np.ndarray):
        super().__init__()
        padding = [] if table.padding_idx is None else [table.padding_idx]
        in_use = np.union1d(ids, padding).astype(np.int64)
        others = np.setdiff1d(np.arange(table.num_embeddings), in_use)
        row_of = torch.empty(table.num_embeddings, dtype=torch.int64)  # token id -> row of `weight`, then of `rest`
        row_of[np.concatenate((in_use, others))] = torch.arange(table.num_embeddings)
        weight = table.weight.detach()
        self.weight = nn.Parameter(weight[in_use], requires_grad=table.weight.requires_grad)
        self.register_buffer("rest", weight[others])
        self.register_buffer("row_of", row_of.to(weight.device), persistent=False)
        self.padding_idx = table.padding_idx
        self.padding_row = int(row_of[table.padding_idx]) if padding else None

    def forward(self, ids: Tensor) -> Tensor:
        rows, count = self.row_of[ids], len(self.weight)
        if self.training or not len(self.rest):
            return F.embedding(rows, self.weight, self.padding_row)
        trained, others = self.weight[rows.clamp(max=count - 1)], self.rest[(rows - count).clamp(min=0)]
        return torch.where((rows < count)[..., None], trained, others)

    def decay_unused(self, factor: float) -> None:
        """Multiplies the rows that are not in use by `factor`; those of a frozen table stay as they are."""
        if self.weight.requires_grad:
            self.rest.mul_(factor)

    def expanded(self) -> nn.Embedding:
        """The table (V, H) with the weights of now."""
        places = self.row_of.argsort()  # the inverse: row of `weight`, then of `rest` -> token id
        table = self.weight.new_empty(len(places), self.weight.shape[1], requires_grad=False)
        table[places[: len(self.weight)]] = self.weight.detach()
        table[places[len(self.weight) :]] = self.rest
        return nn.Embedding.from_pretrained(table, freeze=not self.weight.requires_grad, padding_idx=self.padding_idx)


@contextmanager
def only_used_rows(embeddings: Embeddings, ids: np.ndarray) -> Iterator[CompactEmbedding]:
    """Within the block, `embeddings` has a `CompactEmbedding`, the context's value, in place of its table. Afterwards,
    also where an exception ends it, a whole table again."""
    table = CompactEmbedding(embeddings.word_embeddings, ids)
    embeddings.word_embeddings = table  # type: ignore[assignment]
    with CleanUp() as at_the_end:
        at_the_end.callback(lambda: setattr(embeddings, "word_embeddings", table.expanded()))
        yield table
