"""Plain torch modules, with what goes into their layers computed by hand, in float64."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blindmerge.statistic import Array
from blindmerge_client.modules import Pass

__all__ = [
    "CASES",
    "HEADS",
    "INNER",
    "OWNERS",
    "WIDTH",
    "Reader",
    "made",
    "owners_of",
    "texts",
]

WIDTH, HEADS, INNER, OWNERS = 8, 2, 12, 3


class Reader(nn.Module):
    """Two encoder layers, a mean over real tokens, and a head."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, INNER, dropout=0.1, batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)
        self.batch_first = batch_first

    def forward(self, ids: torch.Tensor, real: torch.Tensor) -> Any:
        hidden = self.words(ids)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        hidden = self.encoder(hidden, src_key_padding_mask=~real)
        if not self.batch_first:
            hidden = hidden.transpose(0, 1)
        counts = real.sum(dim=1, keepdim=True)
        return self.head((hidden * real[..., None]).sum(dim=1) / counts)


class Writer(nn.Module):
    """A decoder layer, whose second attention looks at something else, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, INNER, batch_first=True, bias=False, norm_first=True
        )

    def forward(self, target: torch.Tensor, memory: torch.Tensor) -> Any:
        return self.layer(target, memory)


class Painter(nn.Module):
    """Patches of an image, looked at by one query; biases in the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, WIDTH, 3, stride=3)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_bias_kv=True)

    def forward(self, image: torch.Tensor) -> Any:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        query = self.query(patches.mean(dim=1, keepdim=True))
        return self.attention(query, patches, patches)[0]


def owners_of(base: nn.Module) -> list[nn.Module]:
    found = []
    for seed in range(OWNERS):
        own = copy.deepcopy(base)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        found.append(own)
    return found


