"""SST-2: sentences and phrases of film reviews (Socher et al. 2013), as packed for GLUE (Wang et al. 2018)."""

from minikd.datasets.archive import Source, damaged, locate, members
from minikd.datasets.decoding import decode
from minikd.datasets.rows import DEFAULT_COLUMNS, parse_table
from minikd.datasets.splits import Dataset, Split, make_dataset
from minikd.errors import MinikdError

SOURCE = Source(
    corpus="sst2",
    archive="SST-2.zip",
    folder="SST-2",
    url="https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
    sha256="d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
)
LABELS = ("negative", "positive")  # written as 0 and 1
COUNTS = {"train": 67_349, "dev": 872}


def load(data_dir) -> Dataset:
    """GLUE's dev as test (its test labels are not public), a tenth of train as validation. Raises MinikdError."""
    path = locate(SOURCE, data_dir)
    contents = {match[1]: content for match, content in members(path, r"(train|dev)\.tsv")}
    splits = []
    for name, count in COUNTS.items():
        if name not in contents:
            raise damaged(path, f"it has no {name}.tsv")
        where = f"{path}: {name}.tsv"
        rows = list(parse_table(decode(contents[name], where), where, ".tsv", DEFAULT_COLUMNS))
        if len(rows) != count:
            raise damaged(path, f"{len(rows):,} examples in {name}.tsv, not {count:,}")
        for row in rows:
            if row.label not in ("0", "1"):
                raise MinikdError(f"{where}, line {row.line}: label {row.label!r} is neither 0 nor 1: replace the file")
        if len({row.label for row in rows}) < 2:
            raise MinikdError(f"{where} has examples of one label only: replace the file")
        splits.append(Split([row.text for row in rows], [int(row.label) for row in rows]))
    return make_dataset("sst2", LABELS, *splits)
