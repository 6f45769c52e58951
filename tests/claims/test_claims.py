"""The claims' files, the plan of runs, the sweep over them, and the page that it writes."""

import contextlib
import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file

from lav2.adapter import parameter_summary
from lav2.adapter.folder import FORMAT
from lav2.claims import __main__ as command
from lav2.claims import one, plots, sweep
from lav2.claims.claim import FOLDER, Setting, read_claims
from lav2.claims.page import write_page
from lav2.claims.plan import Job, Plan, make_plan
from lav2.claims.results import Results
from lav2.claims.sweep import run_all
from lav2.claims.verdict import NOT_DECIDABLE, NOT_REPRODUCED, REPRODUCED, SEEDS
from lav2.cli import CONF, register_resolvers
from lav2.config import problems
from lav2.errors import UserError
from lav2.evaluation.run import model_of
from lav2.evaluation.runs import read
from lav2.training.module import JointModule
from lav2.training.run import bare_model, train

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.fixture(scope="module")
def hydra():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def swept(hydra, tmp_path_factory):
    """(claims, plan, setting): all that `make claims` would run, its folder being a temporary one. Making the plan
    composes every arm and looks for problems in it."""
    folder = tmp_path_factory.mktemp("claims")
    setting = Setting([f"setting.folder={folder / 'runs'}", f"setting.page={folder / 'claims.md'}"])
    claims = read_claims(setting)
    return claims, make_plan(claims, setting), setting


def test_every_run_is_planned_once(swept):
    claims, plan, _ = swept
    assert len({job.folder for job in plan.jobs}) == len(plan.jobs)
    users = [claim.name for claim in claims if "v2" in claim.arms]
    assert len(users) > 3 and len(plan.of("v2")) == SEEDS  # however many claims look at it
    assert plan.same["v1_every"] == "v1" and not any(job.arm.name == "v1_every" for job in plan.jobs)
    assert [job.seed for job in plan.jobs] == sorted(job.seed for job in plan.jobs)  # a stopped sweep has all arms
    assert {job.needs for job in plan.of("v2_captions_after")} == {job.folder for job in plan.of("v2_instructions")}


def test_a_claim_rests_on_three_seeds(swept):
    claims, plan, setting = swept
    for claim in claims:
        first = claim.comparisons[0]
        for arm, outcome in (first.better, first.worse):
            assert len(plan.of(arm)) == SEEDS, (claim.name, arm)
            assert outcome in setting.values["outcomes"]
        assert claim.paper and first.claimed


def test_what_is_compared_is_measured(swept):
    claims, plan, setting = swept
    for claim in claims:
        for comparison in claim.comparisons:
            for arm, outcome in (comparison.better, comparison.worse):
                assert outcome in setting.values["meanings"]
                evaluation = setting.values["outcomes"][outcome].partition("/")[0]
                measured = {setting.evaluations[ability][0] for ability in plan.of(arm)[0].abilities}
                assert evaluation in measured, (claim.name, arm, outcome)


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_is_an_experiment(hydra, name):
    """`python train.py experiment=claims/<name>` trains what the claim starts from, on either setting."""
    config = compose("train", [f"experiment=claims/{name}"])
    assert config.claim.title and config.arm == "v2" and config.data.training == 6000


@pytest.mark.parametrize("method", ["v1", "v2_lora", "lavin"])
def test_methods_are_the_familys(hydra, swept, method):
    _, plan, _ = swept
    family = compose("train", [f"experiment=family/{method}"])
    for section in ("adapter", "vision", "optim", "data", "llama"):
        assert plan.of(method)[0].config[section] == family[section], section


def test_lora_trains_as_many_parameters_as_bias_and_scale(swept):
    _, plan, _ = swept
    counts = [
        parameter_summary(bare_model(plan.of(arm)[0].config))["groups"]["instruction"]["count"]
        for arm in ("tuned", "tuned_lora", "prompts_alone")
    ]
    assert abs(counts[0] / counts[1] - 1) < 0.05 and counts[2] < counts[1] / 2


