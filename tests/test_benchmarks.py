"""The benchmarks themselves, with the least that they can measure: what they count, and that none loses the others."""

import json
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import growth, memory, start
from benchmarks.measure import Ratio


def test_generation_compares_equal_answers(monkeypatch):
    pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    from benchmarks import generation

    small = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    monkeypatch.setattr(generation, "SHAPE", generation.SHAPE | small | heads)
    found = generation.run((1, 16), ("float32",), prompt_length=4, new_tokens=4, repetitions=2)
    assert [one["tokens_equal_transformers"] for one in found["results"]] == [1, 1]
    lines = list(generation.lines(json.loads(json.dumps(found))))
    assert {line.beside for line in lines} == {"transformers", "the bare model", "products alone"}
    assert all(len(line.values) == 2 for line in lines)
    targets = {line.target for line in lines if line.beside == "the bare model" and "decode" in line.what}
    assert targets == {0.9, 1.0, None}


@pytest.mark.parametrize(("share", "target"), [(0.7, None), (0.5, 1.5)])
def test_a_single_row_has_one_of_two_targets(share, target):
    generation = pytest.importorskip("benchmarks.generation", reason="needs transformers (Python 3.11+)")
    speeds = dict.fromkeys(("transformers", "lav2"), {"prefill": [1.0], "decode": [1.0]})
    seconds = dict.fromkeys((generation.BARE, *generation.ADAPTED), [1.0])
    one = {"dtype": "float32", "batch_size": 1, "tokens_per_second": speeds, "prefill": seconds}
    one["step"] = seconds | {generation.LIMIT: [share]}
    lines = {line.what.split(";")[0]: line for line in generation.lines({"results": [one]})}
    assert lines["decode, tokens a second"].target == target and lines["decode, of the limit"].target == 0.6


def test_growth_measures_a_step():
    found = growth.measure(
        growth.Case(length=16, batch=1, prompt_layers=1, prompt_length=2, vocabulary=50), 2, layers=1
    )
    assert len(found["seconds"]) == 2 and min(found["seconds"]) > 0 <= found["peak_mb"]


def test_growth_is_beside_what_the_operations_say():
    """A step that takes as long as its operations say has the ratio 1 everywhere."""
    results = []
    for name, (values, others, expected) in growth.AXES.items():
        needed = [growth.operations(growth.replace(others, **{name: value})) for value in values]
        assert all(np.diff(needed) > 0)
        peaks = [value**expected for value in values]
        results.append({"axis": name, "values": values, "operations": needed, "peak_mb": peaks})
        results[-1] |= {"seconds": [[one, 2 * one] for one in needed], "expected_slope_of_peak": expected}
    lines = list(growth.lines({"results": results}))
    assert all(value == pytest.approx(1) for line in lines for value in line.values)
    assert growth.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


def test_memory_of_each_way_is_beside_the_plain_one():
    one = {"resident": 4e6, "allocated": 4e6, "plan": 3e6, "seconds": 2.0, "loss": 5.0}
    found = {name: [one, one | {"allocated": 2e6}] for name in memory.WAYS}
    found[memory.PLAIN] = [one | {"seconds": 1.0}] * 2
    lines = {line.what: list(line.values) for line in memory.lines({"results": found})}
    assert lines["allocated by a process; int8, checkpointing"] == [1, 0.5]
    assert lines["CPU time a step of a process; float32"] == [2, 2]
    assert lines["what the plan says; bfloat16, fsdp2 on 2"] == [0.75, 1.5] and lines["loss; bfloat16"] == [1, 1]


SHARDED = "bfloat16, fsdp2 on 2"


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("llama"))
    memory.write(folder, 256, 4)
    return folder


@pytest.mark.parametrize(
    "name", [SHARDED, *(pytest.param(name, marks=pytest.mark.slow) for name in memory.WAYS if name != SHARDED)]
)
def test_each_way_allocates_what_the_plan_says(name, llama_folder):
    way = memory.WAYS[name]
    if way.quantize:
        pytest.importorskip("torchao")
    found = memory.in_processes(name, llama_folder, 1)
    assert found["plan"] == pytest.approx(found["allocated"], rel=0.15 if way.processes > 1 else 0.05)
    assert found["seconds"] > 0 and found["loss"] > 0


