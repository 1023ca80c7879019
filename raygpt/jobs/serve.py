"""`raygpt serve`: a model on Ray Serve, over the OpenAI protocol and on a page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raygpt.config import Config
from raygpt.config.job import Call, Job
from raygpt.config.section import Problem
from raygpt.errors import UserError

if TYPE_CHECKING:
    from raygpt.run.stop import StopToken
    from raygpt.serve.deployment import Replicas
    from raygpt.serve.launch import Listening
    from raygpt.serve.requests import Engine


def _checks(config: Config) -> Iterator[Problem]:
    """What is served is a model of one's own, and the key is there."""
    if config.teacher.engine == "endpoint":
        yield "teacher.engine", "is endpoint, which is served already: name transformers, raygpt or vllm"
    if config.teacher.engine == "vllm" and config.teacher.model is None:
        yield "teacher.model", "is not set: vllm needs a Hugging Face id or folder"
    if config.teacher.engine == "vllm" and config.serve.api_key_env:
        yield (
            "serve.api_key_env",
            "has no meaning with teacher.engine=vllm, whose server asks for no key: leave it out and serve.host at "
            "127.0.0.1, behind something that does",
        )
    name, key = config.serve.api_key_env, config.serve.api_key
    if name is not None and key is None:
        yield "serve.api_key_env", f"names {name}, which is not set: set it to the key that clients shall send"
    elif key is not None and not (key.isascii() and key.isprintable()):
        yield "serve.api_key_env", f"names {name}, which holds what no HTTP header can: use plain ASCII characters"


DECLARATION = Job(
    "serve",
    "serve a model over the OpenAI protocol, and on a page to try it",
    ("run", "model", "teacher", "serve"),
    reads=("scale", "data"),
    checks=(_checks,),
    place=85,
)


def run(config: Config, call: Call) -> int:
    from raygpt.serve import vllm

    if config.teacher.engine == "vllm":
        vllm.require_vllm()
        return serve(config, None)
    return serve(config, _engine_maker(config))


def serve(
    config: Config,
    make_engine: Callable[..., Engine] | None,
    *,
    say: Callable[[str], None] | None = None,
    stop: StopToken | None = None,
) -> int:
    """Serve until a signal or `stop`; returns the exit status. `make_engine(use_gpu=…)` is called in every replica;
    without it vLLM serves."""
    began = time.monotonic()
    from raygpt.cluster.connect import is_own
    from raygpt.run.stop import Signals, StopToken
    from raygpt.serve import vllm
    from raygpt.serve.launch import Listening, Server, choose_port, model_name, ready_lines

    say = say or (lambda text: print(text, flush=True))
    token = stop or StopToken()
    settings = config.serve
    listening = Listening(settings.host, choose_port(settings.host, settings.port), settings.api_key_env)
    environment = vllm.set_environment(local=listening.local) if make_engine is None else {}
    import ray

    own = not ray.is_initialized()  # and ends with the server, unless it is found that there is a cluster already
    try:
        replicas, about = _connect(config)
        say(about)
        if make_engine is None:
            application = _vllm(config, replicas, environment)
        else:
            application = _application(config, partial(make_engine, use_gpu=replicas.gpus > 0), listening, replicas)
        # after Ray, which takes SIGTERM for itself
        with Signals(token, say, "answers under way get a few seconds to end"):
            with Server(application, listening, token, own_cluster=own and is_own()) as server:
                if not server.stopped:
                    name = model_name(listening.url, settings.api_key)
                    page = settings.page and make_engine is not None
                    for line in ready_lines(listening, name, time.monotonic() - began, page=page):
                        say(line)
                    server.wait(say)
    finally:
        if own:
            ray.shutdown()  # ends a cluster that was started here, leaves one that was joined
    say("Stopped: nothing is left running.")
    return 0


def _engine_maker(config: Config) -> Callable[..., Engine]:
    """What makes the engine in a replica. Raises UserError where a run has no checkpoint."""
    from raygpt.evaluate.subject import subject_uri
    from raygpt.run.frame import run_location
    from raygpt.serve.load import load_engine

    teacher = config.teacher
    engine, model, name = teacher.engine, teacher.model, None
    if model is None:
        engine, model = "raygpt", subject_uri(config.model.init_from, run_location(config))
        if config.model.init_from == "random":
            name = config.run.name
    if (here := Path(model).expanduser()).exists():
        model = str(here.absolute())  # a replica may have been started elsewhere
    return partial(
        load_engine,
        engine,
        model,
        max_sequences=teacher.max_sequences,
        max_model_len=teacher.max_model_len,
        precision=teacher.precision,
        threads=max(1, round(teacher.cpus_per_replica)),
        name=name,
    )


