"""Train a small Llama whose rows are whole super-blocks of 256 inputs, for `gguf_types.py`: the default
model's rows of 576 inputs are not.

    python benchmarks/make_trained.py OUT --text valid.txt [--steps 300]

Four layers of hidden size 256 with one token per byte, trained on TEXT; 300 steps take about two minutes on
one free core. Codes of random weights would say little: trained weights have the outliers that make formats
differ. The last line is JSON: the folder, steps and the loss in nats per byte.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.make_checkpoint import byte_tokenizer  # noqa: E402
from qcore.base.files import new_folder  # noqa: E402
from qcore.quantization.calibration.text import calibration_text  # noqa: E402

WINDOW, BATCH, RATE, WARM = 256, 8, 3e-3, 50


def train(model: torch.nn.Module, ids: torch.Tensor, steps: int) -> float:
    """Train `model` for `steps` on windows of `ids` (T,); return the mean loss of the last 20, in nats."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM) * max(0.05, 1 - step / steps)
        starts = torch.randint(0, len(ids) - WINDOW, (BATCH,), generator=generator).tolist()
        batch = torch.stack([ids[start : start + WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / len(losses[-20:])


def main() -> None:
    """Parse the options, train, save, print the JSON line."""
    from transformers import LlamaConfig, LlamaForCausalLM

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--text", metavar="FILE", help="text to learn; default: the packaged calibration text"
    )
    parser.add_argument("--steps", type=int, default=300)
    choices = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=258,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=257,
    )
    model, tokenizer = LlamaForCausalLM(config), byte_tokenizer()
    ids = torch.tensor(tokenizer(calibration_text(choices.text).content)["input_ids"])
    loss = train(model, ids, choices.steps)
    with new_folder(choices.out) as folder:
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(json.dumps({"folder": str(choices.out), "steps": choices.steps, "loss": loss}))


if __name__ == "__main__":
    main()
