import torch

from tersor.factors import Factors


def test_sums_of_zero_have_the_sign_of_the_scale():
    """Whatever the signs of what is added up: the sum is a whole number, which has no -0."""
    codebook = torch.tensor([[-1], [1]], dtype=torch.int16)
    latent = torch.zeros(1, 3, dtype=torch.int16)
    for scale in (0.5, -0.5):
        weight = Factors(codebook, latent, scale, (3, 2)).recompose()
        assert torch.equal(weight.signbit(), torch.full((3, 2), scale < 0))
