"""Models whose outputs are called LABEL_0, LABEL_1, …: their order is proved, or they are refused."""

import csv
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import QUICK, save_model
from equality import CONFIGS, random_batch, randomised
from safetensors.torch import load_file, save_file

from minikd.checkpoints.adapters import save_adapters
from minikd.checkpoints.label_order import best_order, match_labels, order_by_name
from minikd.checkpoints.pretrained import from_pretrained, save_pretrained
from minikd.checkpoints.tokenizer_files import load_tokenizer
from minikd.cli.models import load_model
from minikd.datasets import Split, load_dataset
from minikd.errors import MinikdError
from minikd.model import Classifier
from minikd.techniques.lora import add_lora

TOPICS = {"billing": ("invoice", "refund"), "technical": ("crash", "error"), "sales": ("price", "offer")}
FILLER = "please the my is about a with help thanks hello".split()
OUTPUTS = ("technical", "billing", "sales")  # their order in the teacher; the data's is that of the alphabet
COUNTS = {"billing": 40, "technical": 100, "sales": 140}  # examples of each


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    """280 texts of three topics, which a word tells, in splits of unequal sizes and shares."""
    path, random = tmp_path_factory.mktemp("data") / "tickets.csv", np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for label, count in COUNTS.items():
            for number in range(count):
                words = [*random.choice(FILLER, 5), random.choice(TOPICS[label]), f"{number}"]
                writer.writerow([" ".join(random.permutation(words)), label])
    return path


