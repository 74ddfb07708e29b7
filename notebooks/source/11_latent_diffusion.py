# ---
# course:
#   title: Latent diffusion
#   minutes: 95
#   needs: [6, 10]
#   shows: type a caption and a picture is drawn, in a space where that is cheap
# ---

# %% [markdown]
# # 11 · Latent diffusion: words to pictures
#
# Everything is in place. Chapter 10 has an encoder and a decoder, so that diffusion may work on few numbers; chapter 06
# knows how to ask for something, and how to insist; chapters 02 to 05 have the samplers. This chapter puts them together:
# you type a caption, and a model that is small enough for a CPU draws it in colour.
#
# The claim: **in the latent space, a step costs a fraction of what it costs in pixels, and nothing else changes.** No sampler
# has to know that its $x$ is no picture. There is a rival that stays in pixels, a *cascade* of a small picture and an
# upscaler; section 5 tries it.
#
# After this chapter you can
#
# * **measure** what a training step costs in pixels and in latents, and **predict** when the autoencoder is paid for
#   (prediction 11.1),
# * **implement** what a network is told of a caption, and how captions are hidden in training (exercises 11.1 and 11.2),
# * **implement** text to image (exercise 11.3), and **predict** what the noise decides and what the words do (prediction
#   11.2), and what is drawn at the weight $-1$ (prediction 11.3),
# * **measure** that solvers keep their order on latents, and that parallel sampling works there, too,
# * **implement** a fair question to a text-to-image model: is it what was asked for? (exercise 11.4), and **predict** whether
#   it combines what it has met apart (prediction 11.4),
# * **derive** why an upscaler must be trained with a noisy small picture (exercise 11.5, prediction 11.5),
# * **transfer** all this to changing a given picture by words (exercise 11.6).
#
# Allow an hour and a half: one hour for the exercises, the rest for reading. The end of section 3 is a good place for a break.
#
# Here is what you will have built, for three captions. The last two stand under no picture of the training set.

# %%
import math
import os
import textwrap
import time

import matplotlib.pyplot as plt
import torch
from torch.utils.flop_counter import FlopCounterMode

from course_lib import data, ledger, plotting, recipes, text
from course_lib.autoencoders import kl_loss
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import Preconditioned, V, guided
from course_lib.fast_samplers import ddim, dpm_solver_pp
from course_lib.measure.emoji import draw
from course_lib.metrics import features, relative_l2
from course_lib.networks import Captions, ColourFeatures, DiT
from course_lib.parallel import converged, picard
from course_lib.sampling import final, last, prior
from course_lib.schedules import CosineVP, log_snr_to_zero, uniform
from course_lib.sde_samplers import ancestral
from course_lib.widgets import flipbook

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
schedule = CosineVP()


def seeded(seed, device="cpu"):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator(device).manual_seed(seed)


# %%
SAID = ["red apple 3d", "grinning face noto", "yellow heart twemoji", "pizza noto",
        "green apple flat", "purple heart flat", "blue apple 3d", "sofa flat"]
cond = torch.stack([text.caption(said)[0] for said in SAID]).to(device)
teacher, autoencoder = (recipes.load(name, device) for name in ("emoji_latent_teacher", "emoji_autoencoder"))
first = draw(guided(teacher, 2.0), autoencoder.decode, (3, 4, 16, 16), cond[2::2], seed=14, device=device)
for ax, picture, said in zip(plotting.panels(3, size=2.2), first, SAID[2::2]):
    plotting.image_grid(picture[None], 1, ax)
    ax.set_title(said)
plt.show()

# %% [markdown]
# *Three drawings under their captions, from noise that nobody selected.*
#
# ## The failing case
#
# Why not simply train a text-to-image model on pixels? **What does one training step cost**, forwards, backwards and the
# update, for the same transformer on pictures of 64 × 64 × 3 numbers and on latents of 16 × 16 × 4? Both see patches of 2 × 2,
# and the twelve words of a caption beside them. We measure the seconds, and the memory that the forward pass keeps for the
# backward pass, both for one picture of the batch. Guess the two ratios first: how many patches are there in each case?

# %%
def step_cost(model, loss, x0, *rest):                          # -> seconds, MiB; both a picture
    optimizer, kept = torch.optim.AdamW(model.parameters()), {}

    def keep(tensor):                                           # is called with each tensor that is kept for the way back
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for _ in range(2):                                          # the first is a rehearsal
        begin = time.perf_counter()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss(model, x0, *rest, seeded(0, device))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        value.item()                                            # a GPU has finished when its number is here
        seconds = time.perf_counter() - begin
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}          # they are kept once, not for each picture
    return seconds / len(x0), sum(size for at, size in kept.items() if at not in weights) / 2**20 / len(x0)


def transformer(channels, size):                                # the course's text-to-image network, in either space
    captions = Captions(data.words().vectors, text.LENGTH, width=160)
    network = DiT(channels, size, patch=2, width=160, depth=6, heads=5, captions=captions)
    return Preconditioned(network, schedule, V()).to(device)


# %%
captions = torch.stack([text.caption(said)[0] for said in ("red apple 3d", "blue heart flat")]).to(device)
pixels, latents = torch.zeros(2, 3, 64, 64, device=device), torch.zeros(16, 4, 16, 16, device=device)
pixel_cost, pixel_memory = step_cost(transformer(3, 64), recipes.diffusion_loss, pixels, captions)
latent_cost, latent_memory = step_cost(transformer(4, 16), recipes.diffusion_loss, latents, captions.repeat(8, 1))
print(f"pixels:  {pixel_cost:7.3f} s, {pixel_memory:6.1f} MiB a picture")
print(f"latents: {latent_cost:7.3f} s, {latent_memory:6.1f} MiB a picture")
print(f"ratio:   {pixel_cost / latent_cost:7.1f}    {pixel_memory / latent_memory:6.1f}")

# %%
made = recipes.manifest()
steps = made["emoji_latent_teacher"]["steps"]
for name, cost in (("pixels", pixel_cost), ("latents", latent_cost)):
    print(f"{steps:,} steps of 16 pictures in {name}: about {steps * 16 * cost / 3600:.1f} hours on this machine")

# %% [markdown]
# The pixels are 1024 patches, against 64. With twelve words that is 1036 tokens against 76: 13.6 times as many, and 186 times
# as many pairs of tokens that attention compares. Memory grows with the tokens, since the table of pairs is never kept whole.
# Time has a part that grows with the tokens and one that grows with the pairs, so on a CPU one expects a ratio between the
# two. That is the failing case: to train on 64 × 64 pixels is out of reach for a machine like this one, and 64 × 64 is tiny.
#
# But is the comparison honest? Latents need an autoencoder, which must be trained, too. Let its training cost $T$, and a step
# of the diffusion model (a batch of 16 pictures) $c_{\text{pix}}$ or $c_{\text{lat}}$. After $n$ steps, latents have cost
# $T+n\,c_{\text{lat}}$ and pixels $n\,c_{\text{pix}}$. (Encoding the data, one pass, is left out.) The two are equal after
#
# $$n^\ast = \frac{T}{c_{\text{pix}}-c_{\text{lat}}} \quad\text{steps}. \tag{11.1}$$
#
# **Prediction 11.1.** The course's autoencoder had thousands of steps itself. When has it been paid for?
#
# * **a**: never: two networks cost more to train than one,
# * **b**: within the first half of the diffusion model's steps,
# * **c**: in the second half of them.

# %% predict="11.1"
predict("11.1", "b")

