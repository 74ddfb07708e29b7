# ---
# course:
#   title: Score matching
#   minutes: 90
#   needs: [0]
#   shows: three losses learn one thing, the score of data plus noise, and noise levels make it useful
# ---

# %% [markdown]
# # 01 · Score matching
#
# After this chapter you can
#
# * **derive** and **implement** the score of a Gaussian and of a mixture (exercises 1.1 and 1.2),
# * **derive** three losses that learn a score without knowing the density, and **implement** two of them (1.3 and 1.4),
# * **predict** where a score vanishes, where its loss stops, and where learning it fails (predictions 1.1 to 1.4),
# * **implement** Tweedie's formula, which turns a score into a denoiser (1.5), and **measure** it on real pictures,
# * **transfer** all of this to a distribution that you have not met (1.6).
#
# Allow an hour and a half: 65 minutes for the exercises, the rest for reading.
#
# Chapter 00 used a denoiser and did not ask where it came from. Here is the answer, and the reason for the noise.

# %%
import math
import os
import time
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import nn

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import X0, Preconditioned, per_row, score
from course_lib.metrics import relative_l2, sliced_wasserstein
from course_lib.networks import MLP
from course_lib.schedules import VE, CosineVP
from course_lib.score_matching import (
    annealed_langevin,
    denoising_loss,
    denoising_score_loss,
    implicit_loss,
    langevin,
)
from course_lib.targets import GaussianMixture, ring, two_islands
from course_lib.training import train

plotting.style()
FULL = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
N = 20_000 if FULL else 4_000                                                                 # samples per measurement


def seeded(seed):
    return torch.Generator().manual_seed(seed)

# %% [markdown]
# ## A perfect score, and a wrong answer
#
# Two islands, far apart: 80 % of the data live on the left one, 20 % on the right one. Suppose that at every point $x$ we know
# the direction in which the logarithm of the density $p$ rises fastest, and how fast, both exactly. That vector is the **score**,
#
# $$ \nabla \log p(x). \tag{1.1} $$
#
# **Langevin dynamics** samples with it: walk a little uphill, add a little noise, repeat. No probability is ever computed. Its
# theory says that the walkers end up distributed as $p$. So let us start a cloud of them in the middle and walk 400 steps.

# %%
islands = two_islands()                                                                       # weights 0.8 and 0.2


def exact_score(mixture, x):                                                                  # (B, d) -> (B, d)
    x = x.detach().requires_grad_()
    return torch.autograd.grad(mixture.log_prob(x).sum(), x)[0]


def share_left(x):
    return (x[:, 0] < 0).float().mean().item()


x = 2 * torch.randn(N, 2, generator=seeded(0))
*_, walked = langevin(partial(exact_score, islands), x, size=0.02, steps=400, generator=seeded(1))
print(f"share on the left island: {share_left(walked):.2f}, should be 0.80")

# %%
def show_walkers(clouds, width=3.0):
    """One flat panel for each named cloud of points (N, 2), over the density of the islands."""
    _, axes = plt.subplots(1, len(clouds), figsize=(width * len(clouds), 0.6 * width))
    for (name, x), ax in zip(clouds.items(), axes):
        plotting.shaded(islands.log_prob, 3.8, ax)
        plotting.scatter(x[:250], ax, 3.8, f"{name}: {share_left(x):.0%} left")
        ax.set_ylim(-1.9, 1.9)
    plt.show()


show_walkers({"truth": islands.sample(N, seeded(2)), "exact score, Langevin": walked})

# %% [markdown]
# *Two panels of 250 orange dots over the grey density. Left, true samples: a crowded island and a sparse one. Right, the
# walkers: both islands have the right shape, but they are almost equally crowded.*
#
# Every arrow was right, the shapes are right, and the shares are wrong. A walker climbs the nearest island and does not see
# that the other is larger, because between the islands there is next to nothing to walk on. And this was the *exact* score; a
# network would have to learn it from data, and between the islands there are none. This chapter repairs both faults with one
# idea, **adding noise to the data**, and at its end the same walk gets the shares right.
#
# ## 1. The score
#
# Take the simplest density, one number from $\mathcal N(m, \tau^2)$:
#
# $$ \log p(x) = -\frac{(x - m)^2}{2\tau^2} - \log\bigl(\tau\sqrt{2\pi}\bigr)
#    \quad\Longrightarrow\quad \nabla\log p(x) = \frac{m - x}{\tau^2}. \tag{1.2} $$
#
# The normalising constant does not depend on $x$, so it drops out. That is what makes the score attractive: we may know a
# density only up to a constant, and in high dimension we never know the constant. In $d$ dimensions, with the same $\tau$ in
# each, $\log p(x) = -|x-m|^2/(2\tau^2) + \text{const}$, and (1.2) holds coordinate by coordinate.
#
# Check the sign in your head whenever you write a score: at $x = 1$ under $\mathcal N(0, 1)$ it is $-1$. It points *home*.
#
# **Exercise 1.1 · ●○○ · 5 min · eq. (1.2)**
#
# Each row of a batch $x$, of shape `(B, 2)` for points or `(B, 1, 8, 8)` for pictures, comes with its own standard deviation:
# `tau` has the shape `(B,)`. Dividing `x` by it directly would line up `(B,)` with the *last* axis of `x`, silently wrong
# whenever the sizes happen to fit. The course's helper `per_row(tau, x)` gives it the shape `(B, 1)` or `(B, 1, 1, 1)`.

# %% exercise="1.1"
def my_gaussian_score(x, m, tau):                                          # (B, ...), (...), (B,) -> (B, ...)
    ### BEGIN SOLUTION one line: eq. (1.2), with per_row(tau, x) in place of tau
    return (m - x) / per_row(tau, x) ** 2
    ### END SOLUTION

# %% check="1.1"
# NBVAL_CHECK_OUTPUT
my_gaussian_score = exercise("1.1", my_gaussian_score)

# %%
bell, points = GaussianMixture([[0.5, 0.0]], [0.8]), plotting.mesh(2.5, 9, torch.float32)


def home(x):
    return my_gaussian_score(x, torch.tensor([0.5, 0.0]), torch.full((len(x),), 0.8))


assert torch.allclose(home(points), exact_score(bell, points), atol=1e-5)                     # eq. (1.2)

ax = plotting.shaded(bell.log_prob, ax=plotting.panels(1, size=3.2)[0])
plotting.field(home, ax=ax, title="your score of one Gaussian", n=6, width=0.01)
plt.show()

