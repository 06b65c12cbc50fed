"""Financial PhraseBank: sentences of financial news, labelled from an investor's view (Malo et al. 2014)."""

from minikd.datasets.archive import Source, damaged, locate, members
from minikd.datasets.splits import Dataset, Split, make_dataset
from minikd.errors import MinikdError

SOURCE = Source(
    corpus="fpb",
    archive="FinancialPhraseBank-v1.0.zip",
    folder="FinancialPhraseBank-v1.0",
    url="https://huggingface.co/datasets/takala/financial_phrasebank/resolve/main/data/FinancialPhraseBank-v1.0.zip",
    sha256="0e1a06c4900fdae46091d031068601e3773ba067c7cecb5b0da1dcba5ce989a6",
)
LABELS = ("negative", "neutral", "positive")
COUNTS = {"50": 4_846, "66": 4_217, "75": 3_453, "all": 2_264}  # sentences; each set holds the next


def load(data_dir, agreement="50") -> Dataset:
    """Sentences on whose label at least `agreement` per cent of 5 to 8 annotators agree (50, 66, 75 or all), 80/10/10.

    The corpus has no official split. Raises MinikdError.
    """
    agreement = str(agreement)
    if agreement not in COUNTS:
        raise MinikdError(f"`agreement` {agreement}: choose one of {', '.join(COUNTS)}")
    path = locate(SOURCE, data_dir)
    name = f"Sentences_{agreement.capitalize()}Agree.txt"
    contents = [content for _, content in members(path, name.replace(".", r"\."))]
    if len(contents) != 1:
        raise damaged(path, f"it has no {name}" if not contents else f"{name} appears in it {len(contents)} times")
    texts, labels = [], []
    for number, line in enumerate(contents[0].decode("latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        text, _, label = line.rpartition("@")  # sentences may hold an @ of their own
        text, label = text.strip(), label.strip()
        if not text or label not in LABELS:
            wanted = f"'sentence@label' with label {', '.join(LABELS)}"
            raise MinikdError(f"{path}: {name}, line {number} is not {wanted}: replace the file")
        texts.append(text)
        labels.append(LABELS.index(label))
    if len(texts) != COUNTS[agreement]:
        raise damaged(path, f"{len(texts):,} sentences in {name}, not {COUNTS[agreement]:,}")
    return make_dataset("fpb", LABELS, Split(texts, labels))
