"""docs/security.md: every test that it names exists, and no threat goes without a test or a plain "not handled"."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## Nothing lost", 1)[1].splitlines()
    if line.startswith("| ") and not line.startswith("| what ")
]


def test_every_threat_has_a_test_or_is_said_not_to_be_handled():
    assert len(ROWS) > 40
    for what, follows, shown in ROWS:
        assert shown or "not handled" in follows, what


def test_every_test_that_is_named_exists():
    named = [name for _, _, shown in ROWS for name in filter(None, shown.split(", "))]
    assert len(named) > 40
    for name in named:
        path, _, function = name.partition("::")
        assert re.fullmatch(r"[a-z_/]+\.py", path), name
        text = (TESTS / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), name


def test_the_page_about_cohorts_names_tests_that_exist():
    page = (TESTS.parent / "docs" / "cohorts.md").read_text(encoding="utf-8")
    named = re.findall(r"\b([a-z_]+/[a-z_/]*test_[a-z_]+\.py)(?:::(\w+))?", page)
    assert len(named) > 8
    for path, function in named:
        text = (TESTS / path).read_text(encoding="utf-8")
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), (path, function)
