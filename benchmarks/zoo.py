"""The native step beside the modules, for every family that it covers: `python benchmarks/speed.py --zoo`.

Each family gets a random model of about half a billion weights in the proportions of one of its real models,
with a vocabulary of 32,000, so that the blocks decide and not the head. One process holds it in each recipe
and measures it with the native step and without, in turns; where llama.cpp knows the family and its package
is installed, a second process measures the same weights in Q4_0 in the same turns.

The result file grows by family: a run that was stopped is continued by the same command on the same day, and
`--only` measures some families again.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import marks, pipe, table
from qcore.base.errors import InputError, RunError
from qcore.measurement.environment import environment

RESULTS = marks.ROOT / "benchmarks" / "results"
RECIPES = ("int4-g32-head8", "int8-head8")
LLAMA = "llama.cpp"
WEIGHTS, VOCABULARY = 500_000_000, 32_000
PROMPT, STEPS, ROUNDS = 128, 32, 3


def _shape(hidden: int, inner: int, heads: int, kv_heads: int, head: int, **others) -> dict[str, Any]:
    return dict(
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head,
        **others,
    )


# The proportions of a real model each, at a width of about 1,000. The number of layers follows from WEIGHTS;
# a setting may be a function of it.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("Llama 3.2 1B", _shape(1024, 4096, 16, 4, 64)),
    "MistralForCausalLM": ("Mistral 7B", _shape(1024, 3584, 8, 2, 128)),
    "Ministral3ForCausalLM": ("Ministral 3 3B", _shape(1024, 3072, 12, 3, 128)),
    "Qwen2ForCausalLM": ("Qwen2.5 0.5B", _shape(896, 4864, 14, 2, 64)),
    "Qwen3ForCausalLM": ("Qwen3 0.6B", _shape(1024, 3072, 16, 8, 128)),
    "GemmaForCausalLM": ("Gemma 2B", _shape(1024, 8192, 4, 1, 256)),
    "Gemma2ForCausalLM": ("Gemma 2 2B", _shape(1152, 4608, 4, 2, 256, query_pre_attn_scalar=256)),
    "Gemma3ForCausalLM": ("Gemma 3 1B", _shape(1152, 6912, 4, 1, 256)),
    "Gemma4ForCausalLM": (
        "Gemma 4 E2B",
        _shape(
            1024,
            4096,
            4,
            1,
            256,
            global_head_dim=512,
            hidden_size_per_layer_input=128,
            vocab_size_per_layer_input=VOCABULARY,
            num_kv_shared_layers=lambda layers: 4 * layers // 7 if layers > 12 else 0,
            use_double_wide_mlp=True,
        ),
    ),
    "Gemma4UnifiedForCausalLM": (
        "Gemma 4 12B",
        _shape(
            1024, 4096, 4, 2, 256, global_head_dim=512, num_global_key_value_heads=1, attention_k_eq_v=True
        ),
    ),
    "Phi3ForCausalLM": ("Phi-3 mini", _shape(1152, 3072, 12, 12, 96)),
    "Olmo2ForCausalLM": ("OLMo 2 1B", _shape(1024, 4096, 8, 8, 128)),
    "Olmo3ForCausalLM": ("OLMo 3 7B", _shape(1024, 2752, 8, 8, 128)),
    "GraniteForCausalLM": ("Granite 3.3 2B", _shape(1024, 4096, 16, 4, 64)),
    "SmolLM3ForCausalLM": ("SmolLM3 3B", _shape(1024, 5504, 8, 2, 128)),
    "GlmForCausalLM": ("GLM-4 9B", _shape(1024, 3424, 8, 1, 128)),
    "Glm4ForCausalLM": ("GLM-4-0414 9B", _shape(1024, 3424, 8, 1, 128)),
    "CohereForCausalLM": ("Command R", _shape(1024, 2816, 8, 8, 128)),
    "Cohere2ForCausalLM": ("Command R7B", _shape(1024, 3584, 8, 2, 128)),
    "Exaone4ForCausalLM": ("EXAONE 4.0 1.2B", _shape(1024, 2048, 16, 4, 64)),
    "HunYuanDenseV1ForCausalLM": ("Hunyuan 1.8B", _shape(1024, 3072, 8, 2, 128)),
    "Starcoder2ForCausalLM": ("StarCoder2 3B", _shape(1024, 4096, 8, 1, 128)),
    "SeedOssForCausalLM": ("Seed-OSS 36B", _shape(1024, 5504, 16, 2, 128)),
    "Ernie4_5ForCausalLM": ("ERNIE 4.5 0.3B", _shape(1024, 3072, 16, 2, 128)),
    "DeepseekV3ForCausalLM": (
        "DeepSeek V3",
        dict(
            hidden_size=512,
            intermediate_size=1344,
            num_attention_heads=8,
            num_key_value_heads=8,
            q_lora_rank=192,
            kv_lora_rank=128,
            moe_intermediate_size=160,
            n_routed_experts=128,
            first_k_dense_replace=1,
        ),
    ),
    "Glm4MoeLiteForCausalLM": (
        "GLM-4.7-Flash",
        dict(
            hidden_size=768,
            intermediate_size=3840,
            num_attention_heads=8,
            num_key_value_heads=8,
            q_lora_rank=288,
            kv_lora_rank=192,
            moe_intermediate_size=576,
        ),
    ),
    "YoutuForCausalLM": (
        "Youtu-LLM 2B",
        dict(
            hidden_size=1024,
            intermediate_size=3072,
            num_attention_heads=8,
            num_key_value_heads=8,
            q_lora_rank=768,
            kv_lora_rank=256,
        ),
    ),
    "Dots1ForCausalLM": (
        "dots.llm1",
        _shape(
            576,
            1376,
            4,
            4,
            128,
            moe_intermediate_size=176,
            n_routed_experts=128,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            norm_topk_prob=True,
        ),
    ),
    "Glm4MoeForCausalLM": (
        "GLM-4.5-Air",
        _shape(
            512,
            1408,
            12,
            1,
            128,
            moe_intermediate_size=176,
            n_routed_experts=128,
            num_experts_per_tok=8,
            first_k_dense_replace=1,
        ),
    ),
    "FalconForCausalLM": ("Falcon 7B", dict(hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096)),
    "OPTForCausalLM": ("OPT 1.3B", dict(hidden_size=1024, num_attention_heads=16, ffn_dim=4096)),
    "StableLmForCausalLM": ("StableLM 2 1.6B", _shape(1024, 2816, 16, 16, 64)),
    "PhiForCausalLM": ("Phi-2", _shape(1280, 5120, 16, 16, 80)),
    "GPTNeoXForCausalLM": ("Pythia 410M", _shape(1024, 4096, 16, 16, 64)),
    "GPT2LMHeadModel": ("GPT-2 medium", _shape(1024, 4096, 16, 16, 64)),
    "MixtralForCausalLM": (
        "Mixtral 8x7B",
        _shape(768, 2688, 6, 2, 128, num_local_experts=8, num_experts_per_tok=2),
    ),
    "Qwen2MoeForCausalLM": (
        "Qwen1.5-MoE A2.7B",
        _shape(
            512,
            1408,
            8,
            8,
            64,
            moe_intermediate_size=352,
            shared_expert_intermediate_size=1408,
            num_experts=60,
            num_experts_per_tok=4,
        ),
    ),
    "Qwen3MoeForCausalLM": (
        "Qwen3 30B-A3B",
        _shape(
            512,
            1536,
            8,
            1,
            128,
            moe_intermediate_size=192,
            num_experts=128,
            num_experts_per_tok=8,
            norm_topk_prob=True,
        ),
    ),
    "OlmoeForCausalLM": ("OLMoE 1B-7B", _shape(640, 320, 5, 5, 128, num_experts=64, num_experts_per_tok=8)),
    "GptOssForCausalLM": (
        "gpt-oss 20B",
        _shape(768, 768, 16, 2, 64, num_local_experts=32, num_experts_per_tok=4),
    ),
    "PhimoeForCausalLM": (
        "Phi-3.5-MoE",
        _shape(768, 1216, 6, 2, 128, num_local_experts=16, num_experts_per_tok=2),
    ),
    "GraniteMoeForCausalLM": (
        "Granite 3.0 1B-A400M",
        _shape(1024, 512, 16, 8, 64, num_local_experts=32, num_experts_per_tok=8),
    ),
}
_OTHERS = ("like Llama 3.2 1B", _shape(1024, 4096, 16, 4, 64))  # of a family without a row


def families() -> list[str]:
    """Return the architectures that the native step knows, which names them by their stacks of layers."""
    import transformers

    from qcore.runtime.families import FAMILIES

    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    models = (getattr(transformers, stack.replace("Decoder", "Model")) for stack in FAMILIES)
    return [known[model.config_class].__name__ for model in models]


def config(architecture: str, layers: int | None = None) -> Any:
    """Return the config of a model of `architecture` with WEIGHTS weights, or with as many layers."""
    import transformers

    _, shape = SHAPES.get(architecture, _OTHERS)
    if layers is None:
        one, three = (_count(config(architecture, count)) for count in (1, 3))
        layers = _layers(one, 3, three)
        if any(callable(value) for value in shape.values()):  # layers are not all alike
            layers = _layers(one, layers, _count(config(architecture, layers)))
    made = getattr(transformers, architecture).config_class(
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        num_hidden_layers=layers,
        **{name: value(layers) if callable(value) else value for name, value in shape.items()},
    )
    made.architectures = [architecture]
    return made


def _layers(one: int, layers: int, weights: int) -> int:
    """Return how many layers make WEIGHTS weights, if one layer makes `one` and `layers` make `weights`."""
    return max(2, round((WEIGHTS - one) / ((weights - one) / (layers - 1))) + 1)


def _count(made: Any) -> int:
    """Return the number of weights of a model without creating them."""
    from qcore.models.assembly import empty_model

    return sum(parameter.numel() for parameter in empty_model(made).parameters())


def llama_cpp(python: str | None) -> str | None:
    """Return the interpreter whose llama.cpp takes part: `python`, or this one; None if it has none."""
    candidate = python or sys.executable
    command = [candidate, "-c", "import llama_cpp, numpy"]
    found = subprocess.run(command, capture_output=True, check=False).returncode == 0
    if python and not found:
        raise InputError(f"{python} cannot import llama_cpp and numpy.")
    return candidate if found else None


def measure(architecture: str, threads: int, rounds: int, python: str | None, say) -> dict:
    """Measure one family; return its row."""
    samples: dict[str, list[dict[str, float]]] = {}
    others: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options: dict = {
            "threads": threads,
            "architecture": architecture,
            "recipes": RECIPES,
            "steps": STEPS,
            "gguf": str(folder / "f32.gguf") if python else None,
            "prompt": [(7 * i) % VOCABULARY for i in range(PROMPT)],
        }
        own = stack.enter_context(pipe.Worker("qcore", "zoo", options))
        about = own.ready()
        workers = [(own, item) for recipe in RECIPES for item in (recipe, f"{recipe} modules")]
        reason = about.pop("no_gguf")
        if python and reason is None:
            try:
                llama = stack.enter_context(_llama(folder, options, python))
                about[LLAMA] = llama.ready()
                workers.append((llama, "q4_0"))
            except RunError:
                reason = f"{LLAMA} does not load the model"
        for number in range(-1, rounds):
            say(f"  {'warm-up' if number < 0 else f'round {number + 1} of {rounds}'}")
            for worker, item in workers if number % 2 else workers[::-1]:
                rates, busy = worker.measure(item)
                if number >= 0:
                    samples.setdefault(item, []).append(rates)
                    others.append(busy)
    rates = {
        item: {name: median(each[name] for each in found) for name in found[0]}
        for item, found in samples.items()
    }
    return {
        "architecture": architecture,
        "shape": SHAPES.get(architecture, _OTHERS)[0],
        **about,
        "rates": rates,
        "samples": samples,
        "ratios": _ratios(samples),
        "no_llama_cpp": reason if python else "llama-cpp-python is not installed",
        "others_busy": median(others),
    }


def _llama(folder: Path, options: dict, python: str) -> pipe.Worker:
    """Start llama.cpp on the model in float32 that `folder` holds, quantized to Q4_0 by llama.cpp."""
    files = [folder / "f32.gguf", folder / "q4_0.gguf"]
    done = subprocess.run(
        [python, "-m", "benchmarks.peers.llamacpp", *map(str, files), "q4_0", str(options["threads"])],
        cwd=pipe.ROOT,
        capture_output=True,
        text=True,
    )
    files[0].unlink()
    if done.returncode:
        raise RunError(f"llama.cpp cannot quantize the model: {done.stderr.strip().splitlines()[-1]}")
    given = options | {"items": ["q4_0"], "files": {"q4_0": str(files[1])}}
    return pipe.Worker(LLAMA, "llamacpp", given, python)


def _ratios(samples: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return the medians over the rounds of the ratios within a round."""
    pairs = {f"{recipe} against modules": (recipe, f"{recipe} modules") for recipe in RECIPES}
    pairs[f"{RECIPES[0]} against {LLAMA}"] = (RECIPES[0], "q4_0")
    return {
        f"{name}, {figure}": median(
            ours[figure] / theirs[figure]
            for ours, theirs in zip(samples[first], samples[second], strict=True)
        )
        for name, (first, second) in pairs.items()
        if second in samples
        for figure in ("decode", "prefill")
    }


