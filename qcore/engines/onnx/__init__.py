"""Models as ONNX files with a key-value cache, for ONNX Runtime and whatever else reads the format.

    traced.py    a model's linear layers and embeddings as ONNX stores them: float32, or the very codes of a recipe as `MatMulNBits`
    graph.py     such a model as a graph, by PyTorch's own exporter
    dynamic.py   int8 as ONNX Runtime's `quantize_dynamic` makes it
    folder.py    a folder that holds all one needs: graph, weights, tokenizer, what was done, and a program that runs it
    run_onnx.py  that program: ONNX Runtime and numpy alone; qcore runs exported models with the same lines
    attached.py  a model of transformers whose forward is a session of ONNX Runtime, so that it is measured like any other

The graph takes `input_ids` (B, T), `logits_at` (n,) and for each layer `past.i.key`, `past.i.value` (B,
heads, P, size), P may be 0. It gives `logits` (B, n, V) of the positions asked for, and `present.i.key`,
`present.i.value` (B, heads, P + T, size).
"""
