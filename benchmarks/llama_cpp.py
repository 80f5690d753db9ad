"""llama.cpp as a peer: found or built, our checkpoint converted by its own converter, measured by its own ``llama-bench``.

Nothing of it lies here. What is run is version 0.3.36 of llama-cpp-python's vendored sources, or a build that is given.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.bench.footprint import EXPERTS, ROWS, WHOLE, Footprint, Mapped, step_bytes

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "llama-cpp-python==0.3.36"
TYPES = ("Q8_0", "Q4_0", "Q4_K_M")
CACHE_ITEM_BYTES = 2
"""Its cache is float16."""
TOOLS = ("llama-bench", "llama-quantize")
BINDINGS = "llama_cpp"
"""The folder of llama-cpp-python's package, which has the way to logits of token ids."""
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
"""In this version the AMX kernels abort on models with latent attention, whatever else is chosen."""
OPTIONS = ((), ("--repack", "0"))
"""Of llama-bench: its defaults; without weights in another order, which is what a build with AMX needs (see `NO_AMX`)."""


class PeerError(Exception):
    """Why the peer is left out."""


@dataclass(frozen=True)
class LlamaCpp:
    """A build, and the sources that it was made from."""

    build: Path
    source: Path
    options: tuple[str, ...] = ()
    version: str = ""
    """What llama-bench says of its build; known once it has run."""

    def __post_init__(self) -> None:
        for path in (*(self.build / "bin" / tool for tool in TOOLS), self.source / "convert_hf_to_gguf.py"):
            if not path.is_file():
                raise PeerError(f"{path} is not there")

    def tool(self, name: str) -> Path:
        return self.build / "bin" / name

    @property
    def bindings(self) -> Path:
        """Two floors above the sources, as llama-cpp-python has them, or beside them, as `make` does.

        :raises PeerError: it is in neither place.
        """
        places = [folder / BINDINGS for folder in (self.source.parent.parent, self.source.parent)]
        if found := next((place for place in places if (place / "llama_cpp.py").is_file()), None):
            return found
        raise PeerError(f"{' and '.join(map(str, places))} have no llama_cpp.py: take the sources within llama-cpp-python, or download them anew")


@dataclass(frozen=True)
class Work:
    """What is asked of every peer."""

    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int


def find(build: Path | None, source: Path | None, home: Path, fetch: bool) -> LlamaCpp:
    """The build that was given, the one in ``home``, or a new one there.

    :param fetch: download and build where there is none: minutes.
    :raises PeerError: there is none, or it cannot be made.
    """
    if build or source:
        if not (build and source):
            raise PeerError("--llama-cpp and --llama-source go together")
        return LlamaCpp(build.resolve(), source.resolve())
    home = home.resolve()
    if fetch:
        make(home)
    if not (home / "build").is_dir():
        raise PeerError("give --llama-cpp BUILD --llama-source SOURCE, or --get-llama-cpp to download and build it")
    return LlamaCpp(home / "build", home / "source")


def make(home: Path) -> None:
    """Download the sources through pip and build the two tools; what is there already is left alone."""
    home.mkdir(parents=True, exist_ok=True)
    wanted = {"source": "*/vendor/llama.cpp", BINDINGS: f"*/{BINDINGS}"}
    if missing := {name: where for name, where in wanted.items() if not (home / name).is_dir()}:
        told([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(home), PACKAGE])
        archive = next(home.glob("llama_cpp_python-*.tar.gz"))
        with tarfile.open(archive) as file:
            file.extractall(home / "unpacked", filter="data")
        for name, where in missing.items():
            shutil.move(next((home / "unpacked").glob(where)), home / name)
        shutil.rmtree(home / "unpacked")
    cmake, flags = _cmake(home), " ".join(NO_AMX) if _has_amx() else ""
    options = {"CMAKE_BUILD_TYPE": "Release", "GGML_NATIVE": "ON", "LLAMA_CURL": "OFF", "LLAMA_BUILD_TESTS": "OFF", "LLAMA_BUILD_SERVER": "OFF"}
    options |= {"CMAKE_C_FLAGS": flags, "CMAKE_CXX_FLAGS": flags}
    told([cmake, "-S", str(home / "source"), "-B", str(home / "build"), *(f"-D{name}={value}" for name, value in options.items())])
    told([cmake, "--build", str(home / "build"), "--parallel", str(os.cpu_count() or 1), "--target", *TOOLS])


def _cmake(home: Path) -> str:
    if found := shutil.which("cmake"):
        return found
    if not (home / "venv").is_dir():
        told([sys.executable, "-m", "venv", str(home / "venv")])
        told([str(home / "venv/bin/pip"), "install", "--quiet", "cmake"])
    return str(home / "venv/bin/cmake")


def _has_amx() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_int8" in info.read_text()


def told(command: list[str], given: str | None = None) -> str:
    """Run a command, ``given`` on its stdin. :returns: its stdout. :raises PeerError: it failed; with what it said last."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, input=given)
    except OSError as cause:
        raise PeerError(f"{command[0]}: {cause.strerror}") from cause
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in said if "ASSERT" in line or "rror" in line), said[-1] if said else "nothing")
        raise PeerError(f"{Path(command[0]).name} ended with {done.returncode}: {reason.strip()[:200]}")
    return done.stdout


def convert(peer: LlamaCpp, model: Path, folder: Path) -> dict[str, Path]:
    """The checkpoint as BF16, and from that the quantised types, the head quantised too; files that are there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    script, files = Path(__file__).with_name("llama_convert.py"), {"BF16": folder / "BF16.gguf"}
    if not files["BF16"].exists():
        told([sys.executable, "-B", str(script), "convert", str(peer.source), str(model), str(files["BF16"])])
    return files | {kind: quantised(peer, files["BF16"], folder / f"{kind}.gguf", kind) for kind in TYPES}


