"""The structures of decoder.h, as ctypes declares them."""

import ctypes

from qcore.kernels.library import Buffer
from qcore.kernels.mixture import Norm, Projection

INPUTS = 3  # projections into queries, keys and values, at most
FUNCTIONS = {  # `ActivationFunction`, by the classes of torch and transformers
    "SiLU": 0,
    "SiLUActivation": 0,
    "GELUTanh": 1,
    "NewGELUActivation": 1,
    "FastGELUActivation": 1,
    "GELUActivation": 2,
    "ReLU": 3,
    "ReLUSquaredActivation": 4,
    "QuickGELUActivation": 5,
}
DENSE, MIXTURE = range(2)  # `FeedForwardKind`

_int64, _float = ctypes.c_int64, ctypes.c_float


class Heads(ctypes.Structure):
    _fields_ = [("first", _int64), ("step", _int64)]


class Latent(ctypes.Structure):
    _fields_ = [
        *((name, _int64) for name in ("rank", "plain", "rotated", "values")),
        *((name, Norm) for name in ("norm", "query_norm")),
        ("queries", Projection),
        ("matrices", Buffer),
    ]


class Attention(ctypes.Structure):
    _fields_ = [
        *((name, _int64) for name in ("heads", "kv_heads", "head_size", "value_size")),
        ("inputs", Projection * INPUTS),
        ("input_count", _int64),
        *((name, Heads) for name in ("queries", "keys", "values")),
        *((name, Norm) for name in ("query_norm", "key_norm", "value_norm")),
        *((name, _int64) for name in ("norm_last", "rotation")),
        *((name, _float) for name in ("scale", "cap")),
        *((name, _int64) for name in ("window", "source")),
        ("sinks", Buffer),
        ("output", Projection),
        ("latent", Latent),
    ]


class FeedForward(ctypes.Structure):
    _fields_ = [
        *((name, _int64) for name in ("kind", "activation", "gated", "inner")),
        *((name, Projection) for name in ("gate", "up", "down")),
        ("mixture", Buffer),
    ]


class TokenPart(ctypes.Structure):
    _fields_ = [
        *((name, Projection) for name in ("gate", "mix", "down")),
        *((name, _int64) for name in ("activation", "first")),
        *((name, Norm) for name in ("norm", "after")),
        ("scale", _float),
    ]


class Block(ctypes.Structure):
    _fields_ = [
        *((f"{place}_attention", Norm) for place in ("before", "after")),
        *((f"{place}_feed_forward", Norm) for place in ("before", "after")),
        ("parallel", _int64),
        ("residual", _float),
        ("attention", Attention),
        ("feed_forward", FeedForward),
        ("beside", Buffer),
        *((name, Norm) for name in ("after_dense", "after_beside")),
        ("token", TokenPart),
        ("scale", Buffer),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *((name, _int64) for name in ("layers", "hidden", "vocabulary")),
        *((name, _float) for name in ("embedding_scale", "logits_scale", "logits_cap")),
        ("final_norm", Norm),
        *((name, Projection) for name in ("embedding", "head", "positions")),
        ("position_offset", _int64),
        ("token_rows", Projection),
        ("token_scale", _float),
        ("blocks", Buffer),
    ]


class Cache(ctypes.Structure):
    _fields_ = [("keys", Buffer), ("values", Buffer), ("capacity", _int64), ("half", _int64)]


class Rotation(ctypes.Structure):
    _fields_ = [
        *((name, Buffer) for name in ("cosines", "sines", "scales")),
        *((name, _int64) for name in ("size", "interleaved")),
    ]


class Call(ctypes.Structure):
    _fields_ = [
        *((name, _int64) for name in ("sequences", "tokens", "position", "threads", "chunk")),
        *((name, Buffer) for name in ("starts", "ids", "rotations")),
        ("counts_padding", _int64),
        *((name, Buffer) for name in ("embeds", "token_rows")),
        ("last", _int64),
        *((name, Buffer) for name in ("hidden", "logits")),
        ("best", ctypes.c_void_p),
    ]
