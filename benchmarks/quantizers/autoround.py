"""Learned rounding from AutoRound's authors. An item is "bits group", "4 64"; steps and batch are the library's defaults.

It is given the windows of calibration text that everybody reads (its own default is eight times as much); what it saves is read back.
"""

from copy import deepcopy

from benchmarks.quantizers import Job, Stored, packed


def quantize(job: Job) -> Stored:
    """See the module."""
    from auto_round import AutoRound

    bits, group = map(int, job.item.split())
    ids = job.calibration().ids
    windows = [{"input_ids": row[None]} for row in ids]
    rounding = AutoRound(
        deepcopy(job.loaded.model), job.loaded.tokenizer, scheme=f"W{bits}A16", group_size=group, dataset=windows, nsamples=len(ids),
        seqlen=ids.shape[1], device_map="cpu", enable_torch_compile=False,
    )  # fmt: skip
    job.say(f"AutoRound quantizes to {bits} bits")
    rounding.quantize_and_save(str(job.scratch / "saved"), format="auto_gptq")
    folders = [path.parent for path in (job.scratch / "saved").rglob("config.json")]
    return packed.take(job.loaded.model, folders[0])
