"""Autoencoders: training lands on the closed form of the linear case, gradients go where they should, latents are scaled."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import multivariate_normal
from torch.autograd.functional import jacobian

from course_lib import data
from course_lib.autoencoders import (
    KLAutoencoder,
    LinearAutoencoder,
    VQAutoencoder,
    encode_all,
    fit_scale,
    kl_loss,
    ppca,
    straight_through,
    vq_loss,
)
from course_lib.training import train

VALUES = torch.tensor([4.0, 2.0, 0.6, 0.2, 0.1])  # of the covariance of the rows below
SIGMA2 = 0.5
SMALL = {"width": 16, "depth": 1}
every_autoencoder = pytest.mark.parametrize("build", [KLAutoencoder, VQAutoencoder], ids=lambda build: build.__name__)


def rotation(generator, n=5):
    return torch.linalg.qr(torch.randn(n, n, generator=generator)).Q


def rows(U):
    """Ten rows whose mean is 0 and whose covariance is U diag(VALUES) U.T, exactly."""
    axes = U * (5 * VALUES).sqrt()
    return torch.cat([axes.T, -axes.T])


def pictures(n, generator, size=16):
    """Discs of a colour on white, (n, 3, size, size) in [-1, 1]."""
    line = torch.linspace(-1, 1, size)
    centre, radius = torch.rand(n, 2, 1, 1, generator=generator) - 0.5, torch.rand(n, 1, 1, generator=generator)
    inside = ((line - centre[:, 0]) ** 2 + (line[:, None] - centre[:, 1]) ** 2 < radius**2)[:, None]
    return torch.where(inside, 2 * torch.rand(n, 3, 1, 1, generator=generator) - 1, 1.0)


def round_trip(model, x):
    return model.decode(model.encode(x))


def tuned(loss, model, data, **settings):
    settings = {"warmup": 10, "weight_decay": 0.0, "ema": 0.99, "device": "cpu", "progress": False} | settings
    return train(loss, model, [data], **settings).model


# ---------------------------------------------------------------------------------------------- the linear case
def elbo_of(model, covariance, sigma2, beta):
    """The beta-ELBO of any linear autoencoder, from its definition: nothing in it is optimal."""
    V, W, variance = model.latent.weight, model.reconstruct.weight, model.log_var.exp()
    left = torch.eye(len(W)) - W @ V
    error = torch.trace(left @ covariance @ left.T) + (W.square() * variance).sum()
    kl = (torch.trace(V @ covariance @ V.T) + variance.sum() - len(V) - model.log_var.sum()) / 2
    return -(len(W) * math.log(2 * math.pi * sigma2) + error / sigma2) / 2 - beta * kl


def random_linear(generator):
    model = LinearAutoencoder(5, 3, SIGMA2)
    for weight in (model.latent.weight, model.reconstruct.weight):
        torch.nn.init.normal_(weight, std=0.5, generator=generator)
    return model


def optimum(covariance, latent, sigma2, beta):
    """The linear autoencoder that ppca describes."""
    model, (W, variance, elbo) = LinearAutoencoder(len(covariance), latent, sigma2), ppca(covariance, latent, sigma2, beta)
    with torch.no_grad():
        model.reconstruct.weight.copy_(W)
        model.latent.weight.copy_(variance[:, None] / (beta * sigma2) * W.T)
        model.log_var.copy_(variance.log())
    return model, elbo


@pytest.mark.parametrize("beta", [0.25, 1.0, 2.0])  # the last shuts off the third direction, of variance 0.6
def test_a_linear_autoencoder_learns_its_closed_form(beta, generator, monkeypatch):
    """The loss is quadratic in its noise, so six points of the noise's mean and covariance give its expectation exactly."""
    U = rotation(generator).double()
    covariance = U * VALUES.double() @ U.T
    exact_W, exact_variance, exact_elbo = ppca(covariance, 3, SIGMA2, beta)
    x, z = rows(U).repeat_interleave(6, 0), math.sqrt(3) * torch.cat([torch.eye(3), -torch.eye(3)]).double().repeat(10, 1)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: z)
    model, loss = random_linear(generator).double(), kl_loss(beta)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=200, tolerance_change=1e-10, tolerance_grad=1e-7,
                                  line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(model, x, None)
        value.backward()
        return value

    optimizer.step(closure)
    W, V, variance = model.reconstruct.weight, model.latent.weight, model.log_var.exp()
    order = W.norm(dim=0).argsort(descending=True)
    signs = torch.where((W[:, order] * exact_W).sum(0) < 0, -1.0, 1.0)      # the loss leaves order and signs open, no more
    close = {"atol": 1e-3, "rtol": 0}
    torch.testing.assert_close(W[:, order] * signs, exact_W, **close)
    torch.testing.assert_close(V[order] * signs[:, None], exact_variance[:, None] / (beta * SIGMA2) * exact_W.T, **close)
    torch.testing.assert_close(variance[order], exact_variance, **close)
    for elbo in (elbo_of(model, covariance, SIGMA2, beta), -5 * loss(model, x, None)):
        torch.testing.assert_close(elbo, exact_elbo, **close)


