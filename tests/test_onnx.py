"""Export to ONNX, which is refused with its reason."""

import pytest
from conftest import noisy_sine


def test_export_to_onnx_is_refused(tiny, tmp_path):
    path = tmp_path / "model.onnx"
    for model in (tiny(), tiny(n_epochs=1).fit(noisy_sine())):
        with pytest.raises(NotImplementedError, match="known by its samples alone"):
            model.to_onnx(str(path))
    assert not path.exists()
