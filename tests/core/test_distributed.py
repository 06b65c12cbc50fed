"""Several processes compute what one does: minikd/distributed.py, and the loop and the passes over it."""

import os
from collections import Counter

import pytest
import torch
from forked import Forks
from together import SETTINGS, make_split

from minikd.batching import plan_batches
from minikd.distributed import by_first, process_seed, share

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Runs a task of together.py in so many processes; returns what each found, in their order, and where that is."""
    forks, known = Forks(tmp_path_factory.mktemp("forks")), {}

    def run(task, processes, *arguments, source="-"):
        key = (task, processes, *arguments, source)
        if key not in known:
            folder = tmp_path_factory.mktemp(task)
            words = ["tests/core/together.py", task, folder, source, *arguments]
            status, _, err = forks.run(*words, folder=folder, processes=processes)
            assert status in (0, [0] * processes), err
            files = [folder / f"{rank}.pt" for rank in range(processes)]
            known[key] = [torch.load(file, weights_only=True) for file in files], folder
        return known[key]

    yield run
    forks.close()


def largest_difference(one, other):
    return (one["weights"] - other["weights"]).abs().max()


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_end_in_the_weights_and_the_figures_of_one(together, processes):
    (one,), _ = together("train", 1)
    found, _ = together("train", processes)
    for own in found:
        torch.testing.assert_close(own["plain"]["weights"], one["plain"]["weights"], rtol=0, atol=1e-6)
        torch.testing.assert_close(own["plain"]["losses"], one["plain"]["losses"], rtol=1e-6, atol=1e-6)
        assert own["plain"]["weights"].equal(found[0]["plain"]["weights"])  # no drift: to the bit
        for epoch, alone in zip(own["plain"]["figures"], one["plain"]["figures"], strict=True):
            assert epoch["confusion"] == alone["confusion"]
            assert epoch["validation_loss"] == pytest.approx(alone["validation_loss"], abs=1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_end_in_the_weights_of_one(together):
    (one,), _ = together("train_on_gpus", 1)
    for own in together("train_on_gpus", 2)[0]:
        assert largest_difference(own, one) < 1e-4
        assert [epoch["confusion"] for epoch in own["figures"]] == [epoch["confusion"] for epoch in one["figures"]]


@pytest.mark.parametrize("processes", [2, 4])
def test_each_batch_of_one_plan_is_divided_among_all(together, processes):
    found, _ = together("train", processes)
    lengths, seen = make_split(67, 1).lengths, [own["plain"]["seen"] for own in found]
    plan = [index.tolist() for epoch in range(2) for index in plan_batches(lengths, 8, SETTINGS.seed, epoch)]
    for i, index in enumerate(plan):
        shares = [own[i] for own in seen]
        assert shares == [index[rank::processes] or index[:1] for rank in range(processes)]
        if len(index) == 8:
            assert sorted(sum(shares, [])) == sorted(index)
    assert min(map(len, plan)) == 3  # a batch of which the last of four processes has no example
    assert len(seen[-1]) == len(plan)  # which takes part all the same
    assert Counter(sum(plan, [])) == dict.fromkeys(range(67), 2)


def test_gradients_are_exchanged_with_the_last_batch_of_a_step_alone(together):
    found, _ = together("train", 2)
    batches = 2 * [False, True, False, True, False, True, False, True, True]  # 9 an epoch, two a step
    assert [own["syncs"] for own in found] == [batches, batches]


def test_dropout_differs_among_processes_and_is_the_same_in_the_next_run(together):
    found, _ = together("train", 2)
    first, second = (own["dropout"]["random"] for own in found)
    assert all(one != other for one, other in zip(first, second))
    for own in found:
        assert own["dropout"]["weights"].equal(own["again"]["weights"])
        assert own["dropout"]["random"] == own["again"]["random"]


def test_a_training_continues_with_as_many_processes_to_the_same_bits(together):
    whole, _ = together("train", 2)
    _, states = together("stop", 2, "0.5")
    resumed, _ = together("resume", 2, "0.5", source=states)
    for own, uninterrupted in zip(resumed, whole):
        assert own["weights"].equal(uninterrupted["dropout"]["weights"])
        assert own["random"] == uninterrupted["dropout"]["random"][-len(own["random"]) :]


@pytest.mark.parametrize("before, after", [(2, 4), (2, 1), (1, 2)])
def test_a_training_continues_with_another_number_of_processes(together, before, after):
    """Without dropout, to the weights of an uninterrupted one; with it, with random numbers that it has not used."""
    (one,), _ = together("train", 1)
    _, states = together("stop", before, "0")
    resumed, _ = together("resume", after, "0", source=states)
    assert all(largest_difference(own, one["plain"]) < 1e-6 for own in resumed)
    _, states = together("stop", before, "0.5")
    resumed, _ = together("resume", after, "0.5", source=states)
    used = [step for own in together("train", before)[0] for step in own["dropout"]["random"]]
    assert not [step for own in resumed for step in own["random"] if step in used]


@pytest.mark.parametrize("processes", [2, 4])
def test_a_pass_is_shared_out_and_its_rows_come_back_in_order(together, processes):
    ((all_rows, few, error),), _ = together("logits", 1)
    for found in together("logits", processes)[0]:
        assert found[0].equal(all_rows) and found[1].equal(few) and found[2] == error
    assert len(all_rows) == 2000 and "not finite" in error


def test_the_first_process_decides_for_all(together):
    found, _ = together("decide", 4)
    for rank, own in enumerate(found):
        assert own["result"] == {"a": 1} and own["any"] == [True, False] and own["all"] == [0, 1, 2, 3]
        # it alone is called, and is alone within; its error reaches all
        local = "Local('of the first process')"
        common = ["this file is broken", local if rank == 0 else f"RuntimeError({local!r})", [1]]
        assert own["calls"] == ([(0, 1), *common, (0, 1)] if rank == 0 else common)


def test_a_single_process_does_it_all_itself():
    assert by_first(lambda: 3) == 3
    assert share([1, 2, 3]) == [1, 2, 3]
    assert process_seed(42) == 42
    assert process_seed(42, step=7) != 42
