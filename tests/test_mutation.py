"""Mutation testing (tests/mutation) changes what it should, and knows the tests of each module."""

import json
from pathlib import Path

import pytest
from mutation.coverage_map import OTHER_PROCESS, TESTS, chosen_tests, find

TESTS_FOLDER = Path(__file__).parent
ROOT = TESTS_FOLDER.parent
SOURCE = '''"""A file of ten lines."""


def share(parts: list, whole: int = 4) -> float:
    """The share of 1."""
    if not parts and len(parts) < 1:
        raise ValueError("no parts: 0 of 0")
    print("a message", 5)
    big = [part for part in parts if part >= 2]
    return round(sum(big) / whole, ndigits=3)
'''
# (line, what it was, what it becomes in each of its mutants)
CHANGES = [
    (4, "whole: int = 4", ["whole: int = 5"]),
    (6, "not parts and len(parts) < 1", ["parts and len(parts) < 1", "not parts or len(parts) < 1",
                                         "not parts and len(parts) <= 1", "not parts and len(parts) < 2"]),
    (9, "big = [part for part in parts if part >= 2]", ["big = None", "big = [part for part in parts if part > 2]",
                                                        "big = [part for part in parts if part >= 3]"]),
    (10, "round(sum(big) / whole, ndigits=3)", [
        "round(None, ndigits=3)", "round(sum(big) / whole, ndigits=None)", "round(ndigits=3)",
        "round(sum(big) / whole, )", "round(sum(big) * whole, ndigits=3)", "round(sum(None) / whole, ndigits=3)",
        "round(sum(big) / whole, ndigits=4)"]),
]  # fmt: skip


@pytest.fixture
def mutants_of():
    pytest.importorskip("mutmut.mutation.mutators", reason='mutation testing needs pip install "mutmut>=3"')
    from mutation.mutants import mutants_of

    return mutants_of


def test_the_mutants_of_ten_lines_are_these(mutants_of):
    """None changes a message (lines 7 and 8), a docstring (1 and 5), an annotation or the argument of len."""
    expected = {(line, SOURCE.replace(old, new)) for line, old, all_new in CHANGES for new in all_new}
    found = mutants_of(SOURCE)
    assert {(mutant.first, mutant.code) for mutant in found} == expected
    assert len(found) == len(expected)
    assert found[0].diff.splitlines() == [
        "-def share(parts: list, whole: int = 4) -> float:",
        "+def share(parts: list, whole: int = 5) -> float:",
    ]


@pytest.mark.parametrize(
    "message", ['parser.error("a")', 'bar.write(f"{1}")', 'tqdm.write("a")', 'add(x, help="a")', 'raise E("a", 1)']
)
def test_the_wording_of_messages_is_not_mutated(message, mutants_of):
    assert not [
        mutant.diff for mutant in mutants_of(f"if x:\n    {message}\n") if "XX" in mutant.code or "2" in mutant.code
    ]


def test_what_is_written_into_a_file_is_mutated(mutants_of):
    assert 'file.write("XXaXX")\n' in [mutant.code for mutant in mutants_of('file.write("a")\n')]


def test_the_tests_listed_for_each_module_exist():
    modules = {str(path.relative_to(ROOT)) for path in ROOT.glob("minikd/**/*.py")} | {
        path.name for path in ROOT.glob("*.py")
    }
    assert set(TESTS) <= modules
    files = {file for files in TESTS.values() for file in files}
    assert not files - {path.name for path in TESTS_FOLDER.rglob("test_*.py")}
    for module, parts in OTHER_PROCESS.items():
        text = "".join(find(ROOT, file).read_text() for file in TESTS[module])
        assert not [part for part in parts if part not in text], module


def test_a_mutant_is_tried_on_the_tests_that_run_its_lines_the_quickest_first():
    first = {"seconds": {"a": 3.0, "b": 1.0}, "lines": {"m.py": {"4": ["a"], "5": ["a", "b"]}}}
    second = {"seconds": {"c": 0.5, "d": 9.0}, "lines": {"m.py": {"4": ["c"]}}}
    assert chosen_tests("m.py", 4, 4, [first, second]) == (["c", "a"], 3.5)
    assert chosen_tests("m.py", 4, 5, [first, second]) == (["c", "b", "a"], 4.5)
    assert chosen_tests("m.py", 1, 1, [first, second]) == (["c", "b", "a", "d"], 13.5), "run on import: all tests"


def test_every_change_that_is_listed_as_without_effect_is_one_of_the_code_of_today():
    for one in json.loads((TESTS_FOLDER / "mutation" / "equivalent.json").read_text()):
        before = "\n".join(line[1:] for line in one["diff"] if line.startswith("-"))
        assert before in (ROOT / one["module"]).read_text() and one["why"], one
