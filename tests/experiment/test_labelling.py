"""Labels for new texts: what is refused. That they are right, and in order, is in test_evaluate.py."""


def test_a_text_that_is_not_valid_unicode_is_refused_before_any_model_is_loaded(script):
    """A terminal in another encoding than Python expects gives each byte that it cannot read as half a surrogate."""
    status, out, err = script("evaluate.py", "no model", "--text", "fine", "--text", "caf\udce9")
    assert (status, out) == (2, "")
    assert err == "evaluate.py: error: --text: is not valid text in this terminal's encoding\n"
