"""Examples to padded batches of similar length.

Padding is work thrown away: in random batches of 32, two thirds of SST-2's tokens would be padding. Examples are
therefore shuffled, sorted by length within chunks of many batches, cut into batches, and the batches shuffled.
Nothing is dropped, and every example carries its index, by which cached teacher logits are looked up.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
from torch import Tensor

from minikd.files import fingerprint
from minikd.tokenizer import Tokenizer

SORTED_TOGETHER = 100  # batches that are sorted by length together: enough for 1 to 3 % of padding, few enough to mix


@dataclass(frozen=True)
class TokenizedSplit:
    """The tokens of a split, end to end: example i has ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # int32 (tokens,)
    offsets: np.ndarray  # int64 (examples + 1,)
    labels: np.ndarray  # int64 (examples,)
    pad_token_id: int
    fingerprint: str  # of texts, labels, tokenizer and length

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens per example, (examples,)."""
        return np.diff(self.offsets)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self.lengths.max())

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> "TokenizedSplit":
        """Its examples from `start` up to `stop`, as a split of their own."""
        offsets = self.offsets[start : stop + 1]
        ids, labels = self.ids[offsets[0] : offsets[-1]], self.labels[start:stop]
        key = fingerprint(self.fingerprint, f"{start} to {stop}")
        return TokenizedSplit(ids, offsets - offsets[0], labels, self.pad_token_id, key)


def concatenate(one: TokenizedSplit, other: TokenizedSplit) -> TokenizedSplit:
    """The examples of one split and, after them, those of the other."""
    return TokenizedSplit(
        np.concatenate((one.ids, other.ids)),
        np.concatenate((one.offsets, one.offsets[-1] + other.offsets[1:])),
        np.concatenate((one.labels, other.labels)),
        one.pad_token_id,
        fingerprint(one.fingerprint, other.fingerprint),
    )


class Batch(NamedTuple):
    index: Tensor  # type: ignore[assignment]  # (B,) positions of the examples in their split
    input_ids: Tensor  # (B, N)
    attention_mask: Tensor | None  # (B, N), true at real tokens; None where nothing is padded
    labels: Tensor  # (B,)


def tokenize(texts: list[str], labels: list[int] | None, tokenizer: Tokenizer, max_length: int) -> TokenizedSplit:
    """The tokens of texts, each truncated to `max_length`; `labels` are ids, None where there are none (all 0).

    Raises MinikdError for a `max_length` below 3.
    """
    ids, offsets = tokenizer.encode(texts, max_length)
    return tokenized_split(ids, offsets, labels, tokenizer, tokens_fingerprint(texts, tokenizer, max_length))


def tokenized_split(
    ids: np.ndarray, offsets: np.ndarray, labels: list[int] | None, tokenizer: Tokenizer, key: str
) -> TokenizedSplit:
    """The split of tokens that are there already; `key` is their `tokens_fingerprint`."""
    label_ids = np.zeros(len(offsets) - 1, dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
    return TokenizedSplit(ids, offsets, label_ids, tokenizer.pad_token_id, fingerprint(key, label_ids))


def tokens_fingerprint(texts: list[str], tokenizer: Tokenizer, max_length: int) -> str:
    """SHA-256 over everything that the tokens of these texts depend on."""
    return fingerprint("tokens 1", tokenizers.__version__, tokenizer.fingerprint, str(max_length), *texts)


def plan_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int = 0, by_length: bool = True
) -> list[np.ndarray]:
    """Which examples are trained on together: a list of index arrays that holds every example once.

    The order is new in each epoch, and the same on every machine. `by_length=False` gives plain random batches, to
    compare.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    chunk = batch_size * SORTED_TOGETHER
    if by_length:
        chunks = (order[i : i + chunk] for i in range(0, len(order), chunk))
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in chunks])
    plan = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [plan[i] for i in random.permutation(len(plan))]


def plan_by_tokens(lengths: np.ndarray, tokens: int, device: torch.device) -> list[np.ndarray]:
    """Batches for a pass whose order does not matter: all examples sorted by length, the longest first, and in each
    batch as many as fit into so many tokens, padding included, but at least one."""
    order, plan, start = np.argsort(-lengths, kind="stable"), [], 0
    while start < len(order):
        size = max(1, tokens // padded_length(int(lengths[order[start]]), int(lengths[order[0]]), device))
        plan.append(order[start : start + size])
        start += size
    return plan


def padded_length(longest: int, most: int, device: torch.device) -> int:
    """The width of a batch whose longest example has `longest` tokens: a multiple of 8, but no more than `most`, the
    longest of its whole split, as a model may have no more positions.

    CUDA's tensor cores work on multiples of 8. A CPU gets them above 64 tokens, where they add little: for every width
    that it meets, oneDNN compiles kernels of its own and keeps them.
    """
    return min(longest + -longest % 8, most) if device.type == "cuda" or longest > 64 else longest


def padding_share(lengths: np.ndarray, plan: list[np.ndarray], device: torch.device) -> float:
    """The fraction of all positions in the plan's batches that is padding."""
    most = int(lengths.max())
    positions = sum(len(index) * padded_length(int(lengths[index].max()), most, device) for index in plan)
    return 1 - int(lengths.sum()) / positions


def make_batches(split: TokenizedSplit, plan: list[np.ndarray], device: torch.device) -> Iterator[Batch]:
    """The batches of a plan, on `device`. For CUDA they are copied from pinned memory, one batch ahead of their use."""
    if device.type != "cuda":
        for index in plan:
            yield Batch(*(None if t is None else t.to(device) for t in collate(split, index, device)))  # type: ignore[arg-type]
        return
    ahead = None
    for index in plan:
        batch = collate(split, index, device)
        pinned = [None if t is None else t.pin_memory().to(device, non_blocking=True) for t in batch]
        if ahead is not None:
            yield ahead
        ahead = Batch(*pinned)  # type: ignore[arg-type]
    if ahead is not None:
        yield ahead


def collate(split: TokenizedSplit, index: np.ndarray, device: torch.device) -> Batch:
    """One batch in host memory, built by array operations alone: no Python runs per example."""
    lengths = split.lengths[index]
    columns = np.arange(padded_length(int(lengths.max()), split.longest, device))
    real = columns < lengths[:, None]  # (B, N)
    positions = np.where(real, split.offsets[index][:, None] + columns, 0)
    input_ids = np.where(real, split.ids[positions], split.pad_token_id).astype(np.int64)
    mask = None if real.all() else torch.from_numpy(real)
    return Batch(torch.from_numpy(index), torch.from_numpy(input_ids), mask, torch.from_numpy(split.labels[index]))
