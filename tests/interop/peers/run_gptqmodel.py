"""Logits by GPTQModel's own loader, on its plain torch kernel."""

import torch
from gptqmodel import BACKEND, GPTQModel
from job import run


def logits(path, ids):
    model = GPTQModel.load(path, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    with torch.no_grad():
        return model.model(torch.tensor([ids])).logits[0].float().numpy()


run(logits)
