"""Networks: shapes, a start at zero, labels checked, rows that know nothing of each other, and no parameter left out."""

import pytest
import torch

from course_lib import data
from course_lib.denoiser import EDM, X0, Eps, FlowVelocity, Preconditioned, V, guided
from course_lib.networks import MLP, Captions, Classifier, ColourFeatures, DiT, NoiseEmbedding, UNet, Upscaler, zeroed
from course_lib.schedules import CosineVP

CLASSES, B = 3, 4
NETWORKS = {  # a small one of each, and the shape of a row of its input
    "MLP": (lambda: MLP(dim=5, width=16, depth=2, classes=CLASSES), (5,)),
    "UNet": (lambda: UNet(channels=2, widths=(8, 16), depth=1, patch=2, heads=2, classes=CLASSES), (2, 8, 12)),
    "UNet, three levels": (lambda: UNet(widths=(8, 16, 16), depth=2, patch=1, heads=2, classes=CLASSES), (1, 8, 8)),
    "DiT": (lambda: DiT(channels=2, size=8, patch=2, width=16, depth=2, heads=2, classes=CLASSES), (2, 8, 8)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def inputs(name, generator):
    x = torch.randn(B, *NETWORKS[name][1], generator=generator)
    return x, torch.linspace(-1.2, 1.2, B), torch.tensor([0, 2, -1, 1])


def stirred(name, generator):
    """The network with every parameter away from its start, where zeros hide most of it."""
    network = NETWORKS[name][0]()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return network


@every_network
def test_the_output_has_the_inputs_shape_and_starts_at_zero(name, generator):
    x, c_noise, cond = inputs(name, generator)
    network = NETWORKS[name][0]()
    for labels in (cond, None):
        out = network(x, c_noise, labels)
        assert out.shape == x.shape and not out.any()
    assert stirred(name, generator)(x, c_noise, cond).any()


@every_network
@pytest.mark.parametrize("parameterisation", [X0(), Eps(), V(), FlowVelocity(), EDM()], ids=lambda p: type(p).__name__)
def test_a_new_model_is_its_preconditioning_alone(name, parameterisation, generator):
    x, _, cond = inputs(name, generator)
    model, t = Preconditioned(NETWORKS[name][0](), CosineVP(), parameterisation), torch.linspace(0.1, 0.9, B)
    skip, _, _ = model.coefficients(x, t)
    torch.testing.assert_close(model(x, t, cond), skip * x)


@every_network
def test_a_row_does_not_depend_on_the_others(name, generator):
    x, c_noise, cond = inputs(name, generator)
    network, order = stirred(name, generator), torch.tensor([2, 0, 3, 1])
    together = network(x, c_noise, cond)
    torch.testing.assert_close(network(x[order], c_noise[order], cond[order]), together[order], rtol=1e-4, atol=1e-5)
    for i in range(B):
        alone = network(x[i:i + 1], c_noise[i:i + 1], cond[i:i + 1])
        torch.testing.assert_close(alone, together[i:i + 1], rtol=1e-4, atol=1e-5)


@every_network
def test_noise_level_and_label_both_matter(name, generator):
    x, c_noise, cond = inputs(name, generator)
    network = stirred(name, generator)
    out = network(x, c_noise, cond)
    changed_noise, changed_label = network(x, c_noise + 0.3, cond), network(x, c_noise, (cond + 2) % 4 - 1)
    for other in (changed_noise, changed_label):
        assert bool(((other - out).abs().flatten(1).amax(1) > 1e-4).all())


@every_network
def test_no_label_is_the_label_minus_1(name, generator):
    x, c_noise, _ = inputs(name, generator)
    network = stirred(name, generator)
    assert torch.equal(network(x, c_noise, None), network(x, c_noise, torch.full((B,), -1)))


@every_network
def test_the_gradient_reaches_every_parameter(name, generator):
    x, c_noise, cond = inputs(name, generator)
    network = stirred(name, generator)
    weights = torch.randn(x.shape, generator=generator)  # a plain sum may be blind to a parameter behind a norm
    (network(x, c_noise, cond) * weights).sum().backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched
    assert bool(network.embed.label.weight.grad.any(1).all()), "each of the labels, and none, has a row of its own"


@every_network
def test_a_step_of_training_moves_a_network_off_zero(name, generator):
    """Zeros everywhere would be a trap: from the start, some gradient must arrive."""
    x, c_noise, cond = inputs(name, generator)
    network = NETWORKS[name][0]()
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (network(x, c_noise, cond) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# ---------------------------------------------------------------------------------------------- labels and sizes
@every_network
@pytest.mark.parametrize(("cond", "message"), [
    (torch.tensor([0, 1, 2, 3]), r"cond: expected numbers in -1..2, got 0..3"),
    (torch.tensor([0, 1, -2, 0]), r"cond: expected numbers in -1..2, got -2..1"),
    (torch.zeros(B), r"cond: expected signed whole numbers of shape \(4,\), got \(4,\) torch.float32"),
    (torch.tensor([0, 1]), r"cond: expected signed whole numbers of shape \(4,\), got \(2,\)"),
    (torch.zeros(B, 1, dtype=torch.long), r"cond: expected signed whole numbers of shape \(4,\), got \(4, 1\)"),
], ids=["too large", "too small", "float", "too few", "a column"])
def test_labels_that_are_none_are_refused(name, cond, message, generator):
    x, c_noise, _ = inputs(name, generator)
    with pytest.raises(ValueError, match=message):
        NETWORKS[name][0]()(x, c_noise, cond)


def test_a_network_without_classes_knows_only_minus_1():
    network = MLP(dim=2, width=8, depth=1)
    network(torch.zeros(2, 2), torch.zeros(2), torch.tensor([-1, -1]))
    with pytest.raises(ValueError, match=r"cond: expected numbers in -1..-1, got -1..0"):
        network(torch.zeros(2, 2), torch.zeros(2), torch.tensor([0, -1]))


@pytest.mark.parametrize("shape", [(1, 1, 10, 8), (1, 1, 8, 6), (1, 8, 8), (1, 1, 1, 8, 8)], ids=str)
def test_the_unet_refuses_images_it_cannot_halve(shape):
    with pytest.raises(ValueError, match=r"x: expected \(B, 1, H, W\), sides divisible by 4, got"):
        UNet(widths=(8, 16), depth=1, heads=2)(torch.zeros(shape), torch.zeros(1))


@pytest.mark.parametrize("shape", [(1, 1, 8, 12), (1, 2, 8, 8), (1, 8, 8)], ids=str)
def test_the_dit_refuses_images_of_another_size(shape):
    with pytest.raises(ValueError, match=r"x: expected shape \(1, 1, 8, 8\), got"):
        DiT(size=8, patch=4, width=16, depth=1)(torch.zeros(shape), torch.zeros(1))


def test_the_dit_refuses_patches_that_do_not_tile_the_image():
    with pytest.raises(ValueError, match="patch: expected a divisor of the image size 28, got 5"):
        DiT(size=28, patch=5)


def test_the_dit_puts_each_patch_back_where_it_was():
    """With no blocks and tokens passed straight through, folding must undo unfolding."""
    network, x = DiT(channels=2, size=8, patch=2, width=8, depth=0), torch.randn(1, 2, 8, 8)
    with torch.no_grad():
        network.position.zero_()
        network.inp.weight.copy_(torch.eye(8))
        network.inp.bias.zero_()
        network.out.weight.copy_(torch.eye(8))
    network.norm = torch.nn.Identity()
    torch.testing.assert_close(network(x, torch.zeros(1)), x)


# ---------------------------------------------------------------------------------------------- parts
def test_noise_levels_on_the_grids_are_told_apart():
    """c_noise = -log_snr/8 runs over [-1.25, 1.25]; neighbours of a 1000-step grid must get features that differ."""
    embed = NoiseEmbedding(8)
    phase = torch.linspace(-1.25, 1.25, 1001)[:, None] * embed.frequencies
    features = torch.cat([phase.sin(), phase.cos()], 1)
    assert (features.diff(dim=0).norm(dim=1) > 0.05).all()
    apart = torch.pdist(features[::10])
    assert apart.min() > 0.5


def test_zeroed_returns_its_layer_at_zero():
    layer = torch.nn.Linear(3, 2)
    assert zeroed(layer) is layer and not layer.weight.any() and not layer.bias.any()


def test_the_classifiers_head_reads_its_features(generator):
    network, x = Classifier(classes=4, width=8), torch.randn(3, 1, 28, 28, generator=generator)
    assert network.features(x).shape == (3, 8) and network(x).shape == (3, 4)
    torch.testing.assert_close(network(x), network.head(network.features(x)))
    torch.testing.assert_close(network(x[1:2]), network(x)[1:2], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- further numbers
TOLD = {"MLP": lambda: MLP(dim=5, width=16, depth=2, classes=CLASSES, numbers=2),
        "UNet": lambda: UNet(channels=2, widths=(8, 16), depth=1, patch=2, heads=2, classes=CLASSES, numbers=2),
        "DiT": lambda: DiT(channels=2, size=8, patch=2, width=16, depth=2, heads=2, classes=CLASSES, numbers=2)}


@pytest.mark.parametrize("name", TOLD)
def test_further_numbers_are_unheard_at_first_and_heard_once_trained(name, generator):
    network, (x, c_noise, cond) = TOLD[name](), inputs(name, generator)
    with torch.no_grad():
        for key, p in network.named_parameters():
            if "hear" not in key:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
    low, high = torch.zeros(B, 2), torch.tensor([[0.0, 1.0]]).expand(B, 2)
    assert torch.equal(network(x, c_noise, cond, low), network(x, c_noise, cond, high))
    with torch.no_grad():
        network.embed.hear.weight.add_(0.2 * torch.randn(network.embed.hear.weight.shape, generator=generator))
    assert not torch.allclose(network(x, c_noise, cond, low), network(x, c_noise, cond, high))


@pytest.mark.parametrize(("told", "given"), [(0, 1), (1, 0), (2, 1)])
def test_a_network_says_how_many_numbers_it_is_told(told, given, generator):
    numbers = torch.zeros(B, given) if given else None
    with pytest.raises(ValueError, match=f"numbers: this network is told {told} besides the noise level, got {given}"):
        MLP(numbers=told)(torch.zeros(B, 2), torch.zeros(B), None, numbers)


# ---------------------------------------------------------------------------------------------- captions
@pytest.fixture(params=[(), (2, 8, 8)], ids=["words", "words and a sketch"])
def captioned(generator, request):
    """A DiT on 8x8 latents of two channels that reads captions of three words out of ten; all its weights are stirred."""
    torch.manual_seed(0)
    vectors = torch.randn(10, 6, generator=generator)
    network = DiT(channels=2, size=8, patch=2, width=16, depth=2, heads=2, captions=Captions(vectors, 3, 16, request.param))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return network


def test_no_caption_is_the_caption_without_words(captioned, generator):
    x, c_noise = torch.randn(4, 2, 8, 8, generator=generator), torch.zeros(4)
    assert torch.equal(captioned(x, c_noise), captioned(x, c_noise, torch.full((4, 3), -1)))


def test_words_and_their_order_matter_and_each_row_has_its_own(captioned, generator):
    x, c_noise = torch.randn(1, 2, 8, 8, generator=generator).expand(4, 2, 8, 8), torch.zeros(4)
    cond = torch.tensor([[1, 2, -1], [2, 1, -1], [1, 3, -1], [1, 2, 4]])
    said = captioned(x, c_noise, cond)
    assert min((said[i] - said[j]).abs().max() for i in range(4) for j in range(i)) > 1e-4
    torch.testing.assert_close(captioned(x[:1], c_noise[:1], cond[2:3]), said[2:3])


def test_a_sketch_does_not_tell_apart_what_it_does_not_hear(generator):
    """Word 4 reaches the tokens and the gist; to the sketch it is no word, not even one more to divide by."""
    heard = torch.ones(10, 1)
    heard[4] = 0
    captions = Captions(torch.randn(10, 6, generator=generator), 3, 16, (2, 8, 8), heard)
    tokens, gist, sketch = captions(torch.tensor([[1, 4, -1], [1, -1, -1], [4, -1, -1], [-1, -1, -1]]), 4)
    torch.testing.assert_close(sketch[0], sketch[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(sketch[2], sketch[3], rtol=0, atol=1e-6)
    assert min((said[0] - said[1]).abs().max() for said in (tokens, gist)) > 1e-2 < (sketch[0] - sketch[2]).abs().max()


def test_the_place_of_no_word_hides_its_vector(captioned, generator):
    """A place without a word must not read the vocabulary's first word, to which its -1 is clamped."""
    x, c_noise, cond = torch.randn(1, 2, 8, 8, generator=generator), torch.zeros(1), torch.tensor([[5, -1, -1]])
    before = captioned(x, c_noise, cond)
    captioned.captions.vectors[0] += 1
    assert torch.equal(captioned(x, c_noise, cond), before)
    assert not torch.equal(captioned(x, c_noise, torch.tensor([[5, 0, -1]])), before)


@pytest.mark.parametrize("captioned", [(2, 8, 8)], indirect=True)
def test_the_network_sees_the_sketch_and_learns_nothing_about_it_from_noise(captioned, generator):
    x, cond = torch.randn(2, 2, 8, 8, generator=generator), torch.tensor([[1, 2, -1], [3, -1, -1]])
    sketch = captioned.captions(cond, 2)[2]
    assert sketch.shape == x.shape
    before = captioned(x, torch.zeros(2), cond)
    before.square().sum().backward()
    assert all(p.grad is None for p in captioned.captions.sketch.parameters())
    with torch.no_grad():
        captioned.captions.sketch.out[-1].bias.add_(1)
    assert not torch.allclose(captioned(x, torch.zeros(2), cond), before, atol=1e-3)


def test_word_vectors_are_not_stored_with_the_weights(captioned):
    assert not any("vectors" in key for key in captioned.state_dict())


@pytest.mark.parametrize(("cond", "message"), [
    (torch.zeros(4, 2, dtype=torch.long), r"signed whole numbers of shape \(4, 3\), got \(4, 2\)"),
    (torch.zeros(4, 3), r"signed whole numbers of shape \(4, 3\), got \(4, 3\) torch.float32"),
    (torch.full((4, 3), 10), r"numbers in -1..9, got 10..10"),
], ids=["length", "kind", "range"])
def test_captions_that_are_none_are_refused(captioned, cond, message, generator):
    with pytest.raises(ValueError, match=f"cond: expected {message}"):
        captioned(torch.randn(4, 2, 8, 8, generator=generator), torch.zeros(4), cond)


def test_guidance_takes_captions(captioned, generator):
    D = Preconditioned(captioned, CosineVP(), V())
    x, cond = torch.randn(2, 2, 8, 8, generator=generator), torch.tensor([[1, 2, -1], [3, -1, -1]])
    c, u = D(x, 0.5, cond), D(x, 0.5)
    torch.testing.assert_close(guided(D, 1.5)(x, 0.5, cond), c + 1.5 * (c - u), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- features of colour images
@pytest.fixture(scope="module")
def colours():
    network = ColourFeatures()
    network.load_state_dict(data.colour_features())
    return network.requires_grad_(False)


def test_colour_features_have_a_row_an_image_that_depends_on_no_other(colours, generator):
    x = 2 * torch.rand(3, 3, 64, 64, generator=generator) - 1
    f = colours.features(x)
    assert f.shape == (3, 192) and f.isfinite().all()
    torch.testing.assert_close(colours.features(x[1:2]), f[1:2], rtol=1e-4, atol=1e-4)


def test_colour_features_are_those_of_the_original(colours):
    """EfficientNet-Lite0's own code gave these for a smooth picture; the weights in the file have 11 bits."""
    row = torch.linspace(-1, 1, 64)
    x = torch.stack([row[:, None] * row, row[:, None].expand(64, 64), row.expand(64, 64)])[None]
    original = torch.tensor([1.2762, -3.0128, -4.5123, 0.1605, 0.6614, 1.3081]) / 4
    torch.testing.assert_close(colours.features(x)[0, :6], original, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 3, 32, 32), (3, 64, 64)])
def test_colour_features_refuse_other_images(colours, shape):
    with pytest.raises(ValueError, match=r"x: expected images, shape \(\d, 3, 64, 64\), got"):
        colours.features(torch.zeros(shape))


def test_colour_features_find_the_same_emoji_in_another_style(colours):
    """Of 40 emoji the nearest in the other style is the right one for half or more; by chance it is one of 40."""
    emoji = data.emoji("test")
    f = torch.stack([colours.features(emoji.images[emoji.style == style][:40]) for style in range(4)])
    f = torch.nn.functional.normalize(f - f.mean((0, 1)), dim=-1)
    for one, other in [(0, 1), (0, 2), (1, 3), (2, 3)]:
        found = (f[one] @ f[other].T).argmax(1)
        assert (found == torch.arange(40)).float().mean() >= 0.5


# ---------------------------------------------------------------------------------------------- upscaler
def test_an_upscaler_sees_the_small_image_and_asks_for_it():
    torch.manual_seed(0)
    network = Upscaler(widths=(8, 16), depth=1, patch=4)
    torch.nn.init.normal_(network.unet.out.weight)
    x, c_noise, small = torch.randn(2, 3, 16, 16), torch.zeros(2), torch.randn(2, 3, 4, 4)
    y = network(x, c_noise, small)
    assert y.shape == x.shape
    assert not torch.equal(network(x, c_noise, small.flip(3)), y)
    for wrong in (None, small[:1], small[:, :2], torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="cond: expected small images"):
            network(x, c_noise, wrong)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MLP(2, 8, 1)(torch.zeros(3, 3), torch.zeros(3)), r"x: expected shape \(3, 2\), got \(3, 3\)"),
    (lambda: MLP(2, 8, 1)(torch.zeros(2), torch.zeros(2)), r"x: expected shape \(2, 2\), got \(2,\)"),
    (lambda: MLP(2, 8, 1)(torch.zeros(3, 2), torch.zeros(2)), r"x: expected shape \(2, 2\), got \(3, 2\)"),
    (lambda: UNet(1, (8, 16), 1)(torch.zeros(3, 2, 8, 8), torch.zeros(3)),
     r"x: expected \(B, 1, H, W\), .* got \(3, 2, 8, 8\)"),
    (lambda: UNet(1, (8, 16), 1)(torch.zeros(0, 1, 8, 8), torch.zeros(0)), r"x: expected .* got \(0, 1, 8, 8\)"),
    (lambda: MLP(2, 8, 1, numbers=1)(torch.zeros(3, 2), torch.zeros(3), None, torch.zeros(1, 1)),
     r"numbers: expected shape \(3, 1\), got \(1, 1\)"),
    (lambda: DiT(width=10, heads=4), "heads: expected a divisor of the width 10, got 4"),
    (lambda: Classifier()(torch.zeros(3, 1, 32, 32)), r"x: expected images, shape \(3, 1, 28, 28\), got \(3, 1, 32, 32\)"),
    (lambda: Captions(torch.zeros(10, 6), 12, 16, heard=torch.ones(10)), r"heard: expected shape \(10, 1\), got \(10,\)"),
])
def test_what_no_network_takes_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_labels_may_be_of_any_signed_dtype(dtype, generator):
    network, (x, c_noise, cond) = stirred("MLP", generator), inputs("MLP", generator)
    assert torch.equal(network(x, c_noise, cond.to(dtype)), network(x, c_noise, cond))
