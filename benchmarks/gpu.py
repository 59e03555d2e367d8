"""Everything that `--device cuda` promises, checked on a GPU: `benchmarks/gpu.sh` runs it within ten minutes.

    kernels   one weight per format: the product on the device against the dequantized weight in float64, and
              the time for one token beside that of the plain-torch reference
    recipes   one model: quantized on the device (GPTQ included), prefill and decode speed, bytes and peaks on
              the device, and perplexity there against that of the same codes on the CPU

A check fails if a product is further off than its kernel's rounding explains (`BOUNDS`), if perplexity on the
device differs from the CPU's by more than `PERPLEXITY`, or if a recipe ends with an error. A recipe that does
not fit is a row with its sentence, and the next one runs. With --device cpu the script itself is tested.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs as a file, from anywhere

import torch  # noqa: E402

from qcore import recipes  # noqa: E402
from qcore.base import texts  # noqa: E402
from qcore.base.errors import QcoreError  # noqa: E402
from qcore.evaluation import evaluate  # noqa: E402
from qcore.kernels import dispatch, gpu, reference  # noqa: E402
from qcore.measurement import throughput  # noqa: E402
from qcore.measurement.devices import DevicePeak, out_of_memory  # noqa: E402
from qcore.measurement.environment import environment  # noqa: E402
from qcore.quantization import methods  # noqa: E402
from qcore.verbs import checks, prepare, record  # noqa: E402

FORMATS = ("int4-g32", "int4-g64-sym", "int3-g64", "gguf-q4_k", "int8", "nf4-g64", "fp4-g64", "kmeans4-g32")
RECIPES = ("fp32", "bf16", "int8", "int4-g32", "int4-g32-gptq", "int4-g64-awq", "nf4-g64", "kmeans4-g32")
BOUNDS = {gpu.Int4: 8e-3, gpu.Int8: 1e-5, gpu.FourBit: 1e-5}  # relative; bfloat16 rounds by up to 2 ** -9
EXACT = 1e-4  # of the reference, and of the CPU's kernels with 16-bit activations
PERPLEXITY = 0.01  # relative
SECONDS = 540  # recipes that begin later are left out, so that the whole ends within ten minutes
OUTPUTS, INPUTS = 1024, 2048
CALIBRATION_TOKENS = 4096
PROMPT, NEW = 128, 32  # tokens


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(device)


def seconds(run: Callable[[], object], device: str, repeats: int = 20) -> float:
    """Return the seconds of one call of `run`, the mean over `repeats` after one warm-up."""
    run()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - began) / repeats


def kernel_row(name: str, device: str) -> dict:
    """Compare the product with a weight in the format `name` on `device` with float64."""
    generator = torch.Generator().manual_seed(0)
    format = recipes.parse(name).weights
    weight = methods.quantize(torch.randn(OUTPUTS, INPUTS, generator=generator), format, format.method)
    x = torch.randn(1, INPUTS, generator=generator)
    expected = x.double() @ weight.dequantize().double().T
    there, inputs = gpu.moved(weight, device), x.to(device)
    packed = dispatch.packed(there, "int16")
    y = dispatch.linear(inputs, packed, None, "int16").cpu().double()
    error = float((y - expected).norm() / expected.norm())
    return {
        "format": name,
        "kernel": dispatch.explain(packed, "int16"),
        "error": error,
        "bound": BOUNDS.get(type(packed), EXACT),
        "kernel_s": seconds(lambda: dispatch.linear(inputs, packed, None, "int16"), device),
        "reference_s": seconds(lambda: reference.linear(inputs, there, None), device),
    }


def recipe_row(name: str, checkpoint, device: str, tokens: int) -> dict:
    """Quantize on `device`, measure there, and score the same codes on the CPU."""
    recipe, window = recipes.parse(name), min(512, tokens)
    began = time.perf_counter()
    with DevicePeak(device) as loading:
        made = prepare.prepare(
            checkpoint,
            recipe,
            device=device,
            tokens=256,
            window=window,
            calibration=prepare.CalibrationText(tokens=CALIBRATION_TOKENS),
        )
        synchronize(device)
    took = time.perf_counter() - began
    model = made.loaded.model
    ids = texts.tokenize(texts.load_text(None), made.loaded.tokenizer, limit=tokens)
    with DevicePeak(device) as running:
        speed = throughput.measure(model, PROMPT, NEW)
        there = evaluate(model, ids, window=window).perplexity
    held = None if device == "cpu" else torch.accelerator.memory_allocated(device)
    lines = record.execution(model)
    here = evaluate(model.to("cpu"), ids, window=window).perplexity
    return {
        "recipe": name,
        "stored_bytes": made.ledger.stored_bytes,
        "device_bytes": held,
        "decode_tok_s": speed.decode_tok_s,
        "prefill_tok_s": speed.prefill_tok_s,
        "perplexity": there,
        "perplexity_cpu": here,
        "peak_load_bytes": loading.peak_bytes,
        "peak_run_bytes": running.peak_bytes,
        "prepare_s": took,
        "quantize_s": made.quantize_s,
        "execution": lines,
    }


def failed(name: str, error: BaseException) -> dict:
    return {"recipe": name, "error": out_of_memory(error) or f"{type(error).__name__}: {error}"}


def problems(kernels: list[dict], rows: list[dict]) -> list[str]:
    """Return a sentence per check that does not hold."""
    found = [
        f"{row['format']}: the product is off by {row['error']:.2g}, more than {row['bound']:.2g}."
        for row in kernels
        if not row["error"] <= row["bound"]
    ]
    for row in rows:
        if "error" in row:
            found.append(f"{row['recipe']}: {row['error']}")
        elif not abs(row["perplexity"] / row["perplexity_cpu"] - 1) <= PERPLEXITY:
            found.append(
                f"{row['recipe']}: perplexity is {row['perplexity']:.4g} on the device and "
                f"{row['perplexity_cpu']:.4g} on the CPU with the same codes."
            )
    return found


def text(kernels: list[dict], rows: list[dict]) -> str:
    """Return both tables in Markdown."""
    lines = ["| format | kernel | error | kernel | reference |", "| --- | --- | ---: | ---: | ---: |"]
    for row in kernels:
        times = f"{row['kernel_s'] * 1e6:.0f} µs | {row['reference_s'] * 1e6:.0f} µs"
        lines.append(f"| {row['format']} | {row['kernel']} | {row['error']:.1e} | {times} |")
    lines += [
        "",
        "| recipe | on the device | decode | prefill | perplexity | on the CPU | peak loading | peak running "
        "| quantizing |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['recipe']} | {row['error']} |")
            continue
        sizes = [_mb(row[name]) for name in ("device_bytes", "peak_load_bytes", "peak_run_bytes")]
        lines.append(
            f"| {row['recipe']} | {sizes[0]} | {row['decode_tok_s']:.1f} tok/s | {row['prefill_tok_s']:.0f} "
            f"tok/s | {row['perplexity']:.4f} | {row['perplexity_cpu']:.4f} | {sizes[1]} | {sizes[2]} | "
            f"{row['quantize_s'] or 0:.1f} s |"
        )
    for row in rows:
        lines += [f"\n{row['recipe']}: {line}" for line in row.get("execution", [])]
    return "\n".join(lines)


def _mb(nbytes: int | None) -> str:
    return "–" if nbytes is None else f"{nbytes / 1e6:.0f} MB"


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; return 0 if all hold, 1 if not, 2 without the device."""
    parser = argparse.ArgumentParser(description="Check --device cuda on a GPU.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens to score")
    parser.add_argument("--json", help="write the result there")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        checks.check_device(options.device)
        checkpoint = prepare.find(options.model)
    except QcoreError as error:
        print(error, file=sys.stderr)
        return 2
    kernels = [kernel_row(name, options.device) for name in FORMATS]
    rows: list[dict] = []
    for name in options.recipes.split(","):
        if time.monotonic() - began > SECONDS:
            rows.append({"recipe": name, "error": "Left out, because the time was up."})
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows.append(recipe_row(name, checkpoint, options.device, options.tokens))
        except (QcoreError, RuntimeError, MemoryError) as error:
            rows.append(failed(name, error))
        gc.collect()
        if options.device != "cpu":
            torch.accelerator.empty_cache()
    found = problems(kernels, rows)
    about = environment()
    print(f"{about['gpu'] or about['cpu']}, torch {torch.__version__}, model {options.model}\n")
    print(text(kernels, rows))
    print("\nAll checks hold." if not found else "\n" + "\n".join(found))
    if options.json:
        result = {"kernels": kernels, "rows": rows, "problems": found, "environment": about}
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