# %%
encoder_cost, _ = step_cost(recipes.known("emoji_autoencoder").build().to(device), kl_loss(0.1), pixels)
T = made["emoji_autoencoder"]["steps"] * 16 * encoder_cost      # batches of 16 there, too
n_star = T / (16 * (pixel_cost - latent_cost))                                                  # eq. (11.1)
assert abs(T + n_star * 16 * latent_cost - n_star * 16 * pixel_cost) < 1e-6 * T                 # equal totals there
print(f"the autoencoder: {made['emoji_autoencoder']['steps']:,} steps, about {T / 3600:.1f} hours on this machine; "
      f"paid for after {n_star:,.0f} of {steps:,} steps, {n_star / steps:.0%}")

# %%
reveal("11.1")

# %% [markdown]
# Cheaper steps are worth little if the pictures are worse. So the question is quality against *training time*. The course's
# ledger has a race: the same transformer, on latents and on pixels, trained anew for each of a few budgets of seconds, with a
# whole schedule of learning rates. The judge is the kernel distance: real and drawn pictures are compared in the features of a
# network that knows photographs; 0 is perfect, and lower is better. Guess before you look: the decoder cannot bring back every
# detail, so are there budgets at which pixels win?

# %%
shipped_rows = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv") if r.dataset == "emoji"]
for r in (r for r in shipped_rows if r.method in ("latent_training_step", "pixel_training_step")):
    print(f"{r.method:21} {r.seconds:7.3f} s, {r.memory_mib:6.0f} MiB for a batch of {r.batch}, {r.device}")
race = [r for r in shipped_rows if r.metric == "kernel_distance" and r.method.endswith(" s")]
in_latents, in_pixels = (sorted((r.train_seconds, r.value) for r in race if r.method.startswith(space))
                         for space in ("latent", "pixel"))
figure, ax = plt.subplots(figsize=(5.8, 2.8))
looks = plotting.looks(["on latents", "on pixels"])
for name, curve in (("on latents", in_latents), ("on pixels", in_pixels)):
    ax.plot(*zip(*curve), **looks[name], label=name)
ax.axhline(race[0].floor, color=plotting.TRUTH, lw=3, zorder=0)
ax.set(xscale="log", ylim=(0, None), xlabel="seconds of training", ylabel="kernel distance")
ax.set_xticks(ticks := (60, 150, 400, 1000), map(str, ticks))
ax.minorticks_off()
ax.legend()
plt.show()
took, reached = min(in_pixels, key=lambda run: run[1])
sooner = next((seconds for seconds, value in in_latents if value <= reached), math.inf)
print(f"on pixels {reached:.3f} after {took:,.0f} s; latents had come as near by {sooner:,.0f} s at the latest")

# %% [markdown]
# *Kernel distance against seconds of training, a curve for each space; the grey line is the distance between real pictures
# that neither has seen and those of the training set.*
#
# Few points, from one core that had other work beside it: read them for the order of the two, and not for digits. On pixels,
# these budgets are some thirty and ninety steps: those models have hardly begun, and two points are no trend. Whether pixels
# win at budgets where the decoder's losses begin to count, this race is far too short to tell. The autoencoder's own training
# is not in these seconds. It is what the count above is about. (The memory in the ledger's rows includes weights and the
# optimizer's state, about 45 MiB in either space.)

# %% [markdown]
# ## 1 · Words as numbers
#
# Chapter 06 told a network a label. A caption is a list of words, and for many captions that somebody will type there was
# no training picture. What helps is that each word comes as a *vector* in which its meaning is laid down: near vectors for
# words of like meaning. Ours were taken from a language model that has read much more than captions of emoji. **Which words
# are near to some that no caption of the data has?**

# %%
words, vectors = data.words()
for word in ("sofa", "hare", "emerald"):
    near = (vectors @ vectors[words.index(word)]).topk(6).indices[1:]
    print(f"{word:8} {', '.join(words[i] for i in near)}")

# %% [markdown]
# `text.caption` makes a row of twelve word numbers of whatever is typed, $-1$ where there is no word, and a remark where
# something could not be used. **What does it say to all that people type?**

# %%
for said in ("red apple 3d", "Ponies, running!", "a zebar in flat", "", "красное яблоко", "🍎", "very " * 30 + "big"):
    numbers, remark = text.caption(said)
    print(f"{said[:18]!r:21} {(numbers >= 0).sum():2} words. {remark or ''}")

# %% [markdown]
# Whatever is typed, it is never an error. Nothing that is typed can break the model; the worst that can happen is the empty
# caption.
#
# The network is told a caption $c$ in three ways. The first is its **gist**: the mean of the vectors $v_{c_i}$ of the words
# that are there,
#
# $$g(c) = \frac{1}{\max(n,1)}\sum_{i\,:\,c_i\ge0} v_{c_i}, \qquad n = \#\{i : c_i\ge0\} , \tag{11.2}$$
#
# which is added (after a linear layer) to what the network is told of the noise level. The maximum makes the gist of an empty
# caption 0.
#
# **Exercise 11.1 · ●○○ · 8 min · eq. (11.2)**
#
# Write `my_gist(cond, vectors)` for a batch of captions. The trap is $-1$, with which Python counts from the end. So look up
# with `cond.clamp(min=0)`, and strike out what should not count. The first line is done: `there` is 1 where there is a word.

# %% exercise="11.1"
def my_gist(cond, vectors):                                     # (B, 12) whole numbers, (V, d) -> (B, d)
    there = (cond >= 0)[..., None].to(vectors)                  # (B, 12, 1)
    ### BEGIN SOLUTION two lines: the sum over the words, and its division
    total = (vectors[cond.clamp(min=0)] * there).sum(1)         # (B, d)
    return total / there.sum(1).clamp(min=1)
    ### END SOLUTION


# %% check="11.1"
# NBVAL_CHECK_OUTPUT
my_gist = exercise("11.1", my_gist)

# %% [markdown]
# **Is that what the network does? And what does a gist not know?**

# %%
hears = teacher.network.captions
_, gists, _ = hears(captions, 2)                                # tokens, gists and sketches of a batch of 2; see below
assert torch.allclose(gists, hears.gist(my_gist(captions, hears.vectors)), atol=1e-5)           # (11.2), then linear
chase = torch.stack([text.caption(said)[0] for said in ("cat behind dog", "dog behind cat")]).to(device)
tokens, gists, _ = hears(chase, 2)
print(f"cat behind dog, dog behind cat: the gists differ by {relative_l2(gists[0], gists[1]):.0e} of their size, "
      f"the words in their places by {relative_l2(tokens[0], tokens[1]):.2f}")

# %% [markdown]
# A mean has no order. That is why captions enter in a second way: **each word is a token** beside the 64 patches of the
# latent, with a vector that says in which place it stands, and attention lets each patch look at each word. (Stable Diffusion
# keeps the two apart: patches look at words in *cross-attention*. With twelve words it is simpler to put all into one row.)
#
# The third way is a shortcut for those with little time to train. Write $z_0$ for the latent of a picture, and $z_t$ for the
# same with noise of the time $t$. What must a denoiser say where $z_t$ is noise alone? $\mathbb E[z_0\mid c]$: the blurry mean
# of all latents that the caption may mean, a function of the *words* and of nothing else. To learn such a mean, one needs
# neither a transformer nor noise: a regression from words to latents does it, since squared error is least at the mean
# (chapter 01). So a small network (`networks.Sketch`) is trained by a squared error of its own to say a **sketch** $s$, and
# the transformer gets eight channels in place of four: $z_t$, and beside it the sketch, the same at every $t$. Composition and
# colours are thus told, and the transformer's training goes into what a blurry mean lacks. A hidden caption has the sketch of
# no words at all.
#
# **What does it cost**, beside a pass of the whole network?

# %%
def count(network, *inputs):                                    # multiplications and additions
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return counter.get_total_flops()


