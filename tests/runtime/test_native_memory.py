"""The native step stays within its buffers for all sizes, and raises `MemoryError` if memory is exhausted."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch
from decoder_models import CONFIGS, RECIPES, ids, make
from guarded import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from qcore import recipes
from qcore.base.errors import InputError
from qcore.kernels import arena, library
from qcore.layers.modules import QuantExperts
from qcore.quantization.convert import quantize
from qcore.runtime import Context
from qcore.runtime.structures import Rotation
from qcore.runtime.weights import Weights, read

INTEGERS = (ctypes.c_int32, ctypes.c_int64)
PLACES = ("model", "embedding", "head", "block", "norm", "attention", "keys", "query", "query norm")
PLACES += ("feed-forward", "down", "rotation", "cache", "call")
LATENT_PLACES = ("attention", "latent", "latent norm", "latent queries", "query", "rotation", "cache", "call")
TOKEN_PLACES = (
    "token part",
    "gate",
    "mix",
    "projection",
    "part norm",
    "rows",
    "attention",
    "value norm",
    "call",
)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 5, 9])
def test_a_dense_head_of_any_number_of_rows_reads_only_those(vocabulary):
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = LlamaConfig(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    quantize(model, recipes.parse("int4-g32"))
    model.lm_head.weight.data = guarded(model.lm_head.weight.data)
    tokens = torch.arange(7) % vocabulary
    expected = model(tokens[None]).logits[0, -1]
    torch.testing.assert_close(Context(model).append(tokens[None])[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("chunk", [5, 7, 24])
def test_long_sequences_go_through_each_layer_in_chunks(chunk, recipe, monkeypatch):
    """The last chunk of 100 tokens holds 5, 2 or 4: some fit in one tile, which has other kernels."""
    model, tokens = make("llama", recipe), torch.stack([ids(50), ids(50, 1)])
    expected, calls = model(tokens, use_cache=False).logits, []
    run = Weights.run
    monkeypatch.setattr(
        Weights, "run", lambda self, part, *rest, **more: calls.append(1) or run(self, part, *rest, **more)
    )
    monkeypatch.setattr("qcore.runtime.weights.CHUNK", chunk)
    assert torch.equal(model(tokens, use_cache=False).logits, expected) and len(calls) == 1


@pytest.mark.parametrize("config", CONFIGS)
def test_every_architecture_may_go_in_chunks(config, monkeypatch):
    model, tokens = make(config, "int4-g32", "fp32"), ids(60)[None]
    expected, context = model(tokens, use_cache=False).logits, Context(model)
    monkeypatch.setattr("qcore.runtime.weights.CHUNK", 13)
    atol = 2e-5 * expected.abs().max().item()
    found = model(tokens, use_cache=False).logits
    if any(isinstance(module, QuantExperts) for module in model.modules()):
        # the tokens of an expert choose its kernels, and a chunk has fewer of them
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    else:
        assert torch.equal(found, expected)
    torch.testing.assert_close(context.append(tokens)[0], expected[0, -1], rtol=0, atol=atol)


@pytest.fixture(scope="module")
def guarded_weights():
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena, "empty", lambda nbytes: guarded(torch.zeros(nbytes, dtype=torch.uint8)))
        made = {}
        for config in ("llama", "gemma4", "deepseek-v3"):
            model = make(config, "int4-g32", "fp32")
            for parameter in model.parameters():
                parameter.data = guarded(parameter.data)
            made[config] = model, read(model)
        return made


class _Cache:
    """A key-value cache that ends where memory ends."""

    half, capacity, length = 0, 64, 40

    def __init__(self, *widths: tuple[int, int]):
        self.keys, self.values = (
            [guarded(torch.zeros(2 * width * self.capacity)) for width in part]
            for part in zip(*widths, strict=True)
        )

    def advance(self, tokens: int) -> None:
        pass

    def buffers(self) -> tuple[list[int], ...]:
        return tuple([n for t in held for n in (t.data_ptr(), t.nbytes)] for held in (self.keys, self.values))


@settings(max_examples=150)
@given(st.sampled_from(PLACES), st.data())
def test_no_numbers_make_the_step_leave_its_buffers(guarded_weights, which, data):
    _change(guarded_weights["llama"][1], _Cache((32, 32), (32, 32)), 1, which, data)


@settings(max_examples=50)
@given(st.sampled_from(TOKEN_PLACES), st.data())
def test_no_numbers_make_parts_for_tokens_and_shared_keys_leave_their_buffers(guarded_weights, which, data):
    held = _Cache((32, 32), (64, 64), (32, 32), (0, 0), (0, 0))
    _change(guarded_weights["gemma4"][1], held, 3, which, data)


@settings(max_examples=50)
@given(st.sampled_from(LATENT_PLACES), st.data())
def test_no_numbers_make_attention_over_latents_leave_its_buffers(guarded_weights, which, data):
    _change(guarded_weights["deepseek-v3"][1], _Cache((40, 32), (40, 32)), 1, which, data)


def _change(weights: Weights, held: _Cache, layer: int, which: str, data: st.DataObject) -> None:
    """Run a step after random numbers of the part `which` of its description have taken random values."""
    functions, changed = library.functions(), []

    class Changing:
        def qcore_decode(self, description, cache, call):
            copy = type(description._obj).from_buffer_copy(description._obj)
            blocks = type(weights._blocks)(*weights._blocks)
            block = blocks[layer]
            attention, rotation = block.attention, Rotation.from_address(call._obj.rotations.data)
            places = {"model": copy, "embedding": copy.embedding, "head": copy.head, "block": block}
            places |= {"norm": block.after_attention, "attention": attention, "keys": attention.keys}
            places |= {"query": attention.inputs[0], "query norm": attention.query_norm}
            places |= {"feed-forward": block.feed_forward, "down": block.feed_forward.down}
            places |= {"rotation": rotation, "cache": cache._obj, "call": call._obj}
            places |= {"token part": block.token, "gate": block.token.gate, "mix": block.token.mix}
            places |= {"projection": block.token.down, "part norm": block.token.norm, "rows": copy.token_rows}
            latent = attention.latent
            places |= {"value norm": attention.value_norm, "latent": latent, "latent norm": latent.norm}
            places |= {"latent queries": latent.queries}
            place = places[which]
            names = [name for name, kind in place._fields_ if kind in INTEGERS and name != "threads"]
            for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
                value = getattr(place, name)
                odd = (-1, 0, 1, 3, 8, 2**31 - 1, 2**40, 2**62, value - 1, value + 1, 2 * value, 8 * value)
                setattr(place, name, data.draw(st.sampled_from(odd), label=name))
                changed.append(name)
            copy.blocks = (ctypes.addressof(blocks), ctypes.sizeof(blocks))
            return functions.qcore_decode(ctypes.byref(copy), cache, call)

    count = data.draw(st.sampled_from((1, 3, 20)), label="tokens")
    tokens = guarded(torch.stack([ids(count), ids(count, 1)]))
    hidden = guarded(torch.zeros(*tokens.shape, weights.hidden))
    weights.set_rotations([tuple(guarded(part[:64]) for part in each) for each in weights.rotations(64)])
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "functions", Changing)
        try:
            weights.run(tokens, held, guarded(torch.tensor([0, 5])), hidden=hidden)
        except (InputError, IndexError, MemoryError) as error:
            assert str(error).startswith("The native step cannot run ")
    assert changed


def test_a_cache_without_room_and_a_token_outside_are_refused(guarded_weights):
    weights = guarded_weights["llama"][1]
    hidden = torch.zeros(2, 30, weights.hidden)
    with pytest.raises(InputError, match="2 x 30 tokens at position 40: the key-value cache is too small"):
        weights.run(torch.zeros(2, 30, dtype=torch.int64), _Cache((32, 32), (32, 32)), hidden=hidden)
    with pytest.raises(IndexError, match="outside the valid range"):
        weights.run(torch.full((2, 9), 258), _Cache((32, 32), (32, 32)), hidden=hidden)
    with pytest.raises(InputError, match="the output does not match"):
        weights.run(torch.zeros(2, 20, dtype=torch.int64), _Cache((32, 32), (32, 32)), hidden=hidden[:1])


LITTLE = """
import resource, sys
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from qcore import recipes
from qcore.quantization.convert import quantize

