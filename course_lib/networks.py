"""Three networks F(x, c_noise, cond): an MLP for points, a U-Net and a DiT for images.

All take x (B, ...), the noise level c_noise (B,), labels cond (B,) in -1..classes-1 or None (one of them captions as well), and
what else they are told, numbers (B, k) such as a guidance weight or a second time; they return x's shape. The last layer starts
at zero, so that every model starts as its preconditioning alone, and so does the layer that hears the numbers: a network that
is told more than its teacher starts as that teacher. There is no dropout.
"""

import math

import torch
import torch.nn.functional as nf
from torch import Tensor, nn

from .arguments import described, need_labels, need_shape


class NoiseEmbedding(nn.Module):
    """Noise level (B,), label (B,) and further numbers (B, k) to one vector (B, width): Fourier features, a label table.

    fastest: the highest frequency of the noise level's features, in radians per unit; derivatives by time, as in a JVP, want
    it low. The further numbers, of order one and of smooth effect, get frequencies up to 8.
    """

    def __init__(self, width: int, classes: int = 0, numbers: int = 0, fastest: float = 60.0, features: int = 64):
        super().__init__()
        self.classes, self.numbers = classes, numbers
        for name, low, high in (("frequencies", 0.5, fastest), ("slow", 0.25, 8.0)):
            self.register_buffer(name, torch.linspace(math.log(low), math.log(high), features // 2).exp(), persistent=False)
        self.label = nn.Embedding(classes + 1, width)  # the last row is the unconditional model's
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        if numbers:
            self.hear = zeroed(nn.Linear(numbers * features, width))

    def forward(self, c_noise: Tensor, cond: Tensor | None, numbers: Tensor | None = None) -> Tensor:
        given = 0 if numbers is None else numbers.shape[-1]
        if given != self.numbers:
            raise ValueError(f"numbers: this network is told {self.numbers} besides the noise level, got {given}")
        if given:
            need_shape(numbers, (len(c_noise), given), "numbers")
        e = self.layers(waves(c_noise, self.frequencies)) + self.label(self.indices(c_noise, cond))
        return e + self.hear(waves(numbers, self.slow).flatten(1)) if given else e

    def indices(self, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        """Rows of the label table; -1 or None is the unconditional one."""
        if cond is None:
            return torch.full((len(c_noise),), self.classes, device=c_noise.device)
        return need_labels(cond, c_noise.shape, self.classes) % (self.classes + 1)      # -1 is the last, as in Python


def waves(c: Tensor, frequencies: Tensor) -> Tensor:
    """Sines and cosines (..., 2 k) of c (...) at k frequencies."""
    phase = c[..., None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], -1)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters at zero."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


class MLP(nn.Module):
    """Residual layers on points (B, dim), each told the noise level."""

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3, classes: int = 0, numbers: int = 0,
                 fastest: float = 60.0):
        super().__init__()
        self.embed = NoiseEmbedding(width, classes, numbers, fastest)
        self.inp = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = zeroed(nn.Linear(width, dim))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        need_shape(x, (len(c_noise), self.inp.in_features), "x")
        e = self.embed(c_noise, cond, numbers)
        h = self.inp(x)
        for layer in self.layers:
            h = h + layer(nf.silu(h + e))
        return self.out(nf.silu(h))


# ---------------------------------------------------------------------------------------------- U-Net
class ResBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the embedding scales and shifts in between (Dhariwal & Nichol 2021)."""

    def __init__(self, inp: int, out: int, emb: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inp), nn.Conv2d(inp, out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, out), zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.modulation = nn.Linear(emb, 2 * out)
        self.shortcut = nn.Identity() if inp == out else nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(nf.silu(self.norm1(x)))
        scale, shift = self.modulation(nf.silu(e))[:, :, None, None].chunk(2, 1)
        h = self.conv2(nf.silu(self.norm2(h) * (1 + scale) + shift))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """Self-attention over tokens (B, N, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: expected a divisor of the width {width}, got {heads}")
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(nf.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of (B, C, H, W), with a shortcut."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm, self.attention = nn.GroupNorm(8, width), Attention(width, heads)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(tokens).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """A small U-Net on (B, channels, H, W): folds patch x patch pixels into channels, then halves once per extra width.

    H and W must be divisible by patch * 2^(len(widths) - 1). Attention sits at the lowest resolution only.
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (48, 96), depth: int = 2, patch: int = 2,
                 heads: int = 4, classes: int = 0, numbers: int = 0):
        super().__init__()
        self.channels, emb, folded = channels, 4 * widths[0], channels * patch**2
        self.multiple, self.patch = patch * 2 ** (len(widths) - 1), patch
        self.embed = NoiseEmbedding(emb, classes, numbers)
        self.inp = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down, self.up, skips, w = nn.ModuleList(), nn.ModuleList(), [widths[0]], widths[0]
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(w, w, 3, stride=2, padding=1))
                skips.append(w)
            for _ in range(depth):
                self.down.append(ResBlock(w, width, emb))
                skips.append(w := width)
        self.mid = nn.ModuleList([ResBlock(w, w, emb), SpatialAttention(w, heads), ResBlock(w, w, emb)])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                self.up.append(ResBlock(w + skips.pop(), width, emb))
                w = width
            if level > 0:
                self.up.append(nn.Upsample(scale_factor=2, mode="nearest"))
        self.norm = nn.GroupNorm(8, w)
        self.out = zeroed(nn.Conv2d(w, folded, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        C, m = self.channels, self.multiple
        if x.ndim != 4 or x.shape[1] != C or x.shape[2] % m or x.shape[3] % m or not len(x):
            raise ValueError(f"x: expected (B, {C}, H, W), sides divisible by {m}, got {tuple(x.shape)}")
        e = self.embed(c_noise, cond, numbers)
        h = self.inp(nf.pixel_unshuffle(x, self.patch))
        skips = [h]
        for block in self.down:
            h = block(h, e) if isinstance(block, ResBlock) else block(h)
            skips.append(h)
        for block in self.mid:
            h = block(h, e) if isinstance(block, ResBlock) else block(h)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], 1), e) if isinstance(block, ResBlock) else block(h)
        return nf.pixel_shuffle(self.out(nf.silu(self.norm(h))), self.patch)