def test_an_arm_is_what_the_command_line_makes_of_it(hydra, swept):
    claims, _, setting = swept
    arms = {name: arm for claim in claims for name, arm in claim.arms.items()}
    for name in ("v2_late", "v1_captions_after"):
        assert setting.compose(arms[name]) == compose("train", setting.train_overrides(arms[name])), name


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["claims=world", "claims=7b"])
def test_the_whole_grid_has_no_problems(hydra, setting):
    chosen = Setting([setting])
    claims = read_claims(chosen, full=True)
    plan = make_plan(claims, chosen)
    for comparison in [each for claim in claims for each in claim.comparisons if each.claimed]:
        assert len(plan.of(comparison.better[0])) == len(plan.of(comparison.worse[0])) == SEEDS, comparison


def test_7b_by_one_word(hydra):
    chosen = Setting(["claims=7b"])
    (claim,) = read_claims(chosen, only=["prompt_layers"])
    layers = {name: chosen.compose(claim.arms[name]).adapter.prompt_layers for name in ("v1", "v1_third", "v1_every")}
    assert layers == {"v1": 30, "v1_third": 10, "v1_every": 32}  # the paper's
    asked = chosen.compose(read_claims(chosen, only=["zero_shot"])[0].arms["v2_asked"])
    assert asked.data.instructions[1].format == "llava" and problems(asked) == []


def test_what_7b_is_not_given_is_named_before_anything_is_trained(hydra):
    """What only an evaluation needs, too; and what no arm of the claims needs, is not asked for."""
    given, scored = ["claims=7b", "llama.path=/nowhere"], ["setting.mme=a", "setting.held_out_instructions=b"]
    asked = "setting.image_questions, setting.image_folder: not set"
    for claim, more, said in [
        ("zero_shot", [], f"setting.held_out_instructions, setting.mme, {asked}"),
        ("zero_shot", scored, f"^{asked}"),
        ("interference", scored, "no LLaMA at /nowhere"),
    ]:
        chosen = Setting([*given, *more])
        with pytest.raises(UserError, match=said):
            make_plan(read_claims(chosen, only=[claim]), chosen)


def test_what_is_measured_is_there_before_anything_is_trained(hydra, monkeypatch, tmp_path):
    chosen = Setting(["claims=7b", f"setting.mme={tmp_path}", "setting.held_out_instructions=/nowhere.json"])
    monkeypatch.setattr(sweep, "build_data", lambda _: SimpleNamespace(prepare_data=lambda: None))
    (some,) = make_plan(read_claims(chosen, only=["interference"]), chosen).of("v2_instructions")[:1]
    assert some.abilities == ["language"]
    with pytest.raises(UserError, match="paths.instructions is /nowhere.json: name existing"):
        sweep.prepare([some], chosen)


def test_a_mistake_in_a_claim_is_named(hydra, swept, monkeypatch, tmp_path):
    _, _, setting = swept
    claim = OmegaConf.load(FOLDER / "zero_init.yaml")
    for change, said in [
        ({"arms": {"v1": {"overides": []}}}, "there is no 'overides'"),
        ({"arms": {"v1": {"method": "v9"}}}, "there is no method 'v9'"),
        (
            {"comparisons": [{"says": "x", "better": ["v7", "captions"], "worse": ["v1", "captions"]}]},
            "names the arm 'v7'",
        ),
    ]:
        OmegaConf.save(OmegaConf.merge(claim, {"claim": change}), tmp_path / "zero_init.yaml")
        monkeypatch.setattr("lav2.claims.claim.FOLDER", tmp_path)
        with pytest.raises(UserError, match=said):
            make_plan(read_claims(setting), setting)


class Done:
    """A process that ends at the second look."""

    def __init__(self, code):
        self.code, self.looks = code, 0

    @property
    def exitcode(self):
        self.looks += 1
        return self.code if self.looks > 1 else None


