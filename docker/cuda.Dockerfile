# Tunewright on an NVIDIA GPU.
#   docker build -f docker/cuda.Dockerfile -t tunewright:cuda .
#   docker run --rm -it --gpus all --shm-size=8g -v "$PWD:/work" tunewright:cuda train run.yaml
FROM node:20-slim AS page
WORKDIR /src
COPY page/package.json page/package-lock.json page/
RUN cd page && npm ci
COPY page page
COPY src src
RUN cd page && npm run build

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 TUNEWRIGHT_PAGE=skip DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/tunewright
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY src src
COPY --from=page /src/src/tunewright/studio/page src/tunewright/studio/page
RUN pip install '.[studio,eval,track,sweep,mcp,hub,quant,gpu]'
RUN useradd --create-home --uid 1001 tunewright && mkdir /work && chown tunewright /work
USER tunewright
WORKDIR /work
EXPOSE 8090
ENTRYPOINT ["tunewright"]
CMD ["--help"]
