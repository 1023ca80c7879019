"""What a sweep leaves behind: sweep.json, best.yaml, summary.json, the study in optuna.db, plots and report.html."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import raygpt
from raygpt import storage
from raygpt.config.settings import config_from_dict, config_with
from raygpt.evaluate.statistics import Difference, Score
from raygpt.storage import Location
from raygpt.track.plots import keep_plots
from raygpt.track.progress import human_duration
from raygpt.tune.finals import BASELINE, Verdict
from raygpt.tune.page import PAGE
from raygpt.tune.plan import SweepPlan
from raygpt.tune.plots import make_plots
from raygpt.tune.results import TrialRecord, best_first, epochs_by_rung
from raygpt.tune.schedulers import rungs
from raygpt.tune.search import DATABASE, importance, record_study
from raygpt.tune.space import decode

CAPTIONS = {
    "curves": "Every trial on the selection part, epoch by epoch; the best five in colour",
    "parallel": "Parallel coordinates: a line per trial, the better the darker",
    "importance": "Share of the score's variance that each setting explains (Optuna, fANOVA)",
    "rungs": "Epochs spent up to each rung and the trials that came that far",
}


def write_outcome(
    plan: SweepPlan,
    folder: Location,
    trials: list[TrialRecord],
    verdict: Verdict | None,
    wall_seconds: float,
    search_seconds: float,
    cost_usd: float | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Write everything about a sweep but its summary.json; returns that and the sentences that the job ends with."""
    storage.write_text(folder / "sweep.json", json.dumps([trial.to_dict() for trial in trials], indent=1) + "\n")
    ranked = best_first(trials, plan.mode)
    study = record_study(folder, plan.space, plan.mode, trials)
    weights = importance(study)
    summary = summarise(plan, trials, verdict, wall_seconds, cost_usd)
    summary["importance"] = weights
    summary["search_seconds"] = search_seconds  # of this start alone
    if ranked:
        chosen = verdict.winner.params if verdict else ranked[0].params
        storage.write_text(folder / "best.yaml", best_config(plan, chosen, folder))
    page = render(plan, folder, trials, verdict, summary)
    storage.write_text(folder / "report.html", page)
    return summary, closing_words(plan, folder, trials, verdict, summary)


def summarise(
    plan: SweepPlan,
    trials: list[TrialRecord],
    verdict: Verdict | None,
    wall_seconds: float,
    cost_usd: float | None = None,
) -> dict[str, Any]:
    """The sweep in figures. Cost counts the whole cluster for as long as the sweep held it."""
    ranked = best_first(trials, plan.mode)
    out: dict[str, Any] = {
        "name": plan.config.run.name,
        "kind": plan.kind,
        "metric": plan.metric,
        "trials": len(trials),
        "states": {state: sum(t.status == state for t in trials) for state in sorted({t.status for t in trials})},
        "epochs": sum(t.epochs_spent for t in trials),
        "epochs_by_rung": epochs_by_rung(trials, _rungs(plan, trials)),
        "trial_seconds": sum(t.seconds for t in trials),
        "wall_seconds": wall_seconds,
    }
    if cost_usd is not None:
        out["cost_usd"] = cost_usd
    if ranked:
        out |= {"best_trial": ranked[0].id, "best_search_score": ranked[0].score, "best_params": ranked[0].params}
    if verdict:
        out["final"] = {
            "seeds": verdict.seeds,
            "winner": verdict.winner.number,
            "params": verdict.winner.params,
            "selection": {str(c.number): {"mean": c.mean, "sd": c.sd, "scores": c.scores} for c in verdict.candidates},
            "validation": verdict.validation,
            "validation_examples": verdict.examples,
            "beats_baseline": verdict.beats_baseline,
            "epochs": sum(trial.epochs_spent for trial in verdict.trials),
        }
    return out


def best_config(plan: SweepPlan, params: dict[str, Any], folder: Location) -> str:
    """best.yaml: the whole config of one configuration, ready for `raygpt finetune` (or pretrain) as it is."""
    config = config_with(plan.config, decode(params), "best")
    job = "pretrain" if plan.kind == "pretrain" else "finetune"
    fresh = config_from_dict({})
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"name": f"{config.run.name}-best"}), "tune": fresh.tune}
    )
    tree = {section: values for section, values in config.to_dict().items() if section != "tune"}
    return (
        f"# The configuration that sweep {folder.name} chose: raygpt {job} --config {folder.uri}/best.yaml\n"
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    )


def closing_words(
    plan: SweepPlan, folder: Location, trials: list[TrialRecord], verdict: Verdict | None, summary: dict[str, Any]
) -> list[str]:
    """The last lines on the terminal: leaderboard, verdict, where everything lies."""
    ranked = best_first(trials, plan.mode)
    lines = [
        f"Leaderboard ({plan.metric}, {'selection part' if plan.kind == 'classify' else 'validation'}; best epoch):"
    ]
    lines += [leader_line(rank, trial) for rank, trial in enumerate(ranked[:10], 1)]
    for trial in trials:
        if trial.error:
            lines.append(f"  trial {trial.id} {trial.status}: {trial.error}")
    if not ranked:
        return [*lines, f"No trial reported {plan.metric}. Figures: {folder.uri}/sweep.json"]
    if verdict:
        lines += verdict_lines(verdict)
    spent = f"{summary['epochs']} epochs, {human_duration(summary['wall_seconds'])}"
    if "cost_usd" in summary:
        spent += f", ${summary['cost_usd']:.2f}"
    lines.append(f"{len(trials)} trials, {spent}. Report: {folder.uri}/report.html; settings: {folder.uri}/best.yaml")
    database = f"{folder.path}/{DATABASE}" if folder.is_local else f"{DATABASE} (copy of {folder.uri}/{DATABASE})"
    lines.append(f"Study: optuna-dashboard sqlite:///{database}")
    return lines