def job(tmp_path, name, needs=None):
    needs = needs and tmp_path / needs / "0"
    return Job(SimpleNamespace(name=name), 0, tmp_path / name / "0", None, (), (), needs)


def test_runs_side_by_side_wait_for_what_they_start_from(tmp_path, monkeypatch):
    monkeypatch.setattr("lav2.claims.sweep.POLL", 0)
    setting = SimpleNamespace(folder=tmp_path)
    left = [job(tmp_path, "late", "early"), job(tmp_path, "a"), job(tmp_path, "early"), job(tmp_path, "orphan", "bad")]
    left += [job(tmp_path, "bad"), job(tmp_path, "b", "done before")]
    started, most = [], []

    def start(one, _):
        started.append(one.arm.name)
        return Done(2 if one.arm.name == "bad" else 0)

    failed = run_all(left, setting, 2, lambda running, ended=None: most.append(len(running)), start)
    assert sorted(started) == ["a", "b", "bad", "early", "late"] and started.index("late") > started.index("early")
    assert max(most) == 2 and len(failed) == 2 and any("orphan" in line and "not run" in line for line in failed)


def test_a_run_in_a_process_of_its_own_says_why_it_failed(tmp_path):
    failing = replace(job(tmp_path, "failing"), overrides=["claims=world", "llama.path=/nowhere"])
    setting = SimpleNamespace(folder=tmp_path, values={"evaluations": {}})
    done = run_all([failing], setting, 1, lambda *_: None)
    assert len(done) == 1 and done[0].startswith(f"{failing.folder}: ") and "/nowhere" in done[0]
    assert "Traceback" not in sweep.log_path(failing, setting).read_text()


SMALL = [
    *("data.training=48", "data.held_out=12", "data.instruction_count=120", "data.validation=0.1"),
    *("data.batch_size={caption: 8, instruction: 4}", "setting.steps.base=6", "trainer.limit_val_batches=1"),
    *("trainer.val_check_interval=4", "trainer.log_every_n_steps=1", "callbacks.checkpoint_every=2"),
]


def test_a_stopped_run_goes_on_and_a_done_one_is_left_alone(hydra, tmp_path, monkeypatch, capsys):
    small = [*SMALL, f"data.folder={tmp_path / 'world'}", f"data.cache_dir={tmp_path / 'features'}"]
    evaluation = [
        "eval=language",
        "eval.question_count=3",
        "eval.fact_count=2",
        f"eval.folder={tmp_path}/world/heldout",
    ]
    quoted = ",".join(f"'{override}'" for override in evaluation)
    setting = Setting([*small, f"setting.folder={tmp_path / 'runs'}", f"setting.evaluations.language=[{quoted}]"])
    plan = make_plan(read_claims(setting, only=["interference"]), setting)
    first = plan.of("v2_instructions")[0]
    step = JointModule.training_step

    def killed(self, batch, index):
        if self.global_step == 4:
            raise MemoryError("killed")
        return step(self, batch, index)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(JointModule, "training_step", killed)
        train(first.config.copy(), first.folder)
    assert not first.done(setting)

    order = {"folder": str(first.folder), "train": list(first.overrides), "evaluations": [evaluation]}
    monkeypatch.setattr("sys.argv", ["one", json.dumps(order)])
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(one, "initialize_config_dir", lambda *_, **__: capsys.disabled())  # Hydra is set up already
        patch.setattr(JointModule, "on_train_batch_start", lambda self, *_: taken.append(self.global_step))
        one.main()
        one.main()  # and again: nothing is left to do
    assert taken == [4, 5]
    assert first.done(setting) and read(first.folder / "run.json")["steps"] == 6
    assert {"exact_match", "facts", "loss"} <= read(first.folder / "evaluation" / "language" / "scores.json").keys()

    def look(self):
        stored = load_file(first.folder / "adapter" / "adapter_model.safetensors")
        assert all(torch.equal(value, stored[name]) for name, value in self.model.adapter.state_dict().items())
        raise InterruptedError  # enough was seen

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):  # the next phase starts from it
        patch.setattr(JointModule, "on_train_start", look, raising=False)
        after = [*setting.overrides, f"adapter_from={first.folder}", "tasks=[caption]", "adapter.ownership=shared"]
        train(compose("train", after), tmp_path / "after")

    setting.evaluations["language"][1]["question_count"] = 4
    assert first.unmeasured(setting) == ["language"]  # measured with other settings
    first.config.optim.instruction.optimizer.lr = 1.0
    with pytest.raises(UserError, match="holds a run with optim.instruction.optimizer.lr 0.003"):
        first.done(setting)


