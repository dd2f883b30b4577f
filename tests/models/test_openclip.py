import pytest
from open_clip.model import CustomTextCLIP

from effvl_cli.core.errors import MissingPackageError
from effvl_cli.models import openclip

VISION = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 1, "head_width": 16}


def _clip(context, text_width, **vision):
    text = {"context_length": context, "vocab_size": 50, "width": text_width, "heads": 2, "layers": 1}
    return CustomTextCLIP(16, {**VISION, **vision}, text)


def test_positions_are_resized_only_for_the_same_network():
    small, large = _clip(8, 32), _clip(12, 32, image_size=24)
    adapted = openclip.adapt(large, small.state_dict())
    assert adapted["visual.positional_embedding"].shape == (37, 32)
    assert adapted["text.positional_embedding"].shape == (12, 32)
    foreign = openclip.adapt(large, _clip(8, 64).state_dict())  # another text width: left as it is, to be reported
    assert foreign["text.positional_embedding"].shape == (8, 64)
    assert foreign["visual.positional_embedding"].shape == (17, 32)


def test_a_missing_tokenizer_package_is_named(monkeypatch):
    def get_tokenizer(name):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(openclip.open_clip, "get_tokenizer", get_tokenizer)
    with pytest.raises(MissingPackageError, match="ViT-B-16-SigLIP needs transformers") as error:
        openclip.build("ViT-B-16-SigLIP")
    assert error.value.exit_code == 5 and error.value.hint == "pip install transformers"
