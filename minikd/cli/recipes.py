"""Settings of distill.py by name: five published distillation experiments, and the best that we know of.

`python distill.py --recipe NAME` takes them as its defaults; any flag given beside it wins. What an author does not
state is left to minikd's own defaults, and a comment says where we had to choose. The figures that the authors
published are in data/results/published.json; where an author names no batch for a time, it is in the row that fits its
size: E1's in batches, E2's and E3's one at a time.
"""

BERT, DISTILBERT = "bert-base-uncased", "distilbert-base-uncased"
EXPERIMENTS = {
    # E1 names neither alpha nor T, and its loss lacks the factor T²: its alpha 0.5 at T 2 would be our alpha 0.8.
    "imdb-small": {"dataset": "imdb", "teacher": BERT, "student_layers": 4},
    # E2 does not say which sentences it used. Its 94 to 95 % are plausible where all annotators agree (FinBERT: 97 %,
    # and 86 % where half of them do): --fpb-agreement all. Ours is the whole corpus, the harder one.
    "fpb-distilbert": {"dataset": "fpb", "teacher": BERT, "student": DISTILBERT},
    # E3 says LoRA, neither of which model nor with which rank.
    "sst2-lora": {"dataset": "sst2", "teacher": BERT, "student": DISTILBERT, "lora_rank": 8},
    "imdb-cached": {
        "dataset": "imdb", "teacher": BERT, "student": DISTILBERT, "teacher_epochs": 1, "epochs": 1,
        "teacher_logits": "cache",
    },
    # E5 states epochs, batch and rate of the teacher; the student's are the same here. It had no warm-up yet.
    "imdb-online": {
        "dataset": "imdb", "teacher": BERT, "student": DISTILBERT, "alpha": [0.5], "T": [2.0], "teacher_epochs": 1,
        "epochs": 1, "batch_size": 16, "teacher_lr": 2e-5, "lr": 2e-5, "warmup_ratio": 0.0, "teacher_logits": "online",
    },
}  # fmt: skip

# Tried on the validation split with the 6-layer MiniLM (data/results/README.md says what), and named for BERT-base.
BEST = {
    # The teacher judges 50,000 more reviews, which have no label. It is right often enough to do without the labels.
    "imdb-best": {
        "dataset": "imdb", "teacher": BERT, "student_layers": 4, "unlabelled": ["imdb"], "alpha": [0.0], "T": [1.0],
        "teacher_epochs": 2, "epochs": 2, "lr": 1e-4,
    },
    # Three teachers are averaged; and more film reviews, cut into sentences, for a training set of phrases.
    "sst2-best": {
        "dataset": "sst2", "teacher": BERT, "student_layers": 4, "unlabelled": ["imdb-sentences"], "alpha": [0.0],
        "T": [1.0], "teacher_seeds": 3, "teacher_epochs": 2, "teacher_lr": 5e-5, "epochs": 1, "lr": 1e-4,
    },
    # Few sentences, so that three teachers can be afforded. The corpus has no test split: --folds 10 tests them all.
    "fpb-best": {
        "dataset": "fpb", "teacher": BERT, "student_layers": 4, "alpha": [0.5], "T": [2.0], "teacher_seeds": 3,
        "teacher_epochs": 5, "teacher_lr": 5e-5, "epochs": 5, "lr": 1e-4,
    },
}  # fmt: skip
RECIPES = EXPERIMENTS | BEST
