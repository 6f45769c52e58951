import pytest

from lav2.data.loader import ResumableLoader
from lav2.data.mixing import TaskCycle, task_order
from lav2.errors import UserError
from tests.data.test_loader import Numbers, stream


def cycle(ratio, captions=23, **options):
    loaders = {
        "caption": ResumableLoader(Numbers(captions), list, 3, seed=1, **options),
        "instruction": ResumableLoader(Numbers(10), list, 2, seed=2, **options),
    }
    return TaskCycle(loaders, ratio)


def test_order_is_even_and_in_the_ratio():
    assert task_order({"a": 1, "b": 1}) == ["a", "b"]
    assert "".join(task_order({"a": 3, "b": 2})) == "ababa"
    assert "".join(task_order({"a": 1, "b": 4})) == "bbabb"
    assert task_order({"a": 3}) == ["a"] * 3


def test_an_epoch_sees_all_of_every_task_and_one_task_a_step():
    for ratio in ({"caption": 1, "instruction": 1}, {"caption": 3, "instruction": 1}, {"caption": 1, "instruction": 5}):
        loader = cycle(ratio)
        steps = list(loader)
        assert len(steps) == len(loader) and all(len(step) == 1 for step in steps)
        for task, count in {"caption": 23, "instruction": 10}.items():
            batches = [step[task] for step in steps if task in step]
            assert len(batches) * sum(ratio.values()) == len(steps) * ratio[task]
            assert {number for batch in batches for number in batch} == set(range(count))


def test_a_tasks_batches_are_those_it_has_alone():
    alone = ResumableLoader(Numbers(10), list, 2, seed=2)
    steps = stream(cycle({"caption": 2, "instruction": 3}), 60)
    assert [step["instruction"] for step in steps if "instruction" in step] == stream(alone, 36)


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"rank": 1, "world_size": 2}], ids=str)
def test_resumes_from_every_position(options):
    ratio = {"caption": 2, "instruction": 1}
    whole = stream(cycle(ratio, **options), 40)
    for position in range(0, 30, 13 if options else 1):
        first, second = cycle(ratio, **options), cycle(ratio, **options)
        assert stream(first, position) == whole[:position]
        second.load_state_dict(first.state_dict())
        assert stream(second, 40 - position) == whole[position:], position


def test_the_position_in_other_data_is_refused():
    with pytest.raises(UserError, match="23 samples, 3 a step, now there are 20, 3"):
        cycle({"caption": 1, "instruction": 1}, 20).load_state_dict(
            cycle({"caption": 1, "instruction": 1}).state_dict()
        )