def test_the_closed_form_is_an_optimum(generator):
    """Its ELBO is what the definition gives, and no small step in any direction gives more."""
    U = rotation(generator)
    covariance = U * VALUES @ U.T
    for beta in (0.1, 1.0, 3.0, 20.0):
        model, elbo = optimum(covariance, 3, SIGMA2, beta)
        best = elbo_of(model, covariance, SIGMA2, beta)
        torch.testing.assert_close(best, elbo, atol=1e-5, rtol=1e-5)
        best.backward()
        assert all(p.grad.abs().max() < 1e-4 for p in model.parameters())
        for _ in range(30):
            nudged, _ = optimum(covariance, 3, SIGMA2, beta)
            with torch.no_grad():
                for p in nudged.parameters():
                    p.add_(0.05 * torch.randn(p.shape, generator=generator))
            assert elbo_of(nudged, covariance, SIGMA2, beta) < best


def test_at_beta_1_the_elbo_is_the_likelihood_of_probabilistic_pca(generator):
    U = rotation(generator)
    covariance, x = U * VALUES @ U.T, rows(U)
    W, _, elbo = ppca(covariance, 2, SIGMA2)
    model = (W @ W.T + SIGMA2 * torch.eye(5)).double().numpy()
    expected = multivariate_normal(cov=model).logpdf(x.double().numpy()).mean()
    assert elbo.item() == pytest.approx(expected, abs=1e-5)


def test_beta_decides_which_directions_are_kept():
    kept = [(ppca(VALUES.diag(), 4, SIGMA2, beta)[0].norm(dim=0) > 0).sum().item() for beta in (0.1, 1, 2, 7, 9)]
    assert kept == [4, 3, 2, 1, 0]
    assert ppca(VALUES.diag(), 4, SIGMA2, 9.0)[1].tolist() == [1, 1, 1, 1]


def test_the_loss_is_minus_the_elbo_a_pixel(generator):
    """On average over the noise, for a linear autoencoder that nobody trained."""
    U, model = rotation(generator), LinearAutoencoder(5, 2, SIGMA2)
    loss = kl_loss(0.7)(model, rows(U).repeat(2000, 1), generator)
    assert -5 * loss.item() == pytest.approx(elbo_of(model, U * VALUES @ U.T, SIGMA2, 0.7).item(), abs=0.1)


# ---------------------------------------------------------------------------------------------- gradients of the codebook
def test_the_straight_through_jacobian_is_the_identity(generator):
    z, e = torch.randn(4, generator=generator), torch.randn(4, generator=generator)
    torch.testing.assert_close(straight_through(z, e), e)
    assert torch.equal(jacobian(lambda z: straight_through(z, z.round()), z), torch.eye(4))
    assert not jacobian(lambda e: straight_through(z, e), e).any()


def vq_gradients(beta, x, monkeypatch):
    """Gradients of codebook and encoder from the two terms alone: the decoder is cut off."""
    torch.manual_seed(0)
    model = VQAutoencoder(codes=8, **SMALL)
    monkeypatch.setattr(model.decoder, "forward", lambda z: 0 * x)
    vq_loss(beta)(model, x, None).backward()
    return model, model.codebook.weight.grad, model.encoder[1].weight.grad