@pytest.fixture(scope="module")
def unnamed(tickets, tmp_path_factory):
    """A classifier that is right on all tickets, with its outputs in the order of OUTPUTS and without their names."""
    words = [*FILLER, *(word for two in TOPICS.values() for word in two), *map(str, range(10))]
    folder = save_model(
        tmp_path_factory.mktemp("models") / "unnamed", labels=OUTPUTS, words=words, num_hidden_layers=1, hidden_size=32
    )
    model, tokenizer = from_pretrained(folder), load_tokenizer(folder)
    rows = list(csv.DictReader(tickets.open()))
    ids, offsets = tokenizer.encode([row["text"] for row in rows], 16)
    lengths = np.diff(offsets)
    batch = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for row, length, start in zip(batch, lengths, offsets):
        row[:length] = torch.from_numpy(ids[start : start + length].astype(np.int64))
    mask = torch.arange(batch.shape[1]) < torch.from_numpy(lengths)[:, None]
    labels = torch.tensor([OUTPUTS.index(row["label"]) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.eval()  # without dropout
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(model(batch, mask).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model(batch, mask).logits.argmax(dim=1) == labels).all()
    return save_unnamed(model, folder)


def save_unnamed(model: Classifier, folder, labels=None) -> Path:
    model.config = model.config.with_labels(labels or [f"LABEL_{i}" for i in range(len(model.config.labels))])
    save_pretrained(model, folder)
    return folder


@pytest.fixture(scope="module")
def untrained(unnamed, tmp_path_factory):
    """The same shape and outputs without names, but nothing learned."""
    folder = shutil.copytree(unnamed, tmp_path_factory.mktemp("models") / "untrained")
    torch.manual_seed(1)
    return save_unnamed(Classifier(from_pretrained(unnamed).config), folder)


def accuracies(folder) -> dict:
    results = json.loads(Path(folder, "results.json").read_text())
    return {row["name"]: row["accuracy"] for row in results["models"]}


def test_a_teacher_without_label_names_is_used_in_the_order_that_fits_validation(script, tickets, unnamed):
    status, out, err = script("distill.py", "--dataset", tickets, "--teacher", unnamed, "--student-layers", 1,
                              "--no-baseline", *QUICK)  # fmt: skip
    assert (status, err) == (0, "")
    assert accuracies("runs/tickets")["teacher"] == 1.0
    kept, original = from_pretrained("runs/tickets/teacher"), from_pretrained(unnamed)
    assert kept.config.labels == ("billing", "sales", "technical")
    assert torch.equal(kept.classifier.weight, original.classifier.weight[[1, 2, 0]])
    assert torch.equal(kept.classifier.bias, original.classifier.bias[[1, 2, 0]])
    assert f"{unnamed}: outputs taken as technical,billing,sales" in out and "right on 100.0% of 28" in out


def test_an_untrained_model_without_label_names_is_refused_in_one_line(script, tickets, untrained, unnamed):
    tests = {
        "distill.py": [["--teacher", untrained], ["--teacher", unnamed, "--student", untrained]],
        "train.py": [["--model", untrained]],
        "evaluate.py": [[untrained]],
    }
    for name, of_script in tests.items():
        for flags in of_script:
            status, _, err = script(name, *flags, "--dataset", tickets, "--max-length", 16, "--precision", "fp32")
            assert status == 2 and err.count("\n") == 1, (name, err)
            assert err.startswith(f"{name}: error: {untrained}: ") and "--label-order" in err
    assert not list(Path().rglob("*.safetensors"))


def test_evaluate_gives_every_model_without_label_names_its_own_order(script, tickets, unnamed, tmp_path):
    other = shutil.copytree(unnamed, tmp_path / "turned")
    model = from_pretrained(unnamed)
    with torch.no_grad():
        for tensor in (model.classifier.weight, model.classifier.bias):
            tensor.copy_(tensor.roll(1, dims=0))
    save_unnamed(model, other)
    status, _, err = script("evaluate.py", unnamed, other, "--dataset", tickets, "--output-dir", "out")
    assert (status, err) == (0, "") and accuracies("out") == {"unnamed": 1.0, "turned": 1.0}


def test_training_starts_from_a_head_in_the_datas_order(script, tickets, unnamed):
    flags = ["--epochs", 1, "--lr", "1e-9", "--max-length", 16, "--precision", "fp32"]  # hardly changes the weights
    assert script("train.py", "--dataset", tickets, "--model", unnamed, *flags)[0] == 0
    assert accuracies("runs/tickets-model") == {"model": 1.0}


def test_a_student_without_label_names_starts_in_the_datas_order(script, tickets, unnamed):
    flags = ["--epochs", 1, "--lr", "1e-9", "--max-length", 16, "--precision", "fp32"]
    command = ["distill.py", "--dataset", tickets, "--teacher", unnamed, "--student", unnamed, *flags]
    assert script(*command)[0] == 0
    assert accuracies("runs/tickets") == {"teacher": 1.0, "distilled": 1.0, "baseline": 1.0}


def test_label_order_names_the_outputs_and_wins_over_validation(script, tickets, unnamed, untrained):
    flags = ["--dataset", tickets, "--label-order", "technical,billing,sales"]
    assert script("evaluate.py", unnamed, *flags, "--output-dir", "right")[0] == 0
    assert accuracies("right")["unnamed"] == 1.0
    flags[-1] = "sales, technical, billing"
    assert script("evaluate.py", unnamed, *flags, "--output-dir", "wrong")[0] == 0
    assert accuracies("wrong")["unnamed"] == 0.0
    quick = [*QUICK, "--teacher", untrained, "--student-layers", 1, "--no-baseline"]
    assert script("distill.py", *flags, *quick)[0] == 0
    kept, original = from_pretrained("runs/tickets/teacher"), from_pretrained(untrained)
    assert torch.equal(kept.classifier.weight, original.classifier.weight[[2, 0, 1]])
    assert kept.config.labels == ("billing", "sales", "technical")
    assert json.loads(Path("runs/tickets/teacher/run.json").read_text())["arguments"]["label_order"] == [
        "sales", "technical", "billing"
    ]  # fmt: skip


def test_label_order_wins_over_the_numbers_of_unnamed_outputs():
    """LABEL_0 is the label 0 where nobody says otherwise."""
    for order, rows in ((None, [0, 1]), (["1", "0"], [1, 0])):
        config = SimpleNamespace(labels=("LABEL_0", "LABEL_1"), with_labels=lambda labels: labels)
        model = SimpleNamespace(config=config, classifier=torch.nn.Linear(3, 2))
        weight = model.classifier.weight.detach().clone()
        match_labels(model, "model", ("0", "1"), order)
        assert torch.equal(model.classifier.weight, weight[rows])


@pytest.mark.parametrize("order", ["billing,technical", "billing,technical,sale", "billing,sales,technical,other"])
def test_a_label_order_that_is_not_one_of_the_datas_labels_is_refused(script, tickets, unnamed, order):
    for name, flag in (("distill.py", "--teacher"), ("train.py", "--model"), ("evaluate.py", None)):
        models = [flag, unnamed] if flag else [unnamed]
        status, _, err = script(name, *models, "--dataset", tickets, "--label-order", order)
        assert status == 2 and err == (
            f"{name}: error: --label-order: {', '.join(order.split(','))} are not the data's labels "
            "billing, sales, technical\n"
        )


@pytest.mark.parametrize("order", ["billing", "billing,billing", "billing,,sales", ""])
def test_a_label_order_that_is_no_order_is_refused(script, unnamed, order):
    status, _, err = script("evaluate.py", unnamed, "--text", "x", "--label-order", order)
    assert status == 2 and "--label-order: " in err and "two or more different names" in err and err.count("\n") == 1


def test_a_label_order_without_a_model_that_it_could_be_of_is_refused(script, tickets):
    for name in ("distill.py", "train.py"):
        status, _, err = script(name, "--label-order", "negative,positive")
        assert status == 2 and "--label-order: names the outputs of --" in err and err.count("\n") == 1
    status, _, err = script("evaluate.py", "--plot", "runs", "--label-order", "a,b")
    assert status == 2 and "leave out --label-order" in err


def test_a_model_that_names_its_outputs_keeps_its_names_whatever_the_flag_says(script, tickets, unnamed, tmp_path):
    named = save_unnamed(from_pretrained(unnamed), shutil.copytree(unnamed, tmp_path / "named"), OUTPUTS)
    flags = ["--dataset", tickets, "--label-order", "sales,technical,billing", "--output-dir", "out"]
    status, out, _ = script("evaluate.py", named, *flags)
    assert status == 0 and accuracies("out") == {"named": 1.0}
    assert f"{named}: has the data's labels by name; the order given is ignored" in out


def test_validation_alone_decides_and_the_model_is_left_as_it_was(tickets, unnamed):
    data, random = load_dataset(tickets), torch.get_rng_state()
    model = loaded(unnamed, data.labels, data.validation)  # there is no other split to look at
    assert model.config.labels == data.labels and model.training and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.classifier.weight, from_pretrained(unnamed).classifier.weight[[1, 2, 0]])
    turned = Split(data.validation.texts, [(label + 2) % 3 for label in data.validation.labels])
    model = loaded(unnamed, data.labels, turned)
    assert torch.equal(model.classifier.weight, from_pretrained(unnamed).classifier.weight[[2, 0, 1]])


def loaded(folder, labels, validation) -> Classifier:
    """The model in the folder, as the scripts load it."""
    args = SimpleNamespace(label_order=None, max_length=16, precision="fp32")
    data = SimpleNamespace(labels=labels, validation=validation)
    return load_model(str(folder), args, torch.device("cpu"), data, seed=0).model


@pytest.mark.parametrize(("count", "reason"), [
    (2, "there are no validation texts to tell; name them by `label_order`"),
    (8, "there are no validation texts to tell; name them by `label_order`"),
    (9, "name all 9 by `label_order`, in the order of the outputs"),
])  # fmt: skip
def test_without_validation_texts_or_with_more_than_8_labels_the_order_is_asked_for(count, reason, tmp_path):
    folder = save_model(tmp_path / "it", labels=[f"LABEL_{i}" for i in range(count)])
    labels = tuple(f"topic {i}" for i in range(count))
    with pytest.raises(MinikdError, match=f"it: its config.json does not say which labels LABEL_0, … are.*{reason}"):
        loaded(folder, labels, Split([], []))
    with pytest.raises(MinikdError, match=reason):
        match_labels(from_pretrained(folder), "it", labels)


def with_labels(corpus, path, names) -> Path:
    """The corpus with other names of its labels."""
    rows = list(csv.reader(corpus.open()))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *([text, names[label]] for text, label in rows[1:])])
    return path


