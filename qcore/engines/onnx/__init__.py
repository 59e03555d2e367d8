"""Models as ONNX files with a key-value cache, for ONNX Runtime and other software that reads the format.

    traced.py    linear layers and embeddings in ONNX's form: float32, or a recipe's codes as `MatMulNBits`
    graph.py     the model as a graph, by PyTorch's exporter
    dynamic.py   int8 by ONNX Runtime's `quantize_dynamic`
    accounts.py  the ledger's rows, counted from the file
    writing.py   from a model and a recipe to a graph on disk and its ledger's rows
    run_onnx.py  the program that runs an exported folder (`qcore.library.onnx_folder`), also used by qcore
    attached.py  a transformers model whose forward is a session of ONNX Runtime, measured like others

Inputs of the graph are `input_ids` (B, T), `logits_at` (n,), and per layer `past.i.key` and `past.i.value`
(B, heads, P, size), where P may be 0. Outputs are `logits` (B, n, V) of the positions `logits_at`, and per
layer `present.i.key` and `present.i.value` (B, heads, P + T, size).
"""
