"""The one reader of images: every mode, every odd file."""

import pytest
from making import noise, sentence
from PIL import Image

from saol_lib.data import read_image


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.95])
def test_truncated_image_is_named(tmp_path, suffix, share):
    """Wherever the file ends: never another picture, never another error."""
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(1)[0]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError) as error:
        read_image(path)
    sentence(error, path.name, "cannot be read as an image")
