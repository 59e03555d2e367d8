"""`qcore eval`, `bench` and `generate`: quality, speed and text of one model."""

from typing import Annotated

import typer

from qcore.base.errors import InputError
from qcore.base.text_files import line_end_notes
from qcore.cli import options
from qcore.cli.output import check_output, write_output
from qcore.cli.progress import Show
from qcore.formats.kv import NONE
from qcore.recipes.spec import RunSpec


def evaluate(
    model: options.Model,
    text: options.Text = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Score only this many tokens (default: the whole text)", show_default=False),
    ] = None,
    window: options.Window = RunSpec.window,
    stride: options.Stride = None,
    choices: options.Choices = None,
    lm_eval: Annotated[
        str | None,
        typer.Option("--lm-eval", help="Run these lm-eval tasks, comma-separated", metavar="TASKS"),
    ] = None,
    lm_eval_folder: Annotated[
        str | None, typer.Option(help="Folder with your own lm-eval task files", metavar="DIR")
    ] = None,
    lm_eval_limit: Annotated[int | None, typer.Option(help="Most documents per task")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Load one block at a time, for models larger than memory")
    ] = False,
    recipes: Annotated[
        str | None,
        typer.Option(help="With --stream: also score these recipes in the same pass", metavar="A,B"),
    ] = None,
    json: options.Json = None,
    revision: options.Revision = None,
    device: options.Device = "cpu",
    kv: options.Kv = NONE,
) -> int:
    """Measure the perplexity of MODEL (or of a folder that quantize wrote) on a text, its answers to
    questions, or its lm-eval scores."""
    check_output(json)
    conditions = {"text": text, "tokens": tokens, "window": window, "stride": stride}
    usual = (text, tokens, window, stride, kv) == (None, None, RunSpec.window, None, NONE)
    if stream or recipes is not None:
        if not stream:
            raise InputError(
                "--recipes works only with --stream here. Use compare to measure recipes in memory."
            )
        if (choices, lm_eval, kv) != (None, None, NONE) or device != "cpu":
            raise InputError(
                "With --stream only a text can be scored, on the CPU. Leave out --choices, --lm-eval, --kv "
                "and --device."
            )
        return _streamed(model, recipes, revision, json, conditions)
    if choices is not None and lm_eval is not None:
        raise InputError("--choices and --lm-eval exclude each other. Give one of them.")
    if not usual and (choices, lm_eval) != (None, None):
        raise InputError(
            "--choices and --lm-eval replace the text. Leave out --text, --tokens, --window and --stride."
        )
    if choices is not None:
        return _questions(model, choices, revision, device, json)
    if lm_eval is not None:
        return _harness(model, lm_eval, lm_eval_folder, lm_eval_limit, revision, device, json)
    return _text(model, revision, device, kv, json, conditions)


def _text(model: str, revision: str | None, device: str, kv: str, json: str | None, conditions: dict) -> int:
    from qcore.results import report
    from qcore.verbs import evaluate as verb

    with Show() as show:
        result = verb.run(model, revision=revision, device=device, kv=kv, progress=show, **conditions)
    perplexity = report.human_perplexity(result["perplexity"])
    bits = report.human_number(result["bits_per_byte"])
    words = f"{result['tokens_scored']:,} tokens, window {result['window']}, stride {result['stride']}"
    words += "" if kv == NONE else f", KV cache in {kv}"
    text = f"perplexity {perplexity} ({words}); {bits} bits per byte"
    return write_output(result, json, "\n".join([text, *line_end_notes(result["record"]["text"])]))


def _streamed(
    model: str, recipes: str | None, revision: str | None, json: str | None, conditions: dict
) -> int:
    from qcore.results import report
    from qcore.verbs import evaluate as verb

    chosen = options.several(recipes) if recipes else ()
    with Show() as show:
        result = verb.run_streamed(model, chosen, revision=revision, progress=show, **conditions)
    lines = []
    for row in result["rows"]:
        distance = ""
        if row["divergence"]:
            distance = f"; KL {report.human_number(row['divergence']['kl_mean'])} nats per token"
        lines.append(f"{row['recipe']}: perplexity {report.human_perplexity(row['perplexity'])}{distance}")
    first = result["rows"][0]
    lines.append(f"{first['tokens_scored']:,} tokens, window {first['window']}, stride {first['stride']}")
    lines += line_end_notes(result["record"]["text"])
    return write_output(result, json, "\n".join(lines))


