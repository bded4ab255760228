"""The emission's parameters."""

import torch

from darts_ddssm.ssm.decoder import Decoder


def test_parameters_are_in_full_precision():
    """In 16 bits, draws of small spread would have a handful of values."""
    torch.manual_seed(0)
    decoder = Decoder(2, 1, hidden_size=16, num_components=3, num_parameters=2)
    z, u = torch.randn(4, 5, 2), torch.randn(4, 5, 1)
    expected = decoder(z, u)
    assert expected.shape == (4, 5, 3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(decoder(z, u), expected, rtol=0, atol=0)
        # of a latent in 16 bits, too
        assert decoder(z.bfloat16(), u).dtype == torch.float32
