"""`make family`: its table, and that it ends with exit code 1 where a method misses the goal; from given scores."""

import json
from io import StringIO

import pytest
from rich.console import Console

from lav2.demo import family

ROWS = {
    "v1": {"color_shape_f1": 0.9, "color_shape_f1_shuffled": 0.11, "peak_memory_mb": 1234},
    "v2": {"color_shape_f1": 0.80, "color_shape_f1_shuffled": 0.15, "peak_memory_mb": 1000},
    "v2_lora": {"color_shape_f1": 0.95, "color_shape_f1_shuffled": 0.1, "peak_memory_mb": 1001},
    "lavin": {"color_shape_f1": 0.88, "color_shape_f1_shuffled": 0.12, "peak_memory_mb": 1002},
}
REST = {"trainable": 1_000_000, "CIDEr": 2.5, "question_accuracy": 0.5, "seconds": 60}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """``made(**changes)``: ``main`` where every method is done, with those rows changed."""
    monkeypatch.setattr(family, "FOLDER", tmp_path)
    monkeypatch.setattr(family.sys, "argv", ["family"])
    monkeypatch.setattr(family, "call", lambda *_: pytest.fail("nothing is left to run"))

    def write(**changes):
        for method, row in ROWS.items():
            (tmp_path / method).mkdir(exist_ok=True)
            (tmp_path / method / "family.json").write_text(json.dumps(REST | row | changes.get(method, {})))
        family.main()

    return write


def test_the_table_has_a_row_a_method(made, tmp_path, capsys):
    made()
    assert "missed" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "family.json").read_text())
    assert list(rows) == list(family.METHODS) and rows["v1"] == REST | ROWS["v1"]
    printed = StringIO()
    Console(file=printed, width=200).print(family.make_table(rows))
    lines = printed.getvalue().splitlines()
    (line,) = [line for line in lines if "LLaMA-Adapter V1" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        *("LLaMA-Adapter V1", "1,000,000", "0.900", "0.110", "2.500", "0.500", "60", "1,234"),
    ]
    assert all(any(f" {name} " in line for line in lines) for name in family.METHODS.values())


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"v2": {"color_shape_f1": 0.799}}, "missed: LLaMA-Adapter V2 has F1 0.799, below 0.80"),
        (
            {"lavin": {"color_shape_f1_shuffled": 0.151}},
            "missed: LaVIN has F1 0.151 with shuffled images, above 0.15",
        ),
        (
            {"v1": {"color_shape_f1": float("nan")}, "v2_lora": {"color_shape_f1": 0.0}},
            "missed: LLaMA-Adapter V1 has F1 nan, below 0.80; V2 with LoRA has F1 0.000, below 0.80",
        ),
    ],
)
def test_a_method_that_misses_the_goal_ends_it_with_1(made, changes, verdict):
    with pytest.raises(SystemExit) as ended:
        made(**changes)
    assert ended.value.code == verdict  # which Python prints on stderr, and exits with 1
