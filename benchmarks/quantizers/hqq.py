"""HQQ from its authors' library. An item is "bits group", "4 64"; everything else is the library's default.

It computes in float16, its default, so that scales and zero points are kept in 16 bits; its stored weights
are dequantized in float32.
"""

from benchmarks.quantizers import Job, Stored, linears, put


def quantize(job: Job) -> Stored:
    """See the module."""
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    bits, group = map(int, job.item.split())
    layers, nbytes, weights = linears(job.loaded.model), 0, 0
    for done, (name, layer) in enumerate(layers.items()):
        job.say(f"{done} of {len(layers)} {name}")
        config = BaseQuantizeConfig(nbits=bits, group_size=group)
        found = HQQLinear(layer, config, compute_dtype=torch.float16, device="cpu", del_orig=False)
        meta = dict(found.meta)
        nbytes += sum(part.nbytes for part in (found.W_q, meta["scale"], meta["zero"]))
        weights += layer.weight.numel()
        meta |= {"scale": meta["scale"].float(), "zero": meta["zero"].float(), "compute_dtype": torch.float32}
        put(layer, Quantizer.dequantize(found.W_q.data, meta).view(layer.weight.shape))
    return Stored(nbytes, weights, frozenset(layers))
