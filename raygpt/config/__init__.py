"""The config tree of every job: one class per section, one sentence per key.

`settings` fills it from defaults, a YAML file, the environment and the command line; `problems` holds the
checks that need more than one key. Modules below take plain arguments, not these classes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, validate_default=False)


class Run(Section):
    name: str = Field("gpt2", description="name of the run: its folder below run.storage", min_length=1)
    storage: str = Field("runs", description="where runs live: a local path or an s3:// URI")
    seed: int = Field(1337, description="seed of weights, data order and dropout", ge=0)
    resume: Literal["auto", "never", "must"] = Field(
        "auto", description="go on where the run of this name stopped (auto), refuse if it exists (never) or not (must)"
    )

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if "/" in name or name in (".", ".."):
            raise ValueError("must be one folder name without slashes")
        return name


class Scale(Section):
    num_workers: int | tuple[int, int] = Field(1, description="training workers, or [min, max] for an elastic run")
    use_gpu: bool | Literal["auto"] = Field("auto", description="one GPU per worker (auto: when the cluster has any)")
    cpus_per_worker: float = Field(1, description="CPU cores reserved per worker; also its torch threads", gt=0)
    address: str | None = Field(None, description="Ray address (auto: a running cluster; none: start one here)")

    @property
    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) workers."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers


class Model(Section):
    preset: str = Field(
        "gpt2",
        description="architecture and size: gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano; the keys below override "
        "parts of it",
    )
    n_layer: int | None = Field(None, description="transformer blocks", ge=1)
    n_head: int | None = Field(None, description="attention heads", ge=1)
    n_embd: int | None = Field(None, description="width", ge=1)
    vocab_size: int | None = Field(None, description="vocabulary; none: the tokenizer's", ge=2)
    seq_len: int | None = Field(None, description="longest context in tokens", ge=1)
    dropout: float = Field(0.0, description="dropout probability", ge=0, lt=1)
    bias: bool = Field(True, description="biases in linear layers and norms, as GPT-2 has them")
    tie_weights: bool = Field(True, description="output layer shares the token embedding, as GPT-2 does")
    init_from: str = Field(
        "random",
        description="weights: random, a Hugging Face id or folder, or a run folder or checkpoint (path or s3://)",
    )
    lora_rank: int = Field(0, description="train low-rank adapters of this rank instead of all weights; 0: all", ge=0)
    lora_alpha: float | None = Field(None, description="scale of the adapters; none: twice their rank", gt=0)
    lora_dropout: float = Field(0.0, description="dropout before the adapters", ge=0, lt=1)


class Prepare(Section):
    sources: list[str] = Field([], description="files, globs, folders, s3:// URIs or Hugging Face dataset ids")
    subset: str | None = Field(None, description="subset of a Hugging Face dataset, such as sample-10BT")
    text_column: str = Field("text", description="column or key that holds the document")
    output: str | None = Field(None, description="folder (local or s3://) that gets train/ and val/")
    val_fraction: float = Field(0.005, description="share of the documents held out for validation", gt=0, lt=1)
    val_split: Literal["documents", "tail"] = Field(
        "documents", description="hold out whole documents, or the last part (tail) of every document"
    )
    val_sources: list[str] = Field(
        [], description="documents held out for validation, instead of a share of prepare.sources"
    )
    split_text: bool = Field(
        False, description="cut text files into documents at their own breaks (marks, form feeds, blank lines)"
    )
    max_document_mb: float = Field(256, description="a longer document is refused: it has to fit memory", gt=0)
    shard_tokens: int = Field(2**24, description="tokens per shard file", ge=1024)
    max_documents: int | None = Field(None, description="stop after this many documents", ge=1)
    encoding_errors: Literal["strict", "replace"] = Field(
        "strict", description="invalid UTF-8 ends the job (strict) or becomes U+FFFD (replace)"
    )

    @field_validator("sources", "val_sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Data(Section):
    train: str | None = Field(None, description="token shard folder, or raw text prepared on first use")
    val: str | None = Field(None, description="validation shard folder; none: the val/ beside train/")
    text_column: str | None = Field(
        None, description="column or key of raw data.train and data.val; none: prepare.text_column"
    )
    tokenizer: str = Field(
        "gpt2", description="gpt2, bytes, train:<vocab_size>, a folder with a tokenizer, or base: model.init_from's own"
    )
    seq_len: int | None = Field(None, description="tokens per training row; none: model.seq_len", ge=1)
    backend: Literal["ray", "mmap"] = Field("ray", description="read through Ray Data, or with numpy in the worker")
    cache_gb: float = Field(20, description="local disk kept per machine for shards read from S3; 0 turns it off", ge=0)
    ignore_fingerprint: bool = Field(
        False, description="resume on other shards than the run began with: tokens will repeat or be missed"
    )


class Optim(Section):
    name: Literal["adamw"] = Field("adamw", description="optimizer")
    lr: float = Field(6e-4, description="peak learning rate; never scaled by the worker count", gt=0)
    weight_decay: float = Field(0.1, description="decay of matrices; vectors have none", ge=0)
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's averaging factors")
    eps: float = Field(1e-8, description="AdamW's epsilon", gt=0)
    schedule: Literal["cosine", "wsd", "linear", "constant"] = Field("cosine", description="learning-rate schedule")
    warmup_steps: int | None = Field(None, description="steps of linear warm-up", ge=0)
    warmup_fraction: float | None = Field(None, description="warm-up as a share of all steps", ge=0, lt=1)
    decay_fraction: float = Field(0.2, description="share of all steps in the final decay of wsd", gt=0, le=1)
    min_lr_ratio: float = Field(0.1, description="last learning rate over the peak", ge=0, le=1)
    grad_clip: float = Field(1.0, description="largest gradient norm; 0 turns clipping off", ge=0)


class Train(Section):
    max_steps: int | None = Field(None, description="optimizer steps (one of max_steps, max_tokens, epochs)", ge=1)
    max_tokens: int | None = Field(None, description="tokens to train on", ge=1)
    epochs: float | None = Field(None, description="passes over the training shards", gt=0)
    global_batch_tokens: int = Field(524_288, description="tokens per optimizer step over all workers", ge=1)
    micro_batch_size: int | Literal["auto"] = Field("auto", description="rows per forward pass of one worker")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field("auto", description="arithmetic of the model")
    compile: bool = Field(False, description="torch.compile the model")
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = Field(
        "ddp", description="what workers share out (DeepSpeed ZeRO): 1 optimizer state, 2 gradients too, 3 weights too"
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="kept in host memory: nothing, the optimizer's part, or the weights too (zero3)"
    )
    deepspeed: dict[str, Any] = Field({}, description="DeepSpeed settings that override the derived ones, key by key")
    activation_checkpointing: bool = Field(
        False, description="recompute activations: less memory, about a third more work"
    )
    log_every: int = Field(10, description="steps between log lines", ge=1)
    checkpoint_every: int = Field(500, description="steps between checkpoints; 0: only at the end", ge=0)
    keep_checkpoints: int = Field(2, description="newest checkpoints kept (the best one is kept besides)", ge=1)
    save_best: bool = Field(False, description="save whenever an evaluation is the best so far")
    max_failures: int = Field(
        3, description="restarts after a lost worker before the job gives up; -1: no limit", ge=-1
    )
    log_batch_digest: bool = Field(False, description="log a digest of every step's token ids (slower)")


class Eval(Section):
    every: int = Field(250, description="steps between evaluations; 0: only at the end", ge=0)
    batches: int | None = Field(None, description="global batches per evaluation, evenly spaced; none: all", ge=1)
    first: bool = Field(False, description="evaluate before the first step: where training starts from")
    patience: int | None = Field(
        None, description="stop after this many evaluations in a row without a better loss; none: never", ge=1
    )
    min_delta: float = Field(0.0, description="nats per token by which a loss must be better to count as better", ge=0)


class Track(Section):
    wandb: Literal["auto", "online", "offline", "off"] = Field("auto", description="W&B (auto: offline without a key)")
    wandb_project: str = Field("raygpt", description="W&B project")
    tensorboard: bool = Field(True, description="write TensorBoard event files into the run folder")
    price_per_hour: float | None = Field(
        None, description="USD per hour of the whole cluster; none: no cost shown", ge=0
    )
    max_cost_usd: float | None = Field(None, description="save and stop when the run has cost this much", gt=0)

    @field_validator("price_per_hour", mode="before")
    @classmethod
    def _auto_is_unknown(cls, value: Any) -> Any:
        return None if value == "auto" else value


class Sample(Section):
    prompt: str = Field("", description="text to go on from; empty: the start of a document")
    num_samples: int = Field(3, description="texts to write", ge=1)
    max_new_tokens: int = Field(200, description="longest text in tokens", ge=1)
    temperature: float = Field(0.8, description="0 picks the likeliest token every time", ge=0)
    top_k: int | None = Field(200, description="choose among this many likeliest tokens", ge=1)
    top_p: float | None = Field(None, description="choose among tokens holding this share of probability", gt=0, le=1)


class Export(Section):
    output: str | None = Field(None, description="Hugging Face folder to write; none: export/ in the run folder")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="type of the written weights")
    shard_gb: float = Field(2, description="largest weight file; also about the memory that exporting takes", gt=0)


class Plan(Section):
    gpu: str | None = Field(None, description="GPU to plan for, such as V100, or cpu; none: what the cluster has")
    gpu_memory_gb: float | None = Field(None, description="memory of one GPU in GB; none: that of the GPU", gt=0)
    gpus_per_host: int | None = Field(None, description="workers on one machine; none: all there are", ge=1)
    host_memory_gb: float | None = Field(None, description="memory of one machine in GB; none: this machine's", gt=0)
    disk_gb: float | None = Field(None, description="room for checkpoints in GB; none: what is free", gt=0)
    check: Literal["refuse", "warn", "off"] = Field(
        "refuse", description="what a training job does when it will not fit: refuse, warn, or not look"
    )


class Compare(Section):
    base: str | None = Field(None, description="model before fine-tuning (run, checkpoint, Hugging Face folder or id)")
    tuned: str | None = Field(None, description="model after fine-tuning; a run folder or name in run.storage")
    domain: str | None = Field(None, description="held-out text of the domain; none: the tuned run's validation data")
    general: str | None = Field(None, description="general text, to measure what was forgotten; none: not measured")
    terms: str | None = Field(None, description="file with one domain term per line; none: mined from the text")
    num_terms: int = Field(20, description="terms probed", ge=1)
    documents: int = Field(300, description="documents per text that losses are taken over, evenly spaced", ge=2)
    resamples: int = Field(2000, description="bootstrap resamples behind the confidence intervals", ge=100)
    samples: int = Field(4, description="pairs of samples, prompted with beginnings of held-out documents", ge=0)
    sample_tokens: int = Field(120, description="tokens per sample", ge=1)
    overlap_tokens: int = Field(16, description="shortest verbatim overlap with training text that is shown", ge=4)
    output: str | None = Field(None, description="folder of the page; none: comparison/ in the tuned run's folder")


class Task(Section):
    name: str | None = Field(
        None, description="classification task, such as mrpc; none: no classification, language modelling"
    )
    train: str | None = Field(
        None, description="CSV, TSV or JSONL with text and labels, a folder with train.* and validation.*, or glue/mrpc"
    )
    val: str | None = Field(None, description="validation file, scored once; none: the validation.* beside task.train")
    test: str | None = Field(None, description="labelled file that only `raygpt evaluate` scores")
    text_columns: list[str] = Field([], description="one text column, or two for pairs; empty: found by their names")
    label_column: str | None = Field(None, description="column of the labels; none: label (or MRPC's Quality)")
    labels: list[str] = Field([], description="the labels there may be, in order; empty: those of the training file")
    selection_fraction: float = Field(
        0.1, description="share of the training file that hyperparameters and epochs are chosen on", gt=0, lt=1
    )
    split_seed: int = Field(0, description="seed of that share; the same for every trial and seed", ge=0)
    train_examples: int | None = Field(None, description="use only this many training examples; none: all", ge=2)
    max_tokens: int = Field(256, description="longer texts are cut, the longer one of a pair first", ge=8)
    batch_size: int = Field(16, description="examples per optimizer step", ge=1)
    label_smoothing: float = Field(0.0, description="probability spread over the other labels", ge=0, lt=1)
    layer_decay: float = Field(
        1.0, description="learning rate of a block over that of the block above it; 1: the same everywhere", gt=0, le=1
    )
    reinit_layers: int = Field(0, description="topmost blocks that start from fresh weights", ge=0)
    swap_train: bool = Field(True, description="training shows a pair in either order, drawn anew each epoch")
    swap_eval: bool = Field(True, description="evaluation averages the logits of both orders of a pair")

    @field_validator("text_columns", "labels", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | int) else value
        return [str(item) for item in items] if isinstance(items, list) else items


class Tune(Section):
    space: dict[str, Any] = Field(
        {}, description="what to search: any setting -> choice, uniform, loguniform, randint or grid, and its values"
    )
    search: Literal["random", "grid", "optuna"] = Field(
        "optuna", description="how trials are proposed: optuna is multivariate TPE"
    )
    scheduler: Literal["asha", "hyperband", "pbt", "pb2", "median", "none"] = Field(
        "asha", description="how bad trials are stopped early (pbt, pb2: replaced by mutated good ones)"
    )
    job: Literal["auto", "classify", "pretrain", "finetune"] = Field(
        "auto", description="what a trial runs (auto: classify where task.name is set, else pretrain)"
    )
    metric: str | None = Field(
        None, description="what trials are ranked by: accuracy, f1, loss; val_loss or train_loss; none: the usual one"
    )
    trials: int = Field(16, description="trials in all; with grid: passes over the grid (1 is usual)", ge=1)
    concurrent: int | None = Field(
        None, description="most trials at a time (not with pbt, pb2); none: as many as resources allow", ge=1
    )
    cpus_per_trial: float = Field(1, description="CPU cores of one classification trial", gt=0)
    gpus_per_trial: float | Literal["auto"] = Field(
        "auto", description="GPUs of one classification trial; 0.5 puts two on one GPU (auto: 1 where there are any)"
    )
    memory_gb: float | None = Field(
        None, description="host memory a classification trial may take beside the libraries; more ends it", gt=0
    )
    grace: int = Field(1, description="epochs (or evaluations) before asha, hyperband or median may stop a trial", ge=1)
    reduction_factor: float = Field(3, description="asha, hyperband: one trial in this many goes on at a rung", gt=1)
    interval: int = Field(2, description="pbt, pb2: epochs between exploits", ge=1)
    max_seconds: float | None = Field(None, description="stop searching after this long, restarts counted in", gt=0)
    max_failures: int = Field(2, description="restarts of a trial whose worker or node was lost", ge=0)
    top: int = Field(3, description="best configurations that are run again over tune.seeds; 0: no final runs", ge=0)
    seeds: int = Field(5, description="seeds per configuration in the final runs", ge=1)
    baseline: dict[str, Any] = Field(
        {}, description="settings of the configuration to beat; empty: this config as it is, without tune.space"
    )
    resamples: int = Field(5000, description="bootstrap resamples behind the confidence intervals", ge=100)
    show_every: float = Field(30, description="seconds between tables in a job log (a terminal: each change)", gt=0)


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
    task: Task = Field(default_factory=Task, description="classification of texts or pairs of texts")
    tune: Tune = Field(default_factory=Tune, description="`raygpt tune`: the search for hyperparameters")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, as saved in config.yaml. Holds no credentials: none can be set here."""
        return self.model_dump(mode="json")
