"""The configs that are shipped: each loads for its jobs and says what its recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygpt.cli import main
from raygpt.config.settings import load_config
from raygpt.jobs import find_jobs
from raygpt.model.gpt import GPTConfig
from raygpt.model.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
EVERY = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
SWEEPS = [path for path in EVERY if "\ntune:" in path.read_text()]
GENERATED = [path for path in EVERY if "\ngenerate:" in path.read_text()]
TEACHERS = [path for path in EVERY if "\nteacher:" in path.read_text()]
DISTILLED = [path for path in EVERY if "\ndistill:" in path.read_text()]
BENCHMARKS = [path for path in EVERY if "\nbenchmark:" in path.read_text()]
CONFIGS = [path for path in EVERY if path not in {*SWEEPS, *TEACHERS, *DISTILLED, *BENCHMARKS}]
# name -> (rows per step, steps, peak, warm-up, parameters), worked out from the recipes by hand
RECIPES = {
    "gpt2-124m-fineweb": (512, 19_073, 6e-4, 715, 124_439_808),
    # without biases: nanoGPT counts 124,337,664
    "gpt2-124m-openwebtext": (480, 600_000, 6e-4, 2000, 124_337_664),
    "gpt2-large-openwebtext": (512, 29_563, 2.5e-4, 715, 774_030_080),
}
FINETUNING = {"gpt2-xl-finetune", "gpt2-xl-finetune-8gpu", "gpt2-lora"}


def test_the_promised_configs_are_there() -> None:
    assert {path.stem for path in CONFIGS} >= {*RECIPES, *FINETUNING, "quickstart", "shakespeare-bytes"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_passes_a_dry_run(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # the quick start's text is made by the job itself, what is fine-tuned on is the user's own
    job = "finetune" if path.stem in FINETUNING else "pretrain"
    more = ["--data.train=text.txt"] if path.stem in {"quickstart", *FINETUNING} else []
    assert main([job, "--config", str(path), "--dry_run", *more]) == 0
    assert "Settings are sound" in capsys.readouterr().out


def test_the_fine_tuning_benchmark_is_of_gpt2_large_on_openwebtext() -> None:
    (path,) = BENCHMARKS
    file, text = str(path), path.read_text()
    config = load_config("benchmark", file, environ={}, base=find_jobs()["benchmark"].base)
    assert config.benchmark.case == "finetune" and config.run.name == path.stem
    assert config.model.init_from == config.model.preset == "gpt2-large" and config.data.tokenizer == "gpt2"
    prepared = load_config("prepare", file, environ={}).prepare
    assert prepared.sources == ["Skylion007/openwebtext"] and prepared.output == config.data.train
    assert config.train.global_batch_tokens == 256 * 1024 and config.train.max_steps == 1000 and config.eval.first
    for job in ("prepare", "benchmark"):
        assert f"raygpt {job}" in text and f"--config jobs/configs/{path.name}" in text


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_each_sweep_passes_a_dry_run_on_the_real_task(
    path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "--config", str(path), "--dry_run", f"--task.train={shared_data}/mrpc/glue"]) == 0
    printed = capsys.readouterr().out
    assert f"Sweep {path.stem}" in printed and "408 to validate once" in printed
    assert f"raygpt tune --config jobs/configs/{path.name}" in path.read_text()


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.stem)
def test_each_generation_says_how_it_is_run(path: Path) -> None:
    from raygpt.distill.templates import load_template

    config = load_config("generate", str(path), environ={})
    settings = config.generate
    assert config.run.name == path.stem and f"raygpt generate --config jobs/configs/{path.name}" in path.read_text()
    assert load_template(settings.template, text_words=settings.text_words).fields == ("text",)
    # the longest prompt, at two tokens a word, and the longest answer fit the teacher's context
    assert 2 * (settings.text_words or 0) + settings.max_new_tokens < (config.teacher.max_model_len or 0)


def test_the_study_grid_is_the_published_one() -> None:
    from raygpt.tune.space import read_space

    config = load_config(
        "tune", str(ROOT / "jobs/configs/mrpc-grid-colossal.yaml"), environ={}, base=find_jobs()["tune"].base
    )
    points = [tuple(point.values()) for point in read_space(config)[0].grid()]
    assert sorted(points) == sorted((b, lr, w) for b in (16, 32) for lr in (1.2e-5, 2.4e-5) for w in (0.05, 0.1))
    assert config.train.epochs == 9 and config.tune.scheduler == "none" and config.task.name == "mrpc"


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_their_numbers(name: str) -> None:
    file = str(ROOT / "jobs" / "configs" / f"{name}.yaml")
    config = load_config("pretrain", file, environ={})
    assert load_config("prepare", file, environ={}) == config
    rows, steps, peak, warmup, parameters = RECIPES[name]
    assert config.run.name == name
    assert config.train.global_batch_tokens == rows * 1024
    assert (config.train.max_steps or (config.train.max_tokens or 0) // (rows * 1024)) == steps
    assert (config.optim.lr, config.optim.warmup_steps) == (peak, warmup)
    assert (config.optim.schedule, config.optim.min_lr_ratio, config.optim.weight_decay) == ("cosine", 0.1, 0.1)
    assert config.optim.betas == (0.9, 0.95) and config.optim.grad_clip == 1.0
    assert config.train.compile and config.train.micro_batch_size == "auto"
    assert rows % config.scale.worker_range[1] == 0
    assert config.data.train == config.prepare.output and config.data.tokenizer == "gpt2"
    shape = GPTConfig.from_dict({**PRESETS[config.model.preset], "bias": config.model.bias})
    assert shape.num_parameters() == parameters
    text = Path(file).read_text()
    for job in ("prepare", "pretrain"):
        assert f"raygpt {job}" in text and f"--config jobs/configs/{name}.yaml" in text


def test_sources_are_the_data_sets_the_names_promise() -> None:
    fineweb, openwebtext, large = (
        load_config("prepare", str(ROOT / "jobs" / "configs" / f"{name}.yaml"), environ={}).prepare for name in RECIPES
    )
    assert (fineweb.sources, fineweb.subset) == (["HuggingFaceFW/fineweb-edu"], "sample-10BT")
    assert openwebtext.sources == large.sources == ["Skylion007/openwebtext"]
    assert openwebtext.output == large.output  # prepared once for both


def test_the_quick_start_inside_the_package_is_the_one_that_is_shipped() -> None:
    inside = find_jobs()["quickstart"].config
    assert inside is not None
    assert Path(inside).read_text() == (ROOT / "jobs" / "configs" / "quickstart.yaml").read_text()


def test_every_job_has_a_script() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(find_jobs())
    for name in find_jobs():
        script = (ROOT / "jobs" / f"{name}.py").read_text()
        assert f'main(["{name}", *sys.argv[1:]])' in script and len(script.splitlines()) < 15


def test_students_learn_from_what_the_generations_write() -> None:
    """Places fit together: a student's data.train is the run of the generation that its recipe names."""
    assert {path.stem for path in DISTILLED} >= {"distill-student-124m", "distill-small"}
    for path in DISTILLED:
        config, text = load_config("distill", str(path), environ={}), path.read_text()
        assert "raygpt distill" in text and f"--config jobs/configs/{path.name}" in text
        (source,) = [other for other in GENERATED if f"raygpt generate --config jobs/configs/{other.name}" in text]
        made = load_config("generate", str(source), environ={})
        assert made.generate.output is None and config.data.train == f"{made.run.storage}/{made.run.name}"
        assert config.distill.mode == "sequence" and config.distill.real is not None


def test_the_published_student_passes_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "jobs/configs/distill-student-124m.yaml")
    words = ["--data.train=text.txt", "--distill.real=text.txt", "--run.storage=nowhere"]
    assert main(["distill", "--config", config, "--dry_run", *words]) == 0
    assert "512 rows of 1024 tokens" in capsys.readouterr().out