class Upscaler(nn.Module):
    """A U-Net that sees a small image cond (B, channels, h, w), enlarged, beside its x (B, channels, H, W): the second model
    of a cascade (Ho et al. 2022). form: that of `UNet`."""

    def __init__(self, channels: int = 3, **form):
        super().__init__()
        self.unet = UNet(2 * channels, **form)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        if not isinstance(cond, Tensor) or cond.ndim != 4 or cond.shape[:2] != x.shape[:2]:
            raise ValueError(f"cond: expected small images {(*x.shape[:2], 'h', 'w')}, got {described(cond)}")
        enlarged = nf.interpolate(cond, x.shape[2:], mode="bilinear", align_corners=False)
        return self.unet(torch.cat([x, enlarged], 1), c_noise)[:, :x.shape[1]]


# ---------------------------------------------------------------------------------------------- DiT
class DiTBlock(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the embedding; gates start at zero (Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = zeroed(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(nf.silu(e))[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Sketch(nn.Module):
    """A first guess E[x0 | caption] of images (B, *shape), from words (B, length, d) and which to hear (B, length, 1).

    A denoiser must say just that where x_t is noise alone. Regression learns it sooner (compare Han et al. 2022, "CARD").
    """

    def __init__(self, d: int, shape: tuple[int, ...], width: int = 512):
        super().__init__()
        self.scale, self.shape = d**0.5, shape                                    # words are vectors of length 1
        self.word = nn.Sequential(nn.Linear(d, width), nn.GELU())
        self.out = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, math.prod(shape)))

    def forward(self, words: Tensor, there: Tensor) -> Tensor:
        mean = (self.word(self.scale * words) * there).sum(1) / there.sum(1).clamp(min=1)
        return self.out(mean).unflatten(1, self.shape)


class Captions(nn.Module):
    """Captions as word numbers (B, length), -1 where there is no word: a token for each place, and the gist of them all.

    vectors (V, d) are the words' meanings; they stay as they are and are not stored with the weights. A row of -1, or None for
    the whole batch, is the empty caption. shape: of a `Sketch` to be made of it besides, which hears the words where heard
    (V, 1) is 1. It is a mean over the others, so pairs of words that never met can share it.
    """

    def __init__(self, vectors: Tensor, length: int, width: int, shape: tuple[int, ...] = (), heard: Tensor | None = None):
        super().__init__()
        self.sketch = Sketch(vectors.shape[1], shape) if shape else None
        self.register_buffer("vectors", vectors, persistent=False)
        heard = torch.ones(len(vectors), 1) if heard is None else need_shape(heard, (len(vectors), 1), "heard")
        self.register_buffer("heard", heard, persistent=False)
        self.token, self.gist = nn.Linear(vectors.shape[1], width), nn.Linear(vectors.shape[1], width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))

    def forward(self, cond: Tensor | None, B: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, length, width), gist (B, width) and sketch (B, *shape), if there is one."""
        if cond is None:
            cond = torch.full((B, len(self.place)), -1, device=self.place.device)
        cond = need_labels(cond, (B, len(self.place)), len(self.vectors))
        there = (cond >= 0)[..., None].to(self.place)
        words = self.vectors[cond.clamp(min=0)] * there
        sketch = self.sketch(words, there * self.heard[cond.clamp(min=0)]) if self.sketch else None
        return there * self.token(words) + self.place, self.gist(words.sum(1) / there.sum(1).clamp(min=1)), sketch


class DiT(nn.Module):
    """A small diffusion transformer on square images (B, channels, size, size), one token per patch x patch pixels.

    With captions, cond is a row of word numbers, whose tokens stand beside those of the image; otherwise it is a label. A
    sketch is further channels of the image; what is learnt of noise does not change it.
    """

    def __init__(self, channels: int = 1, size: int = 28, patch: int = 4, width: int = 128, depth: int = 4,
                 heads: int = 4, classes: int = 0, numbers: int = 0, captions: Captions | None = None):
        super().__init__()
        if size % patch:
            raise ValueError(f"patch: expected a divisor of the image size {size}, got {patch}")
        self.shape, self.patch = (channels, size, size), patch
        self.embed, self.captions = NoiseEmbedding(width, classes, numbers), captions
        self.inp = nn.Linear((2 if captions and captions.sketch else 1) * channels * patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.out = zeroed(nn.Linear(width, channels * patch**2))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, numbers: Tensor | None = None) -> Tensor:
        need_shape(x, (len(x), *self.shape), "x")
        e = self.embed(c_noise, None if self.captions else cond, numbers)
        words, gist, sketch = self.captions(cond, len(x)) if self.captions else (None, 0, None)
        seen = x if sketch is None else torch.cat([x, sketch.detach()], 1)
        h = self.inp(nf.unfold(seen, self.patch, stride=self.patch).transpose(1, 2)) + self.position
        e, h = e + gist, h if words is None else torch.cat([h, words], 1)
        for block in self.blocks:
            h = block(h, e)
        scale, shift = self.modulation(nf.silu(e))[:, None].chunk(2, -1)
        tokens = self.out(self.norm(h[:, :self.position.shape[1]]) * (1 + scale) + shift).transpose(1, 2)
        return nf.fold(tokens, x.shape[2:], self.patch, stride=self.patch)


# ---------------------------------------------------------------------------------------------- classifier
class Classifier(nn.Module):
    """A convolutional classifier of (B, 1, 28, 28) images; `features` (B, width) are what the Frechet distance compares."""

    def __init__(self, classes: int = 10, width: int = 64):
        super().__init__()

        def stage(inp, out):
            return [nn.Conv2d(inp, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU(),
                    nn.Conv2d(out, out, 3, padding=1), nn.GroupNorm(8, out), nn.SiLU(), nn.MaxPool2d(2)]

        self.trunk = nn.Sequential(*stage(1, 16), *stage(16, 32), *stage(32, 64))
        self.project = nn.Linear(64 * 9, width)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        return nf.silu(self.project(self.trunk(need_shape(x, (len(x), 1, 28, 28), "x", "images, ")).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


# ---------------------------------------------------------------------------------------------- features of colour images
class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does where the stride divides the size: the odd pixel at the far end."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        near, far = total // 2, total - total // 2
        return super().forward(nf.pad(x, (near, far, near, far)) if total > 0 else x)


class Bottleneck(nn.Module):
    """Widen, filter each channel alone, narrow again; a shortcut where the shape allows one (Sandler et al. 2018)."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = inp * expand
        self.expand = SameConv(inp, wide, 1) if expand > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, out, 1)
        self.shortcut = stride == 1 and inp == out

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else nf.relu6(self.expand(x))
        h = self.project(nf.relu6(self.depthwise(h)))
        return x + h if self.shortcut else h


class ColourFeatures(nn.Module):
    """The first twelve of the sixteen blocks of EfficientNet-Lite0 (Tan & Le 2019), which has learned from photographs.

    Its weights, batch normalisation folded in, come from `data.colour_features()`; distances of samples compare
    `features` (B, 192) of images (B, 3, 64, 64) in [-1, 1].
    """

    stages = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6), (1, 192, 5, 2, 6))

    def __init__(self):
        super().__init__()
        self.stem, blocks, width = SameConv(3, 32, 3, 2), [], 32
        for repeats, out, kernel, stride, expand in self.stages:
            for i in range(repeats):
                blocks.append(Bottleneck(width, out, kernel, stride if i == 0 else 1, expand))
                width = out
        self.blocks = nn.Sequential(*blocks)

    def features(self, x: Tensor) -> Tensor:
        need_shape(x, (len(x), 3, 64, 64), "x", "images, ")
        x = nf.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # nearer to the size of its training
        return self.blocks(nf.relu6(self.stem(x))).mean((2, 3)) / 4  # of order one, as kernel_distance wants
