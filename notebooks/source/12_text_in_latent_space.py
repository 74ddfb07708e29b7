# ---
# course:
#   title: Text in latent space
#   minutes: 95
#   needs: [10]
#   shows: sentences become points of a continuous space, and the samplers of pictures write them
# ---

# %% [markdown]
# # 12 · Text in latent space: the samplers of pictures write sentences
#
# Everything that this course has made noisy could be changed *a little*: a pixel, a point of the plane, a number of a
# latent. A word cannot. There is nothing one tenth of the way from "tea" to "wine", so there is no noise to add to it,
# no score, and no path to follow. Does diffusion end here?
#
# Chapter 10 put an encoder and a decoder around the diffusion model, to make pictures cheap. The same idea takes us over
# this border: **encode a sentence as a point of a continuous space, diffuse there, decode**. None of our samplers needs
# to be changed, not by a letter. The price is that everything now hangs on the way back from points to words. (And on the
# model: with a perfect one whole sentences appear, in section 3; our small one, in section 4, writes hardly a sentence. Both
# are measured.)
#
# After this chapter you can
#
# * **measure** what is lost when words are drawn independently of each other (exercise 12.1), and **predict** what
#   happens to independent starts in a continuous flow (prediction 12.1),
# * **implement** the way back from vectors to words (exercise 12.2), and **derive** what a loss on it must read
#   (exercise 12.3),
# * **predict** and **measure** how much noise on its latents a decoder of sentences forgives (prediction 12.2),
# * **implement** the exact denoiser of a finite set of sentences (exercise 12.4), and **predict** what a perfect model
#   of that set writes (prediction 12.3),
# * **implement** the perplexity of sentences (exercise 12.5), and **predict** which text it likes best (prediction 12.4),
# * **transfer** all this to sentences whose beginning is given (exercise 12.6).
#
# Allow an hour and a half: 70 minutes for the exercises, the rest for reading. The end of section 2 is a good place for
# a break.

# %%
import math
import os
import random
import time
from collections import Counter
from functools import cache
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as nf

from course_lib import data, ledger, plotting, recipes, text
from course_lib.autoencoders import encode_all
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import X0, Preconditioned, levels, per_row
from course_lib.fast_samplers import ddim, dpm_solver_pp
from course_lib.networks import MLP
from course_lib.ode_samplers import encode
from course_lib.sampling import final, last, prior, sample
from course_lib.schedules import CosineVP, log_snr_uniform
from course_lib.sde_samplers import ancestral
from course_lib.targets import GaussianMixture
from course_lib.widgets import flipbook, progress, watched

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
schedule = CosineVP()


def seeded(seed):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# The smallest language in the world has two sentences, *new york* and *san diego*, equally likely. We want to draw both
# words of a sentence *at once*, as an image model draws all its pixels at once. The first word is *new* half of the time,
# the second is *york* half of the time. **What comes out if we draw each word from exactly its own distribution?**

# %%
p = torch.tensor([[0.5, 0.0], [0.0, 0.5]], dtype=torch.float64)                                # first word x second word
first_words, second_words = ("new", "san"), ("york", "diego")
first = torch.multinomial(p.sum(1), 10_000, replacement=True, generator=seeded(0))
second = torch.multinomial(p.sum(0), 10_000, replacement=True, generator=seeded(1))
drawn = Counter(f"{first_words[a]} {second_words[b]}" for a, b in zip(first.tolist(), second.tolist()))
print(drawn.most_common())
print(f"{1 - p[first, second].gt(0).double().mean():.1%} of the phrases are in no language")

# %% [markdown]
# Each word is distributed perfectly, and half of the phrases are wrong. No better model of the single words can help;
# what is missing is that the words *agree*. One way out is well known: draw the first word, show it to the model, draw
# the second, and so on. That is right, and it takes as many rounds, one after another, as there are words. (The course
# is about taking fewer.) Can all places be filled at once, and still agree?
#
# **How bad is it, in numbers?** Let $p(a,b)$ be the probability of the phrase of the words $a$ and $b$. Drawn
# independently, the phrase has the probability
#
# $$q(a,b) = p(a)\,p(b), \qquad p(a)=\sum_b p(a,b), \quad p(b)=\sum_a p(a,b). \tag{12.1}$$
#
# Two measures say how far $q$ is from $p$: the *total variation*, the share of draws that would have to be changed, and
# the *Kullback-Leibler divergence*, the mean of the log-ratio under the truth, in nats:
#
# $$\mathrm{TV} = \tfrac12\sum_{a,b} \big|p(a,b)-q(a,b)\big|, \qquad
# \mathrm{KL} = \sum_{a,b} p(a,b)\,\ln\frac{p(a,b)}{q(a,b)} . \tag{12.2}$$
#
# This KL has a name, the *mutual information*: what one word tells about the other.
#
# **Exercise 12.1 · ●○○ · 10 min · eqs. (12.1) and (12.2)**
#
# Write `my_independent(p)`, which returns the table $q$, TV and KL. Phrases with $p=0$ add nothing to the KL; but a
# computer's $0\cdot\ln 0$ is NaN. (`torch.xlogy(x, y)` is $x\ln y$ with the 0 in its place, or pick the entries with
# `p > 0`.)

# %% exercise="12.1"
def my_independent(p):                                          # (A, B) -> (A, B), (), ()
    ### BEGIN SOLUTION three lines: the table q, TV and KL
    q = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    there = p > 0
    return q, (p - q).abs().sum() / 2, (p[there] * (p[there] / q[there]).log()).sum()
    ### END SOLUTION


# %% check="12.1"
# NBVAL_CHECK_OUTPUT
my_independent = exercise("12.1", my_independent)

# %%
_, tv, kl = my_independent(p)
print(f"new york, san diego: TV {tv:.3f}, KL {kl:.3f} nats, ln 2 = {math.log(2):.3f}")
for k in (4, 16, 256):
    q, tv, kl = my_independent(torch.eye(k).double() / k)
    print(f"{k:3} phrases without a common word: {q.diagonal().sum():.1%} right, TV {tv:.3f}, KL {kl:.2f} = ln {k}")

# %% [markdown]
# With more to agree about, it gets worse: of 256 phrases, independent words hardly ever hit a right one. And sentences
# have up to sixteen words, not two.
#
# **The same language in a plane.** Let the first word be a number $x_1$, $-1$ for *new* and $+1$ for *san*, and the
# second word a number $x_2$, $-1$ for *york* and $+1$ for *diego*. The language is two points of the plane, $(-1,-1)$ and
# $(1,1)$. Two points make a Gaussian mixture, of which we know the exact denoiser; and at the end of the flow we round:
# each number to its nearer word, *each for itself*.
#
# **Prediction 12.1.** The start is pure noise: $x_1$ and $x_2$ are independent, so half of the starts are *new diego* or
# *san york*. Every step moves both numbers at once, with no randomness at all. How many phrases come out wrong?
#
# * **a**: about half, since the starts were independent and nothing is drawn afterwards,
# * **b**: none, or next to none,
# * **c**: about a quarter: starts near the two right corners are repaired, those deep in the wrong ones are not.