tokens, inner, headroom = (int(argument) for argument in sys.argv[1:])
torch.set_num_threads(2)
sizes = dict(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
sizes |= dict(intermediate_size=inner)
config = LlamaConfig(**sizes, max_position_embeddings=tokens, bos_token_id=0, eos_token_id=0)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
quantize(model, recipes.parse("int4-g32"))
with torch.inference_mode():
    short, long = (torch.zeros(1, count, dtype=torch.int64) for count in (8, tokens))
    expected = model(short, use_cache=False).logits
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (headroom << 20),) * 2)
    try:
        assert model.model(long, use_cache=False)[0].isfinite().all()
        print("done")
    except MemoryError as error:
        print("MemoryError", error)
    assert torch.equal(model(short, use_cache=False).logits, expected)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer takes all address space"
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
@pytest.mark.parametrize(
    ("tokens", "inner", "headroom", "words"),
    [
        (1024, 65536, 200, "MemoryError The native step cannot run 1 x 1024 tokens at position 0: "),
        (8192, 16384, 600, "done"),
    ],
    ids=["too-little", "by-the-chunk"],
)
def test_a_step_takes_memory_by_the_chunk_and_raises_if_there_is_none(tokens, inner, headroom, words):
    """The buffers of 8,192 tokens at once would take 1.1 GB."""
    command = [sys.executable, "-c", LITTLE, *map(str, (tokens, inner, headroom))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(words), (done.returncode, done.stderr[-2000:])
