"""The outcome of a job as text for a terminal."""

WORST = 5  # layers that are named


def in_words(kind: str, outcome: dict) -> str:
    """Return the outcome of a job of this kind as text."""
    return WORDS[kind](outcome)


def _trained(result: dict) -> str:
    from qcore.results.report import human_bytes, human_number, human_perplexity, human_seconds

    history = result["history"]
    first, best = history["validations"][0], min(history["validations"], key=lambda each: each[1])
    return (
        f"{history['step']} steps in {human_seconds(history['seconds'])}, ended by {history['ended']}: "
        f"validation loss {human_number(first[1])} -> {human_number(best[1])}, "
        f"perplexity {human_perplexity(first[2])} -> {human_perplexity(best[2])} (step {best[0]}); "
        f"{human_bytes(result['stored_bytes'])}. Saved in {result['folder']}"
    )


def _compared(result: dict) -> list[str]:
    """Return one line per measured model."""
    from qcore.results.report import beside_other_work, human_bytes, human_number, human_perplexity

    found = result.get("compared")
    if not found:
        return []
    words = {"before": "before", "rounded": "quantized without training", "after": "after"}
    mark = beside_other_work(found.get("others_share"))
    lines = [
        f"{words[name]}: {human_bytes(found[name]['stored_bytes'])}, "
        f"perplexity {human_perplexity(found[name]['perplexity'])}, KL "
        f"{human_number(found[name]['kl_mean'])} nats, "
        f"decode {human_number(found[name]['decode_tok_s'])} tok/s"
        for name in words
        if name in found
    ]
    return [*lines, f"speeds {mark}"] if mark else lines


def _training(outcome: dict) -> str:
    return "\n".join([_trained(outcome), *_compared(outcome), *outcome.get("notes", ())])


def _pruning(outcome: dict) -> str:
    from qcore.results.report import human_bytes, human_percent

    if "removed" in outcome:
        share = (
            f"{human_percent(outcome['removed'])} of the weights removed, {outcome['parameters']:,} are left"
        )
    else:
        share = f"{human_percent(outcome['sparsity'])} of the weights of linear layers are 0"
        if "break_even" in outcome:
            share += f" and not stored, which pays from {human_percent(outcome['break_even'])} on"
    size = human_bytes(outcome["stored_bytes"])
    line = f"{outcome['method']}: {share}; {size}. Saved in {outcome['folder']}"
    return "\n".join([line, *_compared(outcome), *outcome.get("notes", ())])


def _export(outcome: dict) -> str:
    from qcore.results.report import human_bytes, human_number

    size, bits = human_bytes(outcome["stored_bytes"]), human_number(outcome["bits_per_weight"])
    line = f"{outcome['recipe']}: {size}, {bits} bits per weight. "
    if found := outcome["agreement"]:
        line += (
            f"Logits within {max(found['prefill'], found['decode']):.1g} of PyTorch's ({found['tokens']} "
            f"tokens, the last {found['decoded']} through the cache). "
        )
    return "\n".join([f"{line}Exported to {outcome['folder']}", *outcome.get("notes", ())])


def quantized(outcome: dict) -> str:
    """Return the outcome of a quantization as text."""
    from qcore.results.report import human_bytes, human_number, human_percent

    size, share = human_bytes(outcome["stored_bytes"]), human_percent(outcome["coverage"])
    bits = human_number(outcome["bits_per_weight"])
    line = f"{outcome['recipe']}: {size}, {bits} bits per weight on {share} of the weights. "
    return "\n".join([f"{line}Saved in {outcome['folder']}", *outcome.get("notes", ())])


def _sensitivity(outcome: dict) -> str:
    from qcore.quantization.sensitivity.store import load_table

    table = load_table(outcome["key"])
    return "The table is no longer in the cache folder." if table is None else sensitivities(table)


def _probe(outcome: dict) -> str:
    return f"{len(outcome['recipes'])} recipes timed; plans of this model show them."


def _audit(outcome: dict) -> str:
    from qcore.cli.audit import text
    from qcore.verbs.audit_types import Audit

    return text(Audit.from_dict(outcome))


def sensitivities(table) -> str:
    """Return a table of sensitivities: sums for each kind of module, the most sensitive layers, and how well
    predictions and measurements agree."""
    return "\n".join([*_table(table), *_correlations(table)])


def _table(table) -> list[str]:
    """Return one line per kind of module with the sum over its layers, then the most sensitive layers."""
    from qcore.results.report import human_number, visible

    kinds = list(dict.fromkeys(layer.kind for layer in table.layers))
    width = max(len(kind) for kind in (*kinds, "all layers"))
    column = max(12, *(len(label) for label in table.labels))

    def line(title: str, layers) -> str:
        sums = (sum(layer.loss[k] for layer in layers) for k in range(len(table.formats)))
        return f"{visible(title):{width}}  " + "  ".join(f"{human_number(value):>{column}}" for value in sums)

    head = f"{'':{width}}  " + "  ".join(f"{label:>{column}}" for label in table.labels)
    rows = [line(kind, [layer for layer in table.layers if layer.kind == kind]) for kind in kinds]
    worst = sorted(table.layers, key=lambda layer: -layer.loss[0])[:WORST]
    named = ", ".join(
        f"{visible(layer.name.removesuffix('.weight'))} {human_number(layer.loss[0])}" for layer in worst
    )
    tokens, method = table.conditions["tokens"], table.conditions["method"]
    return [
        f"predicted loss in nats per token, summed over blocks ({method}, {tokens:,} tokens):",
        head,
        *rows,
        line("all layers", table.layers),
        f"most sensitive in {table.labels[0]}: {named}",
    ]


def _correlations(table) -> list[str]:
    found = table.correlations()
    if not found:
        return []
    words = {"loss": "predicted loss", "output_error": "error of the layer's output"}
    over = f"{table.conditions['measured_tokens']:,} tokens"
    return [f"rank correlation with the divergence measured over {over} (Spearman):"] + [
        f"    {words[proxy]}: {each['all']:.3f} over all; "
        + ", ".join(f"{label} {each[label]:.3f}" for label in table.labels)
        for proxy, each in found.items()
    ]


WORDS = {
    "qat": _training,
    "distill": _training,
    "prune": _pruning,
    "export": _export,
    "quantize": quantized,
    "sensitivity": _sensitivity,
    "probe": _probe,
    "audit": _audit,
}
