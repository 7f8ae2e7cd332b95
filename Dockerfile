# yt8m for NVIDIA GPUs: Python 3.11, torch's CUDA build, every version of Python packages pinned, an unprivileged user.
#
#     docker build --tag yt8m .
#
#     mkdir -p out
#     docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" \
#         --volume /path/to/yt8m:/data --volume "$PWD/out:/out" \
#         yt8m run seventh-place --data /data --out /out
#
# /data   the dataset folder: video/train, video/valid, segment/train, segment/test, segment_vocabulary.csv. The first
#         run writes a catalog beside the shards of each folder; after that the volume can be read-only (`:ro`).
# /out    models, probabilities, submission.csv; the working directory. `--user` is the owner of both folders.
#
# `--shm-size` limits the shared memory through which worker processes deliver batches. CUDA 13 requires driver 580 or
# newer on the host. Without `--gpus all` the image runs on the CPU: `docker run --rm yt8m demo`. Put your own recipes into
# /out, or mount them as another volume.

FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="yt8m" \
      org.opencontainers.image.description="Find the moments in videos where a concept appears" \
      org.opencontainers.image.licenses="MIT"

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# torch.compile, the default on GPUs: Triton needs a C compiler; on the CPU, PyTorch needs g++. Debian keeps only the newest
# version of a package, so a pinned one would disappear.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 1000 --no-create-home --home-dir /tmp yt8m \
    && mkdir /data /out \
    && chown yt8m:yt8m /data /out

WORKDIR /opt/yt8m

# Large layers that rarely change come first, the code last.
COPY constraints.txt requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --requirement requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    pip install --no-deps . \
    && pip check

# The user id may have no entry in the container: torch and matplotlib keep their caches under HOME, and read the user's
# name from LOGNAME instead of looking up the id.
ENV HOME=/tmp \
    LOGNAME=yt8m
USER 1000:1000
WORKDIR /out
ENTRYPOINT ["yt8m"]
CMD ["--help"]