one = captions[:1]
heard = (one >= 0)[..., None].float()
whole, part = count(teacher, latents[:1], 0.5, one), count(hears.sketch, hears.vectors[one.clamp(min=0)], heard)
print(f"a pass forwards: {whole / 1e6:.0f} million operations, {part / 1e6:.1f} of them for the sketch: 1 in {whole / part:.0f}")

# %% [markdown]
# One more thought, on captions that *combine* what was met apart. The data draw the same emoji in four styles, and each style
# has a word. Of some emoji, one style was held out. What would a regression say of a pair that it never met? Whatever it
# happens to make of that combination of words. So do not ask it: **the sketch does not hear the four words of style.** Write
# $\bar c$ for the caption without them. Then
#
# $$\min_s\ \mathbb E\,\lVert s(\bar c)-z_0\rVert^2 \quad\Rightarrow\quad s(\bar c)=\mathbb E[z_0\mid\bar c] , \tag{11.3}$$
#
# the mean over the styles, too: a sketch that the held-out pair *shares* with those that were seen. How a style alters it is
# left to the transformer, which hears all words and has seen each style on a thousand emoji. Section 4 measures what this is
# worth. "Green apple flat" was held out. **Of which pictures is its sketch the mean?** Guess before you look.

# %%
apples = torch.stack([text.caption(f"green apple {style}")[0] for style in data.STYLES]).to(device)
s = hears(apples, 4)[2]
assert s.std(0).max() < 1e-6                                    # the same for all styles
train_set, known_names = data.emoji("train"), [caption.name for caption in data.emoji_captions()]
seen = train_set.name == known_names.index("green apple")
with torch.no_grad():
    pictures = torch.cat([autoencoder.decode(s[:1]).cpu(), train_set.images[seen]])
titles = ["sketch", *(data.STYLES[style] for style in train_set.style[seen])]
for ax, picture, title in zip(plotting.panels(4, size=1.5, columns=4), pictures, titles):
    plotting.image_grid(picture[None], 1, ax)
    ax.set_title(title)
plt.show()

# %% [markdown]
# *The sketch of "green apple", in whatever style, and the pictures of it in the training set.*
#
# Now hide captions. Guidance needs a second denoiser $D_u$, which is told nothing; as in chapter 06, the same network
# learns both if the condition is hidden now and then. Here "nothing" is a row of $-1$.
#
# **Exercise 11.2 · ●○○ · 4 min · hidden captions**
#
# Write `my_dropped(captions, u, p)`: a row loses all its words where its uniform draw $u<p$. (In training, $p=0.1$.) Mind the
# shapes: twelve numbers a row, one draw a row.

# %% exercise="11.2"
def my_dropped(captions, u, p):                                 # (B, 12), uniform draws (B,), share -> (B, 12)
    ### BEGIN SOLUTION one line
    return torch.where((u < p)[:, None], -1, captions)
    ### END SOLUTION


# %% check="11.2"
# NBVAL_CHECK_OUTPUT
my_dropped = exercise("11.2", my_dropped)

# %% [markdown]
# That is all the training there is to write: the loss is that of chapter 06, and (11.3) for the sketch, on latents that were
# encoded once and for all, with one of sixteen captions of each picture (its name, some keywords, mostly a word for its
# style), drawn afresh every time. `course train emoji_latent_teacher` does it. **Does one network now hold two denoisers?**
# Here is its guess $\mathbb E[z_0\mid z_t, c]$ when $z_t$ is next to pure noise, decoded: with captions, and with all of them
# hidden. Above them, the sketches: by (11.3) they are the guesses of one that is told the words but the style, and nothing
# else.

# %%
print("{parameters:,} weights, trained for {steps:,} steps, {train_seconds:,} s, on {device}".format(
    **made["emoji_latent_teacher"]))
z_T = prior(teacher, (len(cond), 4, 16, 16), seeded(0)).to(device)
with torch.no_grad():                                           # p = 0 hides no caption, p = 1 hides all
    told, untold = (teacher(z_T, 0.98, my_dropped(cond, torch.zeros(len(cond), device=device), p)) for p in (0, 1))
    sketches = hears(cond, len(cond))[2]
    plotting.image_rows([autoencoder.decode(z[::4]) for z in (sketches, told, untold)], ["sketch", "told", "not told"])
plt.show()
print(f"told and sketch differ by {relative_l2(told, sketches):.2f} of the sketch's size, not told and sketch by "
      f"{relative_l2(untold, sketches):.2f}")

# %% [markdown]
# *Three rows of two blurred guesses, the lower two from the same two noises. At the bottom, each is a mean of all emoji
# that might hide behind its noise; in the middle, of those among them that fit the caption; at the top, of those that fit the
# caption in any style, whatever the noise.*
#
# It is the blurry mean of chapter 01 again, though "blurry" depends: of a name that is said of one emoji, it is the mean of
# three or four pictures only. The words decide the guess. Told and sketch are near each other, but not equal: one has heard
# the style, and at $t=0.98$ the transformer still takes something from $z_t$. (And both were trained for a limited time.) The
# difference of the lower two rows is the direction in which guidance pushes.

# %% [markdown]
# ## 2 · Draw
#
# The parts, in their order: noise of the latent's shape, a guided denoiser, a sampler, and *at the end, once,* the decoder:
#
# $$D_w = D_c + w\,(D_c-D_u) \ \text{ on latents}, \qquad \text{picture} = \text{decode}(z_0) . \tag{11.4}$$
#
# Two tempting variants, both wrong. *Decode at every step*, and encode again, so that one diffuses "real pictures": it costs
# more, and a noisy latent is not the code of any picture. The decoder was never trained on such latents, so to decode and to
# encode again returns another $z_t$, with noise of an unknown size. *Guide pictures*: draw with and without the caption, and
# extrapolate. Guidance combines two guesses about the same noisy $z_t$. The ends of two paths are two different drawings, and
# the decoder is not linear: $\text{decode}(a + w\,(a-b))$ is not $\text{decode}(a) + w\,(\text{decode}(a)-\text{decode}(b))$.
#
# **Exercise 11.3 · ●●○ · 12 min · eq. (11.4)**
#
# Write `my_draw(D, autoencoder, cond, weight, ts, x)`, where `ts` is a grid of times and `x` the state at `ts[0]` (noise, if
# the grid begins at the top), with chapter 06's `guided` and chapter 04's `dpm_solver_pp`: `last(sampler, D, x, ts, cond=...)`
# runs a sampler, and has the last state as its `.x`. The autoencoder has `encode` and `decode`, which mind the latents' scale,
# and inside of them `latent` and `reconstruct`, which do not.

# %% exercise="11.3"
def my_draw(D, autoencoder, cond, weight, ts, x):               # captions (B, 12), noise (B, 4, 16, 16) -> (B, 3, 64, 64)
    ### BEGIN SOLUTION two lines: the latents, and the decoder
    z = last(dpm_solver_pp, guided(D, weight), x, ts, cond=cond).x
    return autoencoder.decode(z)
    ### END SOLUTION


# %% check="11.3"
# NBVAL_CHECK_OUTPUT
my_draw = exercise("11.3", my_draw)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"guidance needs a condition for every row, got None"*: hand `cond` to the sampler, as a keyword.
# * *"expected shape (B, 4, 16, 16)"*: a picture came where a latent belongs. Noise and sampler live in the latent space.
# * *Shapes of latents where a picture is expected*: what `last` returns is a latent.
#
# </details>
#
# First the formula, and the second of the wrong variants: **what comes out if the same two guesses are combined as pictures?**

# %%
with torch.no_grad():
    D_c, D_u = teacher(z_T, 0.98, cond), teacher(z_T, 0.98, torch.full_like(cond, -1))
    assert torch.allclose(guided(teacher, 2.0)(z_T, 0.98, cond), D_c + 2 * (D_c - D_u), atol=1e-4)  # eq. (11.4)
    by_latents, c, u = (autoencoder.decode(z) for z in (D_c + 2 * (D_c - D_u), D_c, D_u))
