"""One line for each term of the field, as the pages' help texts show it."""

TERMS = {
    "quantization": "Storing a model's weights in fewer bits, such as 4 instead of 32, at some cost in "
    "quality.",
    "recipe": "How a model is stored and computed: number format, group size, and the layers it covers.",
    "baseline": "The unquantized 32-bit model. Every other recipe is compared with it.",
    "stored bytes": "Everything the model keeps in memory to compute: codes, scales, zero points, codebooks "
    "and the layers that stay unquantized. Shared tensors count once. 1 MB is 1,000,000 bytes.",
    "bits per weight": "8 × stored bytes of the quantized weights ÷ their number. Scales and zero points "
    "count, so the figure is above the nominal 4 or 8.",
    "coverage": "Share of all weights that the recipe quantized. Embeddings, norms and often the output head "
    "stay unquantized.",
    "peak memory": "The most memory that a fresh process held while it ran the model. Measured, Python "
    "libraries included.",
    "prefill": "Reading the prompt. All its tokens are processed at once, so arithmetic is the limit. "
    "Prompt tokens ÷ time to the first new token.",
    "decode": "Writing the answer, one token after another. Reading the weights from memory is the limit. "
    "(New tokens − 1) ÷ time after the first one.",
    "time to first token": "Time from sending the prompt to the first new token.",
    "memory limit": "Read bandwidth of this machine ÷ bytes of weights read per token: the decode speed if "
    "each weight is read once and nothing else takes time. An untied embedding counts one row per token.",
    "other work": "Share of the processor that other processes took while a speed was measured. Above 7.5 % "
    "the speed is marked, and the plan's predictions are not compared with it.",
    "KV cache": "Keys and values of all earlier tokens, kept so that they are not computed again. It grows "
    "with the context and the number of users. Grouped queries, sliding windows and latent attention "
    "shrink it.",
    "context": "Tokens of prompt and answer together. All of them are in the KV cache at the end.",
    "probe": "A shortened copy of the model with its real shapes and random weights, timed on this machine "
    "in a few seconds per recipe. The time per block times the number of blocks predicts the whole model.",
    "activations": "What the model holds while it computes: one vector per token and layer input, and the "
    "logits of the next token.",
    "error band": "Error of the plan on this machine: predicted against measured, each made without the "
    "other.",
    "perplexity": "exp(mean negative log-likelihood per token). 1 is perfect; the vocabulary size is "
    "guessing. Lower is better. Compare it only within the same text, window and tokenizer.",
    "KL divergence": "Distance between the next-token distributions of the baseline and the quantized model, "
    "averaged over the text, in nats. 0 means identical. It varies less between texts than perplexity does.",
    "top-1 agreement": "Share of positions at which the quantized model and the baseline have the same most "
    "likely next token.",
    "verdict": "Is the loss real? Recipe and baseline are paired window by window, which gives a 95 % "
    "interval of the ratio of their perplexities. Inside the margin: equivalent. Outside: worse or better. "
    "Across its edge: undecided.",
    "margin": "The largest change of perplexity that still counts as none. A larger margin needs fewer "
    "tokens for a verdict.",
    "flips": "Tokens on which recipe and baseline disagree about the most likely one: harmful where the "
    "baseline was right, beneficial where the recipe is. A small McNemar p means that the imbalance is more "
    "than chance.",
    "multiple choice": "The model's answer is the choice with the highest likelihood. Longer choices are "
    "less likely, so the score per byte is shown as well.",
    "window": "Tokens that the model sees at once while a text is scored. Longer windows lower perplexity.",
    "stride": "Tokens by which the window moves. If it equals the window, no token is read twice.",
    "tokens": "Pieces of words, the unit a model reads and writes. About four characters of English each.",
    "group size": "Number of neighboring weights that share one scale. Smaller groups follow the weights "
    "better and cost more bits.",
    "signal to noise": "10·log₁₀(power of the weights ÷ power of the error), in decibels. One more bit adds "
    "about 6 dB.",
    "relative error": "Norm of the rounding error ÷ norm of the weights.",
    "sensitivity": "Change of the model's predictions when one layer alone is quantized.",
    "predicted loss": "Half the mean square of (gradient · error) at the layer's output, with gradients of "
    "tokens sampled from the model's own predictions: the KL divergence to second order, in nats per token, "
    "without running the model again.",
    "measured KL": "KL divergence of the model's output with only this layer quantized, in nats per token. "
    "Exact, and slow.",
    "error of the output": "Energy of the error of the layer's output ÷ energy of that output, over the "
    "text. Also called the Hessian-weighted error.",
    "rank correlation": "Spearman's: 1 if the proxy ranks layers and formats as the measured divergence "
    "does, 0 if the rankings are unrelated.",
    "mixed precision": "Each layer in its own format. Within the bit budget, the formats with the smallest "
    "sum of predicted losses are found exactly (a multiple-choice knapsack).",
    "frontier": "The recipes that no other recipe beats on both axes.",
    "first divergence": "The first new token at which the greedy answer differs from the baseline's.",
    "greedy": "Always take the most likely next token. Repeatable.",
    "temperature": "0 always takes the most likely token. Higher values take less likely tokens more often.",
    "top-p": "Sample only from the most likely tokens that together have this probability.",
    "top-k": "Sample only from this many most likely tokens. 0 means all.",
    "seed": "Fixes the random choices: the same settings give the same result.",
    "quantization-aware training": "The model computes with quantized weights while it learns, and gradients "
    "pass through the rounding. The light form trains scales and norms and keeps the codes. The full form "
    "trains the weights behind the codes, and scales as LSQ does.",
    "pruning": "Removing what matters least. Zeroed weights save bytes in sparse storage and no time on "
    "ordinary hardware. Removed neurons, heads and layers save both.",
    "distillation": "A smaller model learns to predict the full distribution of a larger one instead of only "
    "the next token of the text.",
    "sparse storage": "One bit per weight marks zeros, and only the other weights are stored. It is smaller "
    "from 25 % zeros on at 4 bits, and from 3 % at 32 bits.",
    "dithered": "The default model's weights were published in 4 bits, so a 4-bit grid of the same kind fits "
    "them exactly and looks better than it is. The dithered copy moves every weight by up to half a step. "
    "Its weights lie on no grid, which makes the comparison fair.",
}


def explain(term: str) -> str:
    """Return the line for `term`. Raise `KeyError` for an unknown term."""
    return TERMS[term]
