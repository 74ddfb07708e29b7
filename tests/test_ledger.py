"""The ledger: rows come back as they went in, newer measurements replace older ones, and a bad file is named by its line."""

import subprocess
import sys
from dataclasses import dataclass, fields, replace

import pytest

from course_lib.ledger import COLUMNS, Row, read, read_table, record, table, write, write_table

ROW = Row(method="ddim", dataset="ring", nfe=20, depth=20, batch=10_000, seconds=0.25, device="2 CPU cores", metric="SW",
          value=0.031, floor=0.03, samples=10_000, seeds=3)
FULL = replace(ROW, spread=0.002, memory_mib=512.0, train_seconds=60.0, guidance=1.5, weights="a1b2", status="full")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.csv"


def test_a_row_has_the_columns_of_the_file():
    assert sorted(COLUMNS) == sorted(field.name for field in fields(Row))


def test_rows_come_back_as_they_went_in(path):
    write(path, [FULL, replace(ROW, method="ancestral")])
    bare, full = sorted(read(path), key=lambda row: row.method)
    assert (bare, full) == (replace(ROW, method="ancestral"), FULL)
    assert bare.spread is None and bare.weights == "" and type(full.nfe) is int and type(full.train_seconds) is float


def test_an_empty_ledger_is_its_header(path):
    write(path, [])
    assert path.read_text() == ",".join(COLUMNS) + "\n" and read(path) == []


def test_text_with_commas_and_quotes_survives(path):
    row = replace(ROW, method='ddim, "fast"', device="Größe")
    write(path, [row])
    assert read(path) == [row]


def test_a_newer_measurement_replaces_the_older_and_others_stay(path):
    record(path, [ROW, replace(ROW, nfe=10, depth=10)])
    newer = replace(ROW, value=0.5, seconds=9.0, status="full")
    rows = record(path, [newer])
    assert len(rows) == 2 and sorted(read(path), key=lambda row: row.nfe) == [replace(ROW, nfe=10, depth=10), newer]


@pytest.mark.parametrize("change", [{"method": "x"}, {"dataset": "x"}, {"nfe": 1}, {"depth": 1}, {"device": "x"},
                                    {"metric": "x"}, {"guidance": 2.0}, {"samples": 5}], ids=str)
def test_what_tells_measurements_apart(path, change):
    record(path, [ROW])
    assert len(record(path, [replace(ROW, **change)])) == 2


def test_the_order_of_writing_does_not_matter(path, tmp_path):
    rows = [replace(ROW, nfe=n, metric=metric) for n in (5, 20, 10) for metric in ("SW", "MMD")]
    write(path, rows)
    write(tmp_path / "other.csv", reversed(rows))
    assert path.read_bytes() == (tmp_path / "other.csv").read_bytes()


def test_a_status_is_one_of_two():
    with pytest.raises(ValueError, match=r"status: expected one of \('full', 'provisional'\), got 'done'"):
        replace(ROW, status="done")


def spoil(path, old, new):
    write(path, [ROW])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("method,dataset", "dataset,method", "ledger.csv, line 1: expected the columns method,dataset,.*, got dataset,method"),
    (",status", "", "ledger.csv, line 1: expected the columns"),
    ("provisional", "done", "ledger.csv, line 2: status: expected one of"),
    (",20,20,", ",twenty,20,", "ledger.csv, line 2: invalid literal for int"),
    (",20,20,", ",,20,", "ledger.csv, line 2: "),
    (",provisional", "", "ledger.csv, line 2: "),
    (",provisional", ",provisional,more", "ledger.csv, line 2: expected 18 fields, got 19"),
], ids=["swapped", "missing column", "status", "number", "empty number", "short line", "long line"])
def test_a_file_that_is_no_ledger_is_named_by_its_line(path, old, new, message):
    spoil(path, old, new)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_file_that_is_no_text_is_named(path):
    path.write_bytes(b"method\xff\xfe")
    with pytest.raises(ValueError, match="ledger.csv, line 1: .*can't decode"):
        read(path)


@dataclass(frozen=True)
class Point:
    x: float
    name: str
    n: int | None


def test_any_table_comes_back_as_it_went_in(path):
    points = [Point(0.5, "a", 1), Point(-2.0, "b", None)]
    write_table(path, points)
    assert read_table(path, Point) == points
    path.write_text(path.read_text().replace("-2", "two"))
    with pytest.raises(ValueError, match="ledger.csv, line 3: could not convert string to float"):
        read_table(path, Point)


def test_rows_that_several_processes_record_at_once_are_all_kept(path):
    add = "import sys; from course_lib.ledger import record, read; rows = read(sys.argv[1]); record(sys.argv[2], rows)"
    for n in range(4):
        write(path.with_name(f"{n}.csv"), [replace(ROW, nfe=n)])
    runs = [subprocess.Popen([sys.executable, "-c", add, path.with_name(f"{n}.csv"), path]) for n in range(4)]
    assert [run.wait(60) for run in runs] == [0] * 4
    assert {row.nfe for row in read(path)} == {0, 1, 2, 3}


def test_an_empty_file_is_no_ledger(path):
    path.write_text("")
    with pytest.raises(ValueError, match="expected the columns"):
        read(path)


def test_a_failed_record_leaves_the_file(path):
    write(path, [ROW])
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        record(path, ["not a row"])
    assert path.read_bytes() == before


def test_the_table_lines_its_columns_up():
    head, *lines = str(table([ROW, FULL], "method NFE value n status")).splitlines()
    assert head.split() == "method NFE value n status".split()
    for column in ("method", "status"):
        start = head.index(column)
        assert all(line[start] != " " and line[:start].endswith("  "[:start]) for line in lines)
    for column in ("NFE", "value", "n "):                                               # numbers end where their head ends
        end = head.index(column) + len(column.strip())
        assert all(line[end - 1] != " " and line[end] == " " for line in lines)
    assert "0.031 ± 0.002" in lines[1] and "±" not in lines[0] and "10,000" in lines[0]


def test_a_column_holds_numbers_if_every_cell_is_one():
    rows = [replace(ROW, seconds=2e-7, value=-1.5, spread=0.1, samples=1_000_000), ROW]
    assert table(rows, "method NFE seconds device value n").numeric() == [False, True, True, False, True, True]


def test_the_table_has_a_form_for_notebooks_whose_cells_do_not_wrap():
    html = table([replace(ROW, method="a<b")], "method NFE")._repr_html_()
    assert html == ('<table style="white-space: nowrap; text-align: right">'
                    '<tr><th style="text-align: left">method</th><th>NFE</th></tr>\n'
                    '<tr><td style="text-align: left">a&lt;b</td><td>20</td></tr>\n</table>')


def test_a_table_of_nothing_is_its_head():
    assert str(table([])).split()[0] == "method" and "\n" not in str(table([]))


def test_a_column_that_is_none_is_named():
    with pytest.raises(ValueError, match="columns: expected some of method data NFE .*, got price"):
        table([ROW], "method price")


def test_a_table_is_printed_where_there_is_no_notebook(capsys):
    table([ROW], "method NFE").show()
    assert capsys.readouterr().out == "method  NFE\nddim     20\n"