print(f"guided as pictures against guided as latents: they differ by {relative_l2(c + 2 * (c - u), by_latents):.0%} of their size")

# %% [markdown]
# The two differ already in a single, blurred guess.
#
# **What does the model draw for eight captions?** All are ordinary words, but not all captions have a picture in the training
# set. Under each caption stands whether it has, or whether that picture was held out in this style, or in every style, or
# whether there is no such emoji. Guess first: which two will fail?

# %%
ts = log_snr_to_zero(10, schedule)
begin = time.perf_counter()
eight = my_draw(teacher, autoencoder, cond, 2.0, ts, z_T).cpu()
seconds = (time.perf_counter() - begin) / len(eight)
HELD_OUT = {caption.name: caption.held_out for caption in data.emoji_captions()}


def known_as(said):
    name, style = said.rsplit(" ", 1)
    return {"all": "held out", style: "style held out", None: "no such emoji"}.get(HELD_OUT.get(name), "seen")


for ax, picture, said in zip(plotting.panels(8, size=1.7, columns=4), eight, SAID):
    plotting.image_grid(picture[None], 1, ax)
    ax.set_title(f"{said}\n{known_as(said)}")
plt.show()
print(f"{seconds:.2f} s a picture: {2 * (len(ts) - 1)} evaluations, and one decoding")

# %% [markdown]
# *Eight drawings under their captions, from unselected noise.*
#
# The held-out apple and heart are no worse than what was seen. The blue apple is a blue jar, and the sofa a heap of coloured
# blocks. Colours are mostly right, fine lines are not: it is a small network, on the budget that is printed above its guesses.
# Section 4 puts numbers on it.
#
# **What does the style word do?** Two names, one noise for each, four styles:

# %%
NAMES = ["red apple", "grinning face", "dog face"]
starts = [prior(teacher, (len(NAMES), 4, 16, 16), seeded(seed)).to(device) for seed in (1, 2)]
styled = []
for style in data.STYLES:
    told = torch.stack([text.caption(f"{name} {style}")[0] for name in NAMES[:2]]).to(device)
    styled.append(my_draw(teacher, autoencoder, told, 2.0, ts, starts[0][:2]).cpu())
plotting.image_rows([torch.cat(styled[:2]), torch.cat(styled[2:])], [", ".join(data.STYLES[:2]), ", ".join(data.STYLES[2:])])
plt.show()

# %% [markdown]
# *Two rows of two styles each: an apple and a grinning face, as Noto and Twemoji (above) and as the flat and the
# three-dimensional Fluent (below) would have them.*
#
# The style alters colours, shading and outline, if you look closely. The layout hardly changes: it comes from the sketch,
# which is deaf to the style.
#
# **Prediction 11.2.** Now the other way round: the same words, other noises. "grinning face flat" is said of one picture of
# the training set, "face flat" of dozens. For which of them are drawings from different noises farther apart?
#
# * **a**: for the vague caption,
# * **b**: there is no difference: the starts are as random for one as for the other,
# * **c**: for the precise one: it has more details, and each of them can come out in one way or another.

# %% predict="11.2"
predict("11.2", "a")


# %%
def gap(a, b):                                                  # rms difference of pictures (B, ...), their mean over the rows
    return (a - b).square().flatten(1).mean(1).sqrt().mean().item()


KINDS = {"precise": ["red apple flat", "grinning face flat", "dog face flat"], "vague": ["food flat", "face flat", "animal flat"]}
drawn = {}
for kind, captions_of_it in KINDS.items():                      # three captions, three noises: (caption, noise, ...)
    told = torch.stack([text.caption(said)[0] for said in captions_of_it]).repeat_interleave(3, 0).to(device)
    drawn[kind] = my_draw(teacher, autoencoder, told, 2.0, ts, starts[0].repeat(3, 1, 1, 1)).cpu().unflatten(0, (3, 3))
    other_noise, other_words, both = (gap(drawn[kind].flatten(0, 1), drawn[kind].roll((i, j), (0, 1)).flatten(0, 1))
                                      for i, j in ((0, 1), (1, 0), (1, 1)))
    print(f"{kind:8} other noise: {other_noise:.2f} apart; other words: {other_words:.2f} apart; other noise and words: {both:.2f}")


# %%
def headed(figure, titles):                                     # a title over each column of 64 pixels and a gap
    ax = figure.axes[0]
    ax.xaxis.tick_top()
    ax.set_xticks([32 + 65 * i for i in range(len(titles))], titles)
    ax.tick_params(length=0)


headed(plotting.image_rows([pictures[:2, :2].flatten(0, 1) for pictures in drawn.values()], list(drawn)),
       ["apple; food", "", "grinning; any face", ""])
plt.show()

# %%
reveal("11.2")

# %% [markdown]
# *Two rows, each of two captions from the same two noises: above precise captions, below vague ones.*
#
# (Some of the vague drawings are poor ones; that, too, is in their distance.) The noise settles what the words leave open.
# That is how people work with such models: say more, and less is left to chance. And a path without noise (chapter 03) makes
# the start a *handle*: the same start and words give the same picture again. But mind the last two numbers of each line. Under
# another name, the old noise keeps next to nothing of the old picture. To change a picture and keep its layout takes more:
# section 7.
#
# **Prediction 11.3.** Now the weight. $w=0$ asks, $w=4$ insists. And what does $w=-1$ draw, for three captions that start from
# one and the same noise?
#
# * **a**: the contrary of what each caption says,
# * **b**: the same picture three times,
# * **c**: three heaps of noise: the paths diverge.

# %% predict="11.3"
predict("11.3", "b")

# %%
told = torch.stack([text.caption(f"{name} flat")[0] for name in NAMES]).to(device)
one_start = [x[:1].expand(3, -1, -1, -1) for x in starts]       # for all three captions
by_weight = {w: [my_draw(teacher, autoencoder, told, w, ts, x).cpu() for x in one_start] for w in (-1.0, 0.0, 4.0)}
for w, (first, second) in by_weight.items():
    print(f"w = {w:2g}: other noise {gap(first, second):.2f} apart, other caption {gap(first, first.roll(1, 0)):.2f} apart")
assert gap(by_weight[-1.0][0], by_weight[-1.0][0].roll(1, 0)) < 1e-3
headed(plotting.image_rows([torch.cat([x[:2] for x in pair]) for pair in by_weight.values()], [f"w = {w:g}" for w in by_weight]),
       ["one noise", "", "another noise", ""])
plt.show()

# %%
reveal("11.3")

# %% [markdown]
# *Three rows for rising weight; left two of the captions from one noise, right the same captions from another. In the first row the
# captions make no difference.*
#
# So the weight is a knob from "an emoji" to "this emoji!". That insisting is paid for in variety is chapter 06's law; a few
# captions and two noises, compared pixel by pixel, where harder colours count as difference, can neither show nor refute it.
# Which weight is best depends on the model, and on taste: section 6 has a slider.

# %% [markdown]
# ## 3 · All samplers, unchanged
#
# "The samplers need not know that $x$ is a latent" is a claim that can be tested. On latents, **does DDIM still have order
# one, and DPM-Solver++(2M) order two? And does the decoder make errors larger or smaller?** Against a fine solution: the error
# of the latents, and that of the decoded pictures. Guess first: will the errors of the pictures fall faster, as fast, or
# slower than those of the latents? (DDIM is the first order of DPM-Solver++, by chapter 04. With $w=0$: insisting bends the
# paths, and hides orders until steps are smaller.)