# %% predict="12.1"
predict("12.1", "b")

# %%
phrases = GaussianMixture([[-1.0, -1.0], [1.0, 1.0]], 0.05)
D = phrases.denoiser(schedule)
x_T = prior(D, (10_000, 2), seeded(2), dtype=torch.float64)
ts = log_snr_uniform(30, schedule)
states = torch.stack([x_T, *sample(D, x_T, ts, ddim)])                                          # (31, 10000, 2)
for n in (1, 2, 4, 30):
    x = final(D, x_T, log_snr_uniform(n, schedule), ddim).x
    wrong = (x > 0)[:, 0] != (x > 0)[:, 1]
    print(f"{n:2} DDIM steps: {wrong.double().mean():.2%} wrong phrases, {(x[:, 0] > 0).double().mean():.1%} san diego")

one = ((x_T - torch.tensor([-1.2, 1.0])).norm(dim=1)).argmin()                                 # a start at "new diego"
left, right = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1, 1.2))[1]
plotting.shaded(phrases.log_prob, 2.6, left)
plotting.paths(states[:, :60], left, 2.6, "60 starts")
for i, a in enumerate(first_words):
    for j, b in enumerate(second_words):
        left.text(2.2 * (2 * i - 1), 2.4 * (2 * j - 1), f"{a} {b}", ha="center", va="center")
with torch.no_grad():
    guesses = torch.stack([D(x, t)[one] for x, t in zip(states, ts)])
for i, (color, name) in enumerate(((plotting.ESTIMATE, "first word"), (plotting.SECOND, "second word"))):
    right.plot(ts, states[:, one, i], color=color, ls=("-", "--")[i], label=f"{name}: $x_t$")
    right.plot(ts, guesses[:, i], ":", color=color, lw=2.5 - i, label=f"{name}: guess D")
right.set(xlim=(1, 0), xlabel="t", title="a start at new diego", ylim=(-1.35, 1.8))
right.legend(ncols=2, loc="upper right")
plt.show()

# %%
reveal("12.1")

# %% [markdown]
# *Left, sixty paths from grey dots all over the plane; every one ends in one of the two right corners, the other two
# corners stay empty. Right, one start at "new diego" in time: its two coordinates, the solid and the dashed line,
# begin far apart and meet in the end; the two guesses of the denoiser, dotted, lie on top of each other nearly all the way.*
#
# **Why it works.** Two sharp points $\pm m$ with $m=(1,1)$: given $x_t$, how likely is each? In the ratio of the two
# Gaussians $e^{-\|x\mp\alpha m\|^2/2\sigma^2}$ the squares cancel, and only $2\alpha\,m\cdot x/\sigma^2$ is left in the
# exponent. So the mean of $+m$ and $-m$, weighted by these chances, is
#
# $$D(x,t) = m\,\tanh\!\Big(\frac{\alpha_t\,(x_1+x_2)}{\sigma_t^2}\Big). \tag{12.3}$$
#
# Both places get *the same guess*, a function of what *both* of them say. The words are never drawn independently given
# something: they settle together, over the steps, each looking at the other. The randomness of the start decides
# *which* phrase, not whether it is one.
#
# (And the single step, with its wrong phrases? Its guess, from pure noise, is hardly off the middle, $D\approx0$, and
# the little noise that is still due at the end of the grid can tip the words either way. The agreement grows over the
# steps.) **Does it hold for eight phrases in the space of real word vectors?**

# %%
x = 2 * torch.randn(200, 2, generator=seeded(3), dtype=torch.float64)
sharp = GaussianMixture([[-1.0, -1.0], [1.0, 1.0]], 1e-4).denoiser(schedule)
for t in (0.3, 0.6, 0.9):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert torch.allclose(sharp(x, t), (alpha * x.sum(1, keepdim=True) / sigma**2).tanh().expand(-1, 2), atol=1e-5)  # (12.3)

