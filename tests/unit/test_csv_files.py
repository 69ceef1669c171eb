"""Cells of files that are opened in a spreadsheet."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from cacheplane.api import csv_files


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=1", "\n=1"])
def test_a_text_that_would_be_run_is_quoted(text):
    assert csv_files.text_of(text) == "'" + text


@pytest.mark.parametrize("text", ["", "a=1", "cache-1", "'=1", "\u00fc"])
def test_any_other_text_stays_as_it_is(text):
    assert csv_files.text_of(text) == text


def test_numbers_stay_numbers():
    assert csv_files.text_of(Decimal("-0.35")) == "-0.350000000"
    assert csv_files.text_of(-7) == "-7"
    assert csv_files.text_of(None) == ""
    assert csv_files.text_of(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00+00:00"


def test_lines_can_be_read_back():
    rows = [["a,b", 'say "no"', "two\nlines", None], [1, Decimal(2), "=x", ""]]
    read = list(csv.reader(io.StringIO(csv_files.lines(rows), newline="")))
    assert read == [["a,b", 'say "no"', "two\nlines", ""], ["1", "2.000000000", "'=x", ""]]
