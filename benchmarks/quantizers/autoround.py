"""Learned rounding from AutoRound's authors. An item is "bits group steps", "4 64 200"; everything else is
the library's default, which is 200 steps per block; its authors call 50 the light recipe. A step reads 8
windows.

It loads the checkpoint itself, and calibrates on the same windows as every method (its own default is 128 of
2,048 tokens); the saved model is read back.
"""

from benchmarks.quantizers import Job, Stored, packed


def quantize(job: Job) -> Stored:
    """See the module."""
    from auto_round import AutoRound

    bits, group, steps = map(int, job.item.split())
    ids = job.calibration().ids
    windows = [{"input_ids": row[None]} for row in ids]
    rounding = AutoRound(
        str(job.loaded.checkpoint.folder),
        scheme=f"W{bits}A16",
        group_size=group,
        iters=steps,
        dataset=windows,
        nsamples=len(ids),
        seqlen=ids.shape[1],
        device_map="cpu",
        enable_torch_compile=False,
    )
    job.say(f"AutoRound quantizes to {bits} bits")
    rounding.quantize_and_save(str(job.scratch / "saved"), format="auto_gptq")
    folders = [path.parent for path in (job.scratch / "saved").rglob("config.json")]
    return packed.take(job.loaded.model, folders[0])