words, vectors = data.words()                                   # and for each word a vector of 128 numbers
vectors = 128**0.5 * vectors                                    # now the mean square of their numbers is 1
number = {word: i for i, word in enumerate(words)}
menu = ["black coffee", "cold beer", "red wine", "green tea", "fresh bread", "hot soup", "sweet cream", "fried fish"]
rows = torch.tensor([[number[word] for word in phrase.split()] for phrase in menu])             # (8, 2)
D = GaussianMixture(vectors[rows].flatten(1), 0.05).denoiser(schedule)
x_T = prior(D, (2000, 256), seeded(4), dtype=torch.float64)
for n in (1, 2, 4, 8, 16):
    x = final(D, x_T, log_snr_uniform(n, schedule), ddim).x
    found = text.rounded(x.view(-1, 2, 128), vectors[rows].double().view(-1, 128))              # among the menu's 16 words
    counted = Counter(" ".join(menu[i // 2].split()[i % 2] for i in row) for row in found.tolist())
    right = sum(counted[phrase] for phrase in menu) / len(x_T)
    print(f"{n:2} steps: {right:6.1%} right (independent words: {1 / 8:.1%}); commonest: {counted.most_common(2)}")

# %% [markdown]
# One step gives nearly everyone the *same* few words, whatever is nearest to the mean of all phrases, and that is seldom
# on the menu: chapter 08 called such an answer the blur. A few steps later each start has found one of the eight. The
# number of steps is that of a flow; it need not grow with the number of words.
#
# That is the plan of this chapter. It needs vectors for words, a way back, and, for real sentences, something better
# than a list of all there are.

# %% [markdown]
# ## 1 · Words as points, and back
#
# The vectors come from a language model (MiniLM), which has read enough to put words of like meaning near each other.
# **Which are the nearest words of these?**

# %%
for word in ("coffee", "walked", "seven", "happy"):
    near = (vectors @ vectors[number[word]]).topk(6).indices[1:]
    print(f"{word:8}", ", ".join(words[i] for i in near.tolist()))

# %% [markdown]
# Meaning has become distance, so here "a little noise" means something. The way back is called **rounding**: take the
# word whose vector is nearest, $\hat w = \arg\min_w \|x - v_w\|$. Why the *nearest*? If $x$ is a vector plus Gaussian
# noise, its density given the word $w$ falls with $\|x-v_w\|^2$, so the nearest word is the likeliest.
#
# **Exercise 12.2 · ●○○ · 8 min**
#
# Write `my_rounding(embeddings, vectors)`: for every place of every sentence the number of the nearest vector. In the
# check the vectors are of different lengths (a network's often are), so the largest inner product will not do.
# `torch.cdist(x, v)` has the distances between all rows of `x (M, d)` and of `v (V, d)`.

# %% exercise="12.2"
def my_rounding(embeddings, vectors):                           # (B, n, d), (V, d) -> (B, n)
    ### BEGIN SOLUTION one or two lines: all distances, the nearest, the shape
    return torch.cdist(embeddings.flatten(0, 1), vectors).argmin(1).view(embeddings.shape[:-1])
    ### END SOLUTION


# %% check="12.2"
# NBVAL_CHECK_OUTPUT
my_rounding = exercise("12.2", my_rounding)

# %% [markdown]
# **Exact vectors must return their words. And noisy ones?** We add noise of a standard deviation that we know; the
# numbers of a vector have the mean square 1.

# %%
vocabulary = 128**0.5 * text.vocabulary().vectors               # the words of our sentences: the first 7,305
some = torch.arange(0, len(vocabulary), 9).view(1, -1)
assert (my_rounding(vocabulary[some], vocabulary) == some).all()                                # exact ones: their words
for noise in (0.5, 1, 1.5, 2, 3):
    noisy = vocabulary[some] + noise * torch.randn(vocabulary[some].shape, generator=seeded(5))
    print(f"noise {noise:3}: {(my_rounding(noisy, vocabulary) == some).double().mean():.1%} of the words are found again")

# %% [markdown]
# Noise as large as the signal itself does little harm: a word is one of a few thousand points in a space of 128
# dimensions, and there is much room between them. So the words of a noisy sentence are *readable long before the noise is
# gone*. What they are is settled in the noisy part of the way.
#
# **Why not diffuse right here?** One can: sixteen places with 128 numbers each, and round at the end. That is
# *Diffusion-LM* (Li et al., 2022), which also *learns* the vectors along with the diffusion. There a trap waits that you
# know from chapter 10. The easiest way to make the denoising loss small is to make the vectors small: then they drown in
# the noise, and there is nothing left to miss. **What does a perfect denoiser lose on our menu when all its vectors are
# scaled by a factor?**

# %%
x0 = vectors[rows].flatten(1).double()[torch.randint(8, (2000,), generator=seeded(6))]
noise = torch.randn(x0.shape, generator=seeded(7), dtype=torch.float64)
for c in (1, 0.3, 0.1, 0.01):
    D = GaussianMixture(c * vectors[rows].flatten(1), c * 0.05).denoiser(schedule)
    loss = (D(schedule.alpha(0.8) * c * x0 + schedule.sigma(0.8) * noise, 0.8) - c * x0).square().mean()
    print(f"vectors times {c:4}: mean squared error {loss:.6f}")

# %% [markdown]
# (It first rises: well separated phrases are never confused. Then it falls to nothing.) A learnt embedding needs a second
# term that wants the words *told apart*: a **rounding loss**, the cross-entropy of the right words,
#
# $$\mathcal L_{\text{round}} = -\frac1{Bn}\sum_{i}\ln \frac{e^{\,y_i\cdot v_{w_i}}}{\sum_{w} e^{\,y_i\cdot v_w}},
# \qquad y_i \text{ a vector at place } i, \quad w_i \text{ its right word.} \tag{12.4}$$
#
# Which vector is $y$? In a public version of Diffusion-LM it was the *start*: the embedding $x_0$ itself with a little
# noise (issue 66 there). The embedding is then told to keep its words apart, as it should be. But the *network* is told
# nothing: $x_0$ does not come from it. What is going to be rounded in the end is the network's **prediction**,
# $y=\hat x_0=D(x_t,t)$, and that is what must be read.
#
# **Exercise 12.3 · ●●○ · 15 min · eq. (12.4)**
#
# Write `my_rounding_loss(D, numbers, vectors, noise, t)`: make $x_t=\alpha_tx_0+\sigma_t\varepsilon$ of the vectors of
# the words, ask $D$ once, and return (12.4) for its prediction. `levels(D, x0, t)` gives $\alpha_t$ and $\sigma_t$ ready to
# multiply; `nf.cross_entropy(logits, numbers)` wants the shapes `(M, V)` and `(M,)`.

# %% exercise="12.3"
def my_rounding_loss(D, numbers, vectors, noise, t):            # function; (B, n); (V, d); (B, n, d); (B,) -> ()
    x0 = vectors[numbers]                                                                       # (B, n, d)
    ### BEGIN SOLUTION four lines: the levels, x_t, the logits of what D predicts, their cross-entropy
    alpha, sigma = levels(D, x0, t)
    x_t = alpha * x0 + sigma * noise
    logits = D(x_t, t) @ vectors.T
    return nf.cross_entropy(logits.flatten(0, 1), numbers.flatten())
    ### END SOLUTION


# %% check="12.3"
# NBVAL_CHECK_OUTPUT
my_rounding_loss = exercise("12.3", my_rounding_loss)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Shapes do not match*: the logits are `(B, n, V)`, the numbers `(B, n)`; `.flatten(0, 1)` and `.flatten()` make
#   `(B n, V)` and `(B n,)` of them.
# * *"expected scalar type Long"*: the second argument of the cross-entropy are the numbers of the words, not vectors.
# * *The value is right and the gradient is not*: is there a `.detach()` or a `torch.no_grad()` on the way from the
#   network to the loss?
#
# </details>
#
# **Yours and the mistaken one, on a small network**: how much does each teach its weights?

# %%
torch.manual_seed(0)
network = Preconditioned(MLP(2, width=32), schedule, X0())


def places(x, t):
    """The network, one word at a time: enough for a demonstration."""
    return network(x.flatten(0, 1), t.repeat_interleave(x.shape[1])).view_as(x)


places.schedule = schedule
toy = torch.randn(6, 2, generator=seeded(8))                    # six words in the plane
numbers = torch.randint(6, (32, 4), generator=seeded(9))
z = torch.randn(32, 4, 2, generator=seeded(10))
read_prediction = my_rounding_loss(places, numbers, toy, z, torch.full((32,), 0.5))
read_start = nf.cross_entropy(((toy[numbers] + 0.1 * z) @ toy.T).flatten(0, 1), numbers.flatten())
pull = torch.autograd.grad(read_prediction, list(network.parameters()), allow_unused=True)
print(f"read from the prediction: loss {read_prediction:.3f}, gradient {sum(g.norm() for g in pull if g is not None):.3f}")
print(f"read from the start:      loss {read_start:.3f}, does it reach the network? {read_start.requires_grad}")
assert not read_start.requires_grad and any(g is not None and g.norm() > 0 for g in pull)

# %% [markdown]
# The mistaken loss even looks better on a screen. It just has nothing to do with the model.
#
# *We* avoid the whole question, as chapter 10 did: two stages. An autoencoder learns to read and to write, it is frozen,
# and then the diffusion is trained on a space that does not move.

# %% [markdown]
# ## 2 · Sentences as points
#
# Our sentences are examples from a dictionary (WordNet), lower-case, four to sixteen words. A sentence becomes a row of
# sixteen word numbers, where $-1$ stands for *no word*. So the length needs no machinery of its own: *no word* is one
# more thing that a place can say, and what comes after the first one is dropped.

# %%
train, test = data.sentences("train"), data.sentences("test")
print(f"{len(train):,} sentences to learn from, {len(test):,} held out, {len(vocabulary):,} words")
numbers = text.tokens(test)                                     # (1412, 16)
print(test[0], numbers[0].tolist(), sep="\n")
assert [text.sentence(row) for row in numbers] == test          # nothing is lost

# %% [markdown]
# The encoder is a small transformer. Words enter by their fixed MiniLM vectors; sixteen vectors of 32 numbers come out,
# and we lay them on a sheet of the shape $(32, 4, 4)$, as if a sentence were a tiny picture with 32 channels. The decoder
# goes back and gives, for each place, a score for every word and for *no word*: inner products with the same fixed
# vectors. All places are written at once. One line of its training matters most, and you can guess it from the last
# section: **noise is added to the latents**, of a random size, before they are decoded. What a diffusion model makes is
# never exact, and the decoder had better be used to it. (The command `course train sentence_autoencoder` trains it anew;
# the cell prints how long that took.) **Do held-out sentences come back?**

# %%
def shipped(name):
    """A model that comes with the course, and how long it was trained."""
    made = recipes.manifest()[name]
    print(f"{name}: {made['steps']:,} of {made['full_steps']:,} training steps, {made['train_seconds'] / 60:.0f} min, "
          f"{made['parameters']:,} weights")
    return recipes.load(name, device)


autoencoder = shipped("sentence_autoencoder")
latents = encode_all(autoencoder, numbers.to(device))                                           # (1412, 32, 4, 4)
right, whole = text.accuracy(autoencoder.words(latents).cpu(), numbers)
print(f"{latents[0].numel()} numbers a sentence instead of {16 * 128}; std {latents.std():.3f}")
print(f"of held-out words {right:.2%} come back, of whole sentences {whole:.1%}")

# %% [markdown]
# The second number is the one that counts, and the harder one: a sentence of ten words comes back whole only if all ten
# do. Even 99 % of the words would mean only $0.99^{10}\approx 90\%$ of such sentences.
#
# **What kind of code is this?** Three tests: words in a random order, words at random from the vocabulary, and a
# sentence of yours (if the vocabulary lacks one of your words, the error names it).

# %%
def round_trip(sentences):
    rows = text.tokens(sentences)
    return rows, autoencoder.words(encode_all(autoencoder, rows.to(device))).cpu()


def shuffled(sentence, seed=0):
    return " ".join(random.Random(seed).sample(sentence.split(), len(sentence.split())))


known = text.vocabulary().words
noise_text = [" ".join(random.Random(i).choices(known, k=10)) for i in range(300)]
for name, some in (("real", test[:300]), ("shuffled", [shuffled(s) for s in test[:300]]), ("random words", noise_text)):
    right, whole = text.accuracy(*round_trip(some)[::-1])
    print(f"{name:12} words {right:.1%}, sentences {whole:.1%}, e.g.\n    {some[1]}")
mine = "the old sailor never told his story twice"
print("yours:", text.sentence(round_trip([mine])[1][0]))

# %% [markdown]
# Nonsense comes back as well as sense: the code is one of *words in their order*, not of
# what a sentence means. It was trained so: in half of its training sentences random words stand in for real ones, which is
# what makes rare words come back. Remember it for section 6. *Knowing which sentences are sentences* is left to the
# diffusion model.
#
# **How exact must a diffusion model be?** We add noise to the latents before decoding, and compare with rounding raw word
# vectors, which have four times as many numbers to be read from.
#
# **Prediction 12.2.** The numbers of a latent have the standard deviation 1. How large may the noise on each of them be
# before half of the held-out *sentences* have at least one word wrong?
#
# * **a**: about 0.1: a sentence has many words, and each must be told from thousands of others,
# * **b**: about 1, as large as the signal,
# * **c**: about 10, for the decoder is a large network and sees the whole sentence.

# %% predict="12.2"
predict("12.2", "b")

# %%
levels_of_noise = torch.linspace(0, 2, 9)
curves = {"latents: words": [], "latents: whole sentences": [], "raw word vectors": []}
rows = numbers[:300]
for noise in progress(levels_of_noise):
    noisy = latents[:300] + noise * torch.randn(300, 32, 4, 4, generator=seeded(11)).to(device)
    right, whole = text.accuracy(autoencoder.words(noisy).cpu(), rows)
    exact = vocabulary[rows[rows >= 0][:600]]
    found = my_rounding(exact[None] + noise * torch.randn(exact[None].shape, generator=seeded(12)), vocabulary)
    for curve, value in zip(curves.values(), (right, whole, (found[0] == rows[rows >= 0][:600]).double().mean().item())):
        curve.append(value)

figure, ax = plt.subplots(figsize=(8, 3))
for name, look in plotting.looks(list(curves)).items():
    ax.plot(levels_of_noise, curves[name], **look, label=name)
ax.set(xlabel="noise, in units of the signal", ylabel="share that comes back", ylim=(0, 1.03))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
reveal("12.2")

# %% [markdown]
# *Shares of words and sentences that come back, against the noise on the latents: flat at first, then both fall, the
# whole sentences earlier and more steeply; the green curve of the raw word vectors falls later.*
#
# Read the figure from right to left, as a sampler comes down: first no sentence can be read, then within a short stretch
# around a noise of the size of the signal, $\sigma/\alpha\approx1$, the sentences appear, and in the rest of the way
# hardly anything changes. This is very unlike pictures, where the last steps add the texture. Two lessons: a diffusion model of
# text need not be exact to the last digit, and its errors at *high noise*, where the words are chosen, cannot be mended
# later.

# %% [markdown]
# ## 3 · A perfect diffusion model of a list
#
# **Simplest case first**: data that are a list of $N$ points $z_1,\dots,z_N$ (latents of sentences, say), all equally
# likely. Then no training is needed. Given $x_t$, the chance that it came from $z_k$ is, by Bayes' rule, proportional to
# the density of $x_t$ around $\alpha_tz_k$, and the best guess is the mean with these chances:
#
# $$D(x,t) = \sum_{k} r_k\,z_k, \qquad
# r_k = \frac{e^{-\|x-\alpha_tz_k\|^2/2\sigma_t^2}}{\sum_j e^{-\|x-\alpha_tz_j\|^2/2\sigma_t^2}} . \tag{12.5}$$
#
# Equation (12.3) was this for $N=2$. The formula is also what *every* training set asks of its network: the denoising
# loss over a list of training examples has exactly (12.5) as its minimiser.
#
# **Exercise 12.4 · ●●○ · 12 min · eq. (12.5)**
#
# Write `my_memory(x, t, schedule, points)`. A trap lies in the exponents: with 512 numbers a sentence, they are of the
# order of minus hundreds or thousands, and `exp` of that is 0. Use `.softmax`, which subtracts the largest one first.
# `per_row(schedule.alpha(t), X)` is $\alpha_t$, as one number or of the shape `(B, 1)`.

# %% exercise="12.4"
def my_memory(x, t, schedule, points):                          # (B, ...); () or (B,); (N, ...) -> (B, ...)
    X, Z = x.flatten(1), points.flatten(1)                                                      # (B, d), (N, d)
    alpha, sigma = per_row(schedule.alpha(t), X), per_row(schedule.sigma(t), X)
    ### BEGIN SOLUTION three lines: squared distances (B, N), weights, their mean in the shape of x
    squared = alpha**2 * torch.cdist(X / alpha, Z).square()
    r = (-squared / (2 * sigma**2)).softmax(1)
    return (r @ Z).view_as(x)
    ### END SOLUTION


# %% check="12.4"
# NBVAL_CHECK_OUTPUT
my_memory = exercise("12.4", my_memory)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN*: somewhere all weights are 0 and are divided by their sum. Take the softmax of the exponents, not a quotient of
#   exponentials.
# * *Shapes do not match*: `X[:, None] - Z` is `(B, N, d)`. With an alpha of the shape `(B, 1)`, `alpha * Z` has the wrong
#   shape; since $\|X-\alpha Z\|=\alpha\,\|X/\alpha-Z\|$, you can divide `X` by it instead.
#
# </details>
#
# Yours must agree with the library's mixture of very narrow Gaussians:

# %%
points = torch.randn(6, 2, generator=seeded(13), dtype=torch.float64)
x = torch.randn(50, 2, generator=seeded(14), dtype=torch.float64)
for t in torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64):
    narrow = GaussianMixture(points, 1e-5).denoiser(schedule)
    assert torch.allclose(my_memory(x, t, schedule, points), narrow(x, t), atol=1e-6)           # eq. (12.5)

# %% [markdown]
# **Prediction 12.3.** We take the latents of 2,000 training sentences, and your denoiser, which is exact for them: the
# best diffusion model of these data that there can be. We sample it with thirty steps and decode. What does it write?
#
# * **a**: new sentences in the style of the old ones,
# * **b**: blends of two or three of the old sentences,
# * **c**: the old sentences, word for word.

# %% predict="12.3"
predict("12.3", "c")

# %%
class Memory:
    """The exact denoiser of a list of latents."""

    def __init__(self, points):
        self.points, self.schedule = points, schedule

    def __call__(self, x, t, cond=None):
        return my_memory(x, t, self.schedule, self.points)


def write(z):
    """Latents as sentences."""
    return [text.sentence(row) for row in autoencoder.words(z).cpu()]


listed = train[:2000]
points = encode_all(autoencoder, text.tokens(listed).to(device))
perfect = Memory(points)
x_T = prior(perfect, (200, 32, 4, 4), seeded(15)).to(device)
samples = last(dpm_solver_pp, perfect, x_T, log_snr_uniform(30, schedule)).x
remembered = write(samples)
for sentence in remembered[:6]:
    print("in the list " if sentence in listed else "not in the list", "|", sentence)
print(f"found in the list, word for word: {text.share_found(remembered, listed):.1%} of {len(remembered)}")

# %%
reveal("12.3")

# %% [markdown]
# Flawless sentences, and worthless. **The perfect model of a finite set repeats it.** All
# that a diffusion model ever invents, in words or in pictures, it owes to its network's *failure* to reach (12.5): a
# network of limited size and training answers smoothly between the examples. So no test of quality is complete without
# the question whether the samples are copies. We shall ask it below.
#
# The memory is good for one more thing. Its diffusion has no error, so what is lost, the *autoencoder* loses. **If the
# decoder gets worse, how do the samples follow?** To make it worse, we take channels of the latent away (they are set to
# 0 before decoding), and compare the share of the list's sentences that come back with the share of samples that are in
# the list.

# %%
rows = text.tokens(listed)
kept, back, found = [32, 28, 26, 24, 22, 20, 16], [], []
for k in progress(kept):
    cut = (torch.arange(32, device=device) < k).view(1, 32, 1, 1)
    back.append(text.accuracy(autoencoder.words(points[:400] * cut).cpu(), rows[:400])[1])
    found.append(text.share_found(write(samples * cut), listed))

figure, ax = plt.subplots(figsize=(5.4, 3.8))
ax.plot([0, 1], [0, 1], color=plotting.TRUTH, lw=3)
ax.plot(back, found, "o", ms=6, color=plotting.ESTIMATE)
for k, x, y in zip(kept, back, found):
    if k in (32, 24, 16):
        ax.annotate(f"{k} channels", (x, y), (12, -4) if x < 0.5 else (-14, 0), textcoords="offset points", fontsize=9,
                    ha="left" if x < 0.5 else "right", va="center")
ax.set(xlabel="sentences that come back", ylabel="samples that are in the list", xlim=(-0.03, 1.05), ylim=(-0.03, 1.08))
plt.show()

# %% [markdown]
# *Share of samples that are sentences of the list against share of sentences that come back, one dot for each number of
# channels kept: the dots lie along the grey diagonal, from the upper right corner down to the lower left one.*
#
# The claim of this chapter in one line: with a perfect diffusion model, **the samples are as good as the autoencoder
# reconstructs, and no better**. A real diffusion model can only add errors of its own.

# %% [markdown]
# ## 4 · A trained one
#
# Now a network: the transformer for images of the course (`DiT`) on sheets of $(32,4,4)$, one token for each place,
# trained on the latents of all training sentences with the loss of every other chapter. (Anew:
# `course train sentence_latent_teacher`.)

# %%
teacher = shipped("sentence_latent_teacher")

# %% [markdown]
# **Are the samplers of the other chapters really unchanged?** The same four starts under DDIM, the second-order solver, and
# the ancestral sampler with its own noise. The first two follow the same paths, so they should write the same sentences, but
# for a word here and there that lies on the border between two.

# %%
x_T = prior(teacher, (4, 32, 4, 4), seeded(16)).to(device)
generator = torch.Generator(device).manual_seed(17)
by = {"ddim": final(teacher, x_T, log_snr_uniform(60, schedule), ddim),
      "dpm_solver_pp": last(dpm_solver_pp, teacher, x_T, log_snr_uniform(20, schedule)),
      "ancestral": final(teacher, x_T, log_snr_uniform(60, schedule), ancestral, generator)}
for name, result in by.items():
    print(f"{name}, {result.nfe} evaluations")
    for sentence in write(result.x):
        print("   ", sentence)
same = autoencoder.words(by["ddim"].x) == autoencoder.words(by["dpm_solver_pp"].x)
print(f"places where DDIM and the second-order solver agree: {same.double().mean():.0%}")

# %% [markdown]
# They run unchanged, and the first two agree but for three words. (The places without a word are counted in the share.) What
# they write is another matter: words in something like an order, and no sentence. The decoder is not to blame, for
# it gives 99.9 % of real sentences back. Nor is the sampler: with the memory the second-order one wrote flawlessly. What is
# missing is in the network, whose training, as the line above prints, stopped long before its end.
#
# **When are the words chosen?** One of these starts on its way, read at every few steps from the guess
# $\hat x_0=D(x_t,t)$:

# %%
ts = log_snr_uniform(20, schedule)
states = [x_T, *dpm_solver_pp(teacher, x_T, ts)]
with torch.no_grad():
    for x, t in list(zip(states, ts))[4:18:2]:
        ratio = schedule.sigma(t) / schedule.alpha(t)
        print(f"sigma/alpha = {ratio:6.2f}   {write(teacher(x, t)[:1])[0]}")

# %% [markdown]
# Compare with the figure of section 2. While the noise is many times the signal, the guess is a mean of much, and what can
# be read in it is little words, "the get the get". From $\sigma/\alpha\approx3$ on the length and most of the words stand; at a
# noise of the size of the signal two words are still open, and from 0.14 on nothing changes any more. None of these late
# changes mends the sentence: what was wrong with it at high noise stayed wrong.
#
# **Twenty sentences, not selected**, and the honest questions: are they sentences, and are they new? For each, the share
# of its words that it has in common with its nearest training sentence (the one with the most words in common, for
# their length) is printed as well.

# %%
N = 500 if full else 200
begin = time.perf_counter()
x_T = prior(teacher, (N, 32, 4, 4), seeded(18)).to(device)
result = last(watched(dpm_solver_pp), teacher, x_T, log_snr_uniform(20, schedule))
sampled = write(result.x)
seconds = time.perf_counter() - begin
bags = [Counter(s.split()) for s in train]


@cache
def nearest(sentence):
    """The training sentence with most words in common, and their share in the words of both."""
    mine = Counter(sentence.split())
    shares = [2 * (mine & bag).total() / max(mine.total() + bag.total(), 1) for bag in bags]
    best = max(range(len(train)), key=shares.__getitem__)
    return train[best], shares[best]


for sentence in sampled[:20]:
    print(f"{nearest(sentence)[1]:4.0%}  {sentence}")

# %%
for sentence in sampled[:3]:
    print("sample ", sentence, "\nnearest", nearest(sentence)[0], "\n")
for name, some in (("samples", sampled), ("held-out sentences", test)):
    print(f"{name}: {sum(nearest(s)[1] for s in some[:20]) / 20:.0%} of the words in common with the nearest training sentence")
print(f"of {N} samples, {text.share_found(sampled, train):.1%} are in the training set word for word")

# %% [markdown]
# *Are they new?* The samples would be copies if they were found word for word, or if they were much nearer to the training
# set than held-out sentences are. Neither is so: none is found, and the twenty shown are rather farther away than twenty
# held-out ones. But nonsense, too, is far from every sentence, so this is no merit by itself.
#
# *Are they sentences?* Read all twenty: hardly one is. "the movie were grabbed" comes nearest. What the network has learnt is
# the length, the words and how often each comes, and short runs that fit, such as "the claim lasted what he" and
# "the obligation in". That is a piece of a grammar; but how large a piece? Words on a page are easy to be kind to, so
# we want a number.

# %% [markdown]
# ## 5 · How good are they? A number, and how to be deceived by it
#
# A *language model of pairs* (bigrams) says how likely a word is after the one before it, $p(w\,|\,u)$. We count it in the
# held-out sentences, which neither the autoencoder nor the diffusion model has seen. The beginning and the end of a
# sentence are marked by the empty word "", so that $p(w\,|\,\text{""})$ is how likely a sentence begins with $w$, and
# $p(\text{""}\,|\,u)$ how likely it ends after $u$. The surprise of a word is $-\ln p$; **perplexity** is the exponential
# of the mean surprise, over all words and ends of all sentences:
#
# $$\mathrm{perplexity} = \exp\Big(\frac1M\sum_{i=1}^M -\ln p(w_i\,|\,w_{i-1})\Big) . \tag{12.6}$$
#
# If every word were one of 50 equally likely ones, it would be 50: *among how many words one would have to guess*.
#
# **Exercise 12.5 · ●●○ · 12 min · eq. (12.6)**
#
# Write `my_perplexity(sentences, probability)`, where `probability((u, w))` is $p(w\,|\,u)$ for two strings. For the
# sentence "good day" the pairs are `("", "good")`, `("good", "day")`, `("day", "")`. Take the mean once, over the pairs of
# *all* sentences.

# %% exercise="12.5"
def my_perplexity(sentences, probability):                      # list of strings, function of a pair -> number
    ### BEGIN SOLUTION four or five lines: the pairs of each sentence, their surprises, exp of the mean
    surprises = []
    for sentence in sentences:
        padded = ["", *sentence.split(), ""]
        surprises += [-math.log(probability(pair)) for pair in pairwise(padded)]
    return math.exp(sum(surprises) / len(surprises))
    ### END SOLUTION


# %% check="12.5"
# NBVAL_CHECK_OUTPUT
my_perplexity = exercise("12.5", my_perplexity)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"missing 1 required positional argument"* or *"unhashable"*: `probability` takes *one* argument, a tuple of two
#   strings.
# * *Nearly right*: how many pairs has a sentence of two words? And of none?
#
# </details>
#
# **Prediction 12.4.** Five texts under this model: real sentences, the same with their words shuffled, the samples of our
# network, the first three words of real sentences, and sentences without any word at all. Which has the *lowest*
# perplexity? (The table adds three more texts, to compare.)
#
# * **a**: the real sentences, since the model was counted on sentences like them,
# * **b**: the network's samples, for they keep to common words,
# * **c**: the empty sentences.

# %% predict="12.4"
predict("12.4", "c")

# %%
judge = text.NGrams(test, len(vocabulary), order=2)
real = train[:1000]
assert abs(my_perplexity(real, judge.probability) / judge.perplexity(real) - 1) < 1e-6          # eq. (12.6)
common = [word for word, _ in Counter(" ".join(train).split()).most_common(8)]
little = [" ".join(random.Random(i).choices(common, k=7)) for i in range(1000)]
texts = {"real": real, "real, shuffled": [shuffled(s) for s in real], "sampled by the network": sampled,
         "sampled from the memory": remembered, "first three words of real": [" ".join(s.split()[:3]) for s in real],
         "random words": noise_text, "eight commonest words": little, "empty": [""] * 1000}
print(f"{'':26} perplexity   (shuffled)   mean length   in the training set")
for name, some in texts.items():
    values = [my_perplexity(these, judge.probability) for these in (some, [shuffled(s, seed=1) for s in some])]
    print(f"{name:26} {values[0]:10.0f} {values[1]:12.0f} {text.mean_length(some):13.1f} {text.share_found(some, train):21.1%}")

# %%
reveal("12.4")

# %% [markdown]
# Perplexity alone misleads: it is fooled by silence. It rewards what is *probable*, and real text is not the most probable
# one, only the most typical. Even the eight commonest words of the language in no order at all, "the of he a", beat real
# sentences by far. So it proves nothing that the samples have a value below that of "real, shuffled". Read each row as a
# whole:
#
# * Is the *length* that of real sentences? For the samples, yes; the first three words, and silence, buy their low values
#   with it.
# * What is *order* worth? The second column scores the same sentences with their words shuffled. For real text that nearly
#   doubles the perplexity, for text without any order it changes nothing. For the network's samples it is a third more: they
#   have some order, clearly less than real text, and that is the piece of a grammar that we read above.
# * Are they *copies*? The last column tells the memory's score, as good as that of real text, from an honest one. The
#   network's samples are no copies, and they are clearly worse.
#
# The judge is small, too: a model of pairs sees no sentence as a whole, and most pairs of words it has never met. It can
# tell bad from better, not good from excellent.

# %% [markdown]
# ## 6 · Between two sentences
#
# In a continuous space one can walk from one sentence to another. The straight way goes through the latents,
# $(1-\lambda)z_a+\lambda z_b$. A second one goes through the noise, as in chapter 03: the ODE, run upwards, takes each
# latent to its noise; there we walk, and the ODE takes us down again. Between two noises one must not walk straight: the
# middle of two independent normal vectors is too short by $\sqrt2$, and the model never saw such noise. On the sphere,
#
# $$x_\lambda = \frac{\sin((1-\lambda)\theta)}{\sin\theta}\,x_a + \frac{\sin(\lambda\theta)}{\sin\theta}\,x_b, \qquad
# \cos\theta=\frac{x_a\cdot x_b}{\|x_a\|\,\|x_b\|}, \tag{12.7}$$
#
# the length stays between those of the ends. **What is written along both ways?**

# %%
def on_sphere(a, b, share):
    """Between two noises (C, H, W), on the sphere through both."""
    theta = torch.acos(nf.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    return (torch.sin((1 - share) * theta) * a + torch.sin(share * theta) * b) / torch.sin(theta)


pairs = [(test[0], test[5]), (test[2], test[9]), (test[12], test[14])]
ends = encode_all(autoencoder, text.tokens([s for pair in pairs for s in pair]).to(device))
with torch.no_grad():
    starts = encode(teacher, ends, log_snr_uniform(20, schedule), rtol=1e-3, atol=1e-3)
again = last(dpm_solver_pp, teacher, starts, log_snr_uniform(40, schedule)).x
back = text.accuracy(autoencoder.words(again).cpu(), autoencoder.words(ends).cpu())[0]
print(f"up to the noise and down again: {back:.0%} of the words are the same")
middle = on_sphere(starts[0], starts[1], 0.5)
print(f"lengths: ends {starts[0].norm():.1f} and {starts[1].norm():.1f}, on the sphere {middle.norm():.1f}, "
      f"straight {((starts[0] + starts[1]) / 2).norm():.1f}")

# %%
shares = torch.linspace(0, 1, 7).tolist()


def walk(i, way):
    """Seven sentences from one end of pair i to the other."""
    a, b = (starts if way == "through the noise" else ends)[2 * i:2 * i + 2]
    if way == "straight":
        return write(torch.stack([torch.lerp(a, b, share) for share in shares]))
    x = torch.stack([on_sphere(a, b, share) for share in shares])
    return write(last(dpm_solver_pp, teacher, x, log_snr_uniform(40, schedule)).x)


walks = {way: [walk(i, way) for i in range(len(pairs))] for way in ("straight", "through the noise")}
for way in walks:
    print(way)
    for share, sentence in zip(shares, walks[way][0]):
        print(f"   {share:4.2f}  {sentence}")

# %% [markdown]
# (First a look at the lengths: pure noise of 512 numbers has the length $\sqrt{512}\approx22.6$, give or take 0.7, and the
# noises of these two real sentences are clearly shorter. With an exact model they would not be. So a sampler that starts
# from pure noise hardly ever starts where this model keeps its real sentences: one more sign of what it lacks.)
#
# On the straight way, in the pair printed above, the sentence does not change at all, then tips over within a short stretch;
# in the very middle stands the one with a word or two of the other, or of neither. That is no failure of the autoencoder
# but a consequence of its virtue: a decoder that forgives noise reads every point near a sentence as that sentence. And the
# middle between two codes of *words* is, if anything, words, not the meaning in between. Through the noise the diffusion
# model is asked, at every point, for a likely sentence. The change is spread over the whole way, a few words at each step;
# but in the middle there are words of both ends in no order, no better than the samples above. A slider to look at it by
# hand:

# %%
def page(pair, way, share):
    """The two ends in black and the sentence in between in orange."""
    figure = plt.figure(figsize=(7.5, 1.2))
    i = int(pair) - 1
    lines = ((0.82, pairs[i][0], plotting.INK), (0.5, walks[way][i][shares.index(share)], plotting.ESTIMATE),
             (0.18, pairs[i][1], plotting.INK))
    for y, sentence, color in lines:
        figure.text(0.02, y, sentence, color=color, va="center", fontsize=11)
    return figure


flipbook(page, pair=["1", "2", "3"], way=list(walks), share=shares,
         alt="Three lines of text: above and below, in black, the two ends of a pair; between them, in orange, the sentence at that share.")

# %% [markdown]
# ## 7 · Closing task: fill the gap
#
# A model of whole sentences, trained without any condition, can be asked to *complete* one. The idea is older than guidance
# and needs no training (Song et al., 2021, used it on pictures): some places are known, a mask says which. Before each step
# from $t$ to $s$, put what is known into its places, **as noisy as the rest is at that time**,
#
# $$x_t \leftarrow \begin{cases}\alpha_t\,z_{\text{known}} + \sigma_t\,\varepsilon & \text{where it is known}\\
# x_t & \text{elsewhere,}\end{cases} \tag{12.8}$$
#
# and then take the step for all places together. The denoiser sees the known words in every step, and, as in (12.3), its
# guess at each place listens to all the others.
#
# **Exercise 12.6 · ●●● · 15 min · eq. (12.8)**
#
# Write `my_filled_step(D, x, t, s, known, mask, z)`: replace, then one `ddim(D, x, t, s)`. Think about the level of noise
# before you write, and about *when* to replace: what would the other places know if you did it after the step?

# %% exercise="12.6"
def my_filled_step(D, x, t, s, known, mask, z):                 # x, known, z (B, ...); mask (B, ...) bool -> (B, ...)
    ### BEGIN SOLUTION three lines: the levels, the replaced state, the step
    alpha, sigma = levels(D, x, t)
    x = torch.where(mask, alpha * known + sigma * z, x)
    return ddim(D, x, t, s)
    ### END SOLUTION


# %% check="12.6"
# NBVAL_CHECK_OUTPUT
my_filled_step = exercise("12.6", my_filled_step)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Shapes do not match*: `levels(D, x, t)` gives both levels in a shape that multiplies `x` and `known` alike.
# * *Nearly right*: at which of the two times is the state that `ddim(D, x, t, s)` starts from?
# * *The mask seems upside down*: `torch.where(mask, a, b)` takes `a` where the mask is True.
#
# </details>
#
# First the perfect memory, of 500 sentences in the space of raw word vectors, where every place is a word and nothing
# else. We keep some words of forty sentences and let the rest be filled. **In what share of cases is the result a
# sentence that the memory knows?** (With a perfect use of what is given, it would be 100 % in every line.)

# %%
def fill(D, known, mask, seed):
    """Places of the mask (B, ...) kept, the others filled, in twenty steps."""
    generator, ts = seeded(seed), log_snr_uniform(20, schedule)
    x = schedule.sigma(schedule.t_max).item() * torch.randn(known.shape, generator=generator).to(device)
    with torch.no_grad():
        for t, s in pairwise(ts):
            x = my_filled_step(D, x, t, s, known, mask, torch.randn(known.shape, generator=generator).to(device))
    return torch.where(mask, known, x)


few = text.tokens(train[:500])
table = torch.cat([vocabulary, torch.zeros(1, 128)]).to(device)                                 # the last is "no word": -1 finds it
memory = Memory(table[few.to(device)])                                                          # (500, 16, 128)
some = few[(few >= 0).sum(1) >= 7][:40]                         # forty sentences of at least seven words
place = torch.arange(16, device=device)
for name, keep in (("the first two words", place < 2), ("the first four words", place < 4), ("the first six words", place < 6),
                   ("all but the third and fourth", (place != 2) & (place != 3))):
    known = table[some.to(device)]
    filled = my_rounding(fill(memory, known, keep.view(1, 16, 1).expand_as(known), 19), table).cpu()
    made = [text.sentence(row) for row in torch.where(filled == len(vocabulary), -1, filled)]
    print(f"{name + ' given:':36} {text.share_found(made, train[:500]):4.0%} known sentences, e.g.\n    {made[0]}")

# %% [markdown]
# A gap of two words is always filled well, two given words almost never lead to a sentence, even with a denoiser without any
# error. For the replacement is an
# *approximation*: $D$ is shown what is known only as noisy as everything else, so in the noisy part of the way, where the
# words are chosen, two given words hardly count against fourteen places that are free. (Better ways go up and down
# between times, or guide by what is known.)
#
# Now the trained model, in the latent space. There the encoder has mixed the places, so the latents of the given words may
# also know a little of what is hidden. Two words of each held-out sentence are taken away:

# %%
hidden = test[7:12]
known = encode_all(autoencoder, text.tokens(hidden).to(device))
keep = ((place != 2) & (place != 3)).view(1, 1, 4, 4).expand_as(known)
for sentence, new in zip(hidden, write(fill(teacher, known, keep, 20))):
    w = sentence.split()
    print(" ".join([*w[:2], "___ ___", *w[4:]]), f"({' '.join(w[2:4])})\n    -> {new}")

# %% [markdown]
# What was given stays, and two words appear in the gap; but they fit in none of the five. The step is right, the
# memory has shown that. What it asks, the model cannot answer: it fills a gap as well as it writes.

# %% [markdown]
# ## The ledger

# %%
floor = my_perplexity(real, judge.probability)
row = ledger.Row("dpm_solver_pp (live)", "sentences", result.nfe, result.depth, N, seconds, "this machine", "bigram perplexity",
                 my_perplexity(sampled, judge.probability), floor, N, 1, weights="sentence_latent_teacher")
committed = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv") if r.dataset == "sentences"]
ledger.table([row, *committed], "method data NFE seconds batch metric value floor n status").show()

# %% [markdown]
# One seed, and a metric that must not be read alone; its "floor" is the perplexity of real sentences. To be below it would be
# no merit; to be as far above it, at the right length, is a fault. Nor is the depth a gain here: a language model that
# writes word after word needs about eight rounds for such a sentence, seven words and the end, each of them cheap, and it
# would be the better writer. Twenty rounds can pay off only for texts longer than twenty words.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | words drawn independently | $q=p(a)p(b)$; the loss is the mutual information; for $K$ phrases without common words $\ln K$ |
# | two phrases in a plane | $D=m\tanh(\alpha\,m\cdot x/\sigma^2)$ for $m=(1,1)$: every place's guess listens to all places |
# | rounding | the nearest vector; exact vectors return their words |
# | rounding loss | cross-entropy read from the prediction $D(x_t,t)$, not from the start |
# | autoencoder | sixteen vectors, "no word" for the length, noise on the latents in training |
# | perfect model of a list | $D=\sum_kr_kz_k$, softmax of $-\|x-\alpha z_k\|^2/2\sigma^2$: it repeats the list |
# | perplexity | exp of the mean surprise; beside the length, and beside copies |
# | completing | put $\alpha_tz_{\text{known}}+\sigma_t\varepsilon$ in before each step |
#
# * Discrete things need no discrete diffusion: an encoder, a decoder, and the samplers you have.
# * With a perfect diffusion model, samples are as good as the autoencoder reconstructs. With a real one, the words are
#   chosen at high noise, and there the model must be good. Ours is not yet.
#
# **Limits.** Thirteen thousand short sentences are very few to learn a language from, and the diffusion model is small and
# was trained for a part of its steps only, as section 4 prints; hardly one of its samples is a sentence. Whether longer
# training would mend that, or more sentences, this chapter has not measured. The autoencoder codes words, not meanings; one that
# compresses more would give diffusion an easier task and make more mistakes of its own (chapter 10's balance again). A
# judge of pairs is a crude one. And at this writing, the best writers of text are models that go word by word: what
# diffusion offers for text is filling gaps anywhere, control, and a number of rounds that does not grow with the length.
#
# **What is still open.** Here nobody could *ask* for a sentence. In pictures one can: words as conditions, in a latent
# space, fast enough to follow the typing. That is where the course goes next.

# %% [markdown]
# ## Further reading
#
# * X. L. Li, J. Thickstun, I. Gulrajani, P. Liang, T. Hashimoto, *Diffusion-LM improves controllable text generation*, 2022,
#   arXiv:2205.14217: diffusion on learnt word vectors, the rounding loss.
# * S. Dieleman et al., *Continuous diffusion for categorical data*, 2022, arXiv:2211.15089: cross-entropy as the only loss,
#   and which noise levels matter for words.
# * J. Lovelace, V. Kishore, C. Wan, E. Shekhtman, K. Q. Weinberger, *Latent diffusion for language generation*, 2023,
#   arXiv:2212.09462: sentences in the latent space of an autoencoder, as here.
# * T. Chen, R. Zhang, G. Hinton, *Analog bits: generating discrete data using diffusion models with self-conditioning*, 2022,
#   arXiv:2208.04202.
# * J. Austin, D. D. Johnson, J. Ho, D. Tarlow, R. van den Berg, *Structured denoising diffusion models in discrete
#   state-spaces*, 2021, arXiv:2107.03006: the other way, noise that replaces words by words.
# * Y. Song et al., *Score-based generative modeling through stochastic differential equations*, 2021, arXiv:2011.13456:
#   filling gaps by replacing what is known.