EFFECT = {"v1": 0.4, "v1_random_gates": 0.1, "v1_scalar_gates": 0.5}


@pytest.fixture(scope="module")
def fabricated(swept):
    """The page on the gates' claim, from run folders made up; language is the same with every gate."""
    _, _, setting = swept
    (claim,) = read_claims(setting, full=True, only=["zero_init"])
    plan = make_plan([claim], setting)
    for arm, captions in EFFECT.items():
        for one_job in plan.of(arm):
            folder = one_job.folder
            folder.mkdir(parents=True)
            OmegaConf.save(one_job.config, folder / "config.yaml", resolve=True)
            (folder / "run.json").write_text(json.dumps({"state": "finished", "seconds": 90.0}))
            groups = {"caption": {"count": 100}, "instruction": {"count": 7}}
            (folder / "parameters.json").write_text(json.dumps({"groups": groups, "trainable": 107}))
            measured = {"demo": {"color_shape_f1": captions + 0.01 * one_job.seed}, "language": {"exact_match": 0.75}}
            adapter = folder / "adapter"
            adapter.mkdir()
            (adapter / "adapter_config.json").write_text(json.dumps({"format": FORMAT}))
            (adapter / "adapter_model.safetensors").write_bytes(b"")
            for ability in one_job.abilities:
                name, evaluation, config = setting.evaluations[ability]
                made = {"eval": evaluation, "model": model_of(config, adapter)}
                (folder / "evaluation" / name).mkdir(parents=True)
                (folder / "evaluation" / name / "scores.json").write_text(json.dumps(measured[name]))
                (folder / "evaluation" / name / "settings.json").write_text(json.dumps(made))
            with (folder / "metrics.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["step", "train/caption_loss", "train/instruction_loss"])
                writer.writerows([step, 5 - captions * step / 100, 4 - step / 100] for step in range(0, 200, 10))
    results = Results(plan, setting)
    page = write_page([claim], results, setting.page)
    return claim, results, page


def test_verdicts_follow_from_the_run_folders(fabricated):
    claim, results, _ = fabricated
    words = [results.judge(comparison).word for comparison in claim.comparisons]
    assert words == [REPRODUCED, NOT_REPRODUCED, NOT_DECIDABLE, NOT_DECIDABLE]  # captions; language; one seed; no run
    assert results.judge(claim.comparisons[0]).mean == pytest.approx(0.3)
    assert results.trained_parameters("v1") == 107  # shared: all


def test_runs_of_other_settings_are_left_out(fabricated, monkeypatch):
    """Those that the sweep would refuse or measure again, and one that is still training."""
    _, results, _ = fabricated
    assert results.left_out == {}
    first, _, third = results.plan.of("v1")
    monkeypatch.setitem(first.config, "seed", 7)
    monkeypatch.setitem(results.setting.evaluations["language"][1], "question_count", 7)
    record = third.folder / "run.json"
    finished = record.read_text()
    record.write_text(finished.replace("finished", "running"))
    try:
        found = Results(results.plan, results.setting)
    finally:
        record.write_text(finished)
    assert found.left_out.pop("v1/0") == "trained with another seed"
    assert found.left_out.pop("v1/2") == "not trained to the end"
    assert set(found.left_out.values()) == {"language not measured with these settings"} and len(found.left_out) == 5
    assert not any(found.runs.values())


@pytest.mark.parametrize("how", ["another adapter", "another data type"])
def test_scores_of_another_model_are_not_taken_for_today_s(fabricated, how):
    """One trained anew in the same folder, or a base that is read in another data type."""
    _, results, _ = fabricated
    first = results.plan.of("v1")[0]
    if how == "another data type":
        config = results.setting.evaluations["language"][2]
        config.dtype = "bfloat16"
        assert first.unmeasured(results.setting) == ["language"]
        config.dtype = "float32"
    else:
        weights = first.folder / "adapter" / "adapter_model.safetensors"
        weights.write_bytes(b"others")
        assert first.unmeasured(results.setting) == first.abilities
        weights.write_bytes(b"")
    assert first.unmeasured(results.setting) == []


def test_the_plan_is_a_table_with_what_is_left(fabricated, swept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    claims, plan, setting = swept
    plan.show(claims, setting)
    printed = capsys.readouterr().out
    (row,) = [line.split("│")[1:-1] for line in printed.splitlines() if "v1_random_gates" in line and " 2 " in line]
    assert [cell.strip() for cell in row] == ["v1_random_gates", "2", "zero_init", "500", "done"]
    (row,) = [line.split("│")[1:-1] for line in printed.splitlines() if "v1_third" in line and " 0 " in line]
    assert [cell.strip() for cell in row] == ["v1_third", "0", "prompt_layers", "500", "to do"]
    left = sum(job.steps for job in plan.jobs) - 6 * 500
    assert f"6 of {len(plan.jobs)} runs are done; {len(plan.jobs) - 6} runs of {left:,} steps are to do" in printed
    assert f"about {90 / 500 * left / 60:,.0f} minutes" in printed


def test_what_was_hardly_learnt_decides_nothing(fabricated, monkeypatch):
    claim, results, _ = fabricated
    monkeypatch.setitem(results.setting.values["floors"], "captions", 0.9)
    verdict = results.judge(claim.comparisons[0])
    assert verdict.word == NOT_DECIDABLE and verdict.reason == "neither arm has more than 0.41 on average, below 0.9"


def test_a_harm_that_was_not_tried_decides_nothing(fabricated):
    """What must have been learnt, by the arm that is said to lose by it."""
    claim, results, _ = fabricated
    learnt, not_learnt = replace(claim.comparisons[0], requires=("v1", "captions")), ("v1_random_gates", "captions")
    assert results.judge(learnt).word == REPRODUCED
    verdict = results.judge(replace(learnt, requires=not_learnt))
    assert verdict.word == NOT_DECIDABLE and "v1_random_gates has learnt too little: captions 0.11" in verdict.reason


def test_the_page_says_what_was_measured(fabricated):
    _, results, page = fabricated
    text = page.read_text()
    assert "83.85" in text and "40.77" in text  # the paper's numbers
    assert f"captions +0.300 ± 0.000; by seed +0.300, +0.300, +0.300. **{REPRODUCED}** (the paper's sign in" in text
    assert f"| captions +0.300 ± 0.000 | **{REPRODUCED}** (the paper's sign in every seed) |" in text  # at a glance
    assert "Of 3 comparisons with a verdict: 1 reproduced, 1 not reproduced, 1 not decidable" in text
    assert text.index("## Verdicts") < text.index("## Zero-initialised gates") < text.index("## Runs")
    assert "0.410 ± 0.010" in text and "the paper does not say" in text
    assert f"from 7 of {len(results.plan.jobs)} run folders" in text and "runs are missing" in text
    assert "python -m lav2.report" in text and "--by arm --show demo/color_shape_f1 language/exact_match" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):  # every row of a table has its columns
            assert len({line.count("|") for line in block.splitlines()}) == 1, block
    picture = page.with_suffix("") / "zero_init.png"
    assert f"({picture.parent.name}/{picture.name})" in text and picture.stat().st_size > 5000


def test_what_is_compared_shares_a_panel(swept):
    claims, plan, setting = swept
    results = Results(Plan([], plan.same), setting)
    panels = {claim.name: plots.side_by_side(claim, results.outcomes(claim)) for claim in claims}
    assert panels["zero_shot"] == [["questions", "blind"]] and len(panels["interference"]) == 3
    assert panels["experts"] == [
        ["caption_questions", "caption_expert", "wrong_caption", "caption_text"],
        ["sign_questions", "sign_expert", "sign_text", "wrong_sign"],
    ]


def test_a_picture_says_which_arms_are_the_same_runs(fabricated, swept):
    figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure()
    claims, plan, setting = swept
    results = Results(plan, setting)
    (claim,) = [claim for claim in claims if claim.name == "prompt_layers"]
    plots.dots(axes := figure.subplots(), claim, results, ["v1", "v1_every"], ["captions"])
    said = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert said == ["all layers, 10 prompts (the same runs)", "V1's layers, 10 prompts"]


def test_without_matplotlib_there_is_a_page_without_pictures(fabricated, monkeypatch, tmp_path):
    claim, results, _ = fabricated
    monkeypatch.setattr(plots, "can_draw", lambda: False)
    assert "![" not in write_page([claim], results, tmp_path / "claims.md").read_text()


def test_rows_are_made_again_by_the_report(fabricated, tmp_path, capsys):
    from lav2 import report

    _, results, _ = fabricated
    folders = [str(results.setting.folder / arm) for arm in EFFECT]
    report.main([*folders, "--by", "arm", "--show", "demo/color_shape_f1", "--to", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "0.410 ± 0.010" in printed and "v1_random_gates" in printed
    with pytest.raises(SystemExit):
        report.main([*folders, "--by", "harm", "--to", str(tmp_path)])
    assert "--by harm: no run has this setting" in capsys.readouterr().err


def test_a_page_of_nothing_promises_nothing(swept, tmp_path):
    claims, plan, setting = swept
    empty = Results(Plan([], {}), setting)
    empty.plan, empty.runs = plan, {arm: {} for arm in set(plan.same.values())}
    text = write_page(claims, empty, tmp_path / "claims.md").read_text()
    assert f"**{REPRODUCED}**" not in text and f"**{NOT_REPRODUCED}**" not in text
    assert text.count("0 of 3 seeds") > 10 and "both arms are the same model here" in text


def test_an_unknown_claim_is_named(swept):
    with pytest.raises(UserError, match="there is no claim 'nothing'; there are bias_tuning, early_fusion"):
        read_claims(swept[2], only=["nothing"])


def test_only_a_whole_sweep_takes_the_place_of_the_page(fabricated, monkeypatch, tmp_path, capsys):
    """Of one claim, or with runs missing, the page lies beside the runs."""
    claim, results, _ = fabricated
    plan, setting = results.plan, results.setting
    page = tmp_path / "docs" / "claims.md"
    monkeypatch.setattr(setting, "page", page)
    monkeypatch.setattr(command, "initialize_config_dir", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "Setting", lambda _: setting)
    small = read_claims(setting, only=["zero_init"])
    done = make_plan(small, setting)
    for arguments, wanted, planned, whole in [
        (["--page"], [claim], plan, False),
        (["--page", "--only", "zero_init"], small, done, False),
        (["--page"], small, done, True),
    ]:
        monkeypatch.setattr(command, "read_claims", lambda *_, found=wanted: found)
        monkeypatch.setattr(command, "make_plan", lambda *_, found=planned: found)
        command.main(arguments)
        printed = capsys.readouterr().out
        assert page.is_file() == whole and (f"{page} stays as it was" in printed) == (not whole)
        assert f"the verdicts are in {page if whole else setting.folder / page.name}\n" in printed
