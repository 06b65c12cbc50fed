"""tests/benchmark runs from end to end, on tiny models, and leaves its figures."""

import json
from dataclasses import replace

import pytest
import torch
from benchmark import measure, run, tables, targets
from torch.utils.flop_counter import FlopCounterMode

from minikd.errors import MinikdError
from minikd.losses import hard_loss


def test_every_part_leaves_its_figures_and_a_table(minilm, tmp_path, capsys):
    """All parts in a quick run, and the same tables again from its file alone."""
    file = tmp_path / "benchmark.json"
    arguments = [*run.PARTS, "--quick", "--data-dir", str(tmp_path), "--output", str(file), "--seeds", "42"]
    results = run.main(arguments)
    assert json.loads(file.read_text()) == results
    for name in run.PARTS:
        assert results[name].keys() - {"took_seconds", "thread_count"}, f"{name} left no figures"
        assert f"### {name}\n" in tables.tables(results)
    assert all(cell["ours"] > 0 < cell["theirs"] for cell in results["steps"]["cells"])
    assert targets.targets(results).count("\n") > 10
    capsys.readouterr()
    run.main(["--show", str(file)])
    assert capsys.readouterr().out.strip() == f"{targets.targets(results)}\n\n{tables.tables(results)}"


def test_figures_of_another_run_are_not_overwritten(tmp_path):
    """Those of another precision, and a file that is something else, stay as they are."""
    file = tmp_path / "figures.json"
    run.main(["rate", "--quick", "--precision", "fp32", "--output", str(file)])
    for content in (file.read_text().replace('"fp32"', '"bf16"'), "[]", "not JSON", "{}"):
        file.write_text(content)
        with pytest.raises(MinikdError, match="figures.json"):
            run.main(["rate", "--quick", "--precision", "fp32", "--output", str(file)])
        assert file.read_text() == content


@pytest.mark.parametrize("shape", measure.SHAPES)
def test_operations_of_a_training_step_are_those_that_torch_counts(shape):
    """To the last one: with dropout the attention is written out on a CPU, in products that torch's counter sees."""
    config = replace(measure.SHAPES[shape], **measure.TINY, vocab_size=100)
    batch = measure.random_batch(config, 3, 8, torch.device("cpu"))
    model = measure.fresh(config).train()
    with FlopCounterMode(display=False) as counter:
        hard_loss(model(batch.input_ids, batch.attention_mask).logits, batch.labels).backward()
    assert counter.get_total_flops() == measure.flops(config, 3, 8, training=True)
