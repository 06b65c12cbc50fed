"""Many epochs and many odd texts: memory and file descriptors stay as they are, every text gets its own answer.

MINIKD_SOAK is the number of texts, a tenth of it that of epochs: 500 in the suite, 25,000 in a long run.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS, spread
from forked import Forks
from helpers import Settings, train

from minikd.batching import tokenize
from minikd.classifier import TextClassifier
from minikd.errors import MinikdError
from minikd.evaluation.memory import return_freed_memory
from minikd.files import write_rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SOAK = int(os.environ.get("MINIKD_SOAK", "500"))
PART = SOAK // 10  # texts of a call
MIB = 2**20
ODD = [
    "", " \t\r\n", "\0\x1b[2J\x07\x7f\x9b", "x" * 5000, "\n".join(WORDS),
    "😀👩‍👩‍👧🏳️‍🌈🇩🇪" * 50, "هذا فيلم رائع \u202e\u2067" * 9, "סרט \u05b8\u05b9 גרוע" * 9,
    "Ã¤Ã¶Ã¼ â€œfilmâ€\x9d \ufffd\ufffd", "e" + "\u0301" * 5000,
    "\u200b\u200d\ufeff\u2028\ue000\uffff", "这部电影很好看" * 20, "[CLS] [SEP] [MASK] [PAD]" * 5,
    "<b>film</b>&amp;%00\\ud800",
]  # fmt: skip


def odd_texts():
    """SOAK different texts; one in 500 has a MB."""
    random = np.random.default_rng(0)
    for i in range(SOAK):
        own = f"{' '.join(random.choice(WORDS, random.integers(1, 30)))} {i}"
        if i % 500 == 77:
            yield f"{i} " + "a great film " * 80_000
        else:
            yield "" if i == 0 else f"{own[: i % 3 * 99]}{ODD[i % len(ODD)]}{i}{own[i % 3 * 99 :]}"


def in_use():
    """The resident memory of this process, in bytes, without what is freed, and the number of its open files."""
    return_freed_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))


def growth(uses):
    """By how much both rise from the second fifth to the last, by their medians: the first warms up."""
    fifth = len(uses) // 5
    before, after = np.median(uses[fifth : 2 * fifth], axis=0), np.median(uses[-fifth:], axis=0)
    print(f"{len(uses)}: {before[0] / MIB:.1f} → {after[0] / MIB:.1f} MiB, {before[1]:g} → {after[1]:g} open files")
    return after - before


@pytest.fixture
def classifier(fine_tuned):
    classifier = TextClassifier.load(fine_tuned, device="cpu", precision="fp32")
    spread(classifier.model)
    return classifier


def test_many_epochs_leave_memory_and_files_as_they_are(classifier, tmp_path):
    uses = []

    def track(line):
        if "validation_loss" in line:
            uses.append(in_use())

    texts = [f"{word} film" for word in WORDS]
    tokens = tokenize(texts, [i % 2 for i in range(len(texts))], classifier.tokenizer, 16)
    settings = Settings(epochs=SOAK // 10, batch_size=8, lr=1e-3)
    history = train(classifier.model, tokens, tokens, settings, tmp_path, torch.device("cpu"), track=track,
                    progress=False)  # fmt: skip
    more_memory, more_files = growth(uses)
    assert len(uses) == len(history) == SOAK // 10 and more_files <= 0
    assert more_memory < MIB + 4000 * len(uses)  # the history itself, of which a copy is written


def test_many_odd_texts_leave_memory_and_files_as_they_are_and_get_their_own_answers(classifier):
    texts, uses, logits = list(odd_texts()), [], []
    for start in range(0, SOAK, PART):
        logits.append(classifier.logits(texts[start : start + PART]))
        uses.append(in_use())
    logits = torch.cat(logits)
    more_memory, more_files = growth(uses)
    assert more_files <= 0 and more_memory < 8 * MIB + 4000 * SOAK  # texts of a MB leave gaps between what is in use
    assert logits.shape == (SOAK, 2) and logits.isfinite().all() and len(logits.unique(dim=0)) > SOAK / 20
    for i in (*range(len(ODD)), 77, SOAK - 1):
        torch.testing.assert_close(classifier.logits([texts[i]])[0], logits[i])
    probs = classifier.predict_proba(texts[:PART])
    np.testing.assert_allclose(probs, logits[:PART].softmax(dim=-1), rtol=1e-6)
    with pytest.raises(MinikdError, match="half of a surrogate pair"):
        classifier.predict_proba(["a film", "a \ud83d film"])


MEASURED = """
import atexit, os
def now():
    with open("/proc/self/status") as file:
        peak = next(line.split()[1] for line in file if line.startswith("VmHWM"))
    return [int(peak) * 1024, len(os.listdir("/proc/self/fd"))]
before = now()
@atexit.register
def write():
    import json
    with open("use.json", "w") as file:
        json.dump([before, now()], file)
"""


def test_a_file_of_many_odd_texts_is_labelled_in_order(classifier, tmp_path):
    texts = [text.replace("\0", "") for text in odd_texts() if text.replace("\0", "").strip()]
    write_rows(tmp_path / "odd.jsonl", [{"text": text} for text in texts])
    classifier.save(tmp_path / "model")
    forks = Forks(tmp_path)
    command = ["evaluate.py", "model", "--input", "odd.jsonl", "--output", "labels.jsonl", "--precision", "fp32"]
    try:
        status, _, err = forks.run(*command, "--max-length", 32, folder=tmp_path, before=MEASURED)
    finally:
        forks.close()
    assert (status, err) == (0, [])
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_bytes().decode().split("\n")[:-1]]
    assert [row["text"] for row in rows] == [text.strip() for text in texts]
    probs = np.array([[row["prob_GOOD"], row["prob_BAD"]] for row in rows])
    np.testing.assert_allclose(probs[-PART:], classifier.predict_proba(texts[-PART:]), atol=2e-6)
    assert (abs(probs.sum(axis=1) - 1) < 1e-5).all()
    (before, files), (after, files_after) = json.loads((tmp_path / "use.json").read_text())
    size = (tmp_path / "odd.jsonl").stat().st_size
    print(f"{len(texts)} texts of {size / MIB:.1f} MiB: {before / MIB:.1f} → {after / MIB:.1f} MiB at most")
    assert files_after < files + 5 and after - before < 256 * MIB + 12 * size
