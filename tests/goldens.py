"""Compare our modules with golden vectors of the published implementations, file by file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.data.batch import Batch
from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention
from modaltune.encoders.gene import GeneEncoderConfig, PaperGeneEncoder
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.models.adapters import AdapterConfig, Extractor, Injector, TokenSelfAttention
from modaltune.models.modaltune import ModalTune, ModalTuneConfig
from modaltune.models.published import from_published, to_published
from modaltune.storage import load_state
from modaltune.tasks.projector import TextProjector

Result = tuple[str, float]  # what was compared, error as a share of what is allowed


def _activation(name: str, ours: Tensor, golden: Tensor) -> Result:
    allowed = max(2e-5, 2e-6 * float(golden.abs().max())) + 1e-4 * golden.abs()
    return name, float(((ours.detach() - golden).abs() / allowed).max())


def _gradient(name: str, ours: Tensor | None, golden: Tensor, largest: float) -> Result:
    ours = torch.zeros_like(golden) if ours is None else ours
    return name, float(((ours.detach() - golden).abs() / (1e-5 * largest + 1e-3 * golden.abs())).max())


def _gradients(ours: Mapping[str, Tensor | None], golden: Mapping[str, Tensor]) -> Iterator[Result]:
    largest = max(float(value.abs().max()) for value in golden.values())
    for name, value in golden.items():
        yield _gradient(name, ours[name], value, largest)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def check_dilated_attention(tensors: Mapping[str, Tensor], info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    for case, spec in info.items():
        if spec["misaligned_quirk"]:
            continue
        config = DilatedConfig(
            segments=tuple(spec["segment_length"]), ratios=tuple(spec["dilated_ratio"]), kernel=kernel
        )
        inputs = [tensors[f"{case}.{name}"].clone().requires_grad_() for name in "qkv"]
        split = [x.unflatten(-1, (spec["heads"], -1)).transpose(1, 2) for x in inputs]
        out = dilated_attention(split[0], split[1], split[2], config).transpose(1, 2).flatten(2)
        yield _activation(f"{case}.out", out, tensors[f"{case}.out"])
        (out * tensors[f"{case}.cotangent"]).sum().backward()
        ours = {name: x.grad for name, x in zip("qkv", inputs, strict=True)}
        yield from _gradients(ours, _part(tensors, f"{case}.grad_"))


def check_adapters(tensors: Mapping[str, Tensor], info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    for case in sorted({name.split(".")[0] for name in tensors}):
        config = AdapterConfig(
            groups=((0, 0),),
            heads=4,
            bottleneck=not case.endswith("_nocffn"),
            drop_path=0.0,
            residual="reference",
        )
        kind = {"injector": Injector, "extractor": Extractor, "self_attention": TokenSelfAttention}
        module: nn.Module = kind[case.removesuffix("_nocffn")](48, config)
        module.load_state_dict(_part(tensors, f"{case}.weights."), strict=True)
        inputs = {name: x.clone().requires_grad_() for name, x in _part(tensors, f"{case}.in.").items()}
        order = ("tgt", "query_pos") if "tgt" in inputs else ("query", "feat", "pos")
        out = module(*(inputs[name] for name in order))
        yield _activation(f"{case}.out", out, tensors[f"{case}.out"])
        (out * tensors[f"{case}.cotangent"]).sum().backward()
        ours: dict[str, Tensor | None] = {name: x.grad for name, x in inputs.items()}
        ours |= {f"weights.{name}": p.grad for name, p in module.named_parameters()}
        yield from _gradients(ours, _part(tensors, f"{case}.grad."))


def check_gene_encoder(tensors: Mapping[str, Tensor], info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    for case in sorted({name.split(".")[0] for name in tensors}):
        inputs = _part(tensors, f"{case}.in.")
        sets = [inputs[str(index)] for index in range(len(inputs))]
        weights = _part(tensors, f"{case}.weights.")
        module = PaperGeneEncoder(
            _spans([x.shape[1] for x in sets]), tensors[f"{case}.out"].shape[2], _gene_config(weights)
        ).eval()
        module.load_state_dict(weights, strict=True)
        expression = torch.cat(sets, dim=1).requires_grad_()
        out = module(expression)
        yield _activation(f"{case}.out", out, tensors[f"{case}.out"])
        (out * tensors[f"{case}.cotangent"]).sum().backward()
        ours: dict[str, Tensor | None] = {f"weights.{name}": p.grad for name, p in module.named_parameters()}
        assert expression.grad is not None
        for index, span in enumerate(_spans([x.shape[1] for x in sets])):
            ours[f"in.{index}"] = expression.grad[:, list(span)]
        yield from _gradients(ours, _part(tensors, f"{case}.grad."))


def _spans(sizes: list[int]) -> tuple[tuple[int, ...], ...]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


def _gene_config(weights: Mapping[str, Tensor]) -> GeneEncoderConfig:
    blocks = [int(name.split(".")[1]) for name in weights if name.startswith("mlp_mixer.") and ".fn." in name]
    first, channel = weights["mlp_mixer.0.0.fn.0.weight"], weights["mlp_mixer.0.1.fn.0.weight"]
    return GeneEncoderConfig(
        kind="paper",
        latent=channel.shape[1],
        depth=max(blocks) + 1,
        tokens=weights["pathway_compression.weight"].shape[0],
        expand_sets=(first.shape[0] + 0.5) / first.shape[1],
        expand_latent=channel.shape[0] / channel.shape[1],
        cls_token="cls_token" in weights,
    )


def check_projection(tensors: Mapping[str, Tensor], info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    out = _projector(tensors)(tensors["in.text"])
    yield _activation("out", out, tensors["out"])
    yield _activation("out_l2", F.normalize(out, dim=-1), tensors["out_l2"])


def _projector(tensors: Mapping[str, Tensor]) -> TextProjector:
    weights = {name.removeprefix("conv1."): value.squeeze() for name, value in _part(tensors, "weights.").items()}
    width, text_width = weights["0.weight"].shape
    projector = TextProjector(text_width, width)
    projector.load_state_dict({f"layers.{name}": value for name, value in weights.items()}, strict=True)
    return projector


def _longnet(weights: Mapping[str, Tensor], config: Any, attention: Any, kernel: str) -> LongNetViT:
    return LongNetViT(
        LongNetConfig(
            in_width=config["in_chans"],
            width=config["embed_dim"],
            depth=config["depth"],
            heads=attention["heads"],
            ffn_width=weights["encoder.layers.0.ffn.fc1.weight"].shape[0],
            grid=config["slide_ngrids"],
            attention=DilatedConfig(
                segments=tuple(attention["segment_length"]), ratios=tuple(attention["dilated_ratio"]), kernel=kernel
            ),
        )
    ).eval()


def check_longnet(tensors: Mapping[str, Tensor], info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    config = info.get("config", info)
    model = _longnet(_part(tensors, "weights."), config, {**config, **info}, kernel)
    model.load_state_dict(_part(tensors, "weights."), strict=True)
    for length in sorted({int(name[1:].split(".")[0]) for name in tensors if name[0] == "L"}):
        golden = _part(tensors, f"L{length}.")
        patches = golden["in.x"].clone().requires_grad_()
        cells = (golden["in.coords"] // 256).long()
        states = model.hidden_states(patches, cells)
        for index, state in enumerate(states):
            yield _activation(f"L{length}.hidden.{index}", state, golden[f"hidden.{index}"])
        out = model.encoder.layer_norm(states[-1])
        yield _activation(f"L{length}.encoder_out", out, golden["encoder_out"])
        yield _activation(f"L{length}.out.cls", model.norm(out)[:, 0], golden["out.cls"])
        yield _activation(f"L{length}.out.pool", model.norm(out[:, 1:].mean(dim=1)), golden["out.pool"])
        gradients = _part(golden, "grad.")
        if gradients:
            model.zero_grad()
            (out * gradients.pop("cotangent_encoder_out")).sum().backward()
            ours: dict[str, Tensor | None] = {name: p.grad for name, p in model.named_parameters()}
            yield from _gradients({**ours, "x": patches.grad}, gradients)


def check_modaltune(tensors: Mapping[str, Tensor], info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    weights, config = _part(tensors, "weights."), info["config"]
    tasks = tuple(f"task{index}" for index in range(info["num_tasks"]))
    genes = _part(tensors, "in.genes.")
    sets = [genes[str(index)] for index in range(len(genes))]
    model = ModalTune(
        _longnet(weights, config, info["backbone"], kernel),
        ModalTuneConfig(
            tasks=tasks,
            gene_indices=_spans([x.shape[1] for x in sets]),
            output_width=config["output_dim"],
            adapter=AdapterConfig(
                groups=tuple((low, high) for low, high in config["interaction_indexes"]),
                heads=config["num_heads"],
                width_ratio=config["cffn_ratio"],
                residual="reference",
            ),
            gene_encoder=_gene_config(_part(weights, "gene_encoder.")),
            token_join=config["token_agg"],
        ),
    ).eval()
    loaded = model.load_state_dict(from_published(weights, tasks), strict=False)
    assert not loaded.unexpected_keys, loaded
    assert all(name.startswith("missing.") for name in loaded.missing_keys), loaded
    batch = Batch(
        patches=tensors["in.x"],
        cells=(tensors["in.coords"] // 256).long(),
        lengths=torch.tensor([tensors["in.x"].shape[1]]),
        expression=torch.cat(sets, dim=1),
        has_expression=torch.tensor([True]),
        clinical=torch.zeros(1, 0),
    )
    logits = model.embed(batch, tasks)[0]
    yield _activation("out.logits", logits, tensors["out.logits"])
    z = F.normalize(logits, dim=-1)
    yield _activation("out.logits_l2", z, tensors["out.logits_l2"])
    target = tensors["out.text_target_l2"][info["text_rows"]]
    loss = 10 * F.kl_div(z.log_softmax(-1), target.softmax(-1), reduction="sum")
    yield _activation("out.loss", loss, tensors["out.loss"])
    loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    ours: dict[str, Tensor | None] = {**to_published(grads, tasks)}
    yield from _gradients(ours, _part(tensors, "grad."))


Check = Callable[[Mapping[str, Tensor], Any, str, Path], Iterator[Result]]
CHECKS: dict[str, Check] = {
    "dilated_attention": check_dilated_attention,
    "adapters": check_adapters,
    "gene_encoder": check_gene_encoder,
    "projection": check_projection,
    "longnet_small_h4": check_longnet,
    "longnet_small_h16": check_longnet,
    "modaltune_small": check_modaltune,
    "modaltune_small_cat": check_modaltune,
}


def check_file(folder: Path, stem: str, kernel: str) -> list[Result]:
    """All comparisons of one golden file; an error above 1 is out of tolerance."""
    tensors = load_state(folder / f"{stem}.safetensors")
    info = json.loads((folder / f"{stem}.json").read_text())
    return list(CHECKS[stem](tensors, info, kernel, folder))
