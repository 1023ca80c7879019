# raygpt with its exact dependencies, for a job on one machine or as the image of every pod or node of a Ray cluster.
#   docker build -t raygpt .                            PyTorch as PyPI has it, CUDA 13
#   docker build -t raygpt --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 \
#     --build-arg CUDA=12.6.3 .                         for a V100, which later builds have dropped
#   docker build -t raygpt --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   docker run --rm --gpus all --shm-size=4g -v "$PWD/runs:/work/runs" --user "$(id -u)" raygpt quickstart
# --shm-size: Ray's object store lives in /dev/shm, which Docker limits to 64 MB by itself.
ARG CUDA=13.0.2

# Built here, with compilers and pip's leftovers; only /opt goes on.
FROM nvidia/cuda:${CUDA}-base-ubuntu22.04 AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl g++ \
 && rm -rf /var/lib/apt/lists/*
# Ubuntu 22.04 has Python 3.10: uv brings 3.11
ENV UV_INSTALL_DIR=/usr/local/bin UV_PYTHON_INSTALL_DIR=/opt/python UV_NO_CACHE=1
RUN curl -LsSf https://astral.sh/uv/0.13.9/install.sh | sh \
 && uv venv --seed --python 3.11 /opt/venv
ENV PATH=/opt/venv/bin:$PATH
ARG TORCH_INDEX=
WORKDIR /opt/raygpt
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir -c constraints.txt --extra-index-url "$TORCH_INDEX" \
        "torch==$(sed -n 's/^torch==//p' constraints.txt)+${TORCH_INDEX##*/}"; \
    fi
COPY pyproject.toml LICENSE README.md ./
COPY raygpt raygpt
# all that a run may ask for: DeepSpeed for train.strategy=zero…, peft for model.lora_rank, Optuna for searches,
# lm-evaluation-harness. Not vLLM (extra llm), which brings a PyTorch of its own.
RUN pip install --no-cache-dir -c constraints.txt ".[zero,lora,tune,eval]"
COPY jobs jobs

# The CUDA runtime; PyTorch's wheels bring their own cuBLAS, cuDNN and NCCL, the host its driver.
FROM nvidia/cuda:${CUDA}-base-ubuntu22.04
# g++ and nvcc: torch.compile, and DeepSpeed's CPU optimizer, which is compiled at its first use. procps, openssh and
# rsync for Ray's cluster launcher, wget for KubeRay's health checks.
ARG CUDA
RUN release="$(echo "$CUDA" | cut -d. -f1,2 | tr . -)" \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ openssh-client procps rsync wget \
      "cuda-nvcc-$release" "cuda-cudart-dev-$release" "libcublas-dev-$release" "libcurand-dev-$release" \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt /opt
# Nobody needs root. /work is any user's, for --user "$(id -u)" and Kubernetes' runAsUser.
RUN useradd --uid 1000 --create-home raygpt \
 && mkdir /work \
 && chmod 1777 /work
ENV PATH=/opt/venv/bin:$PATH CUDA_HOME=/usr/local/cuda HOME=/work PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
USER raygpt
WORKDIR /work
ENTRYPOINT ["raygpt"]
CMD ["--help"]