# %%
x, told = z_T[:2], cond[:2]
fine = last(dpm_solver_pp, teacher, x, log_snr_to_zero(200 if full else 64, schedule), order=3, cond=told).x
steps_tried = (4, 8, 16, 32)
errors = {}
for name, order in (("DDIM", 1), ("DPM-Solver++(2M)", 2)):
    for n in steps_tried:
        z = last(dpm_solver_pp, teacher, x, log_snr_to_zero(n, schedule), order=order, cond=told).x
        errors[name, n] = relative_l2(z, fine), relative_l2(autoencoder.decode(z), autoencoder.decode(fine))

# %%
figure, ax = plt.subplots(figsize=(6.4, 2.8))
looks = plotting.looks([(name, where) for name in ("DDIM", "DPM-Solver++(2M)") for where in (0, 1)])
for name in ("DDIM", "DPM-Solver++(2M)"):
    for where in (0, 1):
        e = [errors[name, n][where] for n in steps_tried]
        ax.plot(steps_tried, e, **looks[name, where], label=f"{name}, {('latents', 'pictures')[where]}")
        order = math.log(e[0] / e[-1]) / math.log(steps_tried[-1] / steps_tried[0])
        print(f"{name:17} {('latents', 'pictures')[where]:9} order {order:.2f} on the average")
for order, name in ((1, "DDIM"), (2, "DPM-Solver++(2M)")):
    e = [errors[name, steps_tried[0]][0] * (steps_tried[0] / n) ** order for n in steps_tried]
    ax.plot(steps_tried, e, color=plotting.TRUTH, lw=3, zorder=0)