def test_beta_weighs_the_commitment_alone(generator, monkeypatch):
    x = pictures(3, generator)
    model, codes, encoder = vq_gradients(0.25, x, monkeypatch)
    _, codes_4, encoder_4 = vq_gradients(1.0, x, monkeypatch)
    torch.testing.assert_close(codes_4, codes)
    torch.testing.assert_close(encoder_4, 4 * encoder)
    assert codes.any() and encoder.any()
    z = model.latent(x)
    numbers = model.nearest(z)
    for k in range(8):                                                     # d/de sum ||z - e||^2 = 2 (n e - sum of its z)
        mine = z.movedim(1, -1)[numbers == k]
        expected = 2 * (len(mine) * model.codebook.weight[k] - mine.sum(0)) / x.numel()
        torch.testing.assert_close(codes[k], expected, atol=1e-7, rtol=1e-4)


def test_the_pictures_error_reaches_the_encoder_but_not_the_codebook(generator):
    model, x = VQAutoencoder(codes=8, **SMALL), pictures(3, generator)
    torch.nn.init.normal_(model.decoder[-2].weight, std=0.1, generator=generator)
    (model.reconstruct(model.latent(x)) - x).square().sum().backward()
    assert model.codebook.weight.grad is None and model.encoder[1].weight.grad.any()


def test_every_latent_goes_to_its_nearest_code(generator):
    model, z = VQAutoencoder(codes=6, **SMALL), torch.randn(2, 4, 3, 5, generator=generator)
    numbers = model.nearest(z)
    chosen = model.vectors(numbers)
    assert numbers.shape == (2, 3, 5) and chosen.shape == z.shape
    for k in range(6):
        other = model.vectors(torch.full_like(numbers, k))
        assert bool(((z - chosen).norm(dim=1) <= (z - other).norm(dim=1) + 1e-5).all())


def test_usage_counts_the_codes(generator):
    model, x = VQAutoencoder(codes=8, **SMALL), pictures(4, generator)
    z = model.latent(x)
    with torch.no_grad():
        model.codebook.weight.fill_(100.0)
        model.codebook.weight[3] = 0
    assert model.usage(x) == (1 / 8, 1.0)
    half = z.detach().movedim(1, -1).flatten(0, -2).median(0).values
    with torch.no_grad():
        model.codebook.weight[:2] = half + torch.tensor([[1.0], [-1.0]])
        model.codebook.weight[3] = 100.0
    share, perplexity = model.usage(x)
    assert share == 2 / 8 and 1 < perplexity <= 2.0001


# ---------------------------------------------------------------------------------------------- latents
@every_autoencoder
@pytest.mark.parametrize(("size", "fold"), [(16, 4), (24, 8), (8, 2)])
def test_shapes(build, size, fold, generator):
    model, x = build(fold=fold, **SMALL), pictures(2, generator, size)
    z = model.encode(x)
    assert z.shape == (2, 4, size // fold, size // fold)
    assert model.decode(z).shape == round_trip(model, x).shape == x.shape


def test_a_posterior_has_mean_and_log_variance(generator):
    model, x = KLAutoencoder(latent=3, **SMALL), pictures(2, generator)
    mean, log_var = model.posterior(x)
    assert mean.shape == log_var.shape == (2, 3, 4, 4) and torch.equal(mean, model.encode(x))


@pytest.mark.parametrize("model", [KLAutoencoder(**SMALL), VQAutoencoder(codes=8, **SMALL), LinearAutoencoder(5, 2, 0.1)],
                         ids=lambda model: type(model).__name__)
def test_scaled_latents_have_mean_0_and_variance_1_and_decode_alike(model, generator):
    linear = isinstance(model, LinearAutoencoder)
    x = torch.randn(70, 5, generator=generator) if linear else pictures(70, generator)
    before = round_trip(model, x)
    fit_scale(model, x)
    z = encode_all(model, x, batch=32)
    channels = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), atol=1e-5, rtol=0)
    torch.testing.assert_close(channels.std(1), torch.ones(len(channels)), atol=1e-5, rtol=0)
    torch.testing.assert_close(round_trip(model, x), before, atol=1e-5, rtol=1e-5)
    first = model.scale.clone()
    fit_scale(model, x)                                                    # once more changes nothing
    torch.testing.assert_close(model.scale, first)
    assert {"shift", "scale"} <= model.state_dict().keys(), "the scale belongs to the weights"


