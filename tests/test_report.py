"""The tables in README.md and docs/ are those that the committed results give."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks import report  # noqa: E402


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_tables_are_drawn_from_results(page):
    text = page.read_text(encoding="utf-8")
    assert "<!-- /" in text and report.fill(text) == text


def test_a_table_typed_by_hand_is_replaced():
    text = "before\n<!-- step -->\nten times faster\n<!-- /step -->\nafter\n"
    filled = report.fill(text)
    assert "ten times" not in filled and filled.startswith("before\n<!-- step -->\n| audio |")


def test_what_was_not_measured_is_said(tmp_path):
    assert report.NOT_MEASURED in report.fill("<!-- demo -->\n<!-- /demo -->", tmp_path)
