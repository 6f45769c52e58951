import pytest

from lav2.data.problems import Problems
from lav2.errors import UserError


def test_more_bad_samples_than_max_bad_stop_the_run():
    problems = Problems("captions", max_bad=0.05, total=100)
    for number in range(5):
        problems.add("empty caption", f"annotation {number}")
    with pytest.raises(UserError, match=r"more than 5% of 100 captions are bad: 5 empty caption \(annotation 0, .* 1 "):
        problems.add("broken image", "x.jpg")
    weighty = Problems("captions", total=100)
    with pytest.raises(UserError, match="broken image"):
        weighty.add("broken image", "x.jpg", samples=6)