def test_a_silent_channel_is_refused(generator):
    model = LinearAutoencoder(5, 2, 0.1)
    with torch.no_grad():
        model.latent.weight[1] = 0
    with pytest.raises(ValueError, match=r"images: every latent channel must vary, got standard deviations \[.*, 0.0\]"):
        fit_scale(model, torch.randn(9, 5, generator=generator))


# ---------------------------------------------------------------------------------------------- arguments
@every_autoencoder
@pytest.mark.parametrize("shape", [(1, 3, 18, 16), (1, 3, 16, 6), (1, 1, 16, 16), (3, 16, 16)], ids=str)
def test_pictures_of_another_form_are_refused(build, shape):
    with pytest.raises(ValueError, match=r"x: expected \(B, 3, H, W\), sides divisible by 4, got \("):
        build(**SMALL).encode(torch.zeros(shape))


@every_autoencoder
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4,)], ids=str)
def test_latents_of_another_form_are_refused(build, shape):
    with pytest.raises(ValueError, match=r"z: expected 4 axes with 4 channels, got \("):
        build(**SMALL).decode(torch.zeros(shape))


# ---------------------------------------------------------------------------------------------- training
def psnr(model, x):
    return -10 * math.log10((round_trip(model, x) - x).square().mean().item() / 4)


@pytest.fixture(scope="module")
def emoji():
    return data.emoji("test").images[::9]                                  # all four styles


@pytest.mark.parametrize(("build", "loss"), [(KLAutoencoder, kl_loss(0.1)), (VQAutoencoder, vq_loss())], ids=["KL", "VQ"])
def test_a_few_steps_on_emoji_improve_the_pictures(build, loss, emoji):
    def quality(steps):
        torch.manual_seed(0)
        return psnr(tuned(loss, build(**SMALL), emoji, steps=steps, batch=8, lr=4e-3, ema=0.9), emoji)

    assert all(later > before + 1 for before, later in pairwise([quality(1), quality(15), quality(45)]))


# ---------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(("loss", "build", "shape", "message"), [
    (kl_loss(1.0), lambda: LinearAutoencoder(4, 2, 0.1), (0, 4), "x0: expected at least one row, got none"),
    (kl_loss(1.0), lambda: KLAutoencoder(**SMALL), (0, 3, 8, 8), r"x: expected \(B, 3, H, W\).*, got \(0, 3, 8, 8\)"),
    (vq_loss(), lambda: VQAutoencoder(8, **SMALL), (0, 3, 8, 8), r"x: expected .* got \(0, 3, 8, 8\)"),
], ids=["linear", "KL", "VQ"])
def test_an_empty_batch_has_no_loss(loss, build, shape, message, generator):
    with pytest.raises(ValueError, match=message):
        loss(build(), torch.zeros(shape), generator)


@pytest.mark.parametrize(("arguments", "message"), [
    ((torch.ones(3, 4), 2, 0.1), r"covariance: expected a symmetric matrix of finite numbers, got \(3, 4\)"),
    ((torch.ones(4, 4).triu(), 2, 0.1), "covariance: expected a symmetric"),
    ((torch.full((4, 4), math.nan), 2, 0.1), "covariance: expected a symmetric"),
    ((torch.eye(4), 5, 0.1), "latent: expected a finite number from 1 to 4, got 5"),
    ((torch.eye(4), 0, 0.1), "latent: expected a whole number, at least 1, got 0"),
    ((torch.eye(4), 2, 0.1, 0.0), r"beta \* sigma2: expected a positive number, got 0.0"),
], ids=["not square", "not symmetric", "not finite", "too many", "none", "no noise"])
def test_what_has_no_closed_form_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ppca(*arguments)


def test_the_surprise_of_a_picture_in_half_precision_is_finite():
    """A sum over 3 x 64 x 64 pixels, each up to 400/2 nats, is beyond 65504."""
    model = LinearAutoencoder(3 * 64 * 64, 2, 0.01).half()
    nats = model.surprise(torch.ones(1, 3 * 64 * 64, dtype=torch.float16), torch.zeros(1, 2, dtype=torch.float16))
    assert nats.item() == pytest.approx(3 * 64 * 64 / 2 * (100 + math.log(2 * math.pi * 0.01)), rel=1e-3)
