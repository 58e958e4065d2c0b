"""Compare our modules with golden vectors of the published implementations, file by file.

``python -m tests.goldens DIR`` prints one line per file and kernel: the largest error as a share of its tolerance
(rtol 1e-4 and atol 2e-5 for activations, rtol 1e-3 and 1e-5 of the largest gradient for gradients; above 1 is a
failure). Names, shapes and seeds come from the files; a file belongs to the check whose name it begins with.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modaltune.data.batch import Batch
from modaltune.encoders.attention_kernels import KERNELS, available_kernels
from modaltune.encoders.dilated_attention import DilatedConfig, dilated_attention, sparse_branches
from modaltune.encoders.gene import GeneEncoderConfig, PaperGeneEncoder
from modaltune.encoders.longnet import LongNetConfig, LongNetViT
from modaltune.encoders.positions import position_embedding
from modaltune.errors import ConfigError
from modaltune.models.adapters import AdapterConfig, Extractor, Injector, Interaction, TokenSelfAttention
from modaltune.models.modaltune import ModalTune, ModalTuneConfig
from modaltune.models.published import from_published, to_published
from modaltune.storage import load_state
from modaltune.tasks.projector import TextProjector
from tests.golden_tensors import GoldenTensors, Result, compare_activation, compare_gradients


def check_dilated_attention(tensors: GoldenTensors, info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    for case, spec in info.items():
        if spec["misaligned_quirk"]:
            tensors.unused(f"{case}.")
            yield from _refused(case, spec, kernel)
            continue
        config = DilatedConfig(
            segments=tuple(spec["segment_length"]), ratios=tuple(spec["dilated_ratio"]), kernel=kernel
        )
        inputs = [tensors[f"{case}.{name}"].clone().requires_grad_() for name in "qkv"]
        split = [x.unflatten(-1, (spec["heads"], -1)).transpose(1, 2) for x in inputs]
        yield from _branches(case, tensors, split, config)
        out = dilated_attention(split[0], split[1], split[2], config).transpose(1, 2).flatten(2)
        yield compare_activation(f"{case}.out", out, tensors[f"{case}.out"])
        (out * tensors[f"{case}.cotangent"]).sum().backward()
        ours = {name: x.grad for name, x in zip("qkv", inputs, strict=True)}
        yield from compare_gradients(ours, tensors.part(f"{case}.grad_"))


def _refused(case: str, spec: Any, kernel: str) -> Iterator[Result]:
    """A configuration in which the published code misplaces tokens must be refused."""
    config = DilatedConfig(segments=tuple(spec["segment_length"]), ratios=tuple(spec["dilated_ratio"]), kernel=kernel)
    x = torch.zeros(spec["B"], spec["heads"], spec["L"], spec["head_dim"])
    try:
        dilated_attention(x, x, x, config)
    except ConfigError:
        yield f"{case} (refused, as it must be)", 0.0
    else:
        yield f"{case} (should be refused)", math.inf


def _branches(case: str, tensors: GoldenTensors, qkv: list[Tensor], config: DilatedConfig) -> Iterator[Result]:
    """Sparse output and log-sum-exp of every branch, where segments hold a real token."""
    heads = qkv[0].shape[1]
    pieces: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for branch, out, lse in sparse_branches(qkv[0], qkv[1], qkv[2], config):
        pieces.setdefault(branch, []).append((out[:, :heads], lse[:, :heads]))
    for branch, parts in pieces.items():
        name = f"{case}.branch{branch}"
        golden_lse = tensors[f"{name}.sparse_lse"]
        golden_out = tensors[f"{name}.sparse_out"].unflatten(-1, (heads, -1)).transpose(1, 2)
        batch = len(qkv[0])
        rows_lse, rows_out = golden_lse.unflatten(0, (batch, -1)), golden_out.unflatten(0, (batch, -1))
        start = 0
        for out, lse in parts:
            count, kept = len(out) // batch, out.shape[2]
            span = slice(start, start + count)
            yield compare_activation(f"{name}.sparse_out", out, rows_out[:, span, :, :kept].flatten(0, 1))
            yield compare_activation(f"{name}.sparse_lse", lse, rows_lse[:, span, :, :kept].flatten(0, 1))
            start += count


def check_adapters(tensors: GoldenTensors, info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    for case in sorted({name.split(".")[0] for name in tensors}):
        config = AdapterConfig(
            groups=((0, 0),),
            heads=info[case]["num_heads"],
            width_ratio=info[case].get("cffn_ratio", 1.0),
            bottleneck=info[case]["with_cffn"],
            drop_path=0.0,
            residual="reference",
        )
        kind = {"injector": Injector, "extractor": Extractor, "self_attention": TokenSelfAttention}
        module: nn.Module = kind[case.removesuffix("_nocffn")](info[case]["dim"], config)
        module.load_state_dict(tensors.part(f"{case}.weights."), strict=True)
        inputs = {name: x.clone().requires_grad_() for name, x in tensors.part(f"{case}.in.").items()}
        order = ("tgt", "query_pos") if "tgt" in inputs else ("query", "feat", "pos")
        out = module(*(inputs[name] for name in order))
        yield compare_activation(f"{case}.out", out, tensors[f"{case}.out"])
        (out * tensors[f"{case}.cotangent"]).sum().backward()
        ours: dict[str, Tensor | None] = {name: x.grad for name, x in inputs.items()}
        ours |= {f"weights.{name}": p.grad for name, p in module.named_parameters()}
        yield from compare_gradients(ours, tensors.part(f"{case}.grad."))


def check_gene_encoder(tensors: GoldenTensors, info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    for case, spec in info.items():
        inputs = tensors.part(f"{case}.in.")
        sets = [inputs[str(index)] for index in range(len(inputs))]
        weights = tensors.part(f"{case}.weights.")
        module = PaperGeneEncoder(_spans([x.shape[1] for x in sets]), spec["output_dim"], _gene_config(spec)).eval()
        module.load_state_dict(weights, strict=True)
        expression = torch.cat(sets, dim=1).requires_grad_()
        out = module(expression)
        yield compare_activation(f"{case}.out", out, tensors[f"{case}.out"])
        (out * tensors[f"{case}.cotangent"]).sum().backward()
        ours: dict[str, Tensor | None] = {f"weights.{name}": g for name, g in _gene_gradients(module).items()}
        assert expression.grad is not None
        for index, span in enumerate(_spans([x.shape[1] for x in sets])):
            ours[f"in.{index}"] = expression.grad[:, list(span)]
        yield from compare_gradients(ours, tensors.part(f"{case}.grad."))


def _spans(sizes: list[int]) -> tuple[tuple[int, ...], ...]:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


def _gene_gradients(module: PaperGeneEncoder, prefix: str = "") -> dict[str, Tensor]:
    found = {prefix + name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}
    return module.published(found, prefix)


def _gene_config(spec: Any) -> GeneEncoderConfig:
    return GeneEncoderConfig(
        kind="paper",
        latent=spec["latent_dim"],
        depth=spec["depth"],
        tokens=spec["final_groups"],
        expand_sets=spec["expansion_groups"],
        expand_latent=spec["expansion_dim"],
        cls_token=spec["cls_token"],
    )


def check_projection(tensors: GoldenTensors, info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    out = _projector(tensors)(tensors["in.text"])
    yield compare_activation("out", out, tensors["out"])
    yield compare_activation("out_l2", F.normalize(out, dim=-1), tensors["out_l2"])


def _projector(tensors: GoldenTensors) -> TextProjector:
    weights = {name.removeprefix("conv1."): value.squeeze() for name, value in tensors.part("weights.").items()}
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


def check_longnet(tensors: GoldenTensors, info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    config = info.get("config", info)
    model = _longnet(tensors.part("weights."), config, {**config, **info}, kernel)
    model.load_state_dict(tensors.part("weights."), strict=True)
    for length in sorted({int(name[1:].split(".")[0]) for name in tensors if name[0] == "L"}):
        golden = tensors.part(f"L{length}.")
        patches = golden["in.x"].clone().requires_grad_()
        cells = (golden["in.coords"] // config["tile_size"]).long()
        states = model.hidden_states(patches, cells)
        out, layers = model.encoder.layer_norm(states[-1]), torch.stack(states)
        found = {f"hidden.{index}": state for index, state in enumerate(states)} | {
            "pos_index": cells[..., 0] * config["slide_ngrids"] + cells[..., 1] + 1,
            "pos_embed": position_embedding(cells, config["embed_dim"])[0],
            "encoder_out": out,
            "out.cls": model.norm(out)[:, 0],
            "out.pool": model.norm(out[:, 1:].mean(dim=1)),
            "out_all_layers.cls": model.norm(layers[:, :, 0]),
            "out_all_layers.pool": model.norm(layers[:, :, 1:].mean(dim=2)),
        }
        for name, ours in found.items():
            yield compare_activation(f"L{length}.{name}", ours, golden[name])
        if "grad.x" in golden:
            gradients = dict(golden.part("grad."))
            model.zero_grad()
            (out * gradients.pop("cotangent_encoder_out")).sum().backward()
            slopes: dict[str, Tensor | None] = {name: p.grad for name, p in model.named_parameters()}
            yield from compare_gradients({**slopes, "x": patches.grad}, gradients)


def _modaltune(tensors: GoldenTensors, info: Any, kernel: str) -> ModalTune:
    weights, config = tensors.part("weights."), info["config"]
    tasks = tuple(f"task{index}" for index in range(info["num_tasks"]))
    clinical = "clinical" in info["model"]
    model = ModalTune(
        _longnet(weights, config, info["backbone"], kernel),
        ModalTuneConfig(
            tasks=tasks,
            gene_indices=_spans(info["group_sizes"]),
            clinical_width=config["clinfeat_dim"] if clinical else 0,
            output_width=config["output_dim"],
            adapter=AdapterConfig(
                groups=tuple((low, high) for low, high in config["interaction_indexes"]),
                heads=config["num_heads"],
                width_ratio=config["cffn_ratio"],
                residual="reference",
            ),
            gene_encoder=_gene_config(info["gene_encoder"]),
            token_join=config["token_agg"],
            gene_summary="cls" if config["prompt_agg"] == "cls" else "mean",
        ),
    ).eval()
    ours = from_published(weights, tasks)
    missing = {f"missing.{name}": value for name, value in model.missing.items()}  # no published counterpart
    model.load_state_dict({**ours, **missing}, strict=True)
    return model


def check_modaltune(tensors: GoldenTensors, info: Any, kernel: str, folder: Path) -> Iterator[Result]:
    model = _modaltune(tensors, info, kernel)
    tensors.unused("in.clinical", "in.text")  # without a clinical token, without the projector's file
    tasks = model.config.tasks
    genes = tensors.part("in.genes.")
    batch = Batch(
        patches=tensors["in.x"],
        cells=(tensors["in.coords"] // info["config"]["tile_size"]).long(),
        lengths=torch.tensor([tensors["in.x"].shape[1]]),
        expression=torch.cat([genes[str(index)] for index in range(len(genes))], dim=1),
        has_expression=torch.tensor([True]),
        clinical=tensors["in.clinical"] if model.clinical_encoder is not None else torch.zeros(1, 0),
    )
    yield compare_activation("out.gene_embedding", model.modality_tokens(batch)[-1], tensors["out.gene_embedding"])
    seen = _watch(model)
    logits = model.embed(batch, tasks)[0]
    for name, golden in tensors.part("mid.").items():
        task, block, part = name.split(".")
        ours = seen[f"{block}.{part}"][int(task.removeprefix("task"))]
        yield compare_activation(f"mid.{name}", ours, golden[0])
    yield compare_activation("out.logits", logits, tensors["out.logits"])
    z = F.normalize(logits, dim=-1)
    yield compare_activation("out.logits_l2", z, tensors["out.logits_l2"])
    target = _targets(tensors, info, folder)
    yield compare_activation("out.text_target_l2", target, tensors["out.text_target_l2"])
    wanted = target[info["text_rows"]]
    temperature = info["temperature"]
    divergence = F.kl_div((z / temperature).log_softmax(-1), (wanted / temperature).softmax(-1), reduction="sum")
    loss = info["loss_scale"] * temperature**2 * divergence
    yield compare_activation("out.loss", loss, tensors["out.loss"])
    loss.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    assert isinstance(model.gene_encoder, PaperGeneEncoder)
    grads = model.gene_encoder.published(grads, "gene_encoder.")
    found: dict[str, Tensor | None] = {**to_published(grads, tasks)}
    yield from compare_gradients(found, tensors.part("grad."))


def _targets(tensors: GoldenTensors, info: Any, folder: Path) -> Tensor:
    projector = folder / info["projector"]
    if not projector.is_file():
        return tensors["out.text_target_l2"]
    return F.normalize(_projector(GoldenTensors(load_state(projector)))(tensors["in.text"]), dim=-1)


def _watch(model: ModalTune) -> dict[str, Tensor]:
    """The state at the end of every block, by ``interaction<b>.x|c|cls``; rows are tasks."""
    seen: dict[str, Tensor] = {}
    for block, (_, last) in enumerate(model.config.adapter.groups):
        interaction = cast(Interaction, model.interactions[block])
        extractors = [interaction.extractor, *(interaction.extra_extractors or ())]

        def keep_tokens(module: nn.Module, inputs: object, out: Tensor, block: int = block) -> None:
            seen[f"interaction{block}.cls"], seen[f"interaction{block}.x"] = out[:, :1], out[:, 1:]

        def keep_prompts(module: nn.Module, inputs: object, out: Tensor, block: int = block) -> None:
            seen[f"interaction{block}.c"] = out

        model.slide_encoder.encoder.layers[last].register_forward_hook(keep_tokens)
        extractors[-1].register_forward_hook(keep_prompts)
    return seen


Check = Callable[[GoldenTensors, Any, str, Path], Iterator[Result]]
CHECKS: dict[str, Check] = {
    "dilated_attention": check_dilated_attention,
    "adapters": check_adapters,
    "gene_encoder": check_gene_encoder,
    "projection": check_projection,
    "longnet_small": check_longnet,
    "modaltune_small": check_modaltune,
}
STANDARD = (
    "dilated_attention",
    "adapters",
    "gene_encoder",
    "projection",
    "longnet_small_h4",
    "longnet_small_h16",
    "modaltune_small",
    "modaltune_small_cat",
    "modaltune_small_clinical_late",
)
WITHOUT_ATTENTION = ("adapters", "gene_encoder", "projection")


def check_of(stem: str) -> Check | None:
    """The check of a file, by the beginning of its name."""
    return next((check for name, check in CHECKS.items() if stem.startswith(name)), None)


def check_file(folder: Path, stem: str, kernel: str) -> list[Result]:
    """All comparisons of one golden file; an error above 1 is out of tolerance."""
    check = check_of(stem)
    assert check is not None, stem
    device = torch.device("cuda" if kernel.startswith("cuda") else "cpu")
    stored = load_state(folder / f"{stem}.safetensors")
    tensors = GoldenTensors({name: value.to(device) for name, value in stored.items()})
    info = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    with device:
        results = list(check(tensors, info, kernel, folder))
    return results + [(f"{name} (no check reads it)", math.inf) for name in tensors.unread()]


def full_precision_kernels() -> list[str]:
    """Kernels whose results can be within the tolerances; those in half precision are compared by the GPU tests."""
    return [name for name in available_kernels() if not KERNELS[name].half]


def check_folder(folder: Path) -> bool:
    """Check and report every file of a folder; True when all pass."""
    found = sorted(path.stem for path in folder.glob("*.safetensors"))
    passed = bool(found)
    if not found:
        print(f"{folder}: no golden vectors (*.safetensors) found")
    for stem in found:
        if check_of(stem) is None:
            print(f"{stem}: not recognised; known names begin with {', '.join(CHECKS)}")
            passed = False
            continue
        passed &= _report(folder, stem)
    for stem in STANDARD:
        if stem not in found:
            print(f"{stem}: absent")
    return passed


def _report(folder: Path, stem: str) -> bool:
    kernels = ["naive"] if stem.startswith(WITHOUT_ATTENTION) else full_precision_kernels()
    results: list[Result] = []
    worst = []
    for kernel in kernels:
        try:
            results = check_file(folder, stem, kernel)
        except Exception as error:  # noqa: BLE001  a file of another make must not hide the others
            print(f"{stem}: FAILED with kernel {kernel}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return False
        worst.append(max((math.inf if math.isnan(share) else share, name) for name, share in results))
    shares = ", ".join(f"{kernel} {share:.3g}" for kernel, (share, _) in zip(kernels, worst, strict=True))
    largest, where = max(worst)
    verdict = "ok" if largest <= 1 else "FAILED"
    refused = "".join(f"; {name}" for name, _ in results if "refused" in name)
    print(f"{stem}: {verdict}, {len(results)} comparisons, largest error / tolerance: {shares} (at {where}){refused}")
    return largest <= 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.goldens DIR")
    sys.exit(0 if check_folder(Path(sys.argv[1])) else 1)
