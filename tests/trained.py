"""A tiny model trained in seconds: it has learned a language of four-letter words."""

import pytest
import tiny
import torch

WORDS = ("soft", "warm", "rain", "fell", "over", "blue", "hill", "slow", "dawn", "gold")


def sentences(count: int, seed: int) -> str:
    """Return text in which each word is followed by one of two others, at random."""
    generator = torch.Generator().manual_seed(seed)
    coins = torch.randint(0, 2, (count,), generator=generator).tolist()
    place, words = 0, []
    for coin in coins:
        words.append(WORDS[place])
        place = (3 * place + 1 + 4 * coin) % len(WORDS)
    return " ".join(words)


@pytest.fixture(scope="session")
def learned(tmp_path_factory):
    """Return the folder of a tiny Llama that predicts `sentences`."""
    folder = tmp_path_factory.mktemp("learned") / "llama"
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    ids = torch.tensor(tokenizer(sentences(4000, 0))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(160):
        starts = torch.randint(0, len(ids) - 64, (16,), generator=generator).tolist()
        batch = torch.stack([ids[start : start + 64] for start in starts])
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 160)
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """Return files of such text: for training and for validation."""
    folder = tmp_path_factory.mktemp("words")
    for name, seed, count in (("train", 1, 3000), ("test", 2, 600)):
        (folder / f"{name}.txt").write_text(sentences(count, seed))
    return folder
