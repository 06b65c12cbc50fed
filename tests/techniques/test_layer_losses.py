"""Layer losses: which layers are compared, with what weights, and what is computed for it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from equality import CONFIGS, random_batch, randomised, run, transformers_twin
from helpers import BareRun, Settings
from test_training import CPU, Kill, make_model, tiny_data
from torch.nn import functional as F

from minikd.batching import Batch, make_batches
from minikd.errors import MinikdError
from minikd.experiment.caches import model_fingerprint
from minikd.experiment.running import run_training
from minikd.losses import attention_loss, attention_scores, kd_loss, relation_loss, score_loss
from minikd.model import Classifier
from minikd.techniques.layer_losses import LAYER_LOSSES, LayerDistillation, LayerLoss, LayerLosses, layer_pairs

data = pytest.fixture(scope="module")(tiny_data)

STUDENT = CONFIGS["bert"]  # 2 layers, 24 wide, 3 heads
TEACHER = replace(STUDENT, num_hidden_layers=5)
WIDE = replace(TEACHER, hidden_size=48, num_attention_heads=6)
ALL = dict(zip(LAYER_LOSSES, (0.5, 1.5, 2.0, 3.0, 0.7, 1.1), strict=True))
every_loss = pytest.mark.parametrize("name", LAYER_LOSSES)


def tokens(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def loss_of(settings, student, teacher, batch, **outputs):
    """The loss of two models for a batch; `outputs` replace what it asks of the student."""
    loss = LayerLoss(settings, student.config, teacher.config).to(student.classifier.weight.dtype)
    with torch.no_grad():
        taught = teacher(**tokens(batch), **loss.teacher_outputs)
    return loss(student(**tokens(batch), **loss.student_outputs | outputs), taught, batch["attention_mask"].bool())


def two_models(teacher=TEACHER):
    return randomised(STUDENT, 1, torch.float64), randomised(teacher, 2, torch.float64)


@pytest.mark.parametrize(
    ("layer_map", "layers", "pairs"),
    [
        ("uniform", (3, 12), [(0, 3), (1, 7), (2, 11)]),  # the layers of Wang et al. 2023
        ("uniform", (4, 12), [(0, 2), (1, 5), (2, 8), (3, 11)]),  # TinyBERT's
        ("uniform", (4, 6), [(0, 0), (1, 2), (2, 3), (3, 5)]),
        ("uniform", (1, 6), [(0, 5)]),
        ("uniform", (2, 2), [(0, 0), (1, 1)]),
        ("top", (3, 12), [(0, 9), (1, 10), (2, 11)]),
        ("1:11,0:2", (2, 12), [(0, 2), (1, 11)]),
        (" 2:0 ", (3, 1), [(2, 0)]),
    ],
)
def test_a_layer_map_is_pairs_of_layers(layer_map, layers, pairs):
    assert layer_pairs(layer_map, *layers) == pairs


@pytest.mark.parametrize(
    ("layer_map", "words"),
    [
        ("bottom", "must be uniform, top, or pairs"), ("0", "must be uniform"), ("0:1:2", "must be uniform"),
        ("0:a", "must be uniform"), ("", "must be uniform"), ("0:5", "no pair 0:5"), ("2:0", "no pair 2:0"),
        ("0:-1", "no pair 0:-1"), ("0:1,0:2", "imitates one of the teacher's"),
    ],
)  # fmt: skip
def test_layers_that_do_not_exist_are_refused(layer_map, words):
    with pytest.raises(MinikdError, match=f"`layer_map`.*{words}"):
        layer_pairs(layer_map, 2, 5)


def test_a_student_deeper_than_its_teacher_needs_the_pairs():
    for layer_map in ("uniform", "top"):
        with pytest.raises(MinikdError, match="give the pairs"):
            layer_pairs(layer_map, 3, 2)


@pytest.mark.parametrize("values", [{}, {"logit_loss": 2.0}, {"hidden_loss": -1.0}, {"relation_heads": 1.5},
                                    {"cls_loss": float("nan")}])  # fmt: skip
def test_settings_out_of_their_range_or_without_a_layer_loss_are_refused(values):
    with pytest.raises(MinikdError):
        LayerLosses(**values)


@pytest.mark.parametrize("layer_map", ["uniform", "top", "0:3,1:1", "0:2"])
def test_the_loss_is_the_weighted_sum_over_the_mapped_layers_by_transformers(layer_map):
    """Hidden states, attention and values are transformers'; every weight and every layer differs from the others."""
    student, teacher = two_models()
    batch, mask = random_batch(STUDENT, 3), random_batch(STUDENT, 3)["attention_mask"].bool()
    pairs = {"uniform": [(0, 1), (1, 4)], "top": [(0, 3), (1, 4)], "0:3,1:1": [(0, 3), (1, 1)], "0:2": [(0, 2)]}
    hidden, attention, projected = [], [], []
    for model in (student, teacher):
        twin, own = transformers_twin(model), {}
        for name, part in twin.named_modules():
            part.register_forward_hook(lambda _, __, output, name=name, own=own: own.update({name: output}))
        output, _ = run(twin, batch, output_hidden_states=True, output_attentions=True)
        hidden.append(output.hidden_states[1:])
        attention.append(output.attentions)
        projected.append([[own[f"bert.encoder.layer.{i}.attention.self.{part}"].unflatten(-1, (3, 8)).transpose(1, 2)
                           for part in ("query", "key", "value")] for i in range(len(attention[-1]))])  # fmt: skip
    expected, real = dict.fromkeys(LAYER_LOSSES, 0.0), mask[..., None].double()
    for one, other in pairs[layer_map]:
        share = 1 / len(pairs[layer_map])
        s, t = hidden[0][one], hidden[1][other]
        errors = ((s - t) ** 2 * real).sum((1, 2)) / (t**2 * real).sum((1, 2))
        expected["hidden_loss"] += share * errors.mean()
        expected["cls_loss"] += share * (2 - 2 * F.cosine_similarity(s[:, 0], t[:, 0])).mean()
        scores = [attention_scores(*projected[side][layer][:2]) for side, layer in ((0, one), (1, other))]
        expected["score_loss"] += share * score_loss(*scores, mask)
        p, q = attention[1][other], attention[0][one]
        kl = torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum(-1).mean(1)  # (B, N)
        expected["attention_loss"] += share * ((kl * mask).sum(1) / mask.sum(1)).mean()
    one, other = pairs[layer_map][-1]
    relations = [relation_loss(s, t, 3, mask) for s, t in zip(projected[0][one], projected[1][other])]
    expected["value_loss"], expected["relation_loss"] = relations[2], sum(relations) / 3
    for name, value in expected.items():
        found = loss_of(LayerLosses(**{name: 1.0}, layer_map=layer_map), student, teacher, batch)
        torch.testing.assert_close(found, value.detach() if torch.is_tensor(value) else value, msg=name)
    total = loss_of(LayerLosses(**ALL, layer_map=layer_map), student, teacher, batch)
    torch.testing.assert_close(total, sum(ALL[name] * value.detach() for name, value in expected.items()))


