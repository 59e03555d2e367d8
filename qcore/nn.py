"""Drop-in modules whose weights are quantized: a model with them is still an ordinary Hugging Face model.

Each keeps the parts of a `QuantizedTensor` as buffers (so `state_dict`, `to` and `safetensors` see them) and the format as a
plain attribute. They replace `nn.Linear`, GPT-2's `Conv1D`, `nn.Embedding` and the fused (experts, N, K) parameters of a mixture
of experts.
"""

import torch
from torch import nn

from qcore.formats.tensor import Format, QuantizedTensor
from qcore.kernels import reference


class QuantizedModule(nn.Module):
    """Holds one `QuantizedTensor`; `quantized` gives it back."""

    def __init__(self, weight: QuantizedTensor):
        super().__init__()
        self.format: Format = weight.format
        self.shape = weight.shape
        for name, part in weight.parts().items():
            self.register_buffer(name, part, persistent=weight.is_stored(name))

    @property
    def quantized(self) -> QuantizedTensor:
        """The weight (N, K)."""
        return QuantizedTensor(self.format, self.shape, **{name: getattr(self, name, None) for name in QuantizedTensor.PARTS})

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight (N, K), computed at each access: for code that inspects a layer, not for speed."""
        return self.quantized.dequantize()


class QuantLinear(QuantizedModule):
    """y = x · Wᵀ + bias with a quantized W. `activations`: "fp32" (exact) or "int8" (each token quantized as it comes)."""

    def __init__(self, weight: QuantizedTensor, bias: torch.Tensor | None, activations: str):
        super().__init__(weight)
        self.out_features, self.in_features = weight.shape
        self.activations = activations
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return reference.linear(x, self.quantized, self.bias, self.activations)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, {self.format}, activations={self.activations}"


class QuantEmbedding(QuantizedModule):
    """An embedding table whose rows are dequantized as they are looked up."""

    def __init__(self, weight: QuantizedTensor, padding_idx: int | None = None):
        super().__init__(weight)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> (..., embedding_dim), float32."""
        return self.quantized.dequantize(rows=ids.flatten()).view(*ids.shape, self.embedding_dim)


class QuantExperts(nn.Module):
    """A fused expert parameter (E, N, K). Indexing it with an expert's number gives that expert's weight, dequantized.

    `transposed` says that the model stores (E, K, N): quantization still groups along the inputs K, and indexing gives (K, N).
    """

    def __init__(self, experts: list[QuantizedTensor], transposed: bool):
        super().__init__()
        self.experts = nn.ModuleList(QuantizedModule(expert) for expert in experts)
        self.transposed = transposed

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        weight = self.experts[int(expert)].weight
        return weight.T if self.transposed else weight


class StoredLinear(nn.Module):
    """A linear layer stored in 16 bits and computed in the inputs' type: the weight is widened when it is used."""

    def __init__(self, weight: nn.Parameter, bias: torch.Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return nn.functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class StoredEmbedding(nn.Module):
    """An embedding stored in 16 bits that hands out float32."""

    def __init__(self, weight: nn.Parameter, padding_idx: int | None = None):
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = padding_idx
        self.weight = weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> (..., embedding_dim), float32."""
        return nn.functional.embedding(ids, self.weight).float()


class StoredExperts(nn.Module):
    """A fused expert parameter stored in 16 bits; indexing it gives one expert's weight in float32."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.stored = weight

    def __getitem__(self, expert: int | torch.Tensor) -> torch.Tensor:
        return self.stored[int(expert)].float()


class Widen(nn.Module):
    """A parametrization: the parameter is stored in 16 bits and read as float32. For norms, biases and other small tensors."""

    def forward(self, stored: torch.Tensor) -> torch.Tensor:
        """Any shape, unchanged."""
        return stored.float()
