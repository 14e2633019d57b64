# docker build -t vavae .
#     with CUDA, for NVIDIA GPUs (the host needs the driver and the container toolkit)
# docker build -t vavae --build-arg TORCH_INDEX=ADDRESS .
#     with the torch of another index, such as the CPU one that pytorch.org/get-started names
# docker run --gpus all -v "$PWD:/data" vavae sample --count 16 --output samples
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=""
ARG EXTRAS=all

# torch.compile builds code at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# torch first: it is the largest layer, and it changes with the constraints only.
COPY constraints.txt /build/
RUN pip install --no-cache-dir --constraint /build/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE /build/
COPY src /build/src
RUN pip install --no-cache-dir --constraint /build/constraints.txt "/build[${EXTRAS}]" && rm -rf /build

WORKDIR /data
ENV VAVAE_CACHE=/data/vavae-cache
ENTRYPOINT ["vavae"]
CMD ["--help"]
