"""GPTQ from GPTQModel, the successor of AutoGPTQ. An item is "bits group", "4 64"; everything else is the
library's default.

It loads the checkpoint itself, in float32, and calibrates on the same windows as every method; the saved
model is read back.
"""

import os

from benchmarks.quantizers import Job, Stored, packed


def quantize(job: Job) -> Stored:
    """See the module."""
    os.environ.setdefault(
        "GPTQMODEL_CPU_WORKERS", "2"
    )  # it requires two to load a model, but takes one by itself on two cores
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    bits, group = map(int, job.item.split())
    windows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in job.calibration().ids]
    config = QuantizeConfig(bits=bits, group_size=group, device="cpu", offload_to_disk=False)
    model = GPTQModel.load(str(job.loaded.checkpoint.folder), config, dtype=torch.float32)
    job.say(f"GPTQModel quantizes to {bits} bits")
    model.quantize(windows, batch_size=1)
    model.save(str(job.scratch / "saved"))
    del model
    return packed.take(job.loaded.model, job.scratch / "saved")
