"""`distill` with layer losses: which teacher it takes, what a run records, and when a finished one is used again."""

from dataclasses import replace

import pytest
import torch
from equality import CONFIGS, randomised
from test_training import CPU, make_split

import minikd.experiment.training
from minikd import LayerLosses, LoRA, MinikdError, Run, TextClassifier, TrainConfig, distill, train
from minikd.datasets import Dataset
from minikd.experiment.caches import model_fingerprint
from minikd.experiment.runs import read_run
from minikd.tokenizer import train_wordpiece

DATA = Dataset("films", ("no", "yes"), make_split(40, 0), make_split(16, 1), make_split(16, 2))
TOKENIZER, OTHER = (train_wordpiece(texts, 200) for texts in (DATA.train.texts, ["zebra crossing"] * 9))
CONFIG = TrainConfig(epochs=1, batch_size=8, lr=1e-3, seed=5)
LAYERS = LayerLosses(hidden_loss=1.0, relation_loss=2.0)


def classifier(layers=2, seed=0, tokenizer=TOKENIZER, **shape):
    config = replace(CONFIGS["bert"], vocab_size=200, num_hidden_layers=layers, labels=DATA.labels, **shape)
    return TextClassifier(randomised(config, seed), tokenizer, max_length=16, device=CPU, precision="fp32")


def teacher():
    return classifier(4, 1, hidden_size=48)


@pytest.fixture
def handed(monkeypatch):
    """The loss and the run of each training loop."""
    calls, run_training = [], minikd.experiment.training.run_training

    def spy(model, data, validation, config, loss, run, *rest):
        calls.append((loss, run))
        return run_training(model, data, validation, config, loss, run, *rest)

    monkeypatch.setattr(minikd.experiment.training, "run_training", spy)
    monkeypatch.setattr(minikd.experiment.training, "training_memory_mb", lambda *_: 2.0)  # a process of its own
    return calls


def test_the_loss_is_handed_the_teacher_the_layers_and_the_settings(handed):
    student, own = classifier(), teacher()
    before = model_fingerprint(own.model)
    config = replace(CONFIG, label_smoothing=0.2)
    distill(student, own, DATA, config, alpha=0.3, T=3, layers=replace(LAYERS, layer_map="0:1,1:3"))
    ((loss, run),) = handed
    assert loss.layers.pairs == [(0, 1), (1, 3)] and loss.weight == 1 and not run.keep_last
    assert loss.on_logits == {"alpha": 0.3, "T": 3.0, "label_smoothing": 0.2, "soft": "kl"}
    assert model_fingerprint(own.model) == before == run.made_from["teacher"]
    assert model_fingerprint(student.model) != model_fingerprint(classifier().model)


def test_a_run_that_is_used_for_both_stages_keeps_the_best_epoch_of_the_second(handed):
    student, run = classifier(), Run(progress=False)
    kept = []
    for layers in (replace(LAYERS, logit_loss=0.0), None):
        distill(student, teacher(), DATA, CONFIG, layers=layers, run=run)
        kept.append(run.keep_last)
    train(student, DATA, CONFIG, run=run)
    assert kept == [True, False] and not run.keep_last


def test_layer_losses_alone_train_no_head_and_keep_the_last_epoch(handed):
    student = classifier()
    distill(student, teacher(), DATA, replace(CONFIG, epochs=2), layers=replace(LAYERS, logit_loss=0.0))
    first = classifier().model.state_dict()
    changed = {name for name, tensor in student.model.state_dict().items() if not torch.equal(tensor, first[name])}
    assert not any(name.startswith(("pooler", "classifier")) for name in changed)
    assert sum(name.startswith("encoder.layers.1") for name in changed) == 12  # all of the last layer
    assert handed[0][1].keep_last


def test_layer_losses_teach_more_than_logits_do():
    """After a stage of layer losses the relations and hidden states are nearer to the teacher's than after as many
    steps on the logits."""
    distances = []
    for settings in ({"layers": LayerLosses(cls_loss=1.0, logit_loss=0.0)}, {"alpha": 0.0}):
        student, own = classifier(), classifier(2, 1)
        distill(student, own, DATA, replace(CONFIG, epochs=3), **settings)
        ids = torch.arange(5, 15)[None]
        cls = [one.model.eval()(ids, output_hidden_states=True).hidden_states[-1][0, 0] for one in (student, own)]
        distances.append(torch.dist(*(vector / vector.norm() for vector in cls)).item())
    assert distances[0] < 0.8 * distances[1]


@pytest.mark.parametrize(
    "settings", [{"hidden_loss": 2.0}, {"layer_map": "top"}, {"relation_heads": 2}, {"logit_loss": 0.0}], ids=str
)
def test_a_finished_run_is_used_again_where_all_settings_of_the_layers_agree(handed, tmp_path, settings):
    def run(layers):
        distill(classifier(), teacher(), DATA, CONFIG, layers=layers, run=Run(tmp_path, reuse=True))

    run(LAYERS)
    run(LAYERS)
    assert len(handed) == 1
    run(replace(LAYERS, **settings))
    assert len(handed) == 2
    distill(classifier(), teacher(), DATA, CONFIG, run=Run(tmp_path, reuse=True))  # without any
    assert len(handed) == 3 and "layer_losses" not in read_run(tmp_path)["made_from"]


def test_the_saved_student_has_no_projection(handed, tmp_path):
    student = classifier()
    distill(student, teacher(), DATA, CONFIG, layers=LAYERS, run_dir=tmp_path)
    loaded = TextClassifier.load(tmp_path, max_length=16, device="cpu", precision="fp32")
    assert dict(handed[0][0].named_parameters())
    assert loaded.model.state_dict().keys() == classifier().model.state_dict().keys()
    assert torch.equal(loaded.logits(DATA.test.texts), student.logits(DATA.test.texts))


def test_adapters_are_trained_by_layer_losses_too(handed):
    student = classifier()
    distill(student, teacher(), DATA, CONFIG, layers=LAYERS, lora=LoRA(rank=2))
    first = classifier().model.state_dict()
    changed = {name for name, tensor in student.model.state_dict().items() if not torch.equal(tensor, first[name])}
    assert {name for name in changed if name.startswith("encoder")} == {
        f"encoder.layers.{i}.attention.qkv.weight" for i in range(2)
    }


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (lambda: torch.zeros(40, 2), "take one TextClassifier"),
        (lambda: [teacher(), teacher()], "take one TextClassifier"),
        (lambda: classifier(4, tokenizer=OTHER), "tokenizer is not the student's"),
        (lambda: classifier(4, num_attention_heads=4), "3 attention heads and the teacher 4"),
        (lambda: classifier(1), "give the pairs"),
    ],
    ids=["logits", "several", "tokenizer", "heads", "fewer layers"],
)
def test_a_teacher_that_cannot_be_imitated_is_refused(own, words):
    with pytest.raises(MinikdError, match=words):
        distill(classifier(), own(), DATA, CONFIG, layers=LayerLosses(attention_loss=1.0))