ax.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="error, share of size")
ax.set_xticks(steps_tried, map(str, steps_tried))
ax.minorticks_off()
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Errors against evaluations, of DDIM (orange circles for latents, blue squares for pictures) and of DPM-Solver++(2M) (green
# triangles, purple diamonds); grey lines fall with order one and two.*
#
# A learnt denoiser is less smooth than a Gaussian's, so the lines are less straight than in chapter 04; the difference of the
# two orders is there. And the decoder is one fixed map at the end: here it makes errors smaller, as a share of the picture's
# size, but they fall with the same slope, no faster and no slower. **What does it cost**, beside one of the evaluations?

# %%
with torch.no_grad():
    for name, work in (("a guided evaluation", lambda: guided(teacher, 2.0)(z_T, 0.5, cond)), ("decoding", lambda: autoencoder.decode(z_T))):
        begin = time.perf_counter()
        work().sum().item()
        print(f"{name:19} {1000 * (time.perf_counter() - begin) / len(z_T):5.1f} ms a picture")

# %% [markdown]
# And that once, after 8 steps as after 1000. **What of the parallel samplers of chapter 05?**
# Picard sweeps over a path of latents, deterministic, and ancestral with its noise drawn beforehand. (`std=1`: that is the
# latents' size, by chapter 10.)

# %%
grid, x = uniform(20, schedule), z_T[:1]
noise = torch.randn(len(grid) - 1, *x.shape, generator=seeded(3)).to(device)
for name, step, its_noise in (("ddim", ddim, None), ("ancestral", ancestral, noise)):
    in_turn = final(teacher, x, grid, step, noise=its_noise, cond=cond[:1])
    sweeps = converged(picard(teacher, x, grid, step, noise=its_noise, tolerance=0.02, std=1.0, secant=True, cond=cond[:1]))
    print(f"{name:10} {in_turn.depth} steps one after the other, {sweeps.rounds} rounds in parallel; the latents differ by "
          f"{relative_l2(sweeps.trajectory[-1], in_turn.x):.1%} of their size")

# %% [markdown]
# The difference is what the tolerance allows; with a smaller one it falls, for more rounds. Nothing had to be changed for
# latents, in any of the samplers. So what is known about samplers holds here, too, and chapter 13 tries what chapters 07 to 09
# distil.

# %% [markdown]
# ## 4 · Is it what was asked for?
#
# Pictures in a notebook persuade, and the author chose the captions. A fair question has a right answer and a chance level:
# show the drawing to a judge that has all real emoji at hand, and see **which real picture is nearest**. If it shows the emoji
# that was asked for, that is a hit. "Near" must not be in pixels, where a shift by two pixels makes equal drawings look
# unlike; we compare the features of a network that has learnt from photographs, each feature in units of its spread.
#
# One refinement: there are up to four real pictures of each emoji, and the drawing resembles one of them at best. So a *name*
# is as near as its nearest picture, and the **rank** of the right name is the number of names that are nearer. Rank 0 is a
# hit.
#
# **Exercise 11.4 · ●●○ · 12 min**
#
# Write `my_rank(drawn, wanted, real, names)`. `drawn` $(N, d)$ and `real` $(M, d)$ are features, `names` $(M)$ says which
# emoji each real picture shows, `wanted` $(N)$ which one was asked for. Of use: `torch.cdist(drawn, real)`, and
# `names.unique()`, the names there are.

# %% exercise="11.4"
def my_rank(drawn, wanted, real, names):                        # (N, d), (N,), (M, d), (M,) -> (N,)
    apart = torch.cdist(drawn, real)                            # (N, M)
    ### BEGIN SOLUTION three lines: how near each name comes, how near the wanted one, and how many are nearer
    nearest = torch.stack([apart[:, names == k].amin(1) for k in names.unique()], 1)            # (N, K)
    own = apart.masked_fill(names != wanted[:, None], torch.inf).amin(1)                        # (N,)
    return (nearest < own[:, None]).sum(1)
    ### END SOLUTION


# %% check="11.4"
# NBVAL_CHECK_OUTPUT
my_rank = exercise("11.4", my_rank)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Shapes do not match*: a $(N, K)$ table is compared with one number a row, `own[:, None]`.
# * *`inf` or an empty minimum*: names that have no picture must not be asked; `names.unique()` has only those there are.
#
# </details>
#
# **A small exam**: names that the model has seen in training, in one style, with one noise each, before a judge with a gallery
# of real pictures in that style. (The chapter has seconds only. The full exam, with all names and all styles, is in the
# ledger.) A share $p$ of $n$ drawings has a standard error of about $\sqrt{p(1-p)/n}$: a tenth for twenty drawings of which
# half are right.

# %%
known = data.emoji_captions()
flat = (train_set.style == data.STYLES.index("flat")).nonzero()[:, 0]
gallery = flat[torch.randperm(len(flat), generator=seeded(4))[:1000 if full else 60]]
asked = gallery[:200 if full else 20]
questions = torch.stack([text.caption(f"{known[n].name} flat")[0] for n in train_set.name[asked].tolist()]).to(device)
x = prior(teacher, (len(asked), 4, 16, 16), seeded(5)).to(device)
answers = torch.cat([my_draw(teacher, autoencoder, c, 2.0, ts, part).cpu() for c, part in zip(questions.split(20), x.split(20))])

# %%
judge = ColourFeatures().eval()
judge.load_state_dict(data.colour_features())
of_real, of_drawn = (features(judge.features, p.clamp(-1, 1), 20) for p in (train_set.images[gallery], answers))
std, mean = torch.std_mean(of_real, 0)
rank = my_rank((of_drawn - mean) / std, train_set.name[asked], (of_real - mean) / std, train_set.name[gallery])
K = len(gallery)
for k in (1, 10):
    print(f"the right emoji is among the {k:2} nearest of {K} for {(rank < k).sum()} of {len(rank)} drawings; "
          f"by chance {len(rank) * k / K:.1f}")

# %% [markdown]
# Now the full exam, from the ledger: a gallery of all 1,233 names, in all styles. Captions that were **seen**; **pairs** of
# emoji and style that were held out, though the emoji in other styles and the style on other emoji were not; and **synonyms**,
# words that occur in no caption at all and can be known by their vectors alone ("sofa" for "couch and lamp", "hare" for
# "rabbit"). `rank_1` is the share of hits (rank 0), `rank_10` that of ranks below 10. A hit is a hit in whatever style. So
# there is a third share, `style`: among the four real pictures of the *right* emoji, is the nearest in the style that was
# asked for?
#
# **Prediction 11.4.** Seen captions have their hits (`rank_1`). And the two kinds of captions that the model never met?
#
# * **a**: pairs and synonyms both have next to none: what was never seen cannot be drawn,
# * **b**: synonyms have more than half as many, as their vectors are near those of known words; pairs next to none,
# * **c**: pairs have more than half as many, synonyms next to none.

# %% predict="11.4"
predict("11.4", "c")

# %%
exam = {(r.method, r.metric): r for r in shipped_rows if r.method.startswith(("text_to_image", "sketch"))}
of = [f"{what}_{kind}" for kind in ("seen", "pairs", "synonyms") for what in ("text_to_image", "sketch")]
asked_of = {metric: [exam[method, metric] for method in of] for metric in ("rank_1", "rank_10", "style")}
print(f"{'':24}{'captions':>9}" + "".join(f"{metric:>9}" for metric in asked_of))
for rows in zip(*asked_of.values()):
    print(f"{rows[0].method:24}{rows[0].samples:9}" + "".join(f"{r.value:9.3f}" for r in rows))
print(f"{'by chance':33}" + "".join(f"{rows[0].floor:9.4f}" for rows in asked_of.values()))

# %%
reveal("11.4")

# %% [markdown]
# Row by row. *Seen* captions: the right emoji is found hundreds of times as often as by chance. The transformer adds much to
# its sketches: more than half as many hits again, and the right style for every second drawing, of which the sketches cannot
# know. *Pairs*: more than half as many hits, though no such picture was in the training set. But the sketches have nearly as
# many. The right emoji *is* the sketch; the transformer should give it the style, and here it is right no more often than by
# chance (the standard error is 0.03). So it combines by half: it knows what was asked for, and not how it should look. (The
# question is severe: three of the four candidates are pictures that it was trained on, and whose mean its sketch is. The
# sketches are right *less* often than by chance. That the drawings are not may be the word, or a sketch half forgotten: this
# table cannot tell.) *Synonyms*: no hit in eighty. That two words are near in the table of vectors does not help as long as
# the model has not learnt to use it; more captions might teach it.
#
# Is it the deaf sketch that draws the right emoji for a pair? Our model had a sketch that *heard* the style at first. After
# 27,800 steps we took its sketch away, trained one that does not hear the style, and went on with all else as it was, at first
# for 1,500 steps. **What did that do to the pairs, and what to the captions that were seen?**

# %%
for r in sorted((r for r in shipped_rows if ", style " in r.method), key=lambda r: (r.metric, r.method)):
    print(f"{r.metric:7} {r.method:34} {r.value:6.3f}   {r.weights}")

# %% [markdown]
# The hits of pairs double, by three standard errors of the difference (0.036), while those of seen captions fall. So it is not
# just that training went on. The third share is the price: what the sketch does not tell, the transformer must, and of pairs
# it is right less often than before. This suggests a rule: what is to be combined freely should not be learnt as one. The
# sketch obeys it, and the transformer, which learns names and styles together, does not yet. One trial with one seed does not
# prove it.

# %% [markdown]
# ### Drawn, or remembered?
#
# A hit can be had without drawing: such a model might know its few thousand pictures by heart. So one must look for the
# **nearest picture of the training set**, here by plain distance of the pictures at 16 × 16 pixels, since a copy is a copy in
# pixels. Beside it, the very picture that the caption belongs to:

# %%
tiny = recipes.small(train_set.images)
apart = torch.cdist(recipes.small(answers).flatten(1), tiny.flatten(1))
among_real = torch.cdist(tiny[asked].flatten(1), tiny.flatten(1)).scatter(1, asked[:, None], torch.inf).amin(1)
nearest = apart.argmin(1)
print(f"{len(tiny):,} training pictures; distance to the nearest, median: drawings {apart.amin(1).median():.1f},\n"
      f"    real ones to their nearest neighbour {among_real.median():.1f}; the nearest is the one asked for: "
      f"{(nearest == asked).float().mean():.0%}")
plotting.image_rows([answers[1:3], train_set.images[nearest[1:3]], train_set.images[asked[1:3]]],
                    ["drawn", "nearest in\ntraining", "asked for"])
plt.show()

# %% [markdown]
# *Three rows of two: drawings for seen captions; the nearest of all training pictures; the picture of that name and style.*
#
# Read the two medians together. If drawings were much nearer to the training set than real emoji are to one another, they
# would be copies. They lie farther off, so as a rule they are not copies in pixels; but for half of them the nearest is the
# very picture asked for. The layout is remembered, the detail is not. Mind that a *poor* drawing is far from everything, too:
# to find no copies is no praise. For captions seen in training, the data have one right answer each, so remembering *is* what
# the loss asks for; only the held-out pairs and the synonyms can tell whether something was understood. The full exam has two
# rows on this. A near copy is nearer to a training picture, in the judge's features, than 19 of 20 training pictures are to
# their nearest neighbours:

# %%
for metric, beside in (("near_copies", "real pictures among themselves"), ("kernel_distance", "real held-out pictures")):
    for what in ("sketch", "text_to_image"):
        r = exam[f"{what}_seen", metric]
        print(f"{metric:16} {r.method:20} {r.value:6.3f}; {beside} {r.floor:.3f}")

# %% [markdown]
# No near copy among 200 drawings, by a measure that calls one real picture in twenty one. But the sketches have none either,
# and nobody would call a blur original. The kernel distance says why: drawings are far from real pictures, at half the
# sketches' distance.

# %% [markdown]
# ## 5 · The rival: a small picture, then a larger one
#
# There is another way to make the first network cheap: let it draw 16 × 16 *pixels*, and let a second network, also a
# diffusion model, put in the detail, with the small picture as its condition (Ho et al., 2022). No autoencoder is needed. It
# is a **cascade**. The first network is our transformer with three channels in place of four, the second a convolutional
# U-Net.
#
# They are trained apart: the upscaler sees small pictures $c$ that were made from real large ones, by averaging. In use, $c$
# is what the first network drew, with its errors. What will the upscaler do with the errors? (In this section $c$ is the small
# picture, not a caption, and $s$ a standard deviation, not the sketch.) Take one number $x_0$ of the coarse picture, from
# $\mathcal N(0,s^2)$. The upscaler sees it twice, in its own noisy picture and in its condition:
#
# $$x_t=\alpha x_0+\sigma\varepsilon, \qquad c = x_0+\tau n \tag{11.5}$$
#
# (as if both had one resolution), with $\varepsilon$ and $n$ independent, from $\mathcal N(0,1)$. If $c$ is exact in training,
# $\tau=0$, the best guess is $c$ itself, whatever $x_t$ says, and every error of $c$ is copied into the large picture. So
# noise of a size $\tau$ is added to $c$ in training.
#
# **Exercise 11.5 · ●●○ · 12 min · eq. (11.5)**
#
# Derive $\mathbb E[x_0\mid x_t,c]$ and write it as `my_hinted`. On paper: by Bayes, $p(x_0\mid x_t,c)\propto p(x_0)\,p(c\mid
# x_0)\,p(x_t\mid x_0)$, since $n$ and $\varepsilon$ are independent. So the exponents add. The exponent of a Gaussian for
# $x_0$ is $-\frac{x_0^2}{2s^2}$; the two observations add $-\frac{(c-x_0)^2}{2\tau^2}$ and $-\frac{(x_t-\alpha
# x_0)^2}{2\sigma^2}$. Collect: all together is $-\frac\lambda2x_0^2+b\,x_0+\text{const}$, which is the exponent of a Gaussian
# of mean $b/\lambda$.

# %% exercise="11.5"
def my_hinted(x, c, alpha, sigma, tau, s):                      # four of (B,), two numbers -> (B,)
    ### BEGIN SOLUTION two lines: the precision, and the mean
    precision = 1 / s**2 + 1 / tau**2 + alpha**2 / sigma**2
    return (c / tau**2 + alpha * x / sigma**2) / precision
    ### END SOLUTION


# %% check="11.5"
# NBVAL_CHECK_OUTPUT
my_hinted = exercise("11.5", my_hinted)

# %% [markdown]
# **How much of an error of the small picture is passed on?** Your formula is linear in $c$, so raise $c$ by 1 and look, for
# $\tau=0.01$, 0.1 and 0.5, and $s=0.5$. And is the mean right? Among draws of $(x_0, x_t, c)$, the error of the best guess
# cannot be correlated with what was seen: a correlation could be used to improve the guess.
#
# **Prediction 11.5.** An upscaler was trained with $\tau=0.1$. Down to which $t$ will it pass on more than half of an error of
# $c$? (At $t=0.5$, signal and noise of $x_t$ are equal.)
#
# * **a**: down to some $t$ between 0.1 and 0.03,
# * **b**: down to 0: it has learnt to draw what the small picture says,
# * **c**: down to $t$ near 0.5: from there on, $x_t$ is more signal than noise.

# %% predict="11.5"
predict("11.5", "a")

# %%
s, tau = 0.5, 0.1
x0, n, e = torch.randn(3, 200_000, generator=seeded(6), dtype=torch.float64)
x0 = s * x0
alpha, sigma = schedule.alpha(0.3).expand(len(x0)), schedule.sigma(0.3).expand(len(x0))
x_t, c = alpha * x0 + sigma * e, x0 + tau * n                                                   # eq. (11.5)
off = my_hinted(x_t, c, alpha, sigma, tau, s) - x0
assert max(abs((off * seen).mean()) for seen in (x_t, c)) < 1e-3                                # so it is the mean
t = torch.tensor([0.9, 0.6, 0.3, 0.1, 0.03], dtype=torch.float64)
zero, one = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
print("share of an error that is passed on, at t =", ", ".join(f"{v:g}" for v in t.tolist()))
for tau in (0.01, 0.1, 0.5):
    passed = my_hinted(zero, one, schedule.alpha(t), schedule.sigma(t), tau, s)
    print(f"  trained with tau = {tau:4}: " + ", ".join(f"{v:.2f}" for v in passed.tolist()))

# %%
reveal("11.5")

# %% [markdown]
# With next to no noise in training, errors pass at all noise levels. With $\tau=0.1$, the upscaler follows $c$ while it has
# nothing else to go by, and goes by $x_t$ once that is clear. A large $\tau$ makes it independent, and then it may draw
# something else than the small picture says. Our upscaler had $\tau=0.1$ in training (`recipes.upscaling_loss`), so we add
# that much in use, too: a clean $c$ would be unlike all that it was trained with. It hears no words and is not guided: the
# small picture tells it all. **The cascade at work, for the first
# six captions, of which three are shown:**

# %%
small_teacher, upscaler = (recipes.load(name, device) for name in ("emoji_small_teacher", "emoji_upscaler"))
TAU, six = 0.1, cond[:6]
begin = time.perf_counter()
x = prior(small_teacher, (6, 3, 16, 16), seeded(7)).to(device)
small = last(dpm_solver_pp, guided(small_teacher, 2.0), x, ts, cond=six).x.clamp(-1, 1)
hint = small + TAU * torch.randn(small.shape, generator=seeded(8)).to(device)
x = prior(upscaler, (6, 3, 64, 64), seeded(9)).to(device)
large = last(dpm_solver_pp, upscaler, x, ts, cond=hint).x
cascade_seconds = (time.perf_counter() - begin) / 6

# %%
enlarged = torch.nn.functional.interpolate(small, size=64, mode="nearest")
plotting.image_rows([enlarged[:3], large[:3]], ["16 × 16", "upscaled"])
plt.show()
print(f"a picture: {cascade_seconds:.2f} s by the cascade, {seconds:.2f} s by latents, with {len(ts) - 1} steps for each network")
for name in ("emoji_small_teacher", "emoji_upscaler", "emoji_latent_teacher"):
    print("{recipe}: {steps:,} steps, {train_seconds:,} s on {device}".format(**made[name]))
upscaler_cost, _ = step_cost(recipes.known("emoji_upscaler").build().to(device), recipes.upscaling_loss, pixels)
print(f"a training step of the second network, a picture: {upscaler_cost:.3f} s for the upscaler, {encoder_cost:.3f} s for the "
      "autoencoder")

# %% [markdown]
# *Two rows of three: small pictures, and what the upscaler makes of them. The same captions, drawn by way of latents, are the
# first three of the eight in section 2.*
#
# What the upscaler adds is modest: edges become smoother, and lines that the small picture does not show do not appear. What
# the first network got wrong, the second cannot mend: an upscaled blob is a smooth blob. Which way is better is not decided by
# these figures, as you see from the trainings printed below it. (The upscaler's U-Net reads patches of 4 × 4 pixels. It predicts
# $x_0$ and not $v$, since the noise of such patches does not fit through few channels; Li & He, 2025.)
#
# Both ways are two networks, and in both the first works on a 16 × 16 sheet. The difference is what the sheet holds. A small
# picture was made by averaging: what is finer than a pixel is *gone*, and the second network must invent it, in a loop of its
# own, at full size. A latent was made by *training* to be decoded: as many places, one channel more, and the detail comes back
# in one pass. The upscaler can be applied to any small picture, and a cascade can be continued, 64 to 256 to 1024; a
# latent needs its own decoder.
#
# ### Frozen, or end to end?
#
# All along, the encoder stayed as it was. Could the diffusion loss improve it? Chapter 10 showed why not simply so: the loss
# is lowest for latents that say nothing, so the encoder would shrink them. Freezing is one way out, and it had a second merit
# here: all pictures were encoded once, and no training step has seen a pixel since. Methods that train both together need an
# anchor that holds the latents in place.

# %% [markdown]
# ## 6 · Type
#
# Now it is yours. Type a caption and press Enter; choose a style, how much to insist, and how many steps. Four drawings,
# always from the same four noises.

# %%
four = prior(teacher, (4, 4, 16, 16), seeded(10)).to(device)


def drawing(caption, style="flat", w=2.0, steps=8):
    told, remark = text.caption(caption)
    if style != "none":
        told[min((told >= 0).sum(), len(told) - 1)] = words.index(style)                        # behind the last word
    remark = remark or f"{' '.join(words[i] for i in told if i >= 0)}: {steps} steps, {2 * steps} evaluations, w = {w:g}"
    pictures = my_draw(teacher, autoencoder, told.expand(4, -1).to(device), w, log_snr_to_zero(steps, schedule), four)
    return plotting.image_grid(pictures, 4, title=textwrap.fill(remark, 70)).figure


flipbook(drawing, caption="red apple", style=["flat", *(s for s in data.STYLES if s != "flat"), "none"],
         w=[2.0, -1.0, 0.0, 1.0, 4.0, 6.0], steps=[8, 4, 16, 32])

# %% [markdown]
# *Four drawings of a red apple in a row; the controls above them change caption, style, weight and steps.*
#
# Guess, then try: a name and its synonym; two colours in one caption; a caption with no style; nothing at all, which is the
# model's idea of "an emoji"; a word that it cannot know.

# %% [markdown]
# ## 7 · Closing task: change a picture by words
#
# Somebody has a picture, and wants it in another colour, or as another thing with the same layout. The model never learnt to
# do that. But a noisy latent still knows its picture: noise drowns the finest first, then what is coarser, and the layout and
# the large patches of colour last. So *make* a noisy latent from the given picture: encode it, add noise up to some
# intermediate time $t$, and denoise from there with new words (Meng et al., 2022):
#
# $$z_t = \alpha_t\,\text{encode}(x) + \sigma_t\,\varepsilon . \tag{11.6}$$
#
# The words put in anew what was drowned. The time $t$ decides how much is kept.
#
# **Exercise 11.6 · ●●● · 15 min · eq. (11.6)**
#
# Write `my_edit`. The grid `ts` begins at the time $t$ to which the picture is to be noised. `D.schedule.alpha(t)` and
# `.sigma(t)` are the levels; write `.to(eps)` behind them, since times are kept in double precision and the networks are not.

# %% exercise="11.6"
def my_edit(D, autoencoder, pictures, cond, weight, ts, eps):   # (B, 3, 64, 64), (B, 12), ..., noise (B, 4, 16, 16) -> like pictures
    ### BEGIN SOLUTION three or four lines: levels, noisy latents, and a drawing that starts from them
    alpha, sigma = D.schedule.alpha(ts[0]).to(eps), D.schedule.sigma(ts[0]).to(eps)
    x = alpha * autoencoder.encode(pictures) + sigma * eps                                      # eq. (11.6)
    return my_draw(D, autoencoder, cond, weight, ts, x)
    ### END SOLUTION


# %% check="11.6"
# NBVAL_CHECK_OUTPUT
my_edit = exercise("11.6", my_edit)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Nothing of the picture is left, at any t*: is the noise scaled by $\sigma$, and does the grid begin where the noise does?
# * *Grainy*: the sampler must start at the very time of the noise that was added, else it takes noise for drawing.
# * *Colours are off*: latents have a scale; `encode` and `decode` belong together.
#
# </details>
#
# **A green apple, in the style that was held out of the training set, told to be red, and told to be a pizza**, from four
# times. The grid is chapter 04's; to start later is to leave its first steps out. Guess first: at which of the times does the
# given picture win over the word "pizza", in shape, and in colour?

# %%
pairs = data.emoji("pairs")
is_it = (pairs.name == known_names.index("green apple")) & (pairs.style == data.STYLES.index("flat"))
original = pairs.images[is_it].to(device)                       # (1, 3, 64, 64)
long = log_snr_to_zero(16, schedule)
starts_at = [4, 7, 8, 10]                                       # the first of the grid's times that are used
eps = torch.randn(1, 4, 16, 16, generator=seeded(12)).to(device)
rows = []
print(f"coded and decoded, without noise: changed by {gap(autoencoder.decode(autoencoder.encode(original)), original):.2f}")
for said in ("red apple flat", "pizza flat"):
    told = text.caption(said)[0][None].to(device)
    edited = [my_edit(teacher, autoencoder, original, told, 2.0, long[k:], eps) for k in starts_at]
    rows.append(torch.cat([original, *edited]))
    print(f"{said!r}: changed by " + ", ".join(f"{gap(e, original):.2f} from t = {long[k]:.2f}" for e, k in zip(edited, starts_at)))
headed(plotting.image_rows(rows, ["red apple", "pizza"]), ["given", *(f"t = {long[k]:.2f}" for k in starts_at)])
plt.show()

# %% [markdown]
# *Two rows: a held-out picture, then its changes, for falling $t$. From $t$ near 1 little of it is kept, and the words decide;
# the smaller $t$, the more of the given picture comes back.*
#
# Told "pizza", the drawing is a slice at $t=0.97$; at 0.86 the green is back already, under a pizza's toppings, and the shape
# is neither; at 0.50 it is the apple, with spots. Against "red", the green takes longer: orange at 0.86, olive at 0.78. There
# is no right $t$: faithfulness to the picture is traded for obedience to the words.

# %% [markdown]
# ## The ledger

# %%
share = (rank < 1).float().mean().item()
live = ledger.Row("text_to_image_seen, small gallery (live)", "emoji", 2 * (len(ts) - 1), len(ts) - 1, 8, 8 * seconds, "this machine",
                  "rank_1", share, 1 / K, len(rank), 1, guidance=2.0, weights="emoji_latent_teacher")
rows = [live, *(r for r in exam.values() if r.metric in ("rank_1", "kernel_distance") and "," not in r.method), *race]
ledger.table(rows, "method NFE guidance seconds batch metric value floor n status").show()

# %% [markdown]
# The live row may not be compared with the others: its gallery is smaller, which makes the question easier, its captions are
# few and of one style, and it took half as many steps. Seconds are those of a whole batch; 0 means that they were not
# measured. The kernel distances of the race come from fewer pictures and from no guidance, so they are not to be held against
# the teacher's.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | why latents | $n^\ast=T/(c_{\text{pix}}-c_{\text{lat}})$ steps pay for the autoencoder |
# | caption | twelve word numbers, $-1$ for none; gist $=\sum v_{c_i}/\max(n,1)$, a token for each word, a sketch $\mathbb E[z_0\mid\bar c]$ deaf to style |
# | two denoisers | hide a tenth of the captions, row by row: all $-1$ |
# | text to image | noise in latents, $D_c+w\,(D_c-D_u)$, any sampler, decode once |
# | the exam | rank of the right name by nearest picture, beside chance; held-out pairs; synonyms |
# | cascade | small picture, then an upscaler that was trained with a noisy one: in the guess, $c$ weighs $1/\tau^2$ |
# | change by words | $z_t=\alpha_t\,\text{encode}(x)+\sigma_t\varepsilon$, then draw from $t$ |
#
# * The cost is decided by the number of patches. The decoder bounds the quality; here, training was the tighter bound.
# * The noise settles what the words leave open.
# * A picture that persuades is no measurement. Ask a question with a right answer, and state chance.
#
# **Limits.** Costs of steps were measured once, on small batches, by one implementation; on a GPU the ratio is another one.
# The pictures are those of a small model on a small budget, and the eight captions are a choice. The live exam has one style,
# few captions and one noise each. Its judge knows photographs, not drawings. The nearest neighbour in pixels finds copies of
# whole pictures only, not of parts. Captions of emoji are a few words; nothing here shows that the model could follow a
# sentence. And the cascade and the latent model are compared by eye and by seconds, not at equal training.
#
# **What is still open.** Twenty evaluations a picture are too slow to follow somebody who types. Chapters 07 to 09 have the
# remedies, and chapter 13 applies them here. And how would you have a model learn styles apart from names? Before that: what
# if the data are not pictures at all? That is chapter 12.
#
# ## Further reading
#
# * R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer, *High-resolution image synthesis with latent diffusion models*,
#   2022, arXiv:2112.10752.
# * W. Peebles, S. Xie, *Scalable diffusion models with transformers*, 2023, arXiv:2212.09748: the network.
# * J. Ho, C. Saharia, W. Chan, D. Fleet, M. Norouzi, T. Salimans, *Cascaded diffusion models for high fidelity image
#   generation*, 2022, arXiv:2106.15282: noise on the condition.
# * C. Saharia et al., *Photorealistic text-to-image diffusion models with deep language understanding*, 2022, arXiv:2205.11487:
#   a text-to-image cascade, with a frozen language model for the words.
# * T. Li, K. He, *Back to basics: let denoising generative models denoise*, 2025, arXiv:2511.13720: predict $x_0$.
# * C. Meng, Y. He, Y. Song, J. Song, J. Wu, J.-Y. Zhu, S. Ermon, *SDEdit: guided image synthesis and editing with stochastic
#   differential equations*, 2022, arXiv:2108.01073: the closing task.
# * X. Han, H. Zheng, M. Zhou, *CARD: classification and regression diffusion models*, 2022, arXiv:2206.07275: a regression is
#   learnt first, and diffusion starts from it.
# * N. Carlini et al., *Extracting training data from diffusion models*, 2023, arXiv:2301.13188: drawn or remembered.
