"""vLLM through ray.serve.llm: its configuration from the settings of a teacher.

ray[llm] is an extra: it needs GPUs and pins its own torch. Nothing here imports it before it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from raygpt.errors import UserError
from raygpt.serve.deployment import HEALTH_TIMEOUT_SECONDS, PASSING, Replicas

# Ray's high-throughput settings for language models (docs.ray.io, KubeRay's ray-service.high-throughput-llm.yaml):
# HAProxy takes the place of Serve's proxies, and streams run from it straight to the replica. The processes of the
# cluster read them when they start, so on several nodes they belong into the environment of `ray start` on each.
HIGH_THROUGHPUT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
    "VLLM_USE_RAY_V2_EXECUTOR_BACKEND": "1",
}
HEALTH_PERIOD_SECONDS = 10.0
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Settings of a teacher.vllm section that are not vLLM's: the GPU to ask for.
ACCELERATOR = "accelerator_type"


def set_environment(*, local: bool) -> dict[str, str]:
    """Put Ray's settings into this process's environment, before it starts a cluster; the user's own come first.

    HAProxy and direct streaming make replicas listen on all interfaces, so a server for this machine alone (`local`)
    goes without. Returns what stands there now.
    """
    names = ["VLLM_USE_RAY_V2_EXECUTOR_BACKEND"] if local else list(HIGH_THROUGHPUT)
    return {name: os.environ.setdefault(name, HIGH_THROUGHPUT[name]) for name in names}


def gpus_per_replica(arguments: Mapping[str, Any]) -> int:
    """GPUs that one copy of the model takes, by teacher.vllm."""
    return int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))


def llm_config_kwargs(
    model: str,
    *,
    name: str,
    arguments: Mapping[str, Any],
    replicas: Replicas,
    max_concurrent: int,
    max_model_len: int | None = None,
    precision: str = "auto",
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of ray.serve.llm.LLMConfig.

    `arguments` (teacher.vllm) go to vLLM's engine as they are and win over what is derived, but for `accelerator_type`,
    which is Ray's. `environment` is what the replicas are to find in theirs.
    """
    engine: dict[str, Any] = {"max_num_seqs": replicas.slots, "dtype": DTYPES[precision]}
    if max_model_len:
        engine["max_model_len"] = max_model_len
    engine |= {key: value for key, value in arguments.items() if key != ACCELERATOR}
    kwargs: dict[str, Any] = {
        "model_loading_config": {"model_id": name, "model_source": model},
        "engine_kwargs": engine,
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": replicas.fewest,
                "max_replicas": replicas.most,
                "target_ongoing_requests": engine["max_num_seqs"],
            },
            "max_ongoing_requests": max_concurrent + PASSING,
            # a burst of requests is no death: see ray#54070
            "health_check_period_s": HEALTH_PERIOD_SECONDS,
            "health_check_timeout_s": HEALTH_TIMEOUT_SECONDS,
        },
        "runtime_env": {"env_vars": dict(environment or {})},
    }
    if arguments.get(ACCELERATOR):
        kwargs["accelerator_type"] = arguments[ACCELERATOR]
    return kwargs


def require_vllm() -> None:
    """Raises UserError where ray[llm] is not installed."""
    if find_spec("vllm") is None:
        raise UserError(
            "teacher.engine=vllm needs vLLM and a GPU: pip install 'raygpt[llm]', or use teacher.engine=transformers."
        )


def vllm_application(kwargs: dict[str, Any]) -> Any:
    """The Serve application of ray.serve.llm, which speaks the protocol itself."""
    require_vllm()
    from ray.serve.llm import LLMConfig, build_openai_app

    return build_openai_app({"llm_configs": [LLMConfig(**kwargs)]})
