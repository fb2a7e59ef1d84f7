"""The section [data]."""

import pytest

from minillm.data.config import DataConfig


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_share_out_of_range(fraction):
    """Nothing or everything cannot be held out."""
    with pytest.raises(ValueError, match="data.valid_fraction must be above 0 and below 1"):
        DataConfig(valid_fraction=fraction)


def test_an_empty_name_of_the_cache():
    """It would be the working directory."""
    with pytest.raises(ValueError, match="data.cache is empty; name a folder, or write none"):
        DataConfig(cache="")


def test_documents_are_kept_apart_unless_asked():
    """The default is the document mask."""
    assert DataConfig().document_mask