# %% [markdown]
# *Arrows all around a grey bell point to its centre; they grow in proportion to the distance from it.*
#
# ## 2. The score of a mixture
#
# Data have more than one mode. Let $p(x) = \sum_k w_k\, p_k(x)$ with $p_k = \mathcal N(m_k, \tau_k^2 I)$. We use
# $\nabla p = p \,\nabla\log p$ twice, first backwards and then, for each component, forwards:
#
# $$ \nabla\log p(x) = \frac{\nabla p(x)}{p(x)} = \sum_k \frac{w_k\, p_k(x)}{p(x)}\, \nabla\log p_k(x)
#    = \sum_k r_k(x)\, \frac{m_k - x}{\tau_k^2},
#    \qquad r_k(x) = \frac{w_k\, p_k(x)}{\sum_j w_j\, p_j(x)}. \tag{1.3} $$
#
# The $r_k$ are positive and sum to 1: $r_k(x)$ is the probability that $x$ came from component $k$, now that we have seen $x$
# (Bayes' rule; its name is the *responsibility*). The score of a mixture is the average pull of its components, weighted by how
# likely each is to be responsible.
#
# **Exercise 1.2 · ●●○ · 10 min · eq. (1.3)**
#
# Compute the responsibilities. Far from the data every $p_k(x)$ is so small that it is rounded to 0, and $0/0$ is NaN. So stay
# with logarithms: a softmax, $\mathrm{softmax}(a)_k = e^{a_k}/\sum_j e^{a_j}$, divides safely, and adding the same number to
# all $a_k$ changes nothing. Put $a_k = \log\bigl(w_k\, p_k(x)\bigr)$, where
# $p_k(x) = (2\pi\tau_k^2)^{-d/2} \exp\bigl(-|x - m_k|^2/(2\tau_k^2)\bigr)$.

# %% exercise="1.2"
def my_mixture_score(x, means, tau, weights):                              # (B, d), (K, d), (K,), (K,) -> (B, d)
    d = x.shape[1]
    squared = (x[:, None] - means).square().sum(-1)                        # (B, K): |x - m_k|^2
    ### BEGIN SOLUTION two lines: a = log(w_k p_k) (B, K) in dimension d, then r, its softmax over the components
    a = weights.log() - d * tau.log() - squared / (2 * tau**2)
    r = a.softmax(dim=1)
    ### END SOLUTION
    return (r[..., None] * (means - x[:, None]) / tau[:, None] ** 2).sum(1)

# %% check="1.2"
# NBVAL_CHECK_OUTPUT
my_mixture_score = exercise("1.2", my_mixture_score)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"holds NaN"*: somewhere you took `exp` before dividing, or `log` of an `exp`. Only the softmax may exponentiate.
# * *"size of tensor a must match"*: `weights` and `tau` have the shape `(K,)`, `squared` has `(B, K)`. They combine without any
#   reshaping, the components being the last axis.
# * *Right for one point, wrong for several*: over which axis does your softmax sum?
#
# </details>
#
# For one Gaussian the arrow is as long as the way home, divided by $\tau^2$. It is tempting to remember this as "the score's
# length is the distance from the mode".
#
# **Prediction 1.1.** Two *equal* islands stand at $(-2, 0)$ and $(2, 0)$, each with $\tau = 0.5$. How long is the score exactly
# half-way, at the origin?
#
# * **a**: long: the nearest mode is 2 away, so $2/0.5^2 = 8$,
# * **b**: huge: the density is almost 0 there,
# * **c**: zero.

# %% predict="1.1"
predict("1.1", "c")

# %%
u = torch.linspace(-3.2, 3.2, 321)
line = torch.stack([u, torch.zeros_like(u)], 1)                                               # points on the axis
length = my_mixture_score(line, torch.tensor([[-2.0, 0], [2, 0]]), torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])).norm(dim=1)

_, ax = plt.subplots(figsize=(6.4, 3.2))
ax.plot(u, (u.abs() - 2).abs() / 0.25, color=plotting.SECOND, ls="--", label="folk story: distance to a mode / variance")
ax.plot(u, length, color=plotting.ESTIMATE, label="length of the score")
ax.set(xlabel="$x_1$", ylim=(0, 13))
ax.legend(loc="upper center")
plt.show()
print(f"at the origin: {length[160]:.3f}; 0.2 to the side: {length[170]:.2f}; the folk story says 8")

# %%
reveal("1.1")

# %% [markdown]
# *The two curves agree outside and near the modes; at the origin the dashed one has its peak of 8 while the score dives to 0.*
#
# The score is the slope of the log-density: zero on every summit, on every saddle, and at the bottom of every hollow. A length of
# zero does not mean that you have arrived.
#
# Does your function also follow the density of eight clouds on a ring, and where else must the score vanish, by the same argument?

# %%
circle = ring()
parameters = [p.float() for p in (circle.means, circle.stds + 0.35, circle.weights)]         # a little wider, to see more
wide = GaussianMixture(*parameters)
ax = plotting.shaded(wide.log_prob, ax=plotting.panels(1, size=3.2)[0])
plotting.field(lambda x: my_mixture_score(x, *parameters), ax=ax, title="your score of a ring", n=9, width=0.008)
plt.show()
assert torch.allclose(my_mixture_score(points, *parameters), exact_score(wide, points), atol=1e-4)         # eq. (1.3)

# %% [markdown]
# *Arrows point to the grey ring from inside and outside, and shrink to nothing at its empty centre, where there is only a dot.*
#
# At the centre eight equal pulls cancel: a hollow, the lowest place far and wide. On the ring the score vanishes on the eight
# summits and, between any two neighbours, on a saddle.
#
# ## 3. Learning a score without knowing it
#
# We have data, not a density. A network $s(x)$ (in this chapter $s$ is the learned score, in others an earlier time) should
# match the unknown score in the mean square,
#
# $$ J(s) = \tfrac12\, \mathbb E_{p}\, \bigl| s(x) - \nabla\log p(x) \bigr|^2
#    = \mathbb E_p \bigl[\tfrac12 |s|^2\bigr] - \mathbb E_p \bigl[ s \cdot \nabla\log p \bigr] + \text{const}. \tag{1.4} $$
#
# The constant, $\tfrac12\mathbb E|\nabla\log p|^2$, does not depend on $s$. Only the middle term asks for what we do not know.
# In one dimension: $p\,(\log p)' = p'$, and then integration by parts,
#
# $$ \mathbb E_p\bigl[s\,(\log p)'\bigr] = \int s(x)\, p'(x)\, dx = \underbrace{\bigl[s\,p\bigr]_{-\infty}^{\infty}}_{=\,0}
#    - \int s'(x)\, p(x)\, dx = -\mathbb E_p\bigl[s'(x)\bigr]. $$
#
# The bracket vanishes if $p$ falls faster than $s$ grows. The unknown density has left; only an average over data remains. In
# $d$ dimensions we do this for each coordinate, and the derivatives add up to the trace of the Jacobian $\partial s/\partial x$:
#
# $$ J(s) = \mathbb E_p\bigl[\tfrac12 |s(x)|^2 + \operatorname{tr} \tfrac{\partial s}{\partial x}(x)\bigr] + \text{const}
#    \qquad\textit{(implicit score matching, Hyvärinen 2005)}. \tag{1.5} $$
#
# Read it as two wishes: be small where the data are, and be *convergent* there, arrows pointing inwards (negative trace).
#
# **By hand.** For $\mathcal N(0, \tau^2)$ and $s(x) = -a x$ the loss is $\tfrac12 a^2\tau^2 - a$, smallest at $a = 1/\tau^2$: the
# score of (1.2), found without using the density. Does the course's loss see the same minimum?

