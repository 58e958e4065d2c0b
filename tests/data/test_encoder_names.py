from __future__ import annotations

import pytest

from modaltune.data.encoder_names import encoder_model

ONE_MODEL = {
    "uni": ("UNI", "UNI/", "./UNI", "../UNI/.", "MahmoodLab/UNI", "hf-hub:MahmoodLab/UNI"),
    "gigapath": ("gigapath", "prov-gigapath/prov-gigapath", "Prov_GigaPath", "hf-hub:prov-gigapath/prov-gigapath/"),
    "uni2_h": ("MahmoodLab/UNI2-h", "uni2_h"),
    "uni_v1": ("uni_v1",),
    "conchv1_5": ("MahmoodLab/conchv1_5",),
}


@pytest.mark.parametrize("model", ONE_MODEL)
def test_the_ways_to_write_a_model_are_one(model: str) -> None:
    assert {encoder_model(name) for name in ONE_MODEL[model]} == {model}


@pytest.mark.parametrize("name", [".", "/", "..", "hf-hub:"])
def test_a_name_of_nothing_is_no_model_of_another(name: str) -> None:
    assert encoder_model(name) not in {"", *ONE_MODEL}
