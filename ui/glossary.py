"""One line for each term of the field, as the pages' help texts show it."""

TERMS = {
    "quantization": "Storing a model's weights with fewer bits each, such as 4 instead of 32, at some cost in quality.",
    "recipe": "How a model is stored and computed: the number format, its group size, and which layers it touches.",
    "baseline": "The unquantized 32-bit model. Every other recipe is compared with it.",
    "stored bytes": "Everything the model needs in memory to compute: codes, scales, zero points, code books and the layers that were "
    "kept. Shared tensors count once. 1 MB is 1,000,000 bytes.",
    "bits per weight": "8 × stored bytes of the quantized weights ÷ their number. Scales and zero points are included, so it is above the "
    "nominal 4 or 8.",
    "coverage": "Share of all weights that the recipe quantized. Embeddings, norms and often the output head are kept.",
    "peak memory": "The most memory a fresh process held while it ran the model. Measured, the Python libraries included.",
    "prefill": "Reading the prompt: all its tokens at once, so it is limited by arithmetic. Prompt tokens ÷ time to the first new token.",
    "decode": "Writing the answer: one token after another, so it is limited by how fast the weights can be read from memory. "
    "(New tokens − 1) ÷ time after the first one.",
    "time to first token": "How long after the prompt was sent the first new token appears.",
    "memory limit": "Read bandwidth of this machine ÷ the bytes of weights that a token needs: the decode speed if each is read once and "
    "nothing else takes time. Of an embedding that is not the head, too, a token needs one row.",
    "KV cache": "Keys and values of all tokens so far, kept so that they are not computed again. It grows with the context and with every "
    "user; grouped queries, sliding windows and latent attention make it smaller.",
    "context": "How many tokens a user's text and answer have together, all of which are in the KV cache at the end.",
    "probe": "A shortened copy of the model with its real shapes and random weights is timed on this machine, a few seconds a recipe, and "
    "the time of a block times the number of blocks predicts the whole.",
    "activations": "What the model holds while it computes: vectors for each token of the prompt, and the scores of the next token.",
    "error band": "By how much the plan was wrong for the runs on this machine: predicted against measured, each made without the other.",
    "perplexity": "exp(mean negative log-likelihood of a text's tokens): 1 is perfect, the vocabulary's size is guessing. Lower is better. "
    "It compares only within the same text, window and tokenizer.",
    "KL divergence": "How far the quantized model's next-token probabilities are from the baseline's, averaged over the text, in nats. "
    "0 means identical. Steadier than perplexity.",
    "top-1 agreement": "Share of positions at which the quantized model's most likely next token is the baseline's.",
    "verdict": "Is the loss real? Recipe and baseline are paired window by window of the same text, which gives a 95 % interval of the "
    "ratio of their perplexities. Inside of the margin: equivalent. Outside: worse (or better). Across its edge: undecided.",
    "margin": "The change of perplexity that you would still call none. The larger it is, the fewer tokens it takes to find out.",
    "flips": "Tokens on which recipe and baseline disagree about the most likely one: harmful where the baseline was right, beneficial "
    "where the recipe is. McNemar's p is small if one kind prevails by more than luck.",
    "multiple choice": "The model's answer is the choice that it would most probably go on with. Long choices are less probable, so the "
    "score divided by the choice's length is told as well.",
    "window": "How many tokens the model sees at once while a text is scored. A longer window gives lower perplexity.",
    "stride": "How far the window moves on. Equal to the window, nothing is read twice.",
    "tokens": "Pieces of words, the unit a model reads and writes. About four characters of English each.",
    "group size": "How many neighbouring weights share one scale. Smaller groups follow the weights better and cost more bits.",
    "signal to noise": "10·log₁₀(power of the weights ÷ power of the error), in decibels. 6 dB more is one bit better.",
    "relative error": "Length of the weights' rounding error ÷ length of the weights.",
    "sensitivity": "How much the model's predictions change when one layer alone is quantized, everything else being as it was.",
    "predicted loss": "Half the mean square of (gradient · error) at the layer's output, with gradients of tokens that are drawn from the "
    "model's own predictions: the divergence to second order, in nats a token, without running the model again.",
    "measured KL": "The KL divergence of the model's output, in nats a token, with only this layer quantized. Exact, and slow.",
    "error of the output": "Energy of the error of the layer's own output ÷ energy of that output, over the text. Also called the "
    "Hessian-weighted error.",
    "rank correlation": "Spearman's: 1 if the proxy puts layers and formats in the very order of the measured divergence, 0 if it knows "
    "nothing of it.",
    "mixed precision": "Each layer in its own format. For the bits that may be spent, the formats with the least sum of predicted losses "
    "are found exactly (a multiple-choice knapsack).",
    "frontier": "The recipes that no other one beats on both axes.",
    "first divergence": "The first new token at which the greedy answer differs from the baseline's.",
    "greedy": "Always the most likely next token. Repeatable.",
    "temperature": "0 always takes the most likely token; higher values take chances.",
    "top-p": "Sample only from the most likely tokens that together have this probability.",
    "top-k": "Sample only from this many most likely tokens; 0 means all.",
    "seed": "Fixes the random choices, so that the same settings give the same result.",
    "quantization-aware training": "The model computes with its quantized weights while it learns, and rounding lets gradients pass. The "
    "light form trains scales and norms while codes stay; the full one trains the weights behind the codes, and scales as LSQ does.",
    "pruning": "Taking away what matters least. Weights that become 0 save bytes where zeros are not stored, and no time on ordinary "
    "hardware; neurons, heads and layers that are cut out save both.",
    "distillation": "A smaller model learns to predict the whole distribution that a larger one predicts, not just the text's next token.",
    "sparse storage": "A bit for each weight says whether it is 0, and only the others are stored: smaller from 25 % zeros on at 4 bits, "
    "from 3 % at 32.",
    "dithered": "The default model's weights came as 4-bit numbers, so a 4-bit grid of the same kind fits them exactly and looks better "
    "than it is. The dithered copy moves every weight by up to half a step: it lies on no grid and makes a fair comparison.",
}


def explain(term: str) -> str:
    """The line for `term`. Raises `KeyError` for one that is not in the glossary: every term on a page is
    explained here."""
    return TERMS[term]
