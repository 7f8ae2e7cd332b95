# yt8m for NVIDIA GPUs: Python 3.11, torch's CUDA build, every version pinned, a user without rights.
#
#     docker build --tag yt8m .
#
#     mkdir -p out
#     docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" \
#         --volume /path/to/yt8m:/data --volume "$PWD/out:/out" \
#         yt8m run seventh-place --data /data --out /out
#
# /data   the dataset folder: video/train, video/valid, segment/train, segment/test, segment_vocabulary.csv. The first
#         run writes a catalog beside the shards of each folder; once all are there, the volume may end in `:ro`.
# /out    models, probabilities, submission.csv. Both belong to the user who starts the container: hence `--user`.
#
# `--shm-size` is room for the batches that loader processes hand over. CUDA 13 asks the host for driver 580 or newer.
# Without `--gpus all` the same image runs on the CPU: `docker run --rm yt8m demo`. A recipe of one's own is a file in
# /out, where commands start, or one more volume.

FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="yt8m" \
      org.opencontainers.image.description="Find the moments in videos where a concept appears" \
      org.opencontainers.image.licenses="MIT"

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

RUN useradd --uid 1000 --no-create-home --home-dir /tmp yt8m \
    && mkdir /data /out \
    && chown yt8m:yt8m /data /out

WORKDIR /opt/yt8m

# Gigabytes that change seldom come first, the code last.
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

# Whoever the container runs as may be unknown to it: torch and matplotlib keep their caches under HOME, and take the
# user's name from LOGNAME rather than look up a number that is not listed.
ENV HOME=/tmp \
    LOGNAME=yt8m
USER 1000:1000
WORKDIR /out
ENTRYPOINT ["yt8m"]
CMD ["--help"]
