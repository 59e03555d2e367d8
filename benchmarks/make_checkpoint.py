"""Write a Llama checkpoint of random bf16 weights, of any size, without holding it in memory: an input for
streaming.

    python benchmarks/make_checkpoint.py OUT                  7B-shaped: 32 layers, hidden 4096, 13.5 GB in
                                                              1 GB shards
    python benchmarks/make_checkpoint.py OUT --layers 2       the same layers, fewer of them: 1.3 GB
    python benchmarks/make_checkpoint.py OUT --hidden 1024 …  other shapes

Weights are normal with standard deviation 0.02 from a seeded generator; one draw of 16 million numbers is
reused from changing positions, because drawing 7 billion would take minutes, and quantization speed does not
depend on the values. The tokenizer has one token per byte. The last line is JSON: the folder, its bytes and
its weights.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from qcore.base.home import check_space  # noqa: E402
from qcore.streaming.layout import Piece  # noqa: E402
from qcore.streaming.writer import ShardWriter  # noqa: E402

POOL = 1 << 24  # random numbers drawn once
CHUNK = 1 << 22  # weights written at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for name, default in (
        ("layers", 32),
        ("hidden", 4096),
        ("mlp", 11008),
        ("heads", 32),
        ("kv-heads", 32),
        ("vocabulary", 32000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shard-gb", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    choices = parser.parse_args()
    print(json.dumps(make(choices.out, shape(choices), choices.shard_gb * 1e9, choices.seed)))


def shape(choices) -> dict:
    """Return the config.json of a Llama model with the requested sizes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": choices.hidden,
        "intermediate_size": choices.mlp,
        "num_hidden_layers": choices.layers,
        "num_attention_heads": choices.heads,
        "num_key_value_heads": choices.kv_heads,
        "vocab_size": choices.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "dtype": "bfloat16",
    }


def make(out: Path, config: dict, shard_bytes: float, seed: int = 0) -> dict:
    """Write the checkpoint into the new folder `out`. Return its folder, bytes and weights."""
    out.mkdir(parents=True)
    pieces = [Piece(name, torch.bfloat16, shape) for name, shape in tensors(config)]
    total = sum(piece.nbytes for piece in pieces)
    check_space(out, total, "The checkpoint")
    generator = torch.Generator().manual_seed(seed)
    pool = (torch.randn(POOL, generator=generator) * 0.02).to(torch.bfloat16)
    shards = cut(pieces, shard_bytes)
    places, position = {}, 0
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        writer = ShardWriter(out / file, members)
        for piece in members:
            places[piece.name] = file
            for start in range(0, math.prod(piece.shape), CHUNK):
                count = min(CHUNK, math.prod(piece.shape) - start)
                position = (position + 64 * 10007) % (POOL - CHUNK)
                chunk = pool[position : position + count]
                writer.write(
                    piece.name, torch.ones(count, dtype=torch.bfloat16) if len(piece.shape) == 1 else chunk
                )
        writer.close()
    (out / "config.json").write_text(json.dumps(config, indent=1))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    byte_tokenizer().save_pretrained(out)
    return {"folder": str(out), "bytes": total, "weights": total // 2, "shards": len(shards)}


def tensors(config: dict) -> list[tuple[str, tuple[int, ...]]]:
    """Return (name, shape) of every tensor in a Llama checkpoint."""
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    found = [("model.embed_tokens.weight", (config["vocab_size"], hidden))]
    for i in range(config["num_hidden_layers"]):
        rows = {"q_proj": hidden, "k_proj": kv, "v_proj": kv, "o_proj": hidden}
        found += [
            (f"model.layers.{i}.self_attn.{name}.weight", (size, hidden)) for name, size in rows.items()
        ]
        found += [(f"model.layers.{i}.mlp.{name}.weight", (mlp, hidden)) for name in ("gate_proj", "up_proj")]
        found += [(f"model.layers.{i}.mlp.down_proj.weight", (hidden, mlp))]
        found += [
            (f"model.layers.{i}.{name}.weight", (hidden,))
            for name in ("input_layernorm", "post_attention_layernorm")
        ]
    return [*found, ("model.norm.weight", (hidden,)), ("lm_head.weight", (config["vocab_size"], hidden))]


def cut(pieces: list[Piece], shard_bytes: float) -> list[list[Piece]]:
    """Group the pieces into shards of about `shard_bytes`."""
    shards: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.nbytes
    return shards


def byte_tokenizer():
    """Return a tokenizer with one token per byte, and <bos> and <eos>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")


if __name__ == "__main__":
    main()
