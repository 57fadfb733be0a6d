"""The mutations still apply to the code as it is, and the program tells killed from survived and from neither."""

from pathlib import Path

import mutations
import pytest

LISTED = mutations.load()
TEST = "import code_under_test as code\n\ndef test_double():\n    assert code.double({given}) == {wanted}\n"


@pytest.mark.parametrize("mutation", LISTED, ids=lambda mutation: mutation.name)
def test_each_mutation_applies_and_changes_the_code(mutation: mutations.Mutation) -> None:
    mutated = mutation.apply(mutations.ROOT)
    assert compile(mutated, mutation.file, "exec") and mutation.new != mutation.old
    assert mutation.tests and all((mutations.ROOT / test).is_file() for test in mutation.tests)


def test_there_are_enough_and_no_two_break_the_same() -> None:
    assert len(LISTED) >= 40 and len({(m.file, m.old, m.new) for m in LISTED}) == len(LISTED)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "code_under_test.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_weak.py").write_text(TEST.format(given=2, wanted=4))
    (tmp_path / "test_strong.py").write_text(TEST.format(given=3, wanted=6))
    (tmp_path / "test_wrong.py").write_text(TEST.format(given=1, wanted=1))
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "test", "outcome", "said"),
    [
        ("2 * x", "x + 2", "test_strong.py", "killed", "FAILED test_strong.py::test_double"),
        ("2 * x", "x + 2", "test_weak.py", "survived", "sums"),
        ("2 * x", "x + 2", "test_wrong.py", "error", "the tests do not pass without it"),
        ("2 * x", "2 *", "test_strong.py", "error", "pytest ended with"),
        ("3 * x", "x + 2", "test_strong.py", "error", "stands 0 times in code_under_test.py"),
        ("x", "y", "test_strong.py", "error", "stands 2 times"),
        ("2 * x", "x + 2", "test_none.py", "error", "the tests do not pass without it"),
    ],
)
def test_an_attempt_and_the_tree_is_as_it_was(
    tree: Path, old: str, new: str, test: str, outcome: str, said: str
) -> None:
    code = (tree / "code_under_test.py").read_bytes()
    mutation = mutations.Mutation("sum", "code_under_test.py", old, new, "sums", (test,))
    found, detail = mutations.attempt(mutation, tree, 60, {}, shows=False)
    assert found == outcome and said in detail
    assert (tree / "code_under_test.py").read_bytes() == code


def test_a_fingerprint_follows_the_code_and_the_tests(tree: Path) -> None:
    mutation = mutations.Mutation("sum", "code_under_test.py", "2 * x", "x + 2", "sums", ("test_weak.py::test_double",))
    first = mutation.fingerprint(tree)
    assert mutation.fingerprint(tree) == first
    (tree / "test_weak.py").write_text("")
    assert mutation.fingerprint(tree) != first


def test_the_copy_holds_the_product_and_its_tests_without_the_demos_data(tmp_path: Path) -> None:
    mutations.copy_tree(tmp_path / "tree")
    assert (tmp_path / "tree" / "tests" / "support" / "mini.py").is_file()
    assert (tmp_path / "tree" / "deploy" / "demo" / "federation.toml").is_file()
    assert not (tmp_path / "tree" / "deploy" / "demo" / "data").exists()
    assert not list((tmp_path / "tree").rglob("__pycache__"))
