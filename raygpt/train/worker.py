"""What every training worker runs under Ray Train: build, restore, train, report. One process, one device."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import socket
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from raygpt import storage
from raygpt.capacity.allocator import is_tight, return_freed_memory
from raygpt.capacity.micro_batch import EVALUATION_ROWS, accumulation
from raygpt.config import Config
from raygpt.config.settings import config_from_dict
from raygpt.data.order import ORDER_VERSION
from raygpt.data.reader import TokenReader
from raygpt.data.service import Group, served_blocks, service_of
from raygpt.data.shards import AnyLayout, Layout
from raygpt.data.stream import Batch, Source, batches, mapped_blocks
from raygpt.data.tokenizer import Tokenizer
from raygpt.errors import UserError
from raygpt.model import registry
from raygpt.parallel import checkpoint
from raygpt.parallel.checkpoint import RunState
from raygpt.parallel.distributed import World
from raygpt.parallel.rng import rank_seed, restore_rng
from raygpt.parallel.saving import new_attempt
from raygpt.parallel.shared import check_shared
from raygpt.run.attribution import Voice, speaker
from raygpt.run.control import ControlLink
from raygpt.scoring.hellaswag import Item
from raygpt.storage import Location, locate
from raygpt.train import compile_cache
from raygpt.train.evaluation import evaluate_tokens
from raygpt.train.hellaswag import HellaswagAtHand
from raygpt.train.hooks import RunHooks
from raygpt.train.leaving import Leaving
from raygpt.train.loop import LoopOptions, train
from raygpt.train.objective import Objective, extra
from raygpt.train.plan import TrainPlan
from raygpt.train.samples import SampleWriter
from raygpt.train.strategy import Recipe, Strategy, build, device_memory

# Makes a rank's objective, of a floor that training does not know. Pickled; called on every rank alike, for it may read
# weights for all of a machine.
MakeObjective = Callable[[World, TrainPlan], Objective]

STREAMED_BYTES_PER_SECOND = 300e6  # to a disk of this decade, one hash of a core on the way


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Everything the driver worked out for the workers. Picklable; holds no credentials."""

    config: dict[str, Any]
    run_uri: str
    train: AnyLayout
    val: Layout
    plan: TrainPlan
    model: dict[str, Any]
    tokenizer_json: bytes
    tokenizer_name: str
    eot_id: int
    tokenizer_sha256: str
    control: Any
    reader: str  # name of the nodes' reader services
    planned_rows: int | None = None
    objective: MakeObjective | None = None  # language modelling where there is none
    hellaswag: tuple[Item, ...] = ()  # asked at every evaluation


def train_worker(assignment: Assignment) -> None:
    """The loop function of the TorchTrainer."""
    config = config_from_dict(assignment.config)
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    if is_tight(config.train.strategy, config.train.activation_checkpointing):
        return_freed_memory()
    world = World.join(device)
    spread = len(set(world.gather(socket.gethostname()))) > 1
    who = speaker(config.run.name, world.rank) if spread else ""
    link = ControlLink(assignment.control, who) if world.rank == 0 else None
    try:
        with Voice(assignment.control, who) if spread else contextlib.nullcontext():
            _train(assignment, config, world, link)
    except UserError as error:
        # before the first step a restart would only meet the same mistake again
        if link is None or link.started:
            raise
        link.send("refused", str(error))
    finally:
        if link is not None:
            link.close()