def _connect(config: Config) -> tuple[Replicas, str]:
    """(the replicas as the cluster has room for them, a sentence about the cluster)."""
    import ray

    from raygpt.cluster.connect import connect
    from raygpt.cluster.room import Need
    from raygpt.serve.deployment import Replicas
    from raygpt.serve.vllm import gpus_per_replica

    teacher = config.teacher
    fewest, most = teacher.replica_range
    vllm = teacher.engine == "vllm"
    each = gpus_per_replica(teacher.vllm) if vllm else 1
    # the GPUs of one replica need not be in one place, so each is asked for by itself
    settings = ("teacher.replicas" if each == 1 else "", "teacher.cpus_per_replica", "" if vllm else "teacher.use_gpu")
    use_gpu = True if vllm else teacher.use_gpu
    about = connect(config.scale, Need(fewest * each, teacher.cpus_per_replica / each, use_gpu, settings))
    gpus = ray.cluster_resources().get("GPU", 0)
    use = vllm or (gpus >= 1 if teacher.use_gpu == "auto" else teacher.use_gpu)
    if use and gpus < fewest * each:
        raise UserError(
            f"teacher.replicas={fewest} needs {each} GPU{'s' * (each > 1)} for each replica but the cluster has "
            f"{gpus:g}: lower it, add GPU nodes, or set "
            + ("teacher.engine=transformers." if teacher.engine == "vllm" else "teacher.use_gpu=false.")
        )
    threads = str(max(1, round(teacher.cpus_per_replica)))
    replicas = Replicas(
        fewest,
        most,
        cpus=teacher.cpus_per_replica,
        gpus=1 if use else 0,
        slots=teacher.max_sequences,
        environment={"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"},
    )
    return replicas, about


def _application(config: Config, make_engine: Callable[[], Engine], listening: Listening, replicas: Replicas) -> Any:
    from raygpt.serve.admission import fingerprint
    from raygpt.serve.app import AppSettings
    from raygpt.serve.deployment import application

    settings = config.serve
    app = AppSettings(
        max_concurrent=settings.max_concurrent,
        max_tokens=settings.max_tokens,
        max_body_bytes=int(settings.max_body_mb * 1e6),
        key=fingerprint(settings.api_key) if settings.api_key else None,
        page=settings.page,
        local=listening.local,
        slots=replicas.slots,
    )
    return application(make_engine, app, replicas)


def _vllm(config: Config, replicas: Replicas, environment: dict[str, str]) -> Any:
    from raygpt.serve import vllm

    teacher = config.teacher
    assert teacher.model is not None
    return vllm.vllm_application(
        vllm.llm_config_kwargs(
            teacher.model,
            name=teacher.model.rstrip("/").rpartition("/")[2],
            arguments=teacher.vllm,
            replicas=replicas,
            max_concurrent=config.serve.max_concurrent,
            max_model_len=teacher.max_model_len,
            precision=teacher.precision,
            environment=environment,
        )
    )


@contextlib.contextmanager
def running(config: Config, stop: StopToken, say: Callable[[str], None]) -> Iterator[tuple[str, float]]:
    """(URL ending in /v1, GPUs) of the teacher's server, which runs on this machine's loopback while the block does; 0
    GPUs where there are none or their number follows the load."""
    began = time.monotonic()
    import ray

    from raygpt.cluster.connect import is_own
    from raygpt.serve import vllm
    from raygpt.serve.launch import Listening, Server, choose_port, model_name

    uses_vllm = config.teacher.engine == "vllm"
    if uses_vllm:
        vllm.require_vllm()
    make_engine = None if uses_vllm else _engine_maker(config)
    listening = Listening("127.0.0.1", choose_port("127.0.0.1", 0))
    environment = vllm.set_environment(local=True) if make_engine is None else {}
    own = not ray.is_initialized()
    most = max(config.serve.max_tokens, config.generate.max_new_tokens)
    alone = config.serve.model_copy(update={"api_key_env": None, "page": False, "max_tokens": most})
    config = config.model_copy(update={"serve": alone})
    try:
        replicas, about = _connect(config)
        say(about)
        if make_engine is None:
            application = _vllm(config, replicas, environment)
        else:
            application = _application(config, partial(make_engine, use_gpu=replicas.gpus > 0), listening, replicas)
        with Server(application, listening, stop, own_cluster=own and is_own()) as server:
            if not server.stopped:
                name = model_name(listening.url, None)
                say(f"Teacher {name} ready after {time.monotonic() - began:.1f} s.")
            each = vllm.gpus_per_replica(config.teacher.vllm) if uses_vllm else replicas.gpus
            # of replicas that follow the load nobody knows how many there were
            yield f"{listening.url}/v1", replicas.fewest * each if replicas.fewest == replicas.most else 0
    finally:
        if own:
            ray.shutdown()
