"""`python -m benchmarks.gpu.write_up FOLDER`: make `docs/benchmarks/<gpu>.md` of the raw figures
that `benchmarks.gpu.measure` has written.

The raw figures are kept beside it, in `docs/benchmarks/<gpu>/`. Nothing there is written by hand.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.paths import PROJECT
from flows.compare_engines import comparison_rows, memory_rows
from flows.run.publish import artifact_key
from tasks.compare_runtimes import CompareRuntimesResult
from tasks.kv_memory import MemoryResult
from tasks.reporting.markdown import table
from tasks.reporting.tables import in_order

Figures = dict[str, Any]


def smollm2(figures: Figures) -> str:
    return (
        "Four variants of the padded SmolLM2-135M-Instruct, from its GGUF to the endpoint:"
        f" **{figures['seconds']:.0f} s** (asked: at most {figures['limit_seconds']} s). A second"
        " run, which reuses every heavy step and touches no GPU:"
        f" {figures['second_run_seconds']:.0f} s.\n\n" + variants(figures)
    )


def internlm2_shape(figures: Figures) -> str:
    return (
        "Random weights in the shape of internlm2-chat-1_8b, with InternLM2's own remote code:"
        f" speed only, its perplexity means nothing. The whole flow: **{figures['seconds']:.0f} s**"
        f" (asked: at most {figures['limit_seconds']} s).\n\n" + variants(figures)
    )


def variants(figures: Figures) -> str:
    report: str = figures["report"]
    steps = report[report.index("## Steps") :].split("\n\n")[1]
    return (
        f"{table(in_order(figures['variants']))}\n\n"
        + "Each step's wall time, largest process, and GPU memory above what was in use"
        f" (NVML):\n\n{steps}\n"
    )


def runtimes(figures: Figures) -> str:
    """Both formats through all runtimes; the ratio between the formats is of medians of two
    comparisons, one after the other."""
    parts, medians = [], {}
    for kind in ("fp16", "w4a16"):
        result = CompareRuntimesResult.model_validate(
            {key: figures[kind][key] for key in CompareRuntimesResult.model_fields}
        )
        medians[kind] = {
            item.runtime: {speed.batch_size: speed.decode_median for speed in item.speeds}
            for item in result.figures
        }
        rounds = len(result.figures[0].speeds[0].decode)
        parts += [
            f"`{figures[kind]['command']}`",
            (
                f"{kind}, tokens per second (ratio to the first runtime; 95 % interval over"
                f" {rounds} rounds):"
            ),
            table(comparison_rows(result)),
        ]
    gains = [
        {
            "runtime": name,
            **{
                f"batch {size}": f"{medians['w4a16'][name][size] / medians['fp16'][name][size]:.2f}"
                for size in sizes
            },
        }
        for name, sizes in medians["fp16"].items()
    ]
    parts += [
        (
            "Decode, W4A16 over fp16 in the same runtime (asked of the default runtime: at least"
            " 1.5 at batch 1):"
        ),
        table(gains),
    ]
    return "\n\n".join(parts) + "\n"


def kv_cache(figures: Figures) -> str:
    return (
        table(
            memory_rows(
                MemoryResult.model_validate(
                    {key: figures[key] for key in MemoryResult.model_fields}
                )
            )
        )
        + "\n"
    )


def quantization(figures: Figures) -> str:
    rows = [
        {
            "": name,
            "seconds": ", ".join(f"{turn['seconds']:.1f}" for turn in turns),
            "peak GPU memory": f"{max(turn['peak_gpu_bytes'] for turn in turns) / 1e6:.1f} MB",
        }
        for name, turns in figures["turns"].items()
    ]
    seconds, peak = (
        total("ours", key, figures) / total("bare", key, figures)
        for key in ("seconds", "peak_gpu_bytes")
    )
    return (
        "The quantize step (with the artifact that it makes) beside bare `lmdeploy lite auto_awq`,"
        f" the same rows, A B B A:\n\n{table(rows)}\n\nOurs over bare: **{seconds:.3f}** in time,"
        f" **{peak:.3f}** in peak memory (asked: at most {figures['limit']}).\n"
    )


def total(name: str, key: str, figures: Figures) -> float:
    return float(sum(turn[key] for turn in figures["turns"][name]))


def start_up(figures: Figures) -> str:
    turns: dict[str, list[float]] = figures["turns"]
    rows = [
        {
            "": name,
            "seconds": ", ".join(f"{value:.1f}" for value in values),
            "over bare": f"{statistics.mean(values) / statistics.mean(turns['bare']):.2f}",
        }
        for name, values in turns.items()
    ]
    return (
        "From the start of the deployment to the first completed answer (asked: at most"
        f" {figures['limit']} times bare `lmdeploy serve api_server` and one completion). Tuning is"
        f" TurboMind's choice of GEMM kernels, which the measure step has kept:\n\n{table(rows)}\n"
    )


def scoring(figures: Figures) -> str:
    turns: dict[str, list[float]] = figures["turns"]
    rows = [
        {"engine": name, "tokens/s": ", ".join(f"{value:.0f}" for value in values)}
        for name, values in turns.items()
    ]
    ratio = statistics.median(
        one / other for one, other in zip(turns["turbomind"], turns["transformers"], strict=True)
    )
    return (
        f"The evaluation's scoring, interleaved:\n\n{table(rows)}\n\nTurboMind over transformers:"
        f" **{ratio:.2f}** (asked: at least {figures['limit']}). LMDeploy gives out TurboMind's"
        " logits through the host's memory only, a row of the whole vocabulary for each position,"
        " and that takes most of the time.\n"
    )


SECTIONS: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "smollm2": ("The flow on SmolLM2", smollm2),
    "internlm2_shape": ("The flow on a 1.9B shape", internlm2_shape),
    "runtimes": ("Engine runtimes on a 7.7B shape", runtimes),
    "start_up": ("Start-up", start_up),
    "kv_cache": ("cache_max_entry_count", kv_cache),
    "quantization": ("Quantization", quantization),
    "scoring": ("Scoring", scoring),
}


def read(folder: Path) -> dict[str, Figures]:
    """The raw figures in a folder, by section, in the order of the page."""
    return {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in SECTIONS
        if (folder / f"{name}.json").exists()
    }


def page(found: dict[str, Figures]) -> tuple[str, str]:
    """The page's name (of the GPU that all figures are from) and its text."""
    names = {figures["gpu"]["name"] for figures in found.values()}
    if len(names) != 1:
        raise SystemExit(f"figures of {sorted(names) or 'no GPU'} do not make one page")
    gpu = names.pop()
    key = artifact_key(gpu)
    text = (
        f"# {gpu}\n\nWritten by `python -m benchmarks.gpu.write_up` from the raw figures in"
        f" `{key}/`; `make bench-gpu` makes them anew.\n"
    )
    for name, figures in found.items():
        title, section = SECTIONS[name]
        made = ", ".join(f"{library} {version}" for library, version in figures["versions"].items())
        command = figures.get("command", f"python -m benchmarks.gpu.measure {name}")
        text += (
            f"\n## {title}\n\n{section(figures)}\n<sub>{figures['date']}; {gpu}, driver"
            f" {figures['gpu']['driver']}, {figures['cores']} CPU cores; {made}."
            f" `{command}`</sub>\n"
        )
    return key, text


def main() -> None:
    folder = Path(sys.argv[1])
    key, text = page(read(folder))
    target = PROJECT / "docs" / "benchmarks" / key
    target.mkdir(parents=True, exist_ok=True)
    for name in read(folder):
        if (folder / f"{name}.json").resolve() != (target / f"{name}.json").resolve():
            shutil.copyfile(folder / f"{name}.json", target / f"{name}.json")
    target.with_suffix(".md").write_text(text)
    print(target.with_suffix(".md").relative_to(PROJECT))


if __name__ == "__main__":
    main()
