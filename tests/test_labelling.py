"""Labels for new texts: what is refused. That they are right, and in order, is in test_evaluate.py."""

import pytest

from minikd.errors import MinikdError
from minikd.experiment.labelling import print_labels


def test_a_text_that_is_not_valid_unicode_is_refused_before_any_model_is_loaded():
    """A terminal in another encoding than Python expects gives each byte that it cannot read as half a surrogate."""
    with pytest.raises(MinikdError, match="--text: is not valid text"):
        print_labels(["no model"], ["fine", "caf\udce9"], None, None)