def verdict_lines(verdict: Verdict) -> list[str]:
    """What the final runs say, in words: never a best of several looks at the validation split."""
    lines = [f"Final runs over {verdict.seeds} seeds, selection part (mean ± sd):"]
    for item in verdict.candidates:
        who = "baseline" if item.number == BASELINE else f"candidate {item.number}"
        chosen = "  <- chosen" if item.number == verdict.winner.number else ""
        lines.append(f"  {who}: {item.mean:.4f} ± {item.sd:.4f} {params_text(item.params)}{chosen}")
    if not verdict.validation:
        return [*lines, "  no validation file: set task.val to have the choice scored"]
    lines.append(
        f"Validation split, {verdict.examples} examples, looked at once (mean ± sd over seeds [95 % interval]):"
    )
    for metric, figures in verdict.validation.items():
        best, base = Score(**figures["best"]), Score(**figures["baseline"])
        lines.append(f"  {metric}: chosen {best}; baseline {base}; majority class {figures['majority']:.4f}")
        lines.append(
            f"    chosen - baseline {Difference(**figures['over_baseline'])}; "
            f"chosen - majority class {Difference(**figures['over_majority'])}"
        )
    lines.append(judgement(verdict))
    return lines


def judgement(verdict: Verdict) -> str:
    """One sentence: whether the sweep's pick beats the configuration it started from."""
    gain = Difference(**verdict.validation["accuracy"]["over_baseline"])
    if gain.low > 0:
        return f"The sweep's pick beats the baseline on held-out seeds: accuracy {gain}."
    if gain.high < 0:
        return f"The sweep's pick is worse than the baseline on held-out seeds: accuracy {gain}."
    return f"The sweep's pick does not beat the baseline with confidence: accuracy {gain} includes 0."


def leader_line(rank: int, trial: TrialRecord) -> str:
    return (
        f"{rank:4d}. {trial.score:.4f} at epoch {trial.best_epoch}/{trial.epochs} ({trial.status}, trial {trial.id}) "
        f"{params_text(trial.params)}"
    )


def params_text(params: dict[str, Any]) -> str:
    """`key=value` of every parameter in three figures."""
    if not params:
        return "(the config as it is)"
    return ", ".join(
        f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in params.items()
    )


def render(
    plan: SweepPlan, folder: Location, trials: list[TrialRecord], verdict: Verdict | None, summary: dict[str, Any]
) -> str:
    """The page; its plots are kept in plots/ as well."""
    import jinja2

    with tempfile.TemporaryDirectory() as scratch:
        made = make_plots(
            Path(scratch), trials, plan.space, plan.metric, plan.mode, summary["importance"], summary["epochs_by_rung"]
        )
        plots = keep_plots(made, folder / "plots", CAPTIONS)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(PAGE).render(
        name=plan.config.run.name,
        uri=folder.uri,
        description=plan.describe(),
        task=plan.task.describe() if plan.task else "",
        tiles=_tiles(summary),
        keys=list(plan.space.dimensions),
        metric=plan.metric,
        rows=[_row(rank, trial, plan) for rank, trial in enumerate(best_first(trials, plan.mode), 1)],
        failed=[trial for trial in trials if trial.error],
        verdict=verdict_lines(verdict) if verdict else [],
        judgement=judgement(verdict) if verdict and verdict.validation else "",
        rungs=summary["epochs_by_rung"],
        importance=sorted(summary["importance"].items(), key=lambda item: -item[1]),
        plots=plots,
        version=raygpt.__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _row(rank: int, trial: TrialRecord, plan: SweepPlan) -> dict[str, Any]:
    last = trial.history[(trial.best_epoch or 1) - 1] if len(trial.history) >= (trial.best_epoch or 1) else {}
    return {
        "rank": rank,
        "id": trial.id,
        "score": f"{trial.score:.4f}",
        "f1": f"{last['f1']:.4f}" if "f1" in last else "",
        "loss": f"{last['loss']:.4f}" if "loss" in last else "",
        "epoch": f"{trial.best_epoch}/{trial.epochs}",
        "status": trial.status,
        "seconds": human_duration(trial.seconds),
        "params": [
            f"{value:.3g}" if isinstance(value, float) else str(value)
            for value in (trial.params.get(key, "") for key in plan.space.dimensions)
        ],
    }


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    tiles = [("trials", str(summary["trials"]), states), ("epochs", str(summary["epochs"]), "in the search")]
    if "best_search_score" in summary:
        tiles.append(
            (f"best {summary['metric']}", f"{summary['best_search_score']:.4f}", "of one trial, while searching")
        )
    validation = summary.get("final", {}).get("validation") or {}
    for metric in validation:
        best = validation[metric]["best"]
        tiles.insert(
            0,
            (
                f"validation {metric}",
                f"{best['mean']:.4f}",
                f"± {best['sd']:.4f} over {summary['final']['seeds']} seeds",
            ),
        )
    tiles.append(
        ("wall time", human_duration(summary["wall_seconds"]), f"{human_duration(summary['trial_seconds'])} in trials")
    )
    if "cost_usd" in summary:
        tiles.append(("cost", f"${summary['cost_usd']:,.2f}", "at track.price_per_hour"))
    return tiles


def _rungs(plan: SweepPlan, trials: list[TrialRecord]) -> list[int]:
    longest = max((trial.epochs for trial in trials), default=1)
    return rungs(plan.config.tune, longest if plan.kind != "classify" else plan.longest)