def test_labels_that_are_the_numbers_from_0_are_those_of_the_outputs(script, tickets, unnamed, untrained, tmp_path):
    numbers = {label: str(OUTPUTS.index(label)) for label in OUTPUTS}
    numbered = with_labels(tickets, tmp_path / "numbered.csv", numbers)
    assert script("evaluate.py", unnamed, untrained, "--dataset", numbered, "--output-dir", "out")[0] == 0
    assert accuracies("out")["unnamed"] == 1.0
    turned = with_labels(tickets, tmp_path / "turned.csv", dict(billing="2", technical="1", sales="0"))
    assert script("evaluate.py", unnamed, "--dataset", turned, "--output-dir", "out")[0] == 0
    assert accuracies("out")["unnamed"] == 0.0  # taken at its word: LABEL_0 is 0
    from_1 = with_labels(tickets, tmp_path / "from-1.csv", dict(billing="1", technical="2", sales="3"))
    status, _, err = script("evaluate.py", untrained, "--dataset", from_1)
    assert status == 2 and "--label-order" in err


def test_more_than_8_labels_need_the_flag(script, tmp_path):
    path, names = tmp_path / "many.csv", [f"topic {letter}" for letter in "abcdefghi"]
    path.write_text("text,label\n" + "".join(f"film {n} {name},{name}\n" for name in names for n in range(12)))
    model = save_model(tmp_path / "model", labels=[f"LABEL_{i}" for i in range(9)])
    status, _, err = script("evaluate.py", model, "--dataset", path)
    assert status == 2 and "name all 9 by --label-order" in err and err.count("\n") == 1
    assert script("evaluate.py", model, "--dataset", path, "--label-order", ",".join(names))[0] == 0

    path.write_text("text,label\n" + "".join(f"film {n} {name},{name}\n" for name in names[:8] for n in range(12)))
    model = save_model(tmp_path / "eight", labels=[f"LABEL_{i}" for i in range(8)])
    status, _, err = script("evaluate.py", model, "--dataset", path)
    assert status == 2 and "no order clearly fits" in err  # all orders were compared


