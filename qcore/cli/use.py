"""`python -m qcore bench` and `generate`: how fast a model runs, and what it writes."""

from typing import Annotated

import typer

from qcore.cli.output import check_output, write_output
from qcore.cli.progress import Show
from qcore.formats.kv import NONE

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="smollm2-135m, a hub id, a folder, or a GGUF file", show_default=False
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; without it, one a core")]
Seed = Annotated[int, typer.Option(help="Seed of the prompt that speed is measured with")]
PromptTokens = Annotated[int, typer.Option(help="Length of the prompt that speed is measured with")]
NewTokens = Annotated[int, typer.Option(help="Tokens written after it")]
Repeats = Annotated[int, typer.Option(help="How often speed is measured; medians are reported")]
Kv = Annotated[str, typer.Option(help="Form of the key-value cache: none, int8 or int4", metavar="FORM")]
Device = Annotated[str, typer.Option(help="cpu, or an accelerator such as cuda")]
Json = Annotated[
    str | None,
    typer.Option("--json", help="Write the result there as JSON; - is standard output", metavar="OUT"),
]


def bench(
    model: Model,
    prompt_tokens: PromptTokens = 128,
    new_tokens: NewTokens = 32,
    repeats: Repeats = 3,
    json: Json = None,
    threads: Threads = None,
    seed: Seed = 0,
    revision: Revision = None,
    device: Device = "cpu",
    kv: Kv = NONE,
) -> int:
    """Speed of MODEL (or of a folder that quantize wrote): prefill, decode and its share of the read
    bandwidth, TTFT, memory."""
    from qcore.results import report
    from qcore.verbs import single

    check_output(json)
    with Show() as show:
        result = single.bench_once(
            model,
            revision=revision,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            threads=threads,
            seed=seed,
            device=device,
            progress=show,
            kv=kv,
        )
    prefill, decode = (
        report.human_number(result["prefill_tok_s"]),
        report.human_number(result["decode_tok_s"]),
    )
    first, peak = report.human_seconds(result["ttft_s"]), report.human_bytes(result["peak_run_bytes"])
    text = f"prefill {prefill} tok/s, decode {decode} tok/s, first token after {first}, peak memory {peak}"
    if result["bandwidth_share"] is not None:
        read, bandwidth = result["record"]["bytes_a_token"], result["record"]["environment"]["read_bandwidth"]
        text += (
            f"\ndecoding reads {report.human_bytes(read)} of weights a token: {report.human_percent(result['bandwidth_share'])} of the "
            f"{report.human_bytes(bandwidth)}/s that this machine reads, whose limit is {report.human_number(bandwidth / read)} tok/s"
        )
    if kv != NONE:
        text += f"\n{report.cache_phrase(result['record']['kv'])}; {result['record']['execution'][0]}"
    return write_output(result, json, text)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to continue", show_default=False)],
    new_tokens: Annotated[int, typer.Option(help="Most tokens to write")] = 64,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask it as a chat message, by the model's own template")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token each time")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the most likely tokens that together have this probability")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many of the most likely tokens; 0 for all")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the draw")] = 0,
    kv: Kv = NONE,
    json: Json = None,
    threads: Threads = None,
    revision: Revision = None,
    device: Device = "cpu",
) -> int:
    """Continue a text with MODEL (or a folder that quantize wrote)."""
    from qcore.results import report
    from qcore.verbs.writing import generate_once

    check_output(json)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    with Show() as show:
        result = generate_once(
            model,
            prompt,
            new_tokens,
            chat=chat,
            sampling=sampling,
            kv=kv,
            threads=threads,
            revision=revision,
            device=device,
            progress=show,
        )
    return write_output(result, json, "\n".join([report.visible_text(result["text"]), *result["notes"]]))