def _train(assignment: Assignment, config: Config, world: World, link: ControlLink | None) -> None:
    plan, run = assignment.plan, locate(assignment.run_uri)
    folders = dict(zip(("data.train", "distill.real"), assignment.train.folders)) | {"data.val": assignment.val}
    check_shared(run, "config.yaml", folders, world)
    found = _choose_checkpoint(run, world, link)
    state = checkpoint.read_state(found) if found is not None else _fresh_state(assignment)
    source = Source(assignment.train, plan.order, world.rank, world.size, int(config.data.cache_gb * 1e9))
    stream = _stream(source, config.data.backend, assignment.reader, world, state.step, plan.total_steps)
    model_config = registry.model_config(assignment.model)
    cached = found is not None and config.train.compile and _load_compiled(run, world, link)
    objective = assignment.objective(world, plan) if assignment.objective is not None else None
    recipe = Recipe(config.model, config.optim, config.train, config.run.seed)
    strategy, precision = build(recipe, model_config, world, plan, found, state, assignment.planned_rows, objective)
    if config.train.compile and world.rank == 0 and not cached:
        compiled = compile_cache.pack(world.device)  # rehearsing has compiled all that training needs
        if compiled is not None:
            storage.write_bytes(run / compile_cache.NAME, compiled)
    model, micro = strategy.model, strategy.micro_batch_size
    # every rank draws its own dropout; a restored generator goes on where it was
    torch.manual_seed(rank_seed(config.run.seed, world.rank, state.step))
    rank_state = None
    if found is not None:
        saved = checkpoint.read_rank(found, world.rank) if state.world_size == world.size else None
        if saved is not None:
            restore_rng(saved["rng"], world.device)
            rank_state = saved["loss"]
    state.world_size, state.micro_batch_size, state.device_memory = world.size, micro, device_memory(world)
    val_reader = TokenReader(assignment.val, int(config.data.cache_gb * 1e9))

    def evaluate() -> float:
        result = evaluate_tokens(
            model,
            val_reader,
            plan.order.seq_len,
            EVALUATION_ROWS * micro,
            world.device,
            strategy.autocast,
            max_rows=plan.evaluation_rows,
            rank=world.rank,
            world_size=world.size,
            reduce=world.sum,
        )
        return result.loss

    asked = _hellaswag(assignment, config, EVALUATION_ROWS * micro * plan.order.seq_len)
    writer = _sample_writer(assignment, config)
    attempt = world.broadcast(new_attempt())
    hooks = RunHooks(assignment.tokenizer_json, config, run, world, strategy, state, link, attempt)
    if link is not None:
        link.send(
            "start",
            {
                "step": state.step,
                "workers": world.size,
                "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "CPU",
                "precision": precision,
                "micro_batch_size": micro,
                "grad_accum_steps": accumulation(plan.order.global_batch_rows, world.size, micro),
                "resumed": found.uri if found else None,
                "parameters": model_config.num_parameters(),
            },
        )
    options = LoopOptions(
        log_every=config.train.log_every,
        eval_every=config.eval.every,
        checkpoint_every=config.train.checkpoint_every,
        log_batch_digest=config.train.log_batch_digest,
        flops_per_token=model_config.flops_per_token(plan.order.seq_len),
        cost_usd=link.cost_usd if link is not None else lambda: None,
        # a forward pass is a third of a step's work
        evaluation_steps=(
            min(plan.evaluation_rows or math.inf, val_reader.total_tokens / plan.order.seq_len)
            + (asked.tokens / plan.order.seq_len if asked is not None else 0)
        )
        / (3 * plan.order.global_batch_rows),
        # a snapshot costs next to nothing; what is written while training waits goes at about this speed with hashing
        checkpoint_seconds=0.0
        if strategy.background
        else 12 * model_config.num_parameters() / world.size / STREAMED_BYTES_PER_SECOND,
        evaluate_first=config.eval.first,
        patience=config.eval.patience,
        min_delta=config.eval.min_delta,
        save_best=config.train.save_best,
    )
    model.train()
    try:
        beside, figures = extra(objective, "beside"), extra(objective, "figures") or dict
        answers = partial(_ask, asked, writer, hooks, model, world, strategy, state)
        rest = (options, evaluate, rank_state, beside, figures, answers)
        end = train(strategy.step, stream, plan, state, world, hooks, *rest)
    except BaseException:
        hooks.finish(failed=True)
        raise
    finally:
        gc.unfreeze()  # the loop froze it
    hooks.finish()
    # rank 0 is here when the checkpoint counts, so nobody ends before it does
    if end.outcome == "stopped" and not world.broadcast(link is not None and link.stop_requested()):
        raise Leaving(f"saved at step {state.step}")
    if link is not None:
        link.send("end", {"outcome": end.outcome, "why": end.why, "state": dataclasses.asdict(state)})