def quantised(peer: LlamaCpp, source: Path, output: Path, kind: str, *options: str) -> Path:
    """``source`` as another type; a file that is there is left alone.

    :param options: more of llama-quantize's.
    """
    if not output.exists():
        told([str(peer.tool("llama-quantize")), *options, str(source), str(output), kind])
    return output


@dataclass(frozen=True)
class Tensor:
    """One of a GGUF file."""

    name: str
    kind: str
    """``Q8_0``, ``F32``, …"""
    bytes: int
    elements: int
    outermost: int
    """Its outermost dimension: rows or experts."""


def tensors(peer: LlamaCpp, file: Path) -> list[Tensor]:
    found = json.loads(told([sys.executable, "-B", str(Path(__file__).with_name("llama_convert.py")), "tensors", str(peer.source), str(file)]))
    return [Tensor(**one) for one in found]


def logits(peer: LlamaCpp, file: Path, windows: list[list[int]], output: Path, threads: int, half_cache: bool = False) -> "np.ndarray":
    """Logits of every token of windows that each start from an empty cache, mapped from ``output``. *Shape:* float32 ``(tokens, vocab)``

    :raises PeerError: its bindings are not there, or do not fit the build.
    """
    import numpy as np

    options = {"threads": threads, "half_cache": half_cache, "repack": not peer.options}
    script = str(Path(__file__).with_name("llama_logits.py"))
    told([sys.executable, "-B", script, str(peer.bindings), str(peer.build / "bin"), str(file), str(output), json.dumps(options)], json.dumps(windows))
    return np.load(output, mmap_mode="r")


def footprint(peer: LlamaCpp, file: Path, config: dict) -> Footprint:
    """What a step reads of a file: as our engines are counted."""
    weights = tuple(Mapped(one.name, one.bytes, _read(one.name), one.outermost) for one in tensors(peer, file))
    latent = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    return Footprint(weights, config["num_hidden_layers"] * latent * CACHE_ITEM_BYTES, config["num_experts_per_tok"] / config["n_routed_experts"])


def _read(name: str) -> str:
    return EXPERTS if "_exps." in name else ROWS if name.startswith("token_embd") else WHOLE


def usable(peer: LlamaCpp, file: Path, work: Work) -> LlamaCpp:
    """The peer with the first options that run.

    :raises PeerError: none does.
    """
    for options in OPTIONS:
        chosen = replace(peer, options=options)
        try:
            rows, _ = bench(chosen, file, replace(work, prompt_tokens=16, new_tokens=2, repeats=1))
            return replace(chosen, version=" ".join((f"{rows[0]['build_commit']} ({rows[0]['build_number']})", *options)))
        except PeerError as cause:
            refused = cause
    raise refused


def bench(peer: LlamaCpp, file: Path, work: Work) -> tuple[list[dict], int]:
    """llama-bench's rows, with and without flash attention, and its peak memory in bytes.

    Single tokens are timed after a prompt of the same length as ours, which its default (an empty cache) would not do.
    """
    command = [str(peer.tool("llama-bench")), "-m", str(file), "-t", str(work.threads), "-r", str(work.repeats), "-fa", "on,off", "-o", "json", *peer.options]
    prompt, peak = _watched([*command, "-p", str(work.prompt_tokens), "-n", "0"])
    steps, other = _watched([*command, "-p", "0", "-n", str(work.new_tokens), "-d", str(work.prompt_tokens)])
    return json.loads(prompt) + json.loads(steps), max(peak, other)


def _watched(command: list[str]) -> tuple[str, int]:
    """A command's stdout and its peak memory, read from outside while it runs."""
    child, peak = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), 0
    status = Path(f"/proc/{child.pid}/status")
    while True:
        peak = max(peak, _high_water(status))
        try:
            out, err = child.communicate(timeout=0.02)
            break
        except subprocess.TimeoutExpired:
            continue
    if child.returncode:
        reason = next((line for line in err.splitlines() if "ASSERT" in line or "rror" in line), err.strip()[-200:])
        raise PeerError(f"{Path(command[0]).name} ended with {child.returncode}: {reason}")
    return out, peak


def _high_water(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def load_seconds(peer: LlamaCpp, file: Path, threads: int) -> float:
    """From the start of a process to its end, less the one token that it computes: the program tells no time of loading."""
    command = [str(peer.tool("llama-bench")), "-m", str(file), "-t", str(threads), "-r", "1", "--no-warmup", "-p", "0", "-n", "1", "-o", "json", *peer.options]
    started = time.perf_counter()
    rows = json.loads(told(command))
    return max(0.0, time.perf_counter() - started - rows[0]["avg_ns"] / 1e9)


def measure(peer: LlamaCpp, file: Path, work: Work, config: dict) -> dict[str, float]:
    """Figures of one round, by the names that ours have; the better of the two kinds of attention for each."""
    rows, peak = bench(peer, file, work)
    held = footprint(peer, file, config)
    return {
        "prefill_tokens_per_second": max(statistics.median(row["samples_ts"]) for row in rows if row["n_prompt"]),
        "decode_tokens_per_second": max(statistics.median(row["samples_ts"]) for row in rows if row["n_gen"]),
        "load_seconds": load_seconds(peer, file, work.threads),
        "peak_rss_bytes": peak,
        "weight_bytes": held.weight_bytes,
        "step_bytes": step_bytes(held, 1, work.prompt_tokens + work.new_tokens / 2),
    }