# %%
tau = 0.7
x = tau * torch.randn(100_000, 1, generator=seeded(0))
for a in (1.0, 1 / tau**2, 3.0):
    loss = implicit_loss(lambda x, a=a: -a * x, x).item()
    print(f"a = {a:.2f}   implicit loss {loss:.3f}   by hand {a**2 * tau**2 / 2 - a:.3f}")
    assert abs(loss - (a**2 * tau**2 / 2 - a)) < 0.02                                         # eq. (1.5)

# %% [markdown]
# **The trace is expensive.** It takes one backward pass for every dimension: 784 for a small grey picture. A random direction
# $v$ with $\mathbb E[v v^\top] = I$ replaces it. For any matrix $A$, $\mathbb E[v^\top A v] = \sum_{ij} A_{ij}\,\mathbb E[v_i
# v_j] = \sum_i A_{ii}$, which is the trace. So, with one backward pass,
#
# $$ J(s) = \mathbb E_{p,\,v}\bigl[\tfrac12|s(x)|^2 + v^\top \tfrac{\partial s}{\partial x}(x)\, v\bigr] + \text{const}
#    \qquad\textit{(sliced score matching, Song et al. 2019)}. \tag{1.6} $$
#
# Standard normal $v$ will do, and so will random signs. Directions of length 1 will *not*: their covariance is $I/d$.
#
# **Exercise 1.3 · ●●○ · 15 min · eq. (1.6)**
#
# `s` is a function `(B, d) -> (B, d)`, and `v` holds one direction a row. Automatic differentiation gives the row vector
# $v^\top\,\partial s/\partial x$ as the gradient, with respect to $x$, of the number $s(x)\cdot v$; summing that number over the
# batch does all rows at once, since one row's $s$ does not depend on another row's $x$:
# `torch.autograd.grad(number, x, create_graph=True)[0]`. Without `create_graph=True` the result would be a constant for the
# optimiser (PyTorch then complains of a second backward pass). The loss is a sum over coordinates and a mean over the batch.

# %% exercise="1.3"
def my_sliced_loss(s, x, v):                                               # function, (B, d), (B, d) -> ()
    x = x.detach().requires_grad_()
    s_x = s(x)                                                             # (B, d)
    ### BEGIN SOLUTION two lines: slope, v times the Jacobian (B, d), and the mean of the two terms of (1.6)
    slope = torch.autograd.grad((s_x * v).sum(), x, create_graph=True)[0]
    return (s_x.square().sum(1) / 2 + (slope * v).sum(1)).mean()
    ### END SOLUTION

# %% check="1.3"
# NBVAL_CHECK_OUTPUT
my_sliced_loss = exercise("1.3", my_sliced_loss)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"Trying to backward through the graph a second time"* or *"a number without a history"*: the derivative itself must
#   stay differentiable: `create_graph=True`.
# * *"grad can be implicitly created only for scalar outputs"*: what you differentiate must be one number; sum over the batch.
# * *"One of the differentiated Tensors does not require grad"*: differentiate with respect to the `x` of the first line.
# * *"your result has the shape (B,)"*: the mean over the batch is missing.
#
# </details>
#
# Does your loss, averaged over many directions, give the implicit one? Here with a network that has learnt nothing yet.