def _questions(model: str, choices: str, revision: str | None, device: str, json: str | None) -> int:
    from qcore.evaluation.phrases import answers_phrase
    from qcore.verbs import ask as verb

    with Show() as show:
        result = verb.run(model, choices, revision=revision, device=device, progress=show)
    return write_output(result, json, "\n".join([answers_phrase(result), *line_end_notes(result)]))


def _harness(
    model: str,
    tasks: str,
    folder: str | None,
    limit: int | None,
    revision: str | None,
    device: str,
    json: str | None,
) -> int:
    from qcore.results import report
    from qcore.verbs import ask as verb

    with Show() as show:
        result = verb.run_harness(
            model,
            options.split(tasks),
            folder=folder,
            limit=limit,
            revision=revision,
            device=device,
            progress=show,
        )
    lines = []
    for task, found in result["tasks"].items():
        for name, metric in found["metrics"].items():
            error = "" if metric["stderr"] is None else f" ± {report.human_number(metric['stderr'])}"
            value = report.human_number(metric["value"], 4)
            lines.append(f"{report.visible(task)}  {report.visible(name)}  {value}{error}")
    return write_output(result, json, "\n".join(lines) or "lm-eval gave no figures.")


def bench(
    model: options.Model,
    prompt_tokens: options.PromptTokens = RunSpec.prompt_tokens,
    new_tokens: options.NewTokens = RunSpec.new_tokens,
    repeats: options.Repeats = RunSpec.repeats,
    json: options.Json = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    revision: options.Revision = None,
    device: options.Device = "cpu",
    kv: options.Kv = NONE,
) -> int:
    """Measure the speed of MODEL (or of a folder that quantize wrote): prefill, decode and its share of the
    read bandwidth, time to first token, memory."""
    from qcore.results import report
    from qcore.verbs import bench as verb

    check_output(json)
    with Show() as show:
        result = verb.run(
            model,
            revision=revision,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            seed=seed,
            device=device,
            kv=kv,
            progress=show,
        )
    prefill = report.human_number(result["prefill_tok_s"])
    decode = report.human_number(result["decode_tok_s"])
    first, peak = report.human_seconds(result["ttft_s"]), report.human_bytes(result["peak_run_bytes"])
    text = f"prefill {prefill} tok/s, decode {decode} tok/s, first token after {first}, peak memory {peak}"
    if result["bandwidth_share"] is not None:
        read, bandwidth = result["record"]["bytes_a_token"], result["record"]["environment"]["read_bandwidth"]
        text += (
            f"\ndecoding reads {report.human_bytes(read)} of weights per token: "
            f"{report.human_percent(result['bandwidth_share'])} of the "
            f"{report.human_bytes(bandwidth)}/s that "
            f"this machine reads, whose limit is {report.human_number(bandwidth / read)} tok/s"
        )
    if mark := report.beside_other_work(result["others_share"]):
        text += f"\n{mark}"
    if kv != NONE:
        text += f"\n{report.cache_phrase(result['record']['kv'])}; {result['record']['execution'][0]}"
    return write_output(result, json, text)


def generate(
    model: options.Model,
    prompt: Annotated[str, typer.Option(help="Text to continue", show_default=False)],
    new_tokens: Annotated[int, typer.Option(help="Most new tokens")] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a chat message, with the model's template")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token each time")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most likely tokens that together have this probability")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from this many most likely tokens; 0 for all")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling")] = 0,
    kv: options.Kv = NONE,
    json: options.Json = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    device: options.Device = "cpu",
) -> int:
    """Continue a text with MODEL (or a folder that quantize wrote)."""
    from qcore.evaluation.sampling import Sampling
    from qcore.results import report
    from qcore.verbs import generate as verb

    check_output(json)
    with Show() as show:
        result = verb.run(
            model,
            prompt,
            new_tokens,
            chat=chat,
            sampling=Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed),
            kv=kv,
            threads=threads,
            revision=revision,
            device=device,
            progress=show,
        )
    return write_output(result, json, "\n".join([report.visible_text(result["text"]), *result["notes"]]))
