"""Logits by transformers' own loader, which must neither miss a weight nor meet an unknown one."""

import torch
from job import run
from transformers import AutoModelForCausalLM


def logits(path, ids):
    model, report = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise RuntimeError(f"{kind}: {sorted(report[kind], key=str)[:5]}")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


run(logits)