# %%
def network(width=64):
    """A small score function on points, (B, 2) -> (B, 2); smooth, because two of the losses differentiate it twice."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


untrained, few = network(), islands.sample(64, seeded(3)).float()
v = torch.randn(2000 * 64, 2, generator=seeded(4))
sliced = my_sliced_loss(untrained, few.repeat(2000, 1), v).item()
print(f"sliced {sliced:.5f}   implicit {implicit_loss(untrained, few).item():.5f}")
assert abs(sliced - implicit_loss(untrained, few).item()) < 2e-3                              # eq. (1.6)

# %% [markdown]
# ## 4. The loss that everyone uses
#
# Both losses still differentiate the network with respect to its input, which costs time. The third loss needs
# no such derivative, at a price that will turn out to be a gift: it learns the score of **data plus noise**.
#
# **One data point.** Let all the data sit at one place $x_0$, and add noise: $x_t = x_0 + \sigma\varepsilon$, with $\varepsilon
# \sim \mathcal N(0, I)$. (This is (0.1) with $\alpha_t = 1$ and one fixed noise level.) Then $x_t$ is Gaussian around $x_0$, and
# (1.2) gives its score:
#
# $$ \nabla\log p(x_t \mid x_0) = \frac{x_0 - x_t}{\sigma^2} = -\frac{\varepsilon}{\sigma}. $$
#
# **Many data points.** The density of $x_t$ is now an average of such bells, $p_\sigma(x_t) = \mathbb E_{x_0}[p(x_t\mid x_0)]$, a
# mixture with one component per data point. So (1.3) applies word for word: its score is the average pull of all the bells,
# weighted by how likely each data point is to be behind $x_t$. (Once $x_t$ is given, each $x_0$ has its own $\varepsilon = (x_t -
# x_0)/\sigma$, so the average over data points is one over noises.)
#
# $$ \nabla\log p_\sigma(x_t) = \mathbb E\Bigl[-\frac{\varepsilon}{\sigma}\;\Big|\;x_t\Bigr]. \tag{1.7} $$
#
# **Regression finds conditional means.** Of all functions of $x_t$, the one closest to a random target in the mean square is
# the target's mean given $x_t$. So we regress $-\varepsilon/\sigma$, which we know because we drew the noise ourselves:
#
# $$ J_\text{DSM}(s) = \tfrac12\,\mathbb E_{x_0,\,\varepsilon}\,\Bigl| s(x_0 + \sigma\varepsilon) + \frac{\varepsilon}{\sigma}
#    \Bigr|^2 \qquad\textit{(denoising score matching, Vincent 2011)}. \tag{1.8} $$
#
# "Noise is random, so nobody can learn it", you may object. True for a *single* $\varepsilon$, and beside the point: the
# network is asked for the mean of all the noises that may have led to this $x_t$. Let us look at them. We noise many data
# points and keep those that happen to land near one chosen place. (`VE`, for *variance exploding*, is the schedule with $\alpha =
# 1$ whose $\sigma$ grows with $t$. Every schedule finds the time of a noise level by `log_snr`, which is
# $\log(\alpha^2/\sigma^2)$, here $-2\log\sigma$.)

# %%
sigma, place = 0.5, torch.tensor([-1.2, 0.6])
noisy = islands.marginal(VE(), VE().time_of_log_snr(-2 * torch.tensor(sigma).log()))         # data plus noise, exactly
x0 = islands.sample(1_000_000, seeded(5)).float()
eps = torch.randn(x0.shape, generator=seeded(6))
near = ((x0 + sigma * eps) - place).norm(dim=1) < 0.1
targets = -eps[near] / sigma                                                                  # what regression sees there
error = targets.std(0) / len(targets) ** 0.5
truth, clean_score = exact_score(noisy, place[None])[0], exact_score(islands, place[None])[0]
for i in (0, 1):
    print(f"coordinate {i + 1}: targets spread by {targets[:, i].std():.2f}; their mean {targets[:, i].mean():+.3f} ± "
          f"{error[i]:.3f}\n   score of data plus noise {truth[i]:+.3f}, of the data alone {clean_score[i]:+.3f}")
assert ((targets.mean(0) - truth).abs() < 4 * error + 0.02).all()          # eq. (1.7); 0.02, since "near" has a width

# %% [markdown]
# The single targets scatter widely, and their mean is the score of $p_\sigma$, not the score of $p$. That is the sentence to
# take home: **a network trained by denoising learns the score of the data density smoothed by the noise.**
#
# **Exercise 1.4 · ●●○ · 10 min · eq. (1.8)**
#
# Write the whole loss. The noise `eps`, `(B, d)`, is given, so that the result can be checked and repeated; `sigma` is one
# number. Sum over coordinates, mean over the batch, and do not forget the ½.

# %% exercise="1.4"
def my_denoising_loss(s, x0, sigma, eps):                                  # function, (B, d), float, (B, d) -> ()
    ### BEGIN SOLUTION two or three lines: the noisy points, then the loss
    x_t = x0 + sigma * eps
    return (s(x_t) + eps / sigma).square().sum(1).mean() / 2
    ### END SOLUTION

# %% check="1.4"
# NBVAL_CHECK_OUTPUT
my_denoising_loss = exercise("1.4", my_denoising_loss)

# %% [markdown]
# ## 5. Three losses, one minimiser
#
# Time to train. Implicit and sliced score matching learn the score of whatever points we show them; we show them noisy ones, so
# that all three losses look for the same thing, the score of the islands at $\sigma = 0.5$. Each gets the same network, the
# same number of steps, and fresh noise at every step. The sliced and the denoising loss are *yours*.

# %%
def by_implicit(s, x0, generator):
    return implicit_loss(s, x0 + sigma * torch.randn(x0.shape, generator=generator))


def by_sliced(s, x0, generator):
    x_t = x0 + sigma * torch.randn(x0.shape, generator=generator)
    return my_sliced_loss(s, x_t, torch.randn(x0.shape, generator=generator))


def by_denoising(s, x0, generator):
    return my_denoising_loss(s, x0, sigma, torch.randn(x0.shape, generator=generator))


examples = islands.sample(20_000, seeded(7)).float()
fit = partial(train, data=[examples], steps=2000 if FULL else 600, batch=1024, lr=0.02, warmup=20, weight_decay=0.0,
              ema=0.99, clip=1e3, device="cpu")                               # a few seconds each
runs, cost = {}, {}
for name, loss in {"implicit": by_implicit, "sliced": by_sliced, "denoising": by_denoising}.items():
    began = time.process_time()
    runs[name] = fit(loss, network())
    cost[name] = time.process_time() - began                                                  # seconds of processor time

# %% [markdown]
# **Prediction 1.2.** Here is what a log would show of the denoising run: the loss starts a little below 4, falls for a while, and
# then stays near 2 however long we train. (Where 4 comes from: the loss of $s = 0$ is $d/(2\sigma^2)$.) What does this tell?
#
# * **a**: the network is too small, or the learning rate is wrong,
# * **b**: nothing bad: no function at all can get below that value,
# * **c**: the target is random, and the network has learnt what little can be learnt from noise, not the score.

# %% predict="1.2"
predict("1.2", "b")

# %%
test = noisy.sample(N, seeded(8)).float()
exact = exact_score(noisy, test)
errors = {name: relative_l2(run.model(test).detach(), exact) for name, run in runs.items()}
for name in runs:
    print(f"{name:10s} relative error of the score {errors[name]:6.1%}   {cost[name]:5.1f} s of processor time")

# %% [markdown]
# (The relative error is $|s - s^*|/|s^*|$, with the exact score $s^*$ and both lengths taken over all test points at once: 0 is
# perfect, 100 % is as bad as $s = 0$.) How close are they to the truth, arrow by arrow? Grey is exact, colour is learned, all
# drawn to one scale.

# %%
for (name, run), ax, colour in zip(runs.items(), plotting.panels(3, size=2.8),
                                   (plotting.ESTIMATE, plotting.SECOND, plotting.THIRD)):
    plotting.shaded(noisy.log_prob, 3.6, ax)
    plotting.field(partial(exact_score, noisy), 3.6, ax, color=plotting.TRUTH, n=6, scale=55, width=0.026)
    plotting.field(run.model, 3.6, ax, f"{name}: {errors[name]:.1%}", colour, n=6, scale=55, width=0.01)
plt.show()

# %% [markdown]
# *Three panels with the same two islands; thin coloured arrows lie on thick grey ones nearly everywhere, and part
# from them only at the rim, where samples are rare.*
#
# Same minimum, unequal noise on the way there: implicit pays with derivatives, sliced with random directions, denoising with
# random targets. Here denoising is at least as accurate as the others (seeds move these numbers by half a per cent), and it alone
# needs no derivative with respect to the input. On pictures that is decisive.

# %%
assert errors["denoising"] < 0.05 and max(errors.values()) < 0.15

# %% [markdown]
# Back to prediction 1.2: the score was learnt, and yet the loss stays high. Expand the square in (1.8) around the exact score
# $s^*$ of $p_\sigma$. The cross term vanishes, because by (1.7) the target's mean given $x_t$ *is* $s^*$:
#
# $$ J_\text{DSM}(s) = \underbrace{\tfrac12\,\mathbb E|s - s^*|^2}_{\text{what can be learnt}} \;+\;
#    \underbrace{\tfrac12\,\mathbb E\Bigl|s^* + \frac{\varepsilon}{\sigma}\Bigr|^2}_{\text{irreducible}},
#    \qquad \text{irreducible} = \frac{d}{2\sigma^2} - \tfrac12\,\mathbb E|s^*|^2. \tag{1.9} $$
#
# The last equation: $\mathbb E|\varepsilon/\sigma|^2 = d/\sigma^2$, and the *mean* variance of the target given $x_t$ is its mean
# square minus the mean square of its conditional mean. So the floor is the loss of the exact score, and here we can simply evaluate it.

# %%
floor = denoising_score_loss(partial(exact_score, noisy), x0[:200_000], sigma, eps[:200_000]).item()
by_formula = 2 / (2 * sigma**2) - exact.square().sum(1).mean().item() / 2                     # d = 2
assert abs(floor - by_formula) < 0.05                                                         # eq. (1.9)

losses = torch.tensor(runs["denoising"].losses)
_, ax = plt.subplots(figsize=(6.4, 3.0))
ax.plot(losses.unfold(0, 10, 10).mean(1).repeat_interleave(10), color=plotting.ESTIMATE, label="denoising loss")
ax.axhline(floor, color=plotting.TRUTH, lw=3, label=f"loss of the exact score: {floor:.2f}", zorder=0)
ax.set(xlabel="step", ylim=(0, None))
ax.legend()
plt.show()
print(f"floor {floor:.3f}, by (1.9) {by_formula:.3f}; the last hundred steps {losses[-100:].mean():.3f} ± {losses[-100:].std() / 10:.3f}")

# %%
reveal("1.2")

# %% [markdown]
# *The loss falls within the first steps to the grey line, and stays on it.*
#
# No function gets below the floor *on average*; a hundred batches are a sample too, and may lie a little to either side of it.
#
# The height of the floor tells nothing about the model. What counts is the height *above* it, and on real data nobody knows
# the floor. Hence: judge by samples, or compare models on the same noise.
#
# **How do the three losses compare as numbers?** By (1.4) and (1.5), the implicit loss on the noisy points is
# $\tfrac12\mathbb E|s - s^*|^2 - \tfrac12\mathbb E|s^*|^2$. Subtract it from (1.9): everything that depends on $s$ or on the data cancels,
#
# $$ J_\text{DSM}(s) - J_\text{implicit}(s) = \frac{d}{2\sigma^2}. \tag{1.10} $$
#
# It must hold for *every* $s$, so we test it on the untrained network, where nobody can suspect a lucky minimum.

# %%
for level in (0.25, 0.5, 1.0):
    differences = torch.tensor([
        denoising_score_loss(untrained, a, level, e).item() - implicit_loss(untrained, a + level * e).item()
        for a, e in zip(x0[:100_000].split(2000), eps[:100_000].split(2000))])                # 50 batches
    mean, spread = differences.mean().item(), differences.std().item() / len(differences) ** 0.5
    print(f"sigma {level:4.2f}   difference {mean:7.3f} ± {spread:.3f}   d/(2 sigma^2) = {2 / (2 * level**2):7.3f}")
    assert abs(mean - 1 / level**2) < 4 * spread                                              # eq. (1.10)

# %% [markdown]
# ## 6. How good is it, and where?
#
# One number for the error hides where it is made. We train at a small noise, $\sigma = 0.2$, on 2000 points, then at a large
# one, $\sigma = 1.5$, on the same points.
#
# **Prediction 1.3.** Where does the network trained at $\sigma = 0.2$ have its largest relative error?
#
# * **a**: on the islands, where the density changes fastest,
# * **b**: where the density is lowest, in the strait between them and outside,
# * **c**: about the same everywhere: it is a smooth function and has seen 2000 points.

# %% predict="1.3"
predict("1.3", "b")

# %%
def smoothed(mixture, sigma):
    """The mixture plus noise of standard deviation sigma."""
    return GaussianMixture(mixture.means, (mixture.stds**2 + sigma**2).sqrt(), mixture.weights)


def learn(level):
    def loss(s, x0, generator):
        return my_denoising_loss(s, x0, level, torch.randn(x0.shape, generator=generator))

    return fit(loss, network(), data=[examples[:2000]]).model


learned = {level: learn(level) for level in (0.2, 1.5)}

# %% [markdown]
# We sort the points of a square by how far the density there lies below its peak, and measure the error in each band.

# %%
def error_by_density(model, p):
    x = plotting.mesh(3.0, 60, torch.float32)                                                 # a square around both islands
    fall = (p.log_prob(p.means[:1]) - p.log_prob(x.double())).div(math.log(10)).clamp(0, 3)         # powers of ten below the peak
    bands = [x[fall.floor() == power] for power in (0, 1, 2, 3)]
    return [relative_l2(model(b).detach(), exact_score(p, b)) if len(b) else None for b in bands]


by_band = {level: error_by_density(model, smoothed(islands, level)) for level, model in learned.items()}
print("density below the peak, times  1 - 10   10 - 100   100 - 1000   more")
for level, found in by_band.items():
    print(f"relative error at sigma = {level}", *("          –" if e is None else f"{e:11.1%}" for e in found))
assert by_band[0.2][3] > 2 * by_band[0.2][0]

# %%
for (level, model), ax in zip(learned.items(), plt.subplots(1, 2, figsize=(8.8, 3.0))[1]):
    p = smoothed(islands, level)
    exact_1, hill = exact_score(p, line)[:, 0], p.log_prob(line).exp()
    ax.fill_between(u, 0, hill * (exact_1.max() / hill.max()), color=plotting.TRUTH, alpha=0.3, lw=0)
    ax.plot(u, exact_1, color=plotting.TRUTH, lw=3, label="exact")
    ax.plot(u, model(line)[:, 0].detach(), color=plotting.ESTIMATE, label="learned")
    ax.set(title=f"$\\sigma$ = {level}", xlabel="$x_1$ (with $x_2$ = 0)", ylabel="score, first coordinate" if level < 1 else "")
ax.legend(loc="upper right")
plt.show()

# %%
reveal("1.3")

# %% [markdown]
# *Left, small noise: the learned curve follows the exact one under the grey hills of data and cuts the corners between them.
# Right, large noise: the hills have merged, and the curves agree from end to end.*
#
# All three losses are averages *over the data*. Where no data fall, nothing is asked of the network. (And why is the error larger
# on the islands, too, at the small noise? The variance of the random target grows like $1/\sigma^2$.)
#
# The strait is exactly what decides how many walkers go left. Noise cures both faults: samples of $p_\sigma$ lie in the strait, so
# the score is learnt there, and the walkers can cross it. But the score at large noise is that of a *blurred* density. We
# need both: large noise to find the right island, small noise to get its shape. Turn the noise up and watch the islands merge.

# %%
from course_lib.widgets import flipbook


def field_at(sigma):
    p = smoothed(islands, sigma)
    ax = plotting.density(p.log_prob, 6)
    return plotting.field(partial(exact_score, p), 6, ax, f"sigma = {sigma}", n=13).figure


flipbook(field_at, sigma=[0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0],
         alt="Arrows round two small grey spots: from either side of a watershed between them they point to the nearer one.")

# %%
for level, ax in zip((0.1, 1.5), plotting.panels(2, size=3.2)):
    p = smoothed(islands, level)
    plotting.shaded(p.log_prob, 4, ax)
    plotting.field(partial(exact_score, p), 4, ax, f"sigma = {level}", n=9, width=0.009)
plt.show()

# %% [markdown]
# *Left, little noise: two separate basins, each with its own arrows, and a watershed between them. Right, more noise: the two
# grey spots have run into one oblong, darker on the left, and the arrows of the strait lead towards the larger island.*
#
# ## 7. Walking with noise levels
#
# First the walk itself. One Langevin step of size $\eta$ is
#
# $$ x \leftarrow x + \eta\, s(x) + \sqrt{2\eta}\; z, \qquad z \sim \mathcal N(0, I). \tag{1.11} $$
#
# Why $\sqrt{2\eta}$? Take $\mathcal N(0, \tau^2)$, where $s(x) = -x/\tau^2$. A step turns a variance $V$ into $(1 -
# \eta/\tau^2)^2\, V + 2\eta$. It stays the same if
#
# $$ V = \frac{2\eta}{1 - (1-\eta/\tau^2)^2} = \frac{\tau^2}{1 - \eta/(2\tau^2)}, \tag{1.12} $$
#
# which tends to $\tau^2$ as $\eta \to 0$: the noise puts back exactly what the pull takes away. With $\sqrt\eta$ in its place the
# variance would come out half as large, with $2\eta$ (a variance for a standard deviation) it would vanish with the step.

# %%
tau = 0.7
for size in (0.02, 0.2):
    x = torch.zeros(20_000, 1)
    *_, x = langevin(lambda x: -x / tau**2, x, size, steps=int(4 / size), generator=seeded(12))
    variance = x.var().item()
    print(f"step {size}: variance {variance:.3f}, by (1.12) {tau**2 / (1 - size / (2 * tau**2)):.3f}, wanted {tau**2:.3f}")
    assert abs(variance / (tau**2 / (1 - size / (2 * tau**2))) - 1) < 0.05                    # eq. (1.12)

# %% [markdown]
# **Annealed Langevin dynamics** (Song & Ermon 2019) walks at the largest noise first, then at smaller and smaller ones, each
# walk starting where the last one ended. Now to the opening failure. Twenty levels from $\sigma = 5$, where there is only one
# basin, to $\sigma = 0.1$; the score is exact, as it was before. The step at level $\sigma$ is $\eta = 2\,(0.3\,\sigma)^2$: the finer
# the level, the finer the step. The library's walk takes a denoiser and turns it into a score by (1.13), which section 8 derives.

# %%
schedule = VE(sigma_max=5.0)                                                                  # alpha = 1: x_t = x_0 + sigma eps
sigmas = torch.logspace(0.7, -1, 20, dtype=torch.float64)                                     # 5.0 ... 0.1
ts = schedule.time_of_log_snr(-2 * sigmas.log())                                              # log_snr = -2 log(sigma)
start = 5.0 * torch.randn(N, 2, generator=seeded(13))


def anneal(D, x, steps=30):
    """The last state of annealed Langevin dynamics with `steps` steps at each of the twenty levels."""
    *_, last = annealed_langevin(D, x, ts, steps, generator=seeded(14))
    return last


# %% [markdown]
# **Prediction 1.4.** We take just *one* step at each of the twenty levels. The share on the left is
#
# * **a**: right, 0.80: already the first level has a single basin,
# * **b**: about one half, as with one level,
# * **c**: in between.

# %% predict="1.4"
predict("1.4", "c")

# %%
print(f"share on the left: true 0.800, one level {share_left(walked):.3f}")
for steps in (1, 5, 30):
    annealed = anneal(islands.denoiser(schedule), start, steps)
    print(f"twenty levels of {steps:2d} steps: {share_left(annealed):.3f} ± {(0.16 / N) ** 0.5:.3f} ({N:,} samples)")
assert abs(share_left(annealed) - 0.8) < 0.04

# %%
reveal("1.4")

# %% [markdown]
# Repaired, if we walk long enough at each level: with few steps the walkers lag behind the levels, and the shares freeze half-way
# when the strait empties. The ± is the sampling error of a share, $\sqrt{0.8 \cdot 0.2/N}$.
#
# And with a *learned* score? One network can serve all noise levels if we tell it the level. `Preconditioned` from the
# library does so: it scales the network's input and output to suit the level, and `X0()` says that the output is a guess of $x_0$.
# Its `denoising_loss` is (1.8) for such a network, up to a weight for each level, with a level drawn afresh for each row. Why
# $x_0$ and the score are the same thing to learn is the next section's subject.

# %%
def at_all_levels(D, x0, generator):
    t = ts[torch.randint(len(ts), (len(x0),), generator=generator)].float()
    return denoising_loss(D, x0, t, torch.randn(x0.shape, generator=generator))


torch.manual_seed(0)
trained = fit(at_all_levels, Preconditioned(MLP(width=64, depth=2), schedule, X0()), steps=3000 if FULL else 600,
              batch=512, lr=5e-3)
seconds = time.perf_counter()
with torch.no_grad():
    own = anneal(trained.model, start)
seconds = time.perf_counter() - seconds
chance = (0.16 / N) ** 0.5
print(f"learned score, twenty levels: {share_left(own):.3f} ± {chance:.3f} on the left; trained in {trained.seconds:.1f} s")
print(f"distance from 0.8: {abs(share_left(own) - 0.8) / chance:.1f} sampling errors")

# %%
show_walkers({"truth": islands.sample(N, seeded(2)), "one level": walked, "20 levels, learned": own}, width=2.1)

# %% [markdown]
# *Three panels of dots over the grey islands. True samples and the walkers of the learned score: about four dots out of five are
# on the left island. One level: hardly more than half.*
#
# Much better, and not perfect. A miss of several sampling errors is not chance: the learned score is not exact.
#
# ## 8. Tweedie: a score is a denoiser
#
# Now with both functions of (0.1), $x_t = \alpha x_0 + \sigma\varepsilon$. The bell around one data point is centred at $\alpha
# x_0$, so its score is $(\alpha x_0 - x_t)/\sigma^2$. With $p_t$ for the density of $x_t$, (1.7) reads
#
# $$ \nabla\log p_t(x_t) = \mathbb E\Bigl[\frac{\alpha x_0 - x_t}{\sigma^2}\,\Big|\,x_t\Bigr]
#    = \frac{\alpha\,\mathbb E[x_0\mid x_t] - x_t}{\sigma^2}, $$
#
# because $x_t$ is given. Solve for the posterior mean, which is the denoiser of chapter 00:
#
# $$ \hat x_0 = \mathbb E[x_0 \mid x_t] = \frac{x_t + \sigma^2\, \nabla\log p_t(x_t)}{\alpha} \qquad\textit{(Tweedie's formula)}.
#    \tag{1.13} $$
#
# Nothing was assumed of the data. Whoever knows the score knows the best guess of the clean picture, and the reverse.
#
# **Exercise 1.5 · ●●○ · 10 min · eq. (1.13)**
#
# For any schedule, points or pictures, and one time for all rows or one a row: `schedule.alpha(t)` and `schedule.sigma(t)` have
# the shape of `t`. (Remember exercise 1.1; `per_row` takes a single number, of shape `()`, too.)

# %% exercise="1.5"
def my_tweedie(score_value, x, schedule, t):                               # (B, ...), (B, ...), schedule, () or (B,) -> (B, ...)
    ### BEGIN SOLUTION two or three lines: alpha and sigma in shape, then eq. (1.13)
    alpha, sigma = per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)
    return (x + sigma**2 * score_value) / alpha
    ### END SOLUTION

# %% check="1.5"
# NBVAL_CHECK_OUTPUT
my_tweedie = exercise("1.5", my_tweedie)

# %% [markdown]
# Is it really the posterior mean? We can average over $p(x_0\mid x_t)$ without any formula for it: draw many $x_0$ from the data,
# weigh each by how well it explains $x_t$, that is by $\exp\bigl(-|x_t - \alpha x_0|^2/(2\sigma^2)\bigr)$, and take the mean.
# `CosineVP` is a schedule with $\alpha^2 + \sigma^2 = 1$.

# %%
cosine, t = CosineVP(), torch.tensor(0.5)
marginal = islands.marginal(cosine, t)
places = torch.tensor([[-1.5, 0.3], [0.0, 0.0], [0.6, -0.8], [1.5, 0.5]])
squared = torch.cdist(places, cosine.alpha(t) * x0).square()                                  # (4, 1,000,000)
by_weighing = (-squared / (2 * cosine.sigma(t) ** 2)).softmax(1) @ x0
by_tweedie = my_tweedie(exact_score(marginal, places), places, cosine, t)
for x, a, b in zip(places.tolist(), by_weighing.tolist(), by_tweedie.tolist()):
    print("x_t ({:+.2f}, {:+.2f})   weighed mean ({:+.3f}, {:+.3f})   Tweedie ({:+.3f}, {:+.3f})".format(*x, *a, *b))
assert torch.allclose(by_weighing, by_tweedie, atol=0.02)                                     # eq. (1.13)

# %% [markdown]
# ### On real pictures
#
# `fashion_teacher` was trained by exactly this recipe: noise a picture, ask for what went in, square the error. We noise test
# pictures, which it has never seen, at several levels, and let it denoise them in one step, without a label.

# %%
teacher = recipes.load("fashion_teacher")
clean = data.fashion_mnist("test")[0][:200 if FULL else 50]
noise = torch.randn(clean.shape, generator=seeded(15))
average = data.fashion_mnist("train")[0].mean(0, keepdim=True)                                # (1, 1, 28, 28)
levels = torch.tensor([0.15, 0.35, 0.55, 0.75, 0.9, 0.97])


def rms(x):
    return x.square().mean().sqrt().item()


noised = {t: teacher.schedule.alpha(t) * clean + teacher.schedule.sigma(t) * noise for t in levels.tolist()}
with torch.no_grad():
    denoised = {t: teacher(x, t) for t, x in noised.items()}
    again = my_tweedie(score(teacher, noised[levels[2].item()], levels[2]), noised[levels[2].item()], teacher.schedule, levels[2])
assert torch.allclose(again, denoised[levels[2].item()], atol=1e-4)                           # eq. (1.13), both ways
for t, guess in denoised.items():
    ratio = (teacher.schedule.sigma(t) / teacher.schedule.alpha(t)).item()
    print(f"t {t:.2f}   noise/signal {ratio:5.2f}   error of the guess {rms(guess - clean):.3f}   "
          f"of the average garment {rms(average - clean):.3f}")

# %%
few, (low, high, top) = slice(4, 8), levels[[1, 3, 5]].tolist()
plotting.image_rows([clean[few], noised[low][few], denoised[low][few], denoised[high][few], denoised[top][few]],
                    ["clean", f"noisy, t = {low:.2f}", *(f"guess, t = {t:.2f}" for t in (low, high, top))])
plt.show()

# %% [markdown]
# *From above: four clean pictures, the same a little noisy, and the guesses from this and from two much larger noises. With little
# noise the guess is the picture; with more it loses pattern, then outline; at the largest noise soft grey shapes remain, some of
# which still betray trousers or a shirt.*
#
# "One good denoising step should do." It cannot, and not for want of training: many garments could be hiding in the noise, and
# the best single guess in the mean square is their average. Is the last row really the average garment? Here it
# is beside the mean of all our guesses at the largest noise.

# %%
last = denoised[levels[-1].item()]
first, second, ax = plt.subplots(1, 3, figsize=(9.0, 2.9), width_ratios=[1, 1, 2.2])[1]
plotting.image_grid(average, 1, first, "average\ngarment")
plotting.image_grid(last.mean(0, keepdim=True), 1, second, "mean guess\nat t = 0.97")
ax.plot(levels, [rms(denoised[t] - clean) for t in levels.tolist()], "o-", color=plotting.ESTIMATE, label="guess")
ax.axhline(rms(average - clean), color=plotting.TRUTH, lw=3, zorder=0, label="average garment")
ax.set(xlabel="t", ylabel="error per pixel", ylim=(0, None))
ax.legend()
plt.show()
print(f"distance from the average garment: clean pictures {rms(clean - average):.3f},\n   single guesses at the largest noise "
      f"{rms(last - average):.3f}, their mean {rms(last.mean(0, keepdim=True) - average):.3f}")

# %% [markdown]
# *Two blurred pictures of much the same shape; the curve on the right rises with the noise to the grey line of the average
# garment.*
#
# Not quite: single guesses lie some way from the average garment, their mean much closer. Part of this is a trace of the picture
# that even this noise leaves; part is the network's own error at the highest noise.
#
# The same on two *equal* islands, where the denoiser is exact and no network can be blamed: at the largest noise the guess is the
# mean of the data, a place at sea.

# %%
equal = two_islands(weight=0.5)
at_sea = equal.denoiser(cosine)(torch.randn(5, 2, generator=seeded(16), dtype=torch.float64), cosine.t_max)
drop = (equal.log_prob(equal.means).max() - equal.log_prob(at_sea).max()).exp()
print("guesses from five noises:", "  ".join("({:+.2f}, {:+.2f})".format(*x) for x in at_sea.tolist()))
print(f"the density there is at least {drop:.0f} times lower than on an island")
assert at_sea.abs().max() < 0.2

# %% [markdown]
# So a denoiser is the tool and not the sampler. A sampler asks it many times, at many noise levels. How to ask well, and how few
# times will do, is what all further chapters are about.
#
# ## 9. Closing task
#
# No mixture, no round bells, and any schedule: a distribution of which you have seen nothing so far.
#
# **Exercise 1.6 · ●●● · 15 min · eq. (0.1), (1.2)**
#
# The data are $x_0 \sim \mathcal N(m, C)$ with a full covariance matrix $C$, whose coordinates are correlated. Write the score of
# $x_t = \alpha x_0 + \sigma\varepsilon$ at one time $t$. You need three facts: a linear map of Gaussians is a Gaussian; covariances
# of independent parts add; and $\log\mathcal N(x; a, S) = -\tfrac12 (x-a)^\top S^{-1} (x-a) + \text{const}$.
# `torch.linalg.solve(S, y.T).T` applies $S^{-1}$ to each row of `y`, and `schedule.alpha(t).to(x)` has the type of `x`.

# %% exercise="1.6"
def my_tilted_score(x, t, m, C, schedule):                                 # (B, d), (), (d,), (d, d), schedule -> (B, d)
    ### BEGIN SOLUTION three or four lines: alpha and sigma, the covariance of x_t, its score
    alpha, sigma = schedule.alpha(t).to(x), schedule.sigma(t).to(x)
    S = alpha**2 * C + sigma**2 * torch.eye(len(m))
    return torch.linalg.solve(S, (alpha * m - x).T).T
    ### END SOLUTION

# %% check="1.6"
# NBVAL_CHECK_OUTPUT
my_tilted_score = exercise("1.6", my_tilted_score)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"expected ... Float but found Double"*: numbers from a schedule may be float64; `.to(x)` makes them like `x`.
# * *Shapes do not match in `solve`*: it wants columns; `y.T` is `(d, B)`, and the result is transposed back.
# * *Off by a little everywhere*: compare with the case $d = 1$, where $S = \alpha^2\tau^2 + \sigma^2$.
#
# </details>
#
# Your score, your Tweedie, the annealed walk: together they sample the new distribution.

# %%
m, C = torch.tensor([0.5, -0.3]), torch.tensor([[1.0, 0.8], [0.8, 0.8]])


class Tilted:
    """A denoiser made of the two functions you wrote."""

    schedule = schedule

    def __call__(self, x, t, cond=None):
        return my_tweedie(my_tilted_score(x, t, m, C, self.schedule), x, self.schedule, t)


tilted = {steps: anneal(Tilted(), start, steps) for steps in (20, 60)}
print("mean      ", [f"{v:+.2f}" for v in tilted[60].mean(0).tolist()], "wanted", [f"{v:+.2f}" for v in m.tolist()])
print("covariance", [f"{v:.2f}" for v in tilted[60].T.cov().flatten().tolist()], "wanted", [f"{v:.2f}" for v in C.flatten().tolist()])

# %% [markdown]
# Is the cloud as long as it should be? Along its long axis, an eigenvector of $C$, everything happens in one dimension. There we
# can foretell the variance by the recursion above (1.12), step by step through all levels, with $\tau^2 + \sigma^2$ for $\tau^2$.

# %%
variances, axes = torch.linalg.eigh(C)
longest = variances[1].item()
for steps, cloud in tilted.items():
    V = 5.0**2                                                                                # the start
    for level in sigmas.repeat_interleave(steps).tolist():
        eta, wide_variance = 2 * (0.3 * level) ** 2, longest + level**2
        V = (1 - eta / wide_variance) ** 2 * V + 2 * eta
    walked_variance = (cloud @ axes[:, 1]).var().item()
    print(f"{steps} steps a level: variance {walked_variance:.2f}, foretold {V:.2f}, wanted {longest:.2f}")
    assert abs(walked_variance / V - 1) < 0.1

# %% [markdown]
# The cloud is a little too long. That is neither the last noise, which adds $0.1^2 = 0.01$, nor the bias (1.12), which at so small a
# last step is smaller still. It is *lag*: with a step of $2\,(0.3\,\sigma)^2$ the small levels move too slowly to forget the width of
# the larger ones. Three times as many steps remove most of it.
#
# ## The ledger
#
# What sampling costs with the score that was learnt here: twenty levels of thirty steps, 600 network evaluations, each waiting
# for the one before. `value` is a distance from true samples, `floor` that between two sets of true samples (chapter 02 explains
# it): the learned score leaves ours several times above its floor. Any further rows were measured at full scale and ship with the
# course.

# %%
pair = [islands.sample(N, seeded(s)) for s in (17, 18)]
row = ledger.Row(method="annealed_langevin (yours)", dataset="two_islands", nfe=600, depth=600, batch=N, seconds=seconds,
                 device="cpu", metric="sliced_w2", value=sliced_wasserstein(own, pair[0]), floor=sliced_wasserstein(*pair),
                 samples=N, seeds=1, weights="learned here", train_seconds=trained.seconds)
shipped = data.ROOT / "data" / "ledger.csv"
others = [r for r in ledger.read(shipped) if r.dataset in ("two_islands", "ring")] if shipped.exists() else []
ledger.table([row, *others], "method NFE depth seconds batch metric value floor n status").show()

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | score of a Gaussian, of a mixture | $(m - x)/\tau^2$, &nbsp; $\sum_k r_k(x)\,(m_k - x)/\tau_k^2$ |
# | implicit loss | $\mathbb E[\tfrac12\lvert s\rvert^2 + \operatorname{tr}\,\partial s/\partial x]$ |
# | sliced loss | $\mathbb E[\tfrac12\lvert s\rvert^2 + v^\top (\partial s/\partial x)\, v]$ with $\mathbb E[vv^\top] = I$ |
# | denoising loss | $\tfrac12\,\mathbb E\lvert s(x_0 + \sigma\varepsilon) + \varepsilon/\sigma\rvert^2$, larger than the implicit one by $d/(2\sigma^2)$ |
# | what it learns | $\mathbb E[-\varepsilon/\sigma \mid x_t] = \nabla\log p_\sigma(x_t)$, the score of **data plus noise** |
# | Tweedie | $\mathbb E[x_0\mid x_t] = (x_t + \sigma^2\,\nabla\log p_t(x_t))/\alpha$ |
# | Langevin | $x + \eta\, s(x) + \sqrt{2\eta}\,z$, level by level from large noise to small |
#
# A loss that has stopped may have arrived. A score of zero need not be a summit. The best single guess is a blur.
#
# **Limits.** The islands are two-dimensional, and 600 evaluations a sample is far too many; every later chapter is about that.
# The errors of section 5 belong to one network, one seed and one noise level: at other levels the order of the three losses may
# change, since the variance of the random target grows like $1/\sigma^2$ (set `sigma = 0.1` and see). Annealed Langevin dynamics
# is exact only for infinitely many infinitely small steps at each level. And that a network finds the minimiser of its loss is
# an observation here, not a theorem.
#
# **Further reading.** Hyvärinen 2005, *Estimation of non-normalized statistical models by score matching*, JMLR 6. Vincent 2011,
# *A connection between score matching and denoising autoencoders*, Neural Computation 23. Song, Garg, Shi & Ermon 2019, *Sliced
# score matching*, arXiv:1905.07088. Song & Ermon 2019, *Generative modeling by estimating gradients of the data distribution*,
# arXiv:1907.05600. Efron 2011, *Tweedie's formula and selection bias*, JASA 106. Robbins 1956, *An empirical Bayes approach to
# statistics*.
