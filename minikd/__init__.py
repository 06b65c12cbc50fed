"""minikd: knowledge distillation of BERT classifiers in plain PyTorch."""

__version__ = "0.1.0"
