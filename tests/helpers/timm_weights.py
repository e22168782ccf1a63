"""Random weights with the names of the official code and of timm, and a naive implementation of the official model."""

import math

import torch
from safetensors.torch import load_file

HEADS = 2


def timm_weights(distilled=False, gamma=None, class_position=True, layers=2, seed=0, rows=(4, 4)):
    """Return random weights of a model of the official code, with width 32 and patches of 8 × 8 pixels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return 0.3 * torch.randn(shape, generator=generator)

    tokens = 2 if distilled else 1
    positions = rows[0] * rows[1] + (tokens if class_position else 0)
    weights = {"cls_token": draw(1, 1, 32), "pos_embed": draw(1, positions, 32)}
    weights |= {"patch_embed.proj.weight": draw(32, 3, 8, 8), "patch_embed.proj.bias": draw(32)}
    for n in range(layers):
        shapes = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (64, 32), "mlp.fc2": (32, 64)}
        for norm in ("norm1", "norm2"):
            weights |= {f"blocks.{n}.{norm}.weight": 1 + draw(32), f"blocks.{n}.{norm}.bias": draw(32)}
        for name, shape in shapes.items():
            weights |= {f"blocks.{n}.{name}.weight": draw(*shape), f"blocks.{n}.{name}.bias": draw(shape[0])}
        for number in (1, 2) if gamma else ():
            name = f"gamma_{number}" if gamma == "official" else f"ls{number}.gamma"
            weights[f"blocks.{n}.{name}"] = 0.5 + draw(32)
    weights |= {"norm.weight": 1 + draw(32), "norm.bias": draw(32)}
    weights |= {"head.weight": draw(3, 32), "head.bias": draw(3)}
    if distilled:
        weights |= {"dist_token": draw(1, 1, 32), "head_dist.weight": draw(3, 32), "head_dist.bias": draw(3)}
    return weights


def naive_logits(weights, pixels):
    """Compute the logits of the official model, by the paper. With two heads, they are the mean of both."""
    w = {name: weight.double() for name, weight in weights.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    batch = pixels.shape[0]
    blocks = pixels.double().unfold(2, 8, 8).unfold(3, 8, 8)  # (batch, 3, rows, columns, 8, 8)
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
    x = torch.einsum("bcrsij,dcij->brsd", blocks, kernel).reshape(batch, -1, 32) + bias
    tokens = [w[name].expand(batch, 1, 32) for name in ("cls_token", "dist_token") if name in w]
    if w["pos_embed"].shape[1] == x.shape[1]:  # DeiT III has position embeddings for the patches only
        x = torch.cat([*tokens, x + w["pos_embed"]], dim=1)
    else:
        x = torch.cat([*tokens, x], dim=1) + w["pos_embed"]
    for n in range(len([name for name in w if name.endswith("norm1.bias")])):
        block = f"blocks.{n}."
        gammas = [w.get(f"{block}gamma_{i}", w.get(f"{block}ls{i}.gamma", torch.ones(32).double())) for i in (1, 2)]
        q, k, v = linear(norm(x, f"{block}norm1"), f"{block}attn.qkv").split(32, dim=-1)
        q, k, v = (part.reshape(batch, -1, HEADS, 16).transpose(1, 2) for part in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        x = x + gammas[0] * linear(mixed.transpose(1, 2).reshape(batch, -1, 32), f"{block}attn.proj")
        h = linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1")
        x = x + gammas[1] * linear(h * (1 + torch.erf(h / math.sqrt(2))) / 2, f"{block}mlp.fc2")
    x = norm(x, "norm")
    heads = [linear(x[:, i], name) for i, name in enumerate(("head", "head_dist")) if f"{name}.bias" in w]
    return sum(heads) / len(heads)


def official_twin(folder):
    """Return the weights of a saved stock model, whose file has the names of transformers 4, under official names."""
    stock = load_file(folder / "model.safetensors")
    root = "deit." if "cls_classifier.weight" in stock else "vit."
    embeddings = f"{root}embeddings."
    twin = {"cls_token": stock[f"{embeddings}cls_token"], "pos_embed": stock[f"{embeddings}position_embeddings"]}
    heads = (
        {"head": "cls_classifier", "head_dist": "distillation_classifier"}
        if root == "deit."
        else {"head": "classifier"}
    )
    if root == "deit.":
        twin["dist_token"] = stock[f"{embeddings}distillation_token"]
    for ending in (".weight", ".bias"):
        twin["patch_embed.proj" + ending] = stock[f"{embeddings}patch_embeddings.projection{ending}"]
        twin["norm" + ending] = stock[f"{root}layernorm{ending}"]
        twin |= {official + ending: stock[own + ending] for official, own in heads.items()}
        for n in range(2):
            old, new = f"{root}encoder.layer.{n}.", f"blocks.{n}."
            parts = [stock[f"{old}attention.attention.{part}{ending}"] for part in ("query", "key", "value")]
            twin[f"{new}attn.qkv{ending}"] = torch.cat(parts)
            twin[f"{new}attn.proj{ending}"] = stock[f"{old}attention.output.dense{ending}"]
            twin[f"{new}norm1{ending}"] = stock[f"{old}layernorm_before{ending}"]
            twin[f"{new}norm2{ending}"] = stock[f"{old}layernorm_after{ending}"]
            twin[f"{new}mlp.fc1{ending}"] = stock[f"{old}intermediate.dense{ending}"]
            twin[f"{new}mlp.fc2{ending}"] = stock[f"{old}output.dense{ending}"]
    return twin
