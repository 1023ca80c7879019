"""Every setting of every job: one attribute per section."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raygpt.config.benchmark import Benchmark
from raygpt.config.compare import Compare
from raygpt.config.data import Data
from raygpt.config.distill import Distill
from raygpt.config.eval import Eval
from raygpt.config.export import Export
from raygpt.config.generate import Generate
from raygpt.config.model import Model
from raygpt.config.optim import Optim
from raygpt.config.plan import Plan
from raygpt.config.prepare import Prepare
from raygpt.config.run import Run
from raygpt.config.sample import Sample
from raygpt.config.scale import Scale
from raygpt.config.section import Section
from raygpt.config.serve import Serve
from raygpt.config.task import Task
from raygpt.config.teacher import Teacher
from raygpt.config.track import Track
from raygpt.config.train import Train
from raygpt.config.tune import Tune


class Config(Section):
    """Every setting of every job."""

    run: Run = Field(default_factory=Run, description="name, place and seed of the run")
    scale: Scale = Field(default_factory=Scale, description="workers and the Ray cluster")
    model: Model = Field(default_factory=Model, description="architecture and starting weights")
    prepare: Prepare = Field(default_factory=Prepare, description="documents to token shards")
    data: Data = Field(default_factory=Data, description="what is trained on")
    optim: Optim = Field(default_factory=Optim, description="optimizer and learning rate")
    train: Train = Field(default_factory=Train, description="length, batch, precision, checkpoints")
    eval: Eval = Field(default_factory=Eval, description="evaluation during training and by `raygpt evaluate`")
    track: Track = Field(default_factory=Track, description="trackers and cost")
    sample: Sample = Field(default_factory=Sample, description="`raygpt sample`")
    export: Export = Field(default_factory=Export, description="`raygpt export`")
    plan: Plan = Field(default_factory=Plan, description="`raygpt plan`: will it fit?")
    compare: Compare = Field(default_factory=Compare, description="`raygpt evaluate --base … --tuned …`")
    benchmark: Benchmark = Field(default_factory=Benchmark, description="`raygpt benchmark`: speed and resources")
    task: Task = Field(default_factory=Task, description="classification of texts or pairs of texts")
    tune: Tune = Field(default_factory=Tune, description="`raygpt tune`: the search for hyperparameters")
    teacher: Teacher = Field(
        default_factory=Teacher, description="the model that writes, or that a student learns from"
    )
    serve: Serve = Field(default_factory=Serve, description="`raygpt serve`: the OpenAI protocol and a page")
    generate: Generate = Field(default_factory=Generate, description="`raygpt generate`: synthetic text from a teacher")
    distill: Distill = Field(default_factory=Distill, description="`raygpt distill`: a student learns from a teacher")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as saved in config.yaml. Holds no credentials: none can be set here."""
        return self.model_dump(mode="json")
