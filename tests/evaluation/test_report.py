"""The report holds what it was given, safely, and needs nothing from outside."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from lav2.errors import UserError
from lav2.evaluation.chart import Series, line_chart
from lav2.evaluation.report import Answer, Question, Report, Sample, Score

EVIL = "<script>alert('x')</script> & \"quoted\""


class Page(HTMLParser):
    """The page's tags, and its text outside of style and script. Complains of tags closed in the wrong order."""

    VOID = {"meta", "input", "img", "line", "polyline", "rect"}

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def metrics(tmp_path):
    rows = [f"{step},{5 / (step + 1):.4f},{4.0 if step % 10 == 0 else ''}," for step in range(100)]
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join(["step,train/loss,val/loss,empty", *rows, "100,nan,,"]))
    return path


@pytest.fixture
def full_report(metrics, tmp_path) -> Report:
    picture = tmp_path / "red.png"
    Image.new("RGBA", (800, 400), (255, 0, 0, 255)).save(picture)
    return (
        Report(EVIL, EVIL)
        .scores([Score("CIDEr", 1.1234, EVIL, target=1.0), Score(EVIL, 14_312_448), Score("split", EVIL)])
        .curves(metrics, {EVIL: {EVIL: "train/loss", "held out": "val/loss"}})
        .gallery([Sample(picture, EVIL, [EVIL, "a reference"], 0.5, True, EVIL), Sample(None, "plain")], EVIL)
        .questions([Question(Image.new("L", (50, 50)), EVIL, [Answer(EVIL, EVIL, False)], EVIL)])
        .table(["group", "parameters"], [[EVIL, 2_539_520]], "Parameters")
        .details({"generation": {"temperature": 0.0}, EVIL: EVIL})
    )


def test_everything_given_is_escaped(full_report):
    html = full_report.html()
    page = Page(html)
    assert len(page.all("script")) == 1
    assert EVIL not in html.replace("&quot;", '"')
    assert page.text.count(EVIL) >= 14
    assert all(
        value is None or "alert" not in value or name == "aria-label" for _, a in page.tags for name, value in a.items()
    )


def test_nothing_is_loaded_from_outside(full_report):
    html = full_report.html()
    assert "default-src 'none'" in html
    sources = [attrs["src"] for _, attrs in Page(html).tags if "src" in attrs]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_pictures_are_small_jpegs(full_report):
    wide, square = Page(full_report.html()).all("img")
    image = Image.open(io.BytesIO(base64.b64decode(wide["src"].split(",")[1])))
    assert image.format == "JPEG"
    assert image.size == (360, 180) == (int(wide["width"]), int(wide["height"]))
    assert image.getpixel((5, 5))[0] > 250
    assert square["width"] == "50"


def test_numbers_as_people_write_them(full_report):
    text = Page(full_report.html()).text
    assert "1.123" in text and "14.3 M" in text and "2,539,520" in text and "generation.temperature" in text


def test_gallery_can_be_sorted_and_filtered(full_report):
    page = Page(full_report.html())
    assert [card.get("data-mark") for card in page.all("article")] == ["good", "", "bad"]  # two samples, a question
    assert {button["data-show"] for button in page.all("button") if "data-show" in button} == {"all", "good", "bad"}
    assert {button["data-sort"] for button in page.all("button") if "data-sort" in button} == {"given", "worst", "best"}
    assert not Page(Report("t").gallery([Sample(None, "no score, no mark")]).html()).all("button")


def test_a_large_gallery_keeps_best_and_worst():
    samples = [Sample(None, f"caption {n}.", score=n / 10) for n in range(1000)]
    page = Page(Report("t").gallery(samples, limit=12).html())
    scores = [float(card["data-score"]) for card in page.all("article")]
    assert scores[:4] == [0.0, 0.1, 0.2, 0.3] and scores[8:] == [99.6, 99.7, 99.8, 99.9]
    assert scores[4:8] == pytest.approx([12.5, 37.5, 62.5, 87.5], abs=1)
    assert "12 of 1000 samples" in page.text