def run(
    *, only: list[str], threads: int, rounds: int | None, python: str | None, target: Path | None, say
) -> dict:
    """Measure the families in `only` again, or all that the result file does not hold yet; return the whole
    result, written after each family."""
    known = families()
    chosen = [name for name in known if _is_meant(name, only)]
    if only and not chosen:
        raise InputError(f"--only names no family of the native step. Known: {', '.join(known)}.")
    python = llama_cpp(python)
    began = time.time()
    about = environment() | {"threads": threads}
    target = target or RESULTS / file_name(about, threads, began)
    before = json.loads(target.read_text()) if target.exists() else {}
    rows = {row["architecture"]: row for row in before.get("rows", [])}
    for name in chosen:
        if name in rows and not only:
            continue
        say(f"{name} ({SHAPES.get(name, _OTHERS)[0]})")
        rows[name] = measure(name, threads, rounds or ROUNDS, python, say)
        result = {
            "kind": "zoo",
            "rows": [rows[each] for each in known if each in rows],
            "conditions": {
                "weights": WEIGHTS,
                "vocabulary": VOCABULARY,
                "prompt_tokens": PROMPT,
                "steps": STEPS,
                "rounds": rounds or ROUNDS,
                "threads": threads,
            },
            "environment": about,
            "started_at": before.get("started_at", began),
            "seconds": before.get("seconds", 0.0) + time.time() - began,
        }
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")
    return json.loads(target.read_text())


def _is_meant(architecture: str, only: list[str]) -> bool:
    return not only or any(each.lower() in architecture.lower() for each in only)


def file_name(about: dict, threads: int, began: float) -> str:
    """Return the file name of a result, such as zoo-some-processor-2-threads-2025-01-31.json."""
    result = {"environment": about, "conditions": {"threads": threads}, "started_at": began}
    return f"zoo-{table.file_name(result)}"