def test_new_texts_are_labelled_with_the_names_of_the_flag_or_as_they_are(script, unnamed, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("hello crash\nthe invoice\n")
    for flags, names in (([], ("LABEL_0", "LABEL_1")), (["--label-order", "t,b,s"], ("t", "b"))):
        status, out, _ = script("evaluate.py", unnamed, "--text", "hello crash", "--text", "the invoice", *flags)
        said = [line.split()[1] for line in out.splitlines() if line.startswith(f"{unnamed}: ")]
        assert status == 0 and said == list(names)
        assert script("evaluate.py", unnamed, "--input", texts, "--output", "out.csv", *flags)[0] == 0
        assert [row["predicted"] for row in csv.DictReader(Path("out.csv").open())] == list(names)
    status, _, err = script("evaluate.py", unnamed, "--text", "x", "--label-order", "t,b")
    assert status == 2 and f"--label-order: 2 names, but {unnamed} has 3 outputs" in err
    named = save_unnamed(from_pretrained(unnamed), shutil.copytree(unnamed, tmp_path / "named"), OUTPUTS)
    status, out, _ = script("evaluate.py", named, "--text", "the crash", "--label-order", "sales,technical,billing")
    assert (
        status == 0
        and f"{named}: technical (technical 0." in out
        and "has these names; the order given is ignored" in out
    )


def test_adapters_of_others_are_matched_on_validation_and_ours_by_the_names_in_the_file(
    script, tickets, unnamed, tmp_path
):
    base, model = shutil.copytree(unnamed, tmp_path / "base"), from_pretrained(unnamed)
    tensors = load_file(base / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "classifier" not in name}, base / "model.safetensors"
    )
    model.config = model.config.with_labels(OUTPUTS)
    add_lora(model, 2, 4, 0.0, ["query"])
    save_adapters(model, tmp_path / "ours", str(base))
    theirs = shutil.copytree(tmp_path / "ours", tmp_path / "theirs") / "adapter_model.safetensors"
    tensors = load_file(theirs)
    save_file(tensors, theirs, metadata={"format": "pt"})
    status, out, _ = script("evaluate.py", "ours", "theirs", "--dataset", tickets, "--output-dir", "out")
    assert status == 0 and accuracies("out") == {"ours": 1.0, "theirs": 1.0}
    assert "theirs: outputs taken as technical,billing,sales" in out and "ours: outputs" not in out
    save_file({name: tensor for name, tensor in tensors.items() if "classifier" not in name}, theirs)
    status, _, err = script("evaluate.py", "theirs", "--dataset", tickets)
    assert status == 2 and "has no classifier, and neither has its base model" in err and err.count("\n") == 1


@pytest.mark.parametrize(("own", "labels", "order"), [
    (("b", "a"), ("a", "b"), [1, 0]),
    (("Bad", "GOOD", "so-so"), ("good", "so-so", "bad"), [1, 2, 0]),
    (("Good", "good", "bad"), ("bad", "good", "Good"), [2, 1, 0]),  # exactly, where that is possible
    (("LABEL_0", "LABEL_1"), ("0", "1"), [0, 1]),
    (("LABEL_1", "LABEL_0"), ("0", "1"), [1, 0]),
    (("LABEL_0", "LABEL_1"), ("LABEL_0", "LABEL_1"), [0, 1]),
    (("LABEL_0", "LABEL_1"), ("1", "2"), None),
    (("LABEL_0", "LABEL_1"), ("bad", "good"), None),
    (("a", "b"), ("a", "c"), None),
    (("a", "b"), ("a", "b", "c"), None),
    (("Good", "good"), ("GOOD", "gooD"), None),
])  # fmt: skip
def test_labels_are_matched_by_name(own, labels, order):
    assert order_by_name(own, labels) == order


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_rows_of_the_classifier_follow_the_labels(family):
    model = randomised(CONFIGS[family].with_labels(("positive", "negative", "neutral")))
    batch = {name: value for name, value in random_batch(model.config).items() if name != "labels"}
    before = model(**batch).logits
    match_labels(model, "it", ("Negative", "Neutral", "Positive"))
    assert model.config.labels == ("Negative", "Neutral", "Positive")
    assert torch.equal(model(**batch).logits, before[:, [1, 2, 0]])