def test_without_scores_right_and_wrong_are_both_kept():
    samples = [Sample(None, "", good=n % 100 == 50) for n in range(1000)]
    marks = [card["data-mark"] for card in Page(Report("t").gallery(samples, limit=30).html()).all("article")]
    assert marks.count("good") == 10 and marks.count("bad") == 20


def test_questions_can_be_sorted_and_filtered():
    questions = [Question(None, f"why {n}?", [Answer("a", "so", n > 1)], score=n / 4) for n in range(4)]
    page = Page(Report("t").questions(questions, limit=3).html())
    assert [(card["data-mark"], card["data-score"]) for card in page.all("article")] == [
        ("bad", "0.0"),
        ("good", "0.5"),
        ("good", "0.75"),
    ]
    assert {"good", "bad"} <= {button.get("data-show") for button in page.all("button")}
    assert "3 of 4 questions" in page.text


def test_a_broken_picture_is_named(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    text = Page(Report("t").gallery([Sample(broken, "a"), Sample("gone.jpg", "b")]).html()).text
    assert f"{broken} cannot be read" in text and "gone.jpg cannot be read" in text


def test_curves_leave_out_empty_series_and_charts(metrics):
    charts = {"loss": {"training": "train/loss", "none": "empty", "missing": "nowhere"}, "nothing": {"a": "empty"}}
    page = Page(Report("t").curves(metrics, charts).html())
    assert len(page.all("svg")) == 1
    assert len(page.all("polyline")) == 2  # as it is, and smoothed; the value that is not a number is left out
    assert "none" not in page.text and "nothing" not in page.text
    assert "Training" not in Page(Report("t").curves(metrics, {"x": {"a": "empty"}}).html()).text


def test_curves_need_a_metrics_file(tmp_path):
    with pytest.raises(UserError, match=r"gone.csv: no such metrics file"):
        Report("t").curves(tmp_path / "gone.csv", {})
    (tmp_path / "other.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match="no column `step`"):
        Report("t").curves(tmp_path / "other.csv", {})


def points(svg: str) -> list[tuple[float, float]]:
    last = re.findall(r'points="([^"]*)"', svg)[-1]
    return [tuple(map(float, point.split(","))) for point in last.split()]


def test_chart_places_points():
    """A straight line falls from the top left to the bottom right of the plot; ticks are round numbers."""
    svg = line_chart("loss", [Series("training", [0, 50, 100], [4.0, 2.0, 0.0])])
    (x0, y0), (x1, y1), (x2, y2) = points(svg)
    assert x0 < x1 < x2 and y0 < y1 < y2
    assert x1 == pytest.approx((x0 + x2) / 2) and y1 == pytest.approx((y0 + y2) / 2)
    assert {"0", "1", "2", "3", "4", "20", "100"} <= set(re.findall(r">([\d.]+)</text>", svg))
    assert "training <b>0</b>" in svg


def test_chart_smooths_without_lag():
    steps = range(1000)
    svg = line_chart("loss", [Series("line", steps, [step / 1000 + 0.05 * (-1) ** step for step in steps])])
    drawn = points(svg)
    assert len(drawn) <= 400
    slopes = {round((b[1] - a[1]) / (b[0] - a[0]), 1) for a, b in zip(drawn[20:-20:20], drawn[40::20], strict=False)}
    assert len(slopes) == 1


def test_chart_of_a_single_and_of_constant_values():
    assert len(points(line_chart("a", [Series("one", [3], [0.7])]))) == 1
    assert len({y for _, y in points(line_chart("a", [Series("flat", [1, 2], [5.0, 5.0])]))}) == 1
    assert points(line_chart("a", [Series("zero", [0, 1], [0.0, 0.0])]))


def test_write_makes_the_folder(full_report, tmp_path):
    path = full_report.write(tmp_path / "evaluation" / "report.html")
    assert path.read_text(encoding="utf-8") == full_report.html()