@every_loss
def test_a_student_equal_to_its_teacher_has_no_loss(name):
    model, batch = two_models()[0], random_batch(STUDENT)
    assert loss_of(LayerLosses(**{name: 1.0}), model, model, batch).abs() < 1e-12


@every_loss
def test_padding_changes_neither_loss_nor_gradient(name):
    student, teacher = two_models()
    batch = random_batch(STUDENT, 5)
    results = []
    for filler in (0, 7):
        ids = batch["input_ids"].where(batch["attention_mask"].bool(), filler)
        student.zero_grad()
        loss_of(LayerLosses(**{name: 1.0}), student, teacher, batch | {"input_ids": ids}).backward()
        results.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None and "word" not in n})
    assert results[0].keys() == results[1].keys() and any(gradient.any() for gradient in results[0].values())
    for n, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][n], rtol=1e-10, atol=1e-12, msg=n)


# Losses between layers that leave the last layer's first row alone: `cls_only` of student and of teacher.
@pytest.mark.parametrize(
    ("settings", "cls_only", "of_the_teacher"),
    [
        ({"cls_loss": 1.0}, True, True),
        ({"value_loss": 1.0}, True, True),
        ({"relation_loss": 1.0}, True, True),
        ({"attention_loss": 1.0, "score_loss": 1.0, "value_loss": 1.0}, True, True),
        ({"hidden_loss": 1.0, "layer_map": "0:2"}, True, True),
        ({"hidden_loss": 1.0, "relation_loss": 1.0, "layer_map": "0:4"}, True, False),
        ({"hidden_loss": 1.0, "layer_map": "0:1,1:3"}, False, True),
        ({"hidden_loss": 1.0}, False, False),
    ],
    ids=str,
)
def test_the_last_layer_computes_all_rows_only_where_its_hidden_states_are_compared(settings, cls_only, of_the_teacher):
    student, teacher = two_models()
    batch, settings, results = random_batch(STUDENT), LayerLosses(**settings), []
    loss = LayerLoss(settings, STUDENT, TEACHER)
    assert (loss.student_outputs["cls_only"], loss.teacher_outputs["cls_only"]) == (cls_only, of_the_teacher)
    for outputs in ({}, {"cls_only": False, "output_hidden_states": True, "output_qkv": range(2)}):
        student.zero_grad(set_to_none=True)
        value = loss_of(settings, student, teacher, batch, **outputs)
        value.backward()
        results.append((value.detach(), {name: p.grad for name, p in student.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():  # None: not even computed
        full = results[1][1][name]
        if gradient is None:
            assert full is None or not full.any(), name
        else:
            torch.testing.assert_close(gradient, full, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize(
    ("settings", "hidden_states", "qkv"),
    [
        ({"hidden_loss": 1.0}, True, ()), ({"cls_loss": 1.0}, True, ()), ({"score_loss": 1.0}, False, (1, 4)),
        ({"attention_loss": 1.0, "value_loss": 1.0}, False, (1, 4)), ({"value_loss": 1.0}, False, (4,)),
        ({"relation_loss": 1.0, "layer_map": "0:3,1:2"}, False, (2,)),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_is_asked_of_the_teacher_that_no_loss_needs(settings, hidden_states, qkv):
    outputs = LayerLoss(LayerLosses(**settings), STUDENT, TEACHER).teacher_outputs
    assert (outputs["output_hidden_states"], outputs["output_qkv"]) == (hidden_states, qkv)


def test_where_widths_differ_hidden_states_are_projected_and_relations_are_not():
    student, teacher = two_models(WIDE)
    batch = random_batch(STUDENT)
    hidden = LayerLoss(LayerLosses(hidden_loss=1.0), STUDENT, WIDE)
    assert {name: tuple(p.shape) for name, p in hidden.named_parameters()} == {"projection.weight": (48, 24)}
    for settings in ({"relation_loss": 1.0}, {"value_loss": 1.0}):
        assert not list(LayerLoss(LayerLosses(**settings), STUDENT, WIDE).parameters())
        assert loss_of(LayerLosses(**settings), student, teacher, batch) > 0
    assert not list(LayerLoss(LayerLosses(hidden_loss=1.0), STUDENT, TEACHER).parameters())

    hidden.double()
    with torch.no_grad():
        outputs = student(**tokens(batch), **hidden.student_outputs), teacher(**tokens(batch), **hidden.teacher_outputs)
        value, expected = hidden(*outputs, batch["attention_mask"].bool()), 0.0
        for one, other in ((0, 1), (1, 4)):
            own, taught = outputs[0].hidden_states[one + 1], outputs[1].hidden_states[other + 1]
            for i, length in enumerate(batch["attention_mask"].sum(1)):
                error = own[i, :length] @ hidden.projection.weight.T - taught[i, :length]
                expected += (error.norm() / taught[i, :length].norm()) ** 2 / 8
    torch.testing.assert_close(value, expected)


def test_relation_heads_are_the_teachers_unless_said():
    batch, (student, teacher) = random_batch(STUDENT), two_models(WIDE)
    default, six, two = (
        loss_of(LayerLosses(value_loss=1.0, relation_heads=heads), student, teacher, batch) for heads in (0, 6, 2)
    )
    assert default == six != two


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attention_loss": 1.0}, "`attention_loss`: the student has 3 attention heads and the teacher 6"),
        ({"score_loss": 1.0}, "`score_loss`: the student has 3"),
        ({"value_loss": 1.0, "relation_heads": 16}, "`relation_heads` 16: must divide"),
        ({"hidden_loss": 1.0, "layer_map": "0:7"}, "`layer_map` 0:7"),
    ],
)
def test_what_the_two_models_do_not_have_is_refused(settings, words):
    with pytest.raises(MinikdError, match=words):
        LayerLoss(LayerLosses(**settings), STUDENT, WIDE)


# In training ----------------------------------------------------------------------------------------------------------

SETTINGS = Settings(epochs=2, batch_size=8, lr=3e-3, seed=5, grad_accum=2, alpha=0.3, T=2.0)


def classifier(model):
    """What a loss reads of a TextClassifier."""
    return SimpleNamespace(model=model, device=CPU, precision="fp32", tokenizer=SimpleNamespace(vocab={}))


def distillation(student, teacher, **settings):
    return LayerDistillation(LayerLosses(**settings), classifier(student), classifier(teacher), SETTINGS.config(),
                             SETTINGS.alpha, SETTINGS.T)  # fmt: skip


def wide_teacher():
    return randomised(replace(make_model().config, num_hidden_layers=3, hidden_size=32), 9)


def fit(model, data, folder, loss, **options):
    run = BareRun(folder, "train", made_from={"settings": {}}, **options)
    return run_training(model, *data, SETTINGS.config(), loss, run, CPU, "fp32")


def test_the_loss_of_a_batch_is_that_of_the_layers_and_by_its_weight_that_of_the_logits():
    student, teacher = randomised(STUDENT, 1), randomised(WIDE, 2)
    rows = random_batch(STUDENT)
    batch = Batch(torch.arange(4), rows["input_ids"], rows["attention_mask"].bool(), rows["labels"])
    with torch.no_grad():
        logits = [model(*batch[1:3]).logits for model in (student, teacher)]
        losses = []
        for weight in (0.0, 1.0, 2.5):
            loss = distillation(student, teacher, hidden_loss=1.0, logit_loss=weight)
            losses.append(loss(student(*batch[1:3], **loss.outputs), batch))
    on_logits = kd_loss(*logits, batch.labels, 0.3, 2.0)
    torch.testing.assert_close(losses[1] - losses[0], on_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[2] - losses[0], 2.5 * on_logits, rtol=1e-4, atol=1e-5)


def test_a_texts_loss_does_not_depend_on_the_batch_that_it_is_padded_in():
    student, teacher = randomised(STUDENT, 1), randomised(replace(STUDENT, num_hidden_layers=4), 2)
    loss = distillation(student, teacher, **dict.fromkeys(LAYER_LOSSES, 1.0))
    rows = random_batch(STUDENT)
    lengths = rows["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) > 1  # some are padded
    parts = [slice(0, 4)] + [slice(i, i + 1) for i in range(4)]
    losses = []
    with torch.no_grad():
        for part, width in zip(parts, [max(lengths), *lengths]):
            ids, mask = rows["input_ids"][part, :width], rows["attention_mask"][part, :width].bool()
            batch = Batch(torch.arange(4)[part], ids, None if mask.all() else mask, rows["labels"][part])
            losses.append(loss(student(*batch[1:3], **loss.outputs), batch))
    together, *alone = losses
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)


def test_the_projection_learns_and_the_teacher_does_not(data, tmp_path):
    student, teacher = make_model(), wide_teacher()
    loss, before = distillation(student, teacher, hidden_loss=1.0), model_fingerprint(teacher)
    assert [name for name, _ in loss.named_parameters()] == ["layers.projection.weight"]
    first = loss.layers.projection.weight.detach().clone()
    fit(student, data, tmp_path, loss)
    assert (loss.layers.projection.weight - first).abs().min() > 0
    assert model_fingerprint(teacher) == before and not teacher.training
    assert student.state_dict().keys() == make_model().state_dict().keys()  # nothing of the loss is in the model
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert list(state["loss"]) == ["layers.projection.weight"]


def test_the_first_projection_follows_from_the_seed():
    weights, models = [], (make_model(), wide_teacher())
    for state in (1, 2):
        torch.manual_seed(state)
        weights.append(distillation(*models, hidden_loss=1.0).layers.projection.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize("kill_at", [5, 19])  # forward passes: in the first epoch, which is lost, and in the second
def test_an_interrupted_training_with_a_projection_continues_to_the_same_bits(data, tmp_path, kill_at):
    settings = {"hidden_loss": 1.0, "cls_loss": 1.0, "relation_loss": 1.0}
    teacher, results = wide_teacher(), []

    def loss_for(student, kill=None):
        loss = distillation(student, teacher, **settings)
        compute, calls = loss.teacher, []

        def counted(batch):
            calls.append(1)
            if len(calls) == kill:
                raise Kill
            return compute(batch)

        loss.teacher = counted
        return loss

    for folder in ("whole", "cut"):
        student = make_model()
        if folder == "cut":
            with pytest.raises(Kill):
                fit(student, data, tmp_path / folder, loss_for(student, kill_at))
            student = make_model(seed=77 if kill_at == 19 else 0)  # every weight must come from the state
        loss = loss_for(student)
        if folder == "cut" and kill_at == 19:
            torch.nn.init.zeros_(loss.layers.projection.weight)
        fit(student, data, tmp_path / folder, loss, resume=folder == "cut")
        results.append((model_fingerprint(student), loss.layers.projection.weight))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])


def test_layer_losses_fall_in_training(data, tmp_path):
    teacher = randomised(replace(make_model().config, num_hidden_layers=4))
    (batch,) = make_batches(data[0], [np.arange(40)], CPU)
    rows = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    for name in LAYER_LOSSES:
        model = make_model()
        loss = distillation(model, teacher, **{name: 1.0}, logit_loss=0.0)
        before = loss_of(loss.layers.settings, model.eval(), teacher, rows).item()
        fit(model, data, tmp_path / name, loss)
        assert loss_of(loss.layers.settings, model.eval(), teacher, rows).item() < 0.99 * before, name


@pytest.mark.parametrize("keep_last", [True, False])
def test_the_last_epoch_is_kept_on_request_though_an_earlier_one_is_better(data, tmp_path, monkeypatch, keep_last):
    accuracies, weights = iter((0.9, 0.5)), []

    def validation_scores(model, *_):
        weights.append(model.classifier.weight.detach().clone())
        return {"validation_accuracy": next(accuracies), "validation_loss": 1.0, "confusion": []}

    monkeypatch.setattr("minikd.training.validation_scores", validation_scores)
    model = make_model()
    fit(model, data, tmp_path, None, keep_last=keep_last)
    assert torch.equal(model.classifier.weight, weights[1 if keep_last else 0]) and not torch.equal(*weights)


def test_accumulated_gradients_are_those_of_one_large_batch():
    """A text's loss is its own: that of a batch is the mean of its parts', by their sizes."""
    student, teacher = two_models()
    batch = random_batch(STUDENT)
    whole = loss_of(LayerLosses(**ALL), student, teacher, batch)
    parts = [loss_of(LayerLosses(**ALL), student, teacher, {k: v[rows] for k, v in batch.items()})
             for rows in (slice(0, 1), slice(1, 4))]  # fmt: skip
    torch.testing.assert_close(whole, parts[0] / 4 + 3 * parts[1] / 4)


def test_another_tokenizer_is_refused():
    student, teacher = classifier(make_model()), classifier(make_model())
    teacher.tokenizer = SimpleNamespace(vocab={"a": 0})
    with pytest.raises(MinikdError, match="tokenizer is not the student's"):
        LayerDistillation(LayerLosses(hidden_loss=1.0), student, teacher, SETTINGS.config(), 0.5, 2.0)


def test_bf16_trains_the_projection_in_fp32():
    student, teacher = randomised(STUDENT, 1), randomised(WIDE, 2)
    rows = random_batch(STUDENT)
    batch = Batch(torch.arange(4), rows["input_ids"], rows["attention_mask"].bool(), rows["labels"])
    one, other = classifier(student), classifier(teacher)
    one.precision = "bf16"
    settings = LayerLosses(hidden_loss=1.0, cls_loss=1.0, value_loss=1.0, relation_loss=1.0)
    loss = LayerDistillation(settings, one, other, SETTINGS.config(), 0.5, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = student(batch.input_ids, batch.attention_mask, **loss.outputs)
    value = loss(output, batch)
    value.backward()
    assert value.dtype == loss.layers.projection.weight.grad.dtype == torch.float32 and value.isfinite()


def test_a_classifier_without_layer_losses_is_asked_for_logits_alone(data, tmp_path, monkeypatch):
    calls, forward = [], Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, *args, **more: calls.append(more) or forward(self, *args))
    fit(make_model(), data, tmp_path, None)
    assert calls and all(call == {} for call in calls)


def test_the_attention_of_a_layer_does_not_depend_on_heads_being_joined():
    """Attention is compared head by head: exchanging two heads of the student changes the loss."""
    own, taught = (torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    assert attention_loss(own[:, [1, 0, 2]], taught) != attention_loss(own, taught)
