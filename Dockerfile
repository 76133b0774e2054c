# Workers, the dashboard and, with EXTRAS=mlflow, MLflow's server; docker-compose.yml puts them together. Needs BuildKit,
# which Docker uses by default since version 23.
#
#   docker build -t tuner .
#   docker build -t tuner:cuda --build-arg EXTRAS=cuda .                 # NVIDIA GPUs: docker run --gpus all ...
#       The host needs the NVIDIA driver 580 or newer; with EXTRAS=cuda12, 525 or newer.
#   docker build -t tuner --build-context studies=/home/ann/studies .    # the packages that these studies need
#   docker run --rm --init -v "$PWD/studies:/studies:ro" -v tuner:/work tuner launch /studies/digits_mlp.py
#
# --init: as process 1 Python would ignore a SIGTERM that comes before, or without, a handler.

ARG BASE=python:3.12-slim

# The folder with the studies; `--build-context studies=FOLDER` replaces it. The image has no study files: they are
# mounted. From here it gets the packages of requirements.txt, if the folder has one, and digests for the Git record.
FROM scratch AS studies
COPY studies /

FROM ${BASE} AS requirements
RUN --mount=type=bind,from=studies,target=/studies \
    if [ -f /studies/requirements.txt ]; then cp /studies/requirements.txt /; else touch /requirements.txt; fi

FROM ${BASE}

# Extras of pyproject.toml, separated by commas. Without any, JAX computes on CPUs.
ARG EXTRAS=""

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# A user without rights. The folders that volumes are mounted on belong to it: a new named volume takes its owner from
# the folder under it.
RUN useradd --create-home --uid 1000 tuner \
    && install --directory --owner=tuner --group=tuner /work /artifacts /checkpoints /users /home/tuner/.cache

# Dependencies first, for an empty package: this layer stays in the build cache until one of these two files changes.
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN mkdir tuner && touch README.md LICENSE tuner/__init__.py \
    && pip install -c constraints.txt ".${EXTRAS:+[${EXTRAS}]}" \
    && pip uninstall --yes tuner-jax \
    && rm -rf README.md LICENSE tuner build tuner_jax.egg-info

# The studies' own packages. Versions that tuner is tested with stay as they are, or the build fails.
COPY --from=requirements /requirements.txt ./
RUN pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY tuner tuner
RUN pip install --no-deps . && rm -rf build tuner_jax.egg-info
COPY docker/run_worker.py docker/record_git.py /opt/tuner/

# The commit of the studies, from `git describe` (docs/guide/containers.md): a container has no repository. Last, because
# it changes most often.
ARG GIT_COMMIT=""
ENV TUNER_GIT_RECORD=/opt/tuner/git.json
RUN --mount=type=bind,from=studies,target=/studies \
    python /opt/tuner/record_git.py /studies "${GIT_COMMIT}" > "${TUNER_GIT_RECORD}"

USER 1000
WORKDIR /work

# Healthy while the storage answers; costs one connection, whatever the size of the database. Whether the process
# itself lives, Docker sees without being told.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from tuner.storage import connect, storage_url; connect(storage_url(None)).dispose()"]

ENTRYPOINT ["tuner"]
CMD ["--help"]