@pytest.mark.parametrize("labels", [("negative", "neutral"), ("a", "b", "c"), ("a", "b")])
def test_other_labels_are_refused_with_both_sets(labels):
    model = randomised(CONFIGS["bert"].with_labels(("positive", "negative", "neutral")))
    with pytest.raises(MinikdError) as caught:
        match_labels(model, "it", labels)
    message = str(caught.value)
    assert message.startswith("it: the model's labels ['positive', 'negative', 'neutral'] are not the data's ")
    assert str(list(labels)) in message and ("`label_order`" in message) == (len(labels) == 3)


def tally(outputs, labels, size) -> np.ndarray:
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (outputs, labels), 1)
    return counts


def test_the_best_order_is_the_one_that_answers_most_examples_right():
    random = np.random.default_rng(0)
    for size in (2, 3, 4, 5):
        for _ in range(20):
            outputs, labels = random.integers(size, size=(2, 60))
            order, _ = best_order(tally(outputs, labels, size))
            right = {o: np.sum(outputs == np.array(o)[labels]) for o in itertools.permutations(range(size))}
            assert right[tuple(order)] == max(right.values())


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_good_models_order_is_found_whatever_the_shares_of_the_labels(size):
    random, permutation = np.random.default_rng(1), np.random.default_rng(2).permutation(size)
    for shares in (np.ones(size), np.arange(size) + 1.0):
        labels = random.choice(size, 400, p=shares / shares.sum())
        noise = random.random(400) < 0.15
        outputs = np.where(noise, random.integers(size, size=400), permutation[labels])
        assert best_order(tally(outputs, labels, size)) == (permutation.tolist(), True)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("examples", [20, 200])
@pytest.mark.parametrize("uneven", [False, True])
def test_a_model_that_knows_nothing_is_refused(size, examples, uneven):
    """Outputs that do not depend on the label, 1,000 times: no order of them may seem to fit in more than 1 %."""
    random = np.random.default_rng(3)
    accepted = 0
    for _ in range(1000):
        shares = random.dirichlet(np.ones(size)) if uneven else np.ones(size) / size
        labels = random.choice(size, examples, p=shares)
        outputs = random.choice(size, examples, p=random.dirichlet(np.ones(size)))
        accepted += best_order(tally(outputs, labels, size))[1]
        assert not best_order(tally(np.zeros(examples, int), labels, size))[1]  # one answer for all
    assert accepted <= 10


def test_two_labels_that_the_outputs_do_not_tell_apart_make_the_order_unclear():
    labels = np.repeat([0, 1, 2], 100)
    outputs = np.where(labels == 0, 0, np.tile([1, 2], 150))
    assert not best_order(tally(outputs, labels, 3))[1]
    assert best_order(tally(labels, labels, 3)) == ([0, 1, 2], True)


def test_the_best_order_is_clear_from_two_standard_errors_above_the_most_frequent_label_on():
    """Of 100 and 20 examples, all of the rare label are right and `wrong` of the others: a lead of 20 - wrong over
    naming the frequent one always, in 20 + wrong examples that only one of the two gets right."""
    for wrong, clear in ((9, True), (10, False)):  # 11 > 2 * sqrt(29), 10 < 2 * sqrt(30)
        counts = np.array([[100 - wrong, 0], [wrong, 20]])
        assert best_order(counts) == ([0, 1], clear)


def test_ten_examples_of_two_labels_are_the_fewest_that_tell_them_apart():
    """Three standard errors: with 9 examples that only the better order gets right, its lead is 9 = 3 · √9."""
    for rare, clear in ((4, False), (5, True)):
        labels = np.repeat([0, 1, 2], [100, 5, rare])
        assert best_order(tally(labels, labels, 3)) == ([0, 1, 2], clear)
