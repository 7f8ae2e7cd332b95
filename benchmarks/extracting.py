"""Throughput of `yt8m extract`, by stage and as a whole, and its memory for a long video.

    python benchmarks/extracting.py                  # throughput, on videos that the script makes
    python benchmarks/extracting.py --hours 10       # memory, on a small and long one

Videos are H.264 at 30 frames per second, with B frames and a key frame every 250 frames at most, as x264 writes them by
default, and sound in AAC. The networks have random weights, which take the same time.

The floor is decoding alone: every frame is decoded, and dropped; `reference frames` decodes only those that other frames
depend on, which is the most that skipping frames could save. The opponent is a plain loop, as in the official extractor:
every frame is decoded and converted to RGB, one per second goes through the network in eager mode, in batches of one, with
batch norm as layers of its own, and the sound is read in a second pass over the file. `one conversion` converts only the frames
that it uses. `bfloat16` is the extraction with Inception in bfloat16, which `yt8m extract` does not offer.

All ways read the same files, each in a process of its own, in turns, so that other work on the machine slows all of them;
each figure is the median of the turns, and ratios are those of the same turn. Processor time, children included, suffers
least from other work. The features of the extraction and of the plain
loop are compared: 99% of the bytes must be equal, and none may differ by more than 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray

from measuring import in_new_process, memory
from yt8m.dataset.frames import FrameReader
from yt8m.dataset.indexing import load_or_index
from yt8m.extraction.decode import Frames, Windows, decode
from yt8m.extraction.extract import extract
from yt8m.extraction.inception import Convolution, InceptionV3
from yt8m.extraction.log_mel import SAMPLE_RATE, WINDOW_SAMPLES, log_mel
from yt8m.extraction.pca import PCA
from yt8m.extraction.resize import SIZE, resize_bilinear
from yt8m.extraction.vggish import VGGish
from yt8m.extraction.weights import Extractor, Networks
from yt8m.extraction.youtube8m import YouTube8M

SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
RATE = 30
SOUND_RATE = 44_100
SECONDS_PER_SCENE = 6


def random_extractor() -> YouTube8M:
    """The extractor with random weights, the same in every process."""
    torch.manual_seed(0)
    frames, audio = InceptionV3(), VGGish()
    for module in [*frames.modules(), *audio.modules()]:
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
            assert module.bias is not None
            torch.nn.init.zeros_(module.bias)
        if isinstance(module, Convolution):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    generator = np.random.default_rng(0)
    pcas = [
        PCA(np.zeros(size), generator.normal(size=(size, components)) / size)
        for size, components in ((2048, 1024), (128, 128))
    ]
    networks = Networks(
        frames.requires_grad_(False).eval(),
        pcas[0],
        audio.requires_grad_(False).eval(),
        pcas[1],
        Extractor("random", "0"),
    )
    return YouTube8M(networks, torch.device("cpu"))


def pictures(width: int, height: int, seconds: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Scenes of a few seconds: a texture that moves, with another one moving across it."""
    generator = np.random.default_rng(seed)
    for number in range(seconds * RATE):
        if number % (SECONDS_PER_SCENE * RATE) == 0:
            textures = [_texture(generator, width * 3 // 2, height * 3 // 2) for _ in range(2)]
            speeds = generator.uniform(0.2, 2.5, (2, 2))
            phase = generator.uniform(0, 6)
        shifts = [
            ((np.sin(number / RATE * speed + phase) + 1) / 2 * (height // 2, width // 2)).astype(int)
            for speed in speeds
        ]
        back, front = (texture[y : y + height, x : x + width] for texture, (y, x) in zip(textures, shifts, strict=True))
        picture = back.copy()
        picture[height // 4 : height // 2, width // 3 : 2 * width // 3] = front[
            height // 4 : height // 2, width // 3 : 2 * width // 3
        ]
        yield picture


def _texture(generator: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Smooth structure of several sizes, with a little grain."""
    texture = np.zeros((height, width, 3), np.float32)
    for step, weight in ((96, 60), (24, 40), (6, 20), (1, 4)):
        grid = generator.normal(0, weight, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        texture += np.repeat(np.repeat(grid, step, 0), step, 1)[:height, :width]
    return np.clip(texture + 128, 0, 255).astype(np.uint8)


def write_video(path: Path, size: tuple[int, int], seconds: int, *, is_plain: bool = False) -> None:
    """Write a video with sound; a plain one, of one picture of one color per second, takes little time."""
    rate, sound_rate, layout = (1, 8000, "mono") if is_plain else (RATE, SOUND_RATE, "stereo")
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "fast", "crf": "23"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=sound_rate, layout=layout)
        noise = np.random.default_rng(0).normal(0, 0.05, sound_rate)
        tone = (np.sin(np.arange(sound_rate) * 0.05) * 0.3 + noise).astype(np.float32)
        sound = np.tile(tone, (audio.codec_context.channels, 1))
        source = None if is_plain else pictures(*size, seconds, 0)
        for second in range(seconds):
            block = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
            block.sample_rate, block.pts, block.time_base = sound_rate, second * sound_rate, Fraction(1, sound_rate)
            container.mux(audio.encode(block))
            for number in range(rate):
                picture = np.full((*size[::-1], 3), second % 256, np.uint8) if source is None else next(source)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = second * rate + number, Fraction(1, rate)
                container.mux(video.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


# ------------------------------------------------------------------------------------------------ ways and stages


class Clocks(NamedTuple):
    """Seconds of the clock on the wall, and of processor time, that of children which have ended included."""

    wall: float
    cpu: float


def clocks() -> Clocks:
    """The time now."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Clocks(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in used))


def since(start: Clocks) -> Clocks:
    """The time from then to now."""
    now = clocks()
    return Clocks(now.wall - start.wall, now.cpu - start.cpu)


def decoding_alone(path: Path, skipped: str = "DEFAULT") -> Clocks:
    """Decode frames with all threads; return the time that it takes."""
    started = clocks()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        container.streams.video[0].codec_context.skip_frame = skipped
        for _ in container.decode(video=0):
            pass
    return since(started)


def decoding_of_ours(path: Path) -> Clocks:
    """Frames and sound of each second, prepared for the networks."""
    started = clocks()
    for _ in decode(path, SIZE):
        pass
    return since(started)


def inception_alone(path: Path) -> Clocks:
    """The network, on frames that are decoded before."""
    extractor = random_extractor()
    chunks = [result.values for result in decode(path, SIZE) if isinstance(result, Frames)]
    extractor.rgb(chunks[0])
    started = clocks()
    for chunk in chunks:
        extractor.rgb(chunk)
    return since(started)


def audio_alone(path: Path) -> Clocks:
    """Spectrograms and VGGish, on sound that is decoded before."""
    extractor = random_extractor()
    chunks = [result.values for result in decode(path, SIZE) if isinstance(result, Windows)]
    extractor.audio(chunks[0])
    started = clocks()
    for chunk in chunks:
        extractor.audio(chunk)
    return since(started)


def whole_extraction(path: Path, out: Path, dtype: torch.dtype = torch.float32) -> Clocks:
    """`yt8m extract`, without loading the networks."""
    extractor = random_extractor()
    extractor.networks.frames.to(dtype)
    started = clocks()
    extract([path], out, extractor, num_decoders=max(1, (os.cpu_count() or 1) // 2))
    return since(started)


class _PlainConvolution(torch.nn.Module):
    """A convolution and its batch norm, apart."""

    def __init__(self, folded: Convolution) -> None:
        super().__init__()
        sizes = folded.in_channels, folded.out_channels, folded.kernel_size, folded.stride, folded.padding
        self.convolution = torch.nn.Conv2d(*sizes, bias=False)
        self.convolution.weight.data = folded.weight.data.contiguous()
        self.norm = torch.nn.BatchNorm2d(folded.out_channels, eps=0.0)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.convolution(maps)))


def unfolded(module: torch.nn.Module) -> torch.nn.Module:
    """The network as it is usually written: batch norm apart, channels first."""
    for name, child in list(module.named_children()):
        if isinstance(child, Convolution):
            setattr(module, name, _PlainConvolution(child))
        else:
            unfolded(child)
    return module.eval()


def plain_loop(path: Path, out: Path, converts_all: bool) -> Clocks:
    """The opponent; its features go to a file."""
    networks = random_extractor().networks
    inception = unfolded(networks.frames)
    started = clocks()
    rgb, audio = [], []
    with torch.inference_mode():
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                image = frame.to_ndarray(format="rgb24") if converts_all else None
                if frame.time + 0.001 < len(rgb):
                    continue
                image = frame.to_ndarray(format="rgb24") if image is None else image
                pixels = torch.from_numpy(resize_bilinear(image))[None].permute(0, 3, 1, 2).contiguous()
                activations = inception.layers((pixels - 128) / 128).mean((2, 3))  # type: ignore[operator]
                rgb.append(networks.frames_pca(activations.numpy()))
        with av.open(str(path)) as container:
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
            frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            samples = np.concatenate([frame.to_ndarray()[0] for frame in [*frames, *resampler.resample(None)]])
        for second in range(len(rgb)):
            window = np.zeros(SAMPLE_RATE, np.float32)
            found = samples[second * SAMPLE_RATE :][:WINDOW_SAMPLES]
            window[: len(found)] = found
            activations = networks.audio(torch.from_numpy(log_mel(window, 1)))
            audio.append(networks.audio_pca(activations.numpy()))
    taken = since(started)
    features = np.concatenate([np.concatenate(rgb), np.concatenate(audio)], axis=1)
    np.save(out, np.floor((features.clip(-2, 2) + 2) * (255 / 4) + 0.5).astype(np.uint8))
    return taken


def compare(shards: Path, plain: Path) -> float:
    """Share of equal bytes of rgb; none may differ by more than 1."""
    catalog = load_or_index(shards)
    ours = FrameReader(catalog).read(0, 0, int(catalog.num_frames[0]))
    theirs = np.load(plain)
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    differences = np.abs(ours[:, :1024].astype(int) - theirs[:, :1024])
    assert differences.max() <= 1, differences.max()
    return float((differences == 0).mean())


def measure_throughput(folder: Path, names: list[str], ways: list[str], seconds: int, turns: int) -> None:
    """Print a table per size: hours of video per hour, processor time, and ratios to the extraction of the same turn."""
    for name in names:
        path = folder / f"{name}.mp4"
        write_video(path, SIZES[name], seconds)
        found: dict[str, list[Clocks]] = {way: [] for way in ways}
        for turn in range(turns):
            for way in ways:
                function = WAYS[way]
                arguments: list[object] = [path]
                if way == "reference frames":
                    arguments.append("NONREF")
                if function is whole_extraction:
                    arguments.append(folder / f"{name}-{way}-{turn}")
                if way == "bfloat16":
                    arguments.append(torch.bfloat16)
                if function is plain_loop:
                    arguments += [folder / f"{name}.npy", way == "plain loop"]
                found[way].append(in_new_process(function, *arguments))
                print(f"{name}, turn {turn}, {way}: {found[way][-1]}", file=sys.stderr, flush=True)
        for way in ("extract", "bfloat16"):
            if way in ways:
                equal = compare(folder / f"{name}-{way}-0", folder / f"{name}.npy")
                print(f"{name}, {way}: {equal:.4%} of the bytes are those of the plain loop", flush=True)
                assert way == "bfloat16" or equal > 0.99
        print(f"\n{name}, {path.stat().st_size * 8 / seconds / 1e6:.1f} Mbit/s:\n")
        print("| way | hours per hour | CPU seconds per second | wall over extract | CPU over extract |")
        print("|---|---|---|---|---|")
        for way, taken in found.items():
            cpu = statistics.median(turn.cpu for turn in taken) / seconds
            speed = seconds / statistics.median(turn.wall for turn in taken)
            cells = [f"{speed:.1f}", f"{cpu:.3f}"]
            for clock in ("wall", "cpu"):
                pairs = zip(taken, found["extract"], strict=True)
                ratios = [getattr(theirs, clock) / getattr(ours, clock) for theirs, ours in pairs]
                cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            print(f"| {way} | {' | '.join(cells)} |", flush=True)
        print()


WAYS: dict[str, Callable[..., Clocks]] = {
    "floor": decoding_alone,
    "reference frames": decoding_alone,
    "decode": decoding_of_ours,
    "Inception": inception_alone,
    "audio": audio_alone,
    "extract": whole_extraction,
    "bfloat16": whole_extraction,
    "plain loop": plain_loop,
    "one conversion": plain_loop,
}


# ------------------------------------------------------------------------------------------------ memory


class FewFrames:
    """The networks, which compute the first frames and sounds only, and repeat their features: memory without the time."""

    name, digest, frame_size = "random", "0", SIZE

    def __init__(self) -> None:
        self._extractor = random_extractor()
        self._known: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self.memory_of_decoders = 0.0
        """Peak in MiB."""

    def rgb(self, frames: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features of frames."""
        for child in multiprocessing.active_children():
            self.memory_of_decoders = max(self.memory_of_decoders, memory("VmHWM", child.pid or 0))
        if ("rgb", len(frames)) not in self._known:
            self._known["rgb", len(frames)] = self._extractor.rgb(frames)
        return self._known["rgb", len(frames)].copy()

    def audio(self, windows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Features of sound."""
        if ("audio", len(windows)) not in self._known:
            self._known["audio", len(windows)] = self._extractor.audio(windows)
        return self._known["audio", len(windows)].copy()


def memory_of_extraction(path: Path, out: Path) -> tuple[float, float, int]:
    """Peak memory in MiB of the process and of its decoder, and the frames extracted."""
    extractor = FewFrames()
    found = extract([path], out, extractor, num_decoders=1)
    return memory("VmHWM"), extractor.memory_of_decoders, found.videos[0].seconds


def measure_memory(folder: Path, hours: list[float]) -> None:
    """Print the peak memory for videos of several lengths."""
    print("| hours | seconds extracted | peak of the process, MiB | peak of its decoder, MiB |\n|---|---|---|---|")
    for length in hours:
        path = folder / f"{length:g}.mp4"
        write_video(path, (160, 96), round(length * 3600), is_plain=True)
        peak, child, seconds = in_new_process(memory_of_extraction, path, folder / f"{length:g}")
        print(f"| {length:g} | {seconds:,} | {peak:,.0f} | {child:,.0f} |", flush=True)


def main() -> None:
    """Make the videos, measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="length of a video")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="extract and plain loop among them")
    parser.add_argument("--hours", type=float, nargs="+", help="measure the memory for videos of these lengths instead")
    options = parser.parse_args()
    multiprocessing.set_start_method("spawn")
    with tempfile.TemporaryDirectory() as name:
        if options.hours:
            measure_memory(Path(name), options.hours)
        else:
            measure_throughput(Path(name), options.sizes, options.ways, options.seconds, options.turns)


if __name__ == "__main__":
    main()
