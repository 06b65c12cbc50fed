"""What one of several processes does, for test_distributed.py: `together.py TASK OUTPUT SOURCE …` writes what it found
to OUTPUT/RANK.pt."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import minikd.distributed
import minikd.training
from minikd import distributed
from minikd.batching import TokenizedSplit
from minikd.config import EncoderConfig, TrainConfig
from minikd.errors import MinikdError
from minikd.experiment.torchrun import joined
from minikd.inference import choose_device, compute_logits
from minikd.losses import hard_loss
from minikd.model import Classifier
from minikd.training import fit

CPU = torch.device("cpu")
CONFIG = EncoderConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=64, max_position_embeddings=32)  # fmt: skip
SETTINGS = TrainConfig(epochs=2, batch_size=8, lr=1e-3, grad_accum=2)  # 67 examples: the last batch has 3


def make_split(examples, seed):
    random = np.random.default_rng(seed)
    offsets = np.concatenate(([0], np.cumsum(random.integers(3, 20, examples))))
    ids = random.integers(1, 100, offsets[-1]).astype(np.int32)
    return TokenizedSplit(ids, offsets, ids[offsets[:-1]].astype(np.int64) % 2, 0, str(seed))


def make_model(dropout):
    torch.manual_seed(0)
    return Classifier(replace(CONFIG, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout))


def trained(dropout=0.0, saved=None, until=None, device=CPU):
    """The training's weights, losses, figures and all that each step was handed; `until`: the step after which it
    ends, with its state."""
    seen, random, model = [], [], make_model(dropout)

    def loss(output, batch):
        seen.append(batch.index.tolist())
        random.append(torch.get_rng_state()[:64].tolist())
        return hard_loss(output.logits, batch.labels)

    losses, state, history = [], None, []
    steps = fit(model, make_split(67, 1), make_split(30, 2), SETTINGS, loss, device=device, saved=saved)
    for done in steps:
        history = done.state.history
        losses.append(float(done.loss))
        if done.state.step == until and not done.scores:
            state = done.state.state_dict()
            steps.close()
    weights = torch.cat([parameter.detach().cpu().flatten() for parameter in model.parameters()])
    figures = [{key: epoch[key] for key in ("step", "validation_loss", "confusion")} for epoch in history]
    return {"weights": weights, "losses": losses, "figures": figures, "seen": seen, "random": random, "state": state}


def train(folder):
    """Without dropout, with it, twice."""
    syncs = []

    class Spy(minikd.distributed.DistributedDataParallel):
        def forward(self, *inputs):
            syncs.append(self.require_backward_grad_sync)
            assert not self.broadcast_buffers
            return super().forward(*inputs)

    minikd.distributed.DistributedDataParallel = minikd.training.DistributedDataParallel = Spy
    plain = trained()
    return {"plain": plain, "syncs": syncs[:], "dropout": trained(0.5), "again": trained(0.5)}


def train_on_gpus(folder):
    return trained(device=choose_device("cuda"))


def stop(folder, dropout):
    return trained(float(dropout), until=7)["state"]


def resume(folder, dropout):
    return trained(float(dropout), saved=torch.load(folder / "0.pt", weights_only=True))


def logits(folder):
    model, split = make_model(0.0), make_split(2000, 3)  # more than one batch
    found = compute_logits(model, split, CPU, "fp32")
    few = compute_logits(model, make_split(3, 4), CPU, "fp32")  # fewer batches than processes
    broken = make_split(2000, 3)
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight[int(broken.ids[0])] = torch.nan
    try:
        compute_logits(model, broken, CPU, "fp32")
    except MinikdError as error:
        return found, few, str(error)


def decide(folder):
    """Functions of the first process alone, and decisions of all."""
    calls = []

    def first(result):
        calls.append((distributed.rank(), distributed.world_size()))
        if result is None:
            raise MinikdError("this file is broken")
        return result

    try:
        distributed.by_first(first, None)
    except MinikdError as error:
        calls.append(str(error))

    class Local(Exception):  # cannot be pickled
        pass

    def fails():
        raise Local("of the first process")

    try:
        distributed.by_first(fails)
    except Exception as error:
        calls.append(repr(error))
    with distributed.first_of_machine_first():  # each by itself
        calls.append(distributed.from_all(distributed.world_size()))
    last = distributed.rank() == distributed.world_size() - 1
    return {"result": distributed.by_first(first, {"a": 1}), "calls": calls,
            "any": distributed.any_of_all(last, False), "all": distributed.from_all(distributed.rank())}  # fmt: skip


if __name__ == "__main__":
    task, output, source, *more = sys.argv[1:]
    with joined():
        torch.save(globals()[task](Path(source), *more), Path(output) / f"{distributed.rank()}.pt")