@pytest.mark.slow
def test_two_processes_that_offload_compute_the_loss_of_one(llama_folder):
    plain, shared = (memory.in_processes(name, llama_folder, 3) for name in (memory.PLAIN, f"{SHARDED}, offload"))
    assert shared["loss"] == pytest.approx(plain["loss"], abs=0.01)


def test_padding_is_counted_over_whole_batches(monkeypatch):
    lengths = np.array([1, 4, 2, 3])
    assert start.padded_share(lengths, [np.array([0, 1]), np.array([2, 3])]) == 1 - 10 / 14
    monkeypatch.delenv("LAV2_TEST_DATA", raising=False)
    monkeypatch.setattr(
        start, "starts", lambda repetitions: {"run": [3.0] * repetitions, "imports": [2.0] * repetitions}
    )
    found = json.loads(json.dumps(start.run(batch_sizes=(8,), epochs=2, repetitions=3)))
    padding, begin = start.lines(found)
    assert padding.median < 0.5 and len(padding.values) == 2  # grouping by length halves it at the least
    assert list(begin.values) == [1.5] * 3
    assert all(sorted(np.concatenate(start.shuffled(lengths, 3, epoch))) == [0, 1, 2, 3] for epoch in range(2))


def test_real_lengths(real_data, monkeypatch):
    monkeypatch.setenv("LAV2_TEST_DATA", str(real_data))
    source, lengths = start.instruction_lengths()
    assert source == "Alpaca" and len(lengths) == 700 and 100 < lengths.mean() < 400


def test_a_benchmark_that_fails_loses_none_of_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "NAMES", ("missing", "start"))
    monkeypatch.setattr("sys.argv", ["benchmarks"])
    monkeypatch.setattr(bench, "plot", lambda found, file: None)
    figures = {"lengths": {"samples": 9, "source": "tests"}, "seconds": {"run": [3.0, 4.0], "imports": [2.0, 2.0]}}
    figures |= {"padding": {}, "environment": bench.environment("lav2"), "minutes": 1.5}
    for folder in ("outputs/benchmarks", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "outputs/benchmarks/start.json").write_text(json.dumps(figures))
    with pytest.raises(SystemExit, match="^failed: missing; "):
        bench.main()
    page = (tmp_path / "benchmarks/results.md").read_text()
    assert "| import torch, lightning | 1.75 | 1.50 – 2.00 | 2 |" in page  # median, spread, repetitions
    assert "cores" in page and "torch 2" in page and "missing" not in page
    assert "benchmarks.missing failed" in capsys.readouterr().out


def test_a_comparison_that_is_ended_loses_none_of_the_others(tmp_path, monkeypatch):
    """For want of memory, say; what was measured is not measured again."""
    training = pytest.importorskip("benchmarks.training", reason="needs transformers (Python 3.11+)")
    made = []

    def compare(folder, shape, dtype, size, ours, repetitions):
        made.append(ours)
        if made == ["prompts", "lora"]:
            raise BrokenProcessPool
        return {"ours": ours}

    monkeypatch.setattr(training, "compare", compare)
    monkeypatch.setattr(training, "environment", lambda *packages: {})  # peers are not there where tests run
    monkeypatch.setattr(training, "write_weights", lambda folder, shape: None)
    monkeypatch.setattr(training, "apart", lambda work, *arguments: work(*arguments))
    case, methods = ("smollm2", "float32", "4x256"), ("prompts", "lora", "bias_and_prompts")
    first, second = (training.run([case], methods, 1, tmp_path) for _ in range(2))
    assert first["failed"] == ["smollm2, float32, 4x256, lora"] and second["failed"] == []
    assert made == ["prompts", "lora", "bias_and_prompts", "lora"]
    assert [one["ours"] for one in second["results"]] == list(methods)


def test_every_benchmark_can_be_run_and_shown():
    pytest.importorskip("transformers", reason="needs transformers (Python 3.11+)")
    pytest.importorskip("pycocoevalcap")
    for name in bench.NAMES:
        module = pytest.importorskip(f"benchmarks.{name}")
        assert callable(module.run) and callable(module.lines)


def test_a_target_is_met_from_its_side():
    assert Ratio("", "", [1, 3, 2], 2).met and not Ratio("", "", [1, 3, 2], 2.5).met
    assert Ratio("", "", [1, 3, 2], 2, less_is_better=True).met and Ratio("", "", [1]).met is None
