# raygpt with its exact dependencies, for a job on one machine or as the image of every node of a Ray cluster.
#   docker build -t raygpt .                       PyTorch as PyPI has it (CUDA on Linux)
#   docker build -t raygpt --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   docker run --rm --shm-size=4g -v "$PWD/runs:/work/runs" raygpt quickstart
# --shm-size: Ray's object store lives in /dev/shm, which Docker limits to 64 MB by itself.
FROM python:3.11-slim

# a compiler for torch.compile; procps and openssh for Ray's cluster launcher
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ procps openssh-client rsync \
 && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=
WORKDIR /opt/raygpt
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch; \
    fi
COPY pyproject.toml LICENSE README.md ./
COPY raygpt raygpt
# all that a run may ask for: DeepSpeed for train.strategy=zero…, peft for model.lora_rank, Optuna for searches,
# lm-evaluation-harness. Not vLLM (extra llm), which brings a PyTorch of its own.
RUN pip install --no-cache-dir -c constraints.txt ".[zero,lora,tune,eval]"

ENV PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /work
ENTRYPOINT ["raygpt"]
CMD ["--help"]
