"""One config tree from four sources; every mistake in one message that names the key and where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from raygpt.config.settings import config_from_dict, dump, known_keys, load_config
from raygpt.errors import UserError
from raygpt.jobs import find_jobs


def write(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


def test_command_line_beats_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "optim: {lr: 1e-3, weight_decay: 0.2, grad_clip: 2}\n")
    environ = {"RAYGPT_OPTIM__WEIGHT_DECAY": "0.3", "RAYGPT_OPTIM__GRAD_CLIP": "3", "OTHER": "x"}
    config = load_config("evaluate", file, {"optim.grad_clip": "4"}, environ)
    assert (config.optim.lr, config.optim.weight_decay, config.optim.grad_clip) == (1e-3, 0.3, 4)
    assert config.optim.betas == (0.9, 0.95)


def test_all_mistakes_are_reported_together_with_their_origin(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {max_stepz: 5, precision: bf17}\noptimm: {lr: 1}\noptim: {lr: fast}\n")
    with pytest.raises(UserError) as caught:
        load_config("pretrain", file, {"eval.every": "-1"}, {"RAYGPT_TRAIN__LOG_EVERY": "x", "RAYGPT_TRAIN_LR": "1"})
    text = str(caught.value)
    assert f"train.max_stepz ({file}) is no setting: did you mean train.max_steps?" in text
    assert f"optimm.lr ({file}) is no setting: did you mean optim.lr?" in text
    assert f"train.precision ({file}) is 'bf17': must be auto | fp32 | tf32 | bf16 | fp16" in text
    assert f"optim.lr ({file}) is 'fast': must be number" in text
    assert "eval.every (--eval.every) is -1: must be at least 0" in text
    assert "train.log_every (environment RAYGPT_TRAIN__LOG_EVERY) is 'x': must be int" in text
    assert "RAYGPT_TRAIN_LR names no setting" in text
    assert len(text.splitlines()) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train.max_steps": "5"}, "data.train is not set"),
        ({"data.train": "x"}, "train.max_steps is not set: set exactly one of"),
        (
            {"data.train": "x", "train.max_steps": "5", "train.epochs": "1"},
            "train.max_steps .* is set beside train.epochs",
        ),
        (
            {"data.train": "x", "train.max_steps": "5", "scale.num_workers": "[4, 2]"},
            "scale.num_workers .* range must go upwards",
        ),
        ({"data.train": "x", "train.max_steps": "5", "scale.num_workers": "0"}, "scale.num_workers .* at least 1"),
        ({"optim.warmup_steps": "5", "optim.warmup_fraction": "0.1"}, "are both set"),
        ({"run.name": "a/b"}, "run.name .* is 'a/b': must be one folder name"),
        ({"track.max_cost_usd": "5", "track.price_per_hour": "none"}, "needs track.price_per_hour"),
        ({"track.price_per_hour": "-1.5"}, "price_per_hour .* must be auto, none or 0 or more US dollars"),
        ({"optim.betas": "[0.9, 1.5]"}, "optim.betas .* must both lie in"),
    ],
)
def test_what_takes_two_keys_to_see_is_seen(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(find_jobs()["pretrain"], None, options, {})


def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--config .*nowhere.yaml does not exist"):
        load_config("pretrain", str(tmp_path / "nowhere.yaml"), {}, {})
    with pytest.raises(UserError, match="not valid YAML"):
        load_config("pretrain", write(tmp_path, "a: [1"), {}, {})
    with pytest.raises(UserError, match="must hold sections"):
        load_config("pretrain", write(tmp_path, "- a"), {}, {})


def test_words_stay_words_and_none_unsets(tmp_path: Path) -> None:
    config = load_config("x", None, {"run.name": "2026-01-01", "sample.prompt": "yes", "sample.top_k": "none"}, {})
    assert (config.run.name, config.sample.prompt, config.sample.top_k) == ("2026-01-01", "yes", None)
    assert load_config("x", write(tmp_path, "track: {wandb: off}"), {}, {}).track.wandb == "off"
    assert load_config("x", None, {"track.wandb": "off"}, {}).track.wandb == "off"


def test_the_words_of_a_list_stay_as_they_were_typed() -> None:
    def given(key: str, text: str) -> object:
        section, name = key.split(".")
        return getattr(getattr(load_config("x", None, {key: text}, {}), section), name)

    assert given("prepare.sources", "notes #1.txt") == ["notes #1.txt"]
    assert given("task.labels", "[no, yes]") == ["no", "yes"]
    assert given("task.labels", "[010, 2026-01-01]") == ["010", "2026-01-01"]
    assert given("task.text_columns", '["#1 String", "#2 String"]') == ["#1 String", "#2 String"]
    assert given("task.text_columns", "#1 String") == ["#1 String"]


def test_the_dump_reads_back_as_the_same_config(tmp_path: Path) -> None:
    options = {
        "scale.num_workers": "[1, 4]",
        "train.max_steps": "7",
        "data.train": "s3://b/x",
        "prepare.sources": "a.csv",
    }
    config = load_config("pretrain", None, options, {})
    again = load_config("pretrain", write(tmp_path, dump(config)), {}, {})
    assert again == config
    assert config_from_dict({**config.to_dict(), "gone": {"key": 1}}) == config


def test_every_setting_has_a_sentence_and_an_allowed_value() -> None:
    for key, allowed, description, _ in known_keys():
        assert description and allowed and "<class" not in allowed, key