def made(kind: Any, *arguments: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = kind(*arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # they begin as zeros
                parameter.add_(0.1)
    return model


def texts(owner: int, batch_first: bool = True) -> list[Pass]:
    generator = torch.Generator().manual_seed(100 + owner)
    passes = []
    for length in (5, 7, 7, 4):
        ids = torch.randint(0, 20, (6, length), generator=generator)
        real = torch.arange(length) < torch.randint(2, length + 1, (6, 1), generator=generator)
        passes.append(Pass((ids,), {"real": real}, real if batch_first else real.T))
    return passes


def attended(module: Any, query: Any, key: Any, value: Any, blocked: Any = None) -> Any:
    """What an attention multiplies by `out_proj`, head by head, float64 [texts, queries, width]."""
    weight, bias = module.in_proj_weight.double(), module.in_proj_bias
    bias = torch.zeros(3 * WIDTH).double() if bias is None else bias.double()
    q, k, v = (
        x @ weight[i * WIDTH : (i + 1) * WIDTH].T + bias[i * WIDTH : (i + 1) * WIDTH]
        for i, x in enumerate((query, key, value))
    )
    if module.bias_k is not None:
        k, v = (
            torch.cat([x, extra.double().expand(len(x), 1, WIDTH)], dim=1)
            for x, extra in ((k, module.bias_k), (v, module.bias_v))
        )
    size = WIDTH // HEADS
    contexts = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / size**0.5
        if blocked is not None:
            scores = scores.masked_fill(blocked[:, None], -torch.inf)
        contexts.append(torch.softmax(scores, dim=-1) @ v[..., part])
    return torch.cat(contexts, dim=-1)


def layer_norm(module: Any, x: Any) -> Any:
    bias = None if module.bias is None else module.bias.double()
    return functional.layer_norm(x, (WIDTH,), module.weight.double(), bias, module.eps)


def linear(module: Any, x: Any) -> Any:
    y = x @ module.weight.double().T
    return y if module.bias is None else y + module.bias.double()


def reader_rows(model: Any, passes: Sequence[Pass]) -> dict[str, Array]:
    rows: dict[str, list[Any]] = {}
    for each in passes:
        (ids,), real = each.args, each.kwargs["real"]
        x = model.words.weight.double()[ids]
        for number, layer in enumerate(model.encoder.layers):
            path = f"encoder.layers.{number}"
            context = attended(layer.self_attn, x, x, x, ~real)
            rows.setdefault(f"{path}.self_attn.in_proj", []).append(x[real])
            rows.setdefault(f"{path}.self_attn.out_proj", []).append(context[real])
            x = layer_norm(layer.norm1, x + linear(layer.self_attn.out_proj, context))
            inner = functional.relu(linear(layer.linear1, x))
            rows.setdefault(f"{path}.linear1", []).append(x[real])
            rows.setdefault(f"{path}.linear2", []).append(inner[real])
            x = layer_norm(layer.norm2, x + linear(layer.linear2, inner))
        pooled = (x * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
        rows.setdefault("head", []).append(pooled)
    return joined(rows)


def writer_rows(model: Any, passes: Sequence[Pass]) -> dict[str, Array]:
    rows: dict[str, list[Any]] = {}
    layer = model.layer
    for each in passes:
        x, memory = (tensor.double() for tensor in each.args)
        normed = layer_norm(layer.norm1, x)
        context = attended(layer.self_attn, normed, normed, normed)
        x = x + linear(layer.self_attn.out_proj, context)
        asked = layer_norm(layer.norm2, x)
        crossed = attended(layer.multihead_attn, asked, memory, memory)
        x = x + linear(layer.multihead_attn.out_proj, crossed)
        last = layer_norm(layer.norm3, x)
        inner = functional.relu(linear(layer.linear1, last))
        for name, found in {
            "self_attn.in_proj": normed,
            "self_attn.out_proj": context,
            "multihead_attn.in_proj.query": asked,
            "multihead_attn.in_proj.key": memory,
            "multihead_attn.in_proj.value": memory,
            "multihead_attn.out_proj": crossed,
            "linear1": last,
            "linear2": inner,
        }.items():
            rows.setdefault(f"layer.{name}", []).append(found.flatten(0, 1))
    return joined(rows)


def painter_rows(model: Any, passes: Sequence[Pass]) -> dict[str, Array]:
    rows: dict[str, list[Any]] = {}
    for each in passes:
        image = each.args[0].double()
        windows = [
            image[:, :, top : top + 3, left : left + 3].reshape(len(image), 1, -1)
            for top in (0, 3)
            for left in (0, 3)
        ]
        pixels = torch.cat(windows, dim=1)
        weight = model.patches.weight.double().reshape(WIDTH, -1)
        patches = pixels @ weight.T + model.patches.bias.double()
        mean = patches.mean(dim=1, keepdim=True)
        query = linear(model.query, mean)
        context = attended(model.attention, query, patches, patches)
        for name, found in {
            "patches": pixels,
            "query": mean,
            "attention.in_proj.query": query,
            "attention.in_proj.key": patches,
            "attention.in_proj.value": patches,
            "attention.out_proj": context,
        }.items():
            rows.setdefault(name, []).append(found.flatten(0, 1))
    return joined(rows)


def joined(rows: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
    return {name: torch.cat(list(parts)).detach().numpy() for name, parts in rows.items()}


def pairs(owner: int) -> list[Pass]:
    generator = torch.Generator().manual_seed(owner)
    return [
        Pass(
            (
                torch.randn(4, n, WIDTH, generator=generator),
                torch.randn(4, n + 2, WIDTH, generator=generator),
            )
        )
        for n in (3, 5, 6)
    ]


def images(owner: int) -> list[Pass]:
    generator = torch.Generator().manual_seed(owner)
    return [Pass((torch.randn(12, 2, 6, 6, generator=generator),)) for _ in range(3)]


CASES: dict[str, tuple[Any, Any, Any]] = {
    "encoder": ((Reader,), texts, reader_rows),
    "encoder, tokens first": ((Reader, False), lambda k: texts(k, False), reader_rows),
    "decoder": ((Writer,), pairs, writer_rows),
    "attention": ((Painter,), images, painter_rows),
}