def _stream(
    source: Source, backend: str, reader: str, world: World, first_step: int, last_step: int
) -> Iterator[Batch]:
    """This rank's batches; through the service, reading begins while the model is built."""
    if backend == "mmap":
        blocks = mapped_blocks(source, first_step, last_step)
    else:
        nodes = world.gather(ray.get_runtime_context().get_node_id())
        here = [rank for rank, node in enumerate(nodes) if node == nodes[world.rank]]
        group = Group(world.broadcast(uuid.uuid4().hex), tuple(here), last_step)
        blocks = served_blocks(service_of(reader, group), group, source, first_step)
    return batches(source, blocks, first_step, last_step)


def _hellaswag(assignment: Assignment, config: Config, batch_tokens: int) -> HellaswagAtHand | None:
    """What is asked at every evaluation, in passes as large as the evaluation's own."""
    if not assignment.hellaswag:
        return None
    tokenizer = Tokenizer.from_json(assignment.tokenizer_json, assignment.tokenizer_name, assignment.eot_id)
    context = registry.model_config(assignment.model).seq_len
    return HellaswagAtHand(assignment.hellaswag, config.eval.protocols[0], tokenizer, context, batch_tokens)


def _sample_writer(assignment: Assignment, config: Config) -> SampleWriter | None:
    """What is written at every evaluation, as the section `sample` has it."""
    if not config.eval.samples:
        return None
    wanted = config.sample
    return SampleWriter(
        Tokenizer.from_json(assignment.tokenizer_json, assignment.tokenizer_name, assignment.eot_id),
        wanted.prompt,
        config.eval.samples,
        wanted.max_new_tokens,
        registry.model_config(assignment.model).seq_len,
        wanted.temperature,
        wanted.top_k,
        wanted.top_p,
        config.run.seed,
    )


def _ask(
    asked: HellaswagAtHand | None,
    writer: SampleWriter | None,
    hooks: RunHooks,
    model: torch.nn.Module,
    world: World,
    strategy: Strategy,
    state: RunState,
) -> dict[str, float]:
    """What an evaluation tells beside the loss; texts of the model go where they are kept."""
    told = asked.ask(model, world, strategy.autocast) if asked is not None else {}
    if writer is not None:
        hooks.keep_samples(state.step, writer.write(model, world.device, strategy.autocast))
    return told


def _load_compiled(run: Location, world: World, link: ControlLink | None) -> bool:
    """Take up what an earlier attempt of this run compiled; whether there was any. What is wrong with it is noted."""
    try:
        problem = compile_cache.unpack(storage.read_bytes(run / compile_cache.NAME), world.device)
    except FileNotFoundError:
        return False
    if problem is not None and link is not None:
        link.send("note", f"{compile_cache.NAME} is ignored: {problem}")
    return problem is None


def _choose_checkpoint(run: Location, world: World, link: ControlLink | None) -> Location | None:
    """The newest usable checkpoint, verified by all ranks together; what killed groups left is deleted."""
    found, notes = checkpoint.newest_usable(run, world)
    if world.rank == 0:
        notes = [*notes, *checkpoint.delete_leftovers(run)]
    if link is not None:
        for note in notes:
            link.send("note", note)
    return found


def objective_name(objective: MakeObjective | None) -> str:
    """What a checkpoint says of what is learned."""
    return getattr(objective, "name", "language_modelling")


def _fresh_state(assignment: Assignment) -> RunState:
    return RunState(
        order_version=ORDER_VERSION,
        fingerprint=assignment.plan.order.fingerprint,
        tokenizer_sha256=assignment.tokenizer_sha256,
        tokenizer_name=assignment.tokenizer_name,
        eot_id=assignment.eot_id,
        model=assignment.model,
        objective=objective_name(assignment.objective),
        teacher=getattr(assignment.objective, "teacher_uri", ""),
    )
