# ---
# course:
#   title: Guidance
#   minutes: 100
#   needs: [4]
#   shows: twice the evaluations make a picture do as it is told, and cost variety
# ---

# %% [markdown]
# # 06 · Guidance: asking, and insisting
#
# So far we told the network which garment we wanted, and took what came. This chapter looks at what came. A *condition*, a
# label or a sentence, is a request; **guidance** is the knob that says how much we insist on it. Every text-to-image system
# has that knob, in its plain form it doubles the cost of every step, and it is widely believed to do something that it does
# not do.
#
# After this chapter you can
#
# * **implement** the training trick that makes two denoisers out of one network (exercise 6.1),
# * **derive** the guided denoiser from Bayes' rule, **implement** it in one call, and **translate** between the two
#   conventions for its weight (exercises 6.2 and 6.3),
# * **show** that it is guidance by a classifier that nobody trained (exercise 6.4),
# * **predict**, and **derive** for Gaussians, which density the guided samples follow, and which they do not
#   (exercise 6.5, prediction 6.2),
# * **measure** what guidance costs: evaluations, variety, overshooting (predictions 6.1 and 6.3),
# * **transfer** it to a weight that changes with the noise, and so repair it where that can be done exactly (exercise 6.6).
#
# Allow an hour and forty minutes: one hour for the exercises, the rest for reading.

# %%
import math
import os
import time
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import EDM, Preconditioned, eps, guided, score, told
from course_lib.fast_samplers import dpm_solver_pp, fine_grid
from course_lib.metrics import relative_l2, sliced_wasserstein
from course_lib.networks import MLP
from course_lib.sampling import final, last, prior
from course_lib.schedules import CosineVP, log_snr_to_zero
from course_lib.score_matching import denoising_loss
from course_lib.sde_samplers import ancestral
from course_lib.targets import GaussianMixture
from course_lib.training import train
from course_lib.widgets import flipbook, progress

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
schedule = CosineVP()
second_order, third_order = (partial(dpm_solver_pp, order=k) for k in (2, 3))                   # chapter 04's solvers


def seeded(seed):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# We ask the teacher for shirts, and for three classes that look like shirts: T-shirts, pullovers, coats. Then we show the
# pictures, without saying what was asked for, to a classifier that was trained on real ones. **Does it see what we asked
# for?**

# %%
teacher, classifier = recipes.load("fashion_teacher", device), recipes.load("fashion_classifier", device)
SHORT = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
HARD = torch.tensor([6, 0, 2, 4])                               # shirt, T-shirt, pullover, coat
each = 100 if full else 15
labels = HARD.repeat_interleave(each)
x_T = prior(teacher, (len(labels), 1, 28, 28), seeded(0))
ts = log_snr_to_zero(8, teacher.schedule)


def draw(D, x, cond, ts=ts):                                    # -> pictures (B, 1, 28, 28), on the CPU
    return last(second_order, D, x.to(device), ts, cond=cond.to(device)).x.cpu()


@torch.no_grad()
def seen(pictures):                                             # what the classifier sees: (B,) labels
    return classifier(pictures.to(device)).argmax(1).cpu()


asked = draw(teacher, x_T, labels)
taken = seen(asked)
for k in HARD:
    print(f"asked for a {SHORT[k]:9} {(taken[labels == k] == k).float().mean():.0%} are taken for one")

# %%
for ax, picture, k in zip(plotting.panels(14, size=1.15, columns=7), asked, taken):
    plotting.image_grid(picture[None], 1, ax)
    ax.set_title(SHORT[k], color=plotting.INK if k == 6 else plotting.ESTIMATE)
plt.show()

# %% [markdown]
# *Fourteen pictures, each asked for as "shirt", with what the classifier takes it for above it; in orange where it is
# something else.*
#
# Is the teacher disobedient? A fair judge first looks at how *real* shirts fare with the same classifier.
#
# **Prediction 6.1.** Of 200 real shirts that the classifier has never seen, how many does it take for shirts?
#
# * **a**: nearly all, at least 95 %,
# * **b**: roughly three in four,
# * **c**: hardly more than one in ten, which is chance.

# %% predict="6.1"
predict("6.1", "b")

# %%
images, kinds = data.fashion_mnist("test")
real = {k.item(): images[kinds == k][:200] for k in HARD}
agreement_of_real = torch.stack([(seen(x) == k).float().mean() for k, x in real.items()])
for k, share in zip(HARD, agreement_of_real):
    print(f"real {SHORT[k]:9} {share:.0%} are taken for one")

# %%
reveal("6.1")

# %% [markdown]
# So two wishes must be told apart.
#
# * **Faithful to the data**: pictures like those of the class, the odd ones included. Then the classifier should
#   agree as often as it does with real pictures, and no more often. What is missing there is the network's fault.
# * **Faithful to the order**: every picture unmistakably a shirt. That is what somebody wants who types "a shirt", and it is
#   *more* than the data gives.
#
# Sampling with a label aims at the first. For the second we must insist.

# %% [markdown]
# ## 1 · A label is one more argument
#
# For a denoiser, a condition changes little: $D(x, t, c) = \mathbb E[x_0 \mid x_t = x, c]$ is the average over those
# pictures of *class c* that may hide behind $x$. Same loss, same network; the label enters beside the noise level. (A
# sentence enters in the same way, as soon as it is a vector. That is chapter 11.)
#
# For all that follows we need a second denoiser as well, the *unconditional* one, $D(x, t) = \mathbb E[x_0\mid x_t=x]$. It
# could be a second network. But there is a thriftier way (Ho and Salimans, 2022): now and then hide the label during
# training, and let "no label" be one more label, in our library $-1$. Where the label is hidden, the best guess is the
# average over all classes. So one network learns both.
#
# **Exercise 6.1 · ●○○ · 4 min · hiding labels**
#
# Write `my_drop_labels(labels, u, p)`: every row's label is replaced by $-1$ with probability $p$. The random draws are
# given: `u` holds a uniform number in $[0, 1)$ for every row, and a label goes where $u<p$.

# %% exercise="6.1"
def my_drop_labels(labels, u, p):                               # whole numbers (B,), uniform draws (B,), share -> (B,)
    ### BEGIN SOLUTION one line
    return torch.where(u < p, -1, labels)
    ### END SOLUTION


# %% check="6.1"
# NBVAL_CHECK_OUTPUT
my_drop_labels = exercise("6.1", my_drop_labels)

# %% [markdown]
# Let us use it in a world where we know the truth. Three classes in the plane, each a Gaussian of width 0.5, near enough to
# overlap. Everything about them is known: `exact(x, t, cond)` is the posterior mean, of one class or, for $-1$, of all.
# **Does one small network with hidden labels learn both denoisers?** (It trains for a few seconds.)

# %%
turn = 2 * math.pi * torch.arange(3) / 3 + math.pi / 2
classes = GaussianMixture(torch.stack([turn.cos(), turn.sin()], 1), 0.5)
exact = classes.denoiser(schedule)


def loss(model, x0, labels, generator):                         # denoising, with a tenth of the labels hidden
    t, u = torch.rand(2, len(x0), generator=generator)
    t = schedule.t_min + t * (schedule.t_max - schedule.t_min)
    return denoising_loss(model, x0, t, torch.randn(x0.shape, generator=generator), my_drop_labels(labels, u, 0.1))


owner = torch.randint(0, 3, (20_000,), generator=seeded(1))
points = classes.sample(20_000, seeded(2), owner).float()
torch.manual_seed(0)
learnt = train(loss, Preconditioned(MLP(width=64, classes=3), schedule, EDM(0.9)), [points, owner],  # data 0.9 wide
               steps=3000 if full else 700, batch=256, lr=3e-3, ema=0.99, device="cpu").model

# %%
t = schedule.t_min + torch.rand(2000, generator=seeded(3)) * (schedule.t_max - schedule.t_min)
cond = torch.randint(0, 3, (2000,), generator=seeded(4))
alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
x = alpha * classes.sample(2000, seeded(5), cond).float() + sigma * torch.randn(2000, 2, generator=seeded(6))
for name, which in (("conditional", cond), ("unconditional", torch.full_like(cond, -1))):
    with torch.no_grad():
        print(f"{name:14} error of the learnt guess: {relative_l2(learnt(x, t, which), exact(x, t, which)):.3f} of its size")

# %% [markdown]
# Both are learnt, with no second network; the unconditional one less well, as only a tenth of the rows teach it.

# %% [markdown]
# ## 2 · Insisting: Bayes' rule, and once more
#
# What does a label add? Bayes' rule for the noisy picture, $p_t(x\mid c) = p_t(x)\,p_t(c\mid x)/p(c)$, becomes with the
# logarithm and the gradient in $x$ (in which $p(c)$ is constant; $S$ stands for score)
#
# $$\underbrace{\nabla\log p_t(x\mid c)}_{S_c} = \underbrace{\nabla\log p_t(x)}_{S_u} + \nabla\log p_t(c\mid x) . \tag{6.1}$$
#
# Read it from the right: go where data is, *and* go where a reader of noisy pictures would rather say "$c$". To insist,
# follow the reader more than once. With a **weight** $w\ge0$ for what comes on top,
#
# $$S_w = S_u + (1+w)\,\nabla\log p_t(c\mid x) . \tag{6.2}$$
#
# We have no reader, but by (6.1) its gradient is the difference $S_c-S_u$ of two things that we have. Put it in:
# $S_w = S_u+(1+w)(S_c-S_u) = S_c + w\,(S_c-S_u)$. Last, from scores to guesses: Tweedie's formula
# $D = (x+\sigma^2 S)/\alpha$ is the same for all three, and the weights $(1+w)$ and $-w$ add up to 1, so that the $x/\alpha$
# is kept once:
#
# $$D_w = D_c + w\,(D_c - D_u) . \tag{6.3}$$
#
# This is **classifier-free guidance**. From the guess without the label to the guess with it there is a direction: what the
# label changes. Go on in that direction, $w$ times as far again. $w=0$ is plain conditional sampling, $w=-1$ forgets the
# label. And since $\hat\varepsilon=(x-\alpha D)/\sigma$ keeps sums of weights 1 too, the same line holds for noises.

# %%
w, u = 1.75, torch.full_like(cond, -1)
x64, t64 = x.double(), t.double()
parts = {"scores": score, "noises": eps, "guesses": lambda D, x, t, c: D(x, t, c)}
for part in parts.values():
    c_part, u_part = part(exact, x64, t64, cond), part(exact, x64, t64, u)
    assert torch.allclose(part(guided(exact, w), x64, t64, cond), c_part + w * (c_part - u_part))  # eq. (6.3), in any of them
print("the same combination holds for", ", ".join(parts))

# %% [markdown]
# Two guesses, two evaluations. On a GPU, though, one call with a batch of twice the size often takes less time than two
# calls. So everybody stacks them: the rows with their labels first, then the same rows with $-1$.
#
# **Exercise 6.2 · ●●○ · 10 min · eq. (6.3)**
#
# Write `my_guided(D, x, t, cond, w)`, which returns $D_w$ and calls `D` **once**. Stack with `torch.cat([...])`, take apart
# with `.chunk(2)`; the labels of the second half are `torch.full_like(cond, -1)`.

# %% exercise="6.2"
def my_guided(D, x, t, cond, w):                                # x (B, ...); t, cond (B,); w a number -> (B, ...)
    ### BEGIN SOLUTION two lines: one call for both halves, and eq. (6.3)
    with_label, without = D(torch.cat([x, x]), torch.cat([t, t]), torch.cat([cond, torch.full_like(cond, -1)])).chunk(2)
    return with_label + w * (with_label - without)
    ### END SOLUTION


# %% check="6.2"
# NBVAL_CHECK_OUTPUT
my_guided = exercise("6.2", my_guided)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Shapes do not match*: everything that `D` gets must have $2B$ rows, `t` too.
# * *Wrong by a whole "w"*: test $w=0$ by hand. It must be `D(x, t, cond)`.
#
# </details>
#
# A denoiser made of your function, so that samplers can use it, and samples of the upper class. **What does insisting do to
# them?** Guess first: with $w=4$, do they crowd at the *centre* of the class, or somewhere else? `p_of` is the exact reader
# of clean points, $p(c\mid x_0)$.

# %%
class Insist:
    """my_guided as a denoiser; weight is a number, or a function of the time."""

    cost = 2                                                    # evaluations per call, for whoever counts

    def __init__(self, D, weight):
        self.D, self.schedule, self.weight = D, D.schedule, weight

    def __call__(self, x, t, cond=None):
        w = self.weight(t) if callable(self.weight) else self.weight
        return my_guided(self.D, x, torch.as_tensor(t).expand(len(x)), cond, w)


def p_of(x0, c=0):                                              # p(c | x0) of points (B, 2) -> (B,)
    return (-torch.cdist(x0, classes.means).square() / (2 * 0.5**2)).softmax(1)[:, c]


N = 4000 if full else 1000
x_T2, upper = prior(exact, (N, 2), seeded(7), dtype=torch.float64), torch.zeros(N, dtype=torch.long)
fine = fine_grid(schedule, schedule.t_max, 0.0, 60)
by_weight = {w: last(second_order, Insist(exact, w), x_T2, fine, cond=upper) for w in (-1, 0, 1, 4)}
for w, result in by_weight.items():
    print(f"w = {w:2}: {result.nfe} evaluations, mean p(c|x) {p_of(result.x).mean():.3f}, "
          f"width {result.x.std(0).mean():.3f}")

# %%
for ax, (w, result) in zip(plotting.panels(4, size=2.3), by_weight.items()):
    plotting.shaded(classes.log_prob, 3.0, ax)
    plotting.scatter(result.x[:600], ax, 3.0, f"w = {w}", size=4)
plt.show()

# %% [markdown]
# *Orange samples over the grey density of the three classes. With w = −1 they fill all three, with w = 0 the upper class,
# its overlap with the others included; with w = 1 they draw together and away from the other two; with w = 4 they form a
# narrow patch above the centre of the class, farther out than most of it.*
#
# Not at the centre: the reader is surest where the *other* classes are farthest, and there it is that insisting leads.
#
# The library's `guided(D, w)` is your function as a denoiser, and `last` counted for you: **two evaluations a step**.
#
# **A learnt composite.** In (6.3) the errors of two guesses are combined with large weights of opposite sign. How well does
# the *learnt* composite agree with the exact one?

# %%
with torch.no_grad():
    for w in (0, 1, 3, 8):
        error = relative_l2(guided(learnt, w)(x, t, cond), guided(exact, w)(x, t, cond))
        print(f"w = {w}: error of the learnt composite {error:.3f}")

# %% [markdown]
# The more we insist, the worse it is approximated, even relative to its size. So a part of what one sees at large weights
# is the network's error, enlarged.

# %% [markdown]
# ### Two conventions, and a negative prompt
#
# Ho and Salimans' $w$ counts what comes on top. Most programs, such as *diffusers*, write instead, with a `guidance_scale`
# $g$,
#
# $$\hat\varepsilon = \hat\varepsilon_u + g\,(\hat\varepsilon_c-\hat\varepsilon_u), \qquad g = 1+w . \tag{6.4}$$
#
# There 1 is conditional and 0 forgets the label. A published "scale 7.5" is our $w=6.5$. Whoever mixes up the two is off by
# one, which is hardly seen at 7.5, but at 1 it is everything.
#
# In (6.4), $\hat\varepsilon_u$ is a place to run away from. So people put there what they do *not* want: the **negative
# prompt** takes the place of "no label".
#
# **Exercise 6.3 · ●●○ · 8 min · eqs. (6.3) and (6.4)**
#
# Write `my_negative(D, x, t, want, avoid, scale)`: the guess $\hat x_0$ (not the noise) that belongs to
# $\hat\varepsilon=\hat\varepsilon_{\text{avoid}}+g\,(\hat\varepsilon_{\text{want}}-\hat\varepsilon_{\text{avoid}})$, where
# `want` and `avoid` are labels, one a row. Two calls are fine. On paper first: what is it in terms of the two guesses?

# %% exercise="6.3"
def my_negative(D, x, t, want, avoid, scale):                   # x (B, ...); t, want, avoid (B,); scale a number -> (B, ...)
    ### BEGIN SOLUTION two lines will do, in guesses rather than noises
    wanted, avoided = D(x, t, want), D(x, t, avoid)
    return avoided + scale * (wanted - avoided)
    ### END SOLUTION


# %% check="6.3"
# NBVAL_CHECK_OUTPUT
my_negative = exercise("6.3", my_negative)

# %% [markdown]
# **Shirts, and shirts "not like a T-shirt"**: the same starts, with $g=1$, with $g=3$ against no label, and with $g=3$
# against "T-shirt".

# %%
class Avoiding:
    """my_negative as a denoiser: away from one label."""

    cost = 2

    def __init__(self, D, avoid, scale):
        self.D, self.schedule, self.avoid, self.scale = D, D.schedule, avoid, scale

    def __call__(self, x, t, cond=None):
        return my_negative(self.D, x, torch.as_tensor(t).expand(len(x)), cond, torch.full_like(cond, self.avoid), self.scale)


x6, six = x_T[:7], labels[:7]
rows = {"shirt": draw(teacher, x6, six), "against\nno label": draw(Avoiding(teacher, -1, 3.0), x6, six),
        "against\nT-shirt": draw(Avoiding(teacher, 0, 3.0), x6, six)}
plotting.image_rows(list(rows.values()), list(rows))
plt.show()

# %% [markdown]
# *Three rows of seven pictures from the same noises: shirts as they come; guided away from no label in particular; guided
# away from T-shirts, which favours what T-shirts do not have, such as long sleeves.*

# %% [markdown]
# ## 3 · The classifier that nobody trained
#
# The word "classifier-free" has a history. The first guided models used (6.2) as it stands (Dhariwal and Nichol, 2021): an
# unconditional model plus a *classifier of noisy pictures*, whose gradient was taken by automatic differentiation. Noisy:
# in (6.1) stands $p_t(c\mid x)$ at noise level $t$. The classifier of our failing case has seen clean pictures only, and
# would be no use here.
#
# **Exercise 6.4 · ●●○ · 12 min · eq. (6.2)**
#
# Write `my_classifier_guidance(D, log_p, x, t, cond, w)`, the score $S_w$ of (6.2), by way of a classifier: `log_p(x, t)`
# gives the log-probabilities of the $K$ classes, $(B, K)$. `score(D, x, t)` is $S_u$. For the gradient, make a copy of `x`
# that remembers: `x_in = x.detach().requires_grad_()`. Then `torch.autograd.grad(number, x_in)[0]` is the gradient of a
# *number*; since no row depends on another one, the *sum* over the rows of $\log p_t(c_i\mid x_i)$ has all the rows'
# gradients.

# %% exercise="6.4"
def my_classifier_guidance(D, log_p, x, t, cond, w):            # x (B, ...); t, cond (B,) -> (B, ...)
    x_in = x.detach().requires_grad_()
    ### BEGIN SOLUTION three lines: every row's own log-probability, the gradient of their sum, eq. (6.2)
    own = log_p(x_in, t)[torch.arange(len(x)), cond]
    gradient = torch.autograd.grad(own.sum(), x_in)[0]
    return score(D, x, t) + (1 + w) * gradient
    ### END SOLUTION


# %% check="6.4"
# NBVAL_CHECK_OUTPUT
my_classifier_guidance = exercise("6.4", my_classifier_guidance)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"does not require grad"*: the classifier must be asked about `x_in`, not about `x`.
# * *"grad can be implicitly created only for scalar outputs"*: `torch.autograd.grad` wants one number. Sum over the rows.
# * *Right for one row only*: `log_p[:, cond]` is a $(B, B)$ table; `log_p[torch.arange(len(x)), cond]` is one number a row.
#
# </details>
#
# In the plane the exact classifier of noisy points is known: at time $t$ each class is a Gaussian around $\alpha_t m_k$ of
# variance $\alpha_t^2 0.5^2+\sigma_t^2$. **Is its guidance the same as yours, which knows of no classifier?**

# %%
def noisy_reader(x, t):                                         # log p_t(c | x): (B, 2), (B,) -> (B, 3)
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None]
    squared = (x[:, None] - alpha * classes.means).square().sum(-1)
    return (-squared / (2 * (alpha[:, 0] ** 2 * 0.5**2 + sigma**2))).log_softmax(1)


for w in (0.0, 1.0, 4.0):
    by_classifier = my_classifier_guidance(exact, noisy_reader, x64, t64, cond, w)
    free = score(Insist(exact, w), x64, t64, cond)
    print(f"w = {w}: largest difference of the two scores {(by_classifier - free).abs().max():.1e}, of {free.abs().max():.0f}")
    assert torch.allclose(by_classifier, free)                                                  # eqs. (6.1) and (6.2)

# %% [markdown]
# The same, up to rounding. So "classifier-free" means: the classifier is there, as the difference of two guesses.

# %% [markdown]
# ## 4 · What guided samples are not
#
# Now the tempting story. "$S_w = (1+w)\,S_c - w\,S_u$ is the score of
#
# $$p_w(x) \propto p(x\mid c)^{1+w}\,p(x)^{-w} \;\propto\; p(x\mid c)\;p(c\mid x)^w , \tag{6.5}$$
#
# so guided sampling draws from $p_w$", the *tilted* density: the class, with those samples favoured that the reader is sure
# of. (The second form is Bayes again: $p(x\mid c)/p(x)$ is $p(c\mid x)$ up to a constant.) It is in many texts. Let us take
# it at its word where everything is Gaussian.
#
# One dimension; small $s$ is a width from here on. There is a class for every number $c$: its members are
# $\mathcal N(c, s_c^2)$ with $s_c=0.5$, and the $c$ are themselves so distributed that all the data together are
# $\mathcal N(0, s_u^2)$ with $s_u=1.5$. We ask for $c=1$.
#
# **Prediction 6.2.** Exact denoisers, hundreds of steps, $w=3$. How wide are the guided samples?
#
# * **a**: as wide as the tilted density $p_w$,
# * **b**: much narrower,
# * **c**: wider.

# %% predict="6.2"
predict("6.2", "b")

# %% [markdown]
# First, what would be right?
#
# **Exercise 6.5 · ●●○ · 12 min · eq. (6.5)**
#
# Write `my_tilted(m_c, s_c, m_u, s_u, w)`: mean and standard deviation $\sqrt v$ of the Gaussian proportional to
# $\mathcal N(m_c,s_c^2)^{1+w}\,\mathcal N(m_u,s_u^2)^{-w}$. On paper: the exponent of $\mathcal N(m,s^2)$ is
# $-\frac{x^2}{2s^2}+\frac{m\,x}{s^2}+\text{const}$; powers multiply it, products add. Then compare with
# $-\frac{x^2}{2v}+\frac{m_w x}{v}+\text{const}$.

# %% exercise="6.5"
def my_tilted(m_c, s_c, m_u, s_u, w):                           # tensors of one shape -> mean, standard deviation
    ### BEGIN SOLUTION three lines: the precision 1/v, the mean times it, and from them the two results
    precision = (1 + w) / s_c**2 - w / s_u**2
    moment = (1 + w) * m_c / s_c**2 - w * m_u / s_u**2
    return moment / precision, precision**-0.5
    ### END SOLUTION


# %% check="6.5"
# NBVAL_CHECK_OUTPUT
my_tilted = exercise("6.5", my_tilted)

# %% [markdown]
# So precisions add: $\frac1v = \frac{1+w}{s_c^2}-\frac{w}{s_u^2}$ (6.6). Now the samples.

# %%
s_c, s_u, m_c = 0.5, 1.5, 1.0


class TwoGaussians:
    """Exact: the class N(1, 0.5^2) in rows that ask for one, all the data N(0, 1.5^2) in rows with -1."""

    def __init__(self):
        self.schedule = schedule
        self.one, self.all = (GaussianMixture([[m]], s).denoiser(schedule) for m, s in ((m_c, s_c), (0.0, s_u)))

    def __call__(self, x, t, cond=None):
        return torch.where(cond[:, None] >= 0, self.one(x, t), self.all(x, t))


pair, start = TwoGaussians(), prior(TwoGaussians(), (1000, 1), seeded(8), dtype=torch.float64)
mine, long = torch.zeros(1000, dtype=torch.long), fine_grid(schedule, schedule.t_max, 0.0, 300)
folk = {w: my_tilted(m_c, s_c, 0.0, s_u, w) for w in (0, 1, 2, 3, 4)}
samples = {w: last(third_order, guided(pair, w), start, long, cond=mine).x for w in folk}
for w, x1 in samples.items():
    print(f"w = {w}: guided {x1.mean():.3f} ± {x1.std():.3f}    tilted {folk[w][0]:.3f} ± {folk[w][1]:.3f}")

# %%
def bell(u, mean, std):
    return torch.exp(-(u - mean) ** 2 / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


grid_w, axis = torch.linspace(0, 4, 50), torch.linspace(-1.5, 3, 400)
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3))
left.fill_between(axis, bell(axis, *folk[1]), color=plotting.TRUTH, alpha=0.6, lw=0, label="tilted, w = 1")
left.plot(axis, bell(axis, m_c, s_c), color=plotting.INK, lw=1, label="the class")
left.hist(samples[1][:, 0].numpy(), bins=30, density=True, color=plotting.ESTIMATE, alpha=0.7, label="guided, w = 1")
left.set(xlabel="x", yticks=[])
right.plot(grid_w, my_tilted(m_c, s_c, 0.0, s_u, grid_w)[1], color=plotting.TRUTH, lw=3, label="tilted")
right.plot(grid_w, s_c * (s_c / s_u) ** grid_w, color=plotting.ESTIMATE, label="the law (6.7)")
right.plot(list(samples), [x1.std() for x1 in samples.values()], "o", color=plotting.ESTIMATE, label="guided")
right.set(yscale="log", xlabel="w", ylabel="width")
for ax in (left, right):
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
reveal("6.2")

# %% [markdown]
# *Left: the broad bell of the class, the narrower grey one of the tilted density, and a high, narrow heap of guided samples
# to the right of both peaks. Right, width against weight: the grey curve of the tilted density falls slowly, the guided
# samples fall on a straight line in the logarithm.*
#
# **How narrow, exactly?** In the variables of chapter 04, $\bar x=x/\alpha$ and $\bar\sigma=\sigma/\alpha$, the ODE is
# $d\bar x=\hat\varepsilon\,d\bar\sigma$, and for data $\mathcal N(m,s^2)$ the noise believed in is
# $\hat\varepsilon=\bar\sigma\,(\bar x-m)/(s^2+\bar\sigma^2)$: $-\bar\sigma$ times the score of
# $\mathcal N(m,s^2+\bar\sigma^2)$. Take two guided paths. In their distance $\delta$ the means drop out:
#
# $$\frac{d\delta}{d\bar\sigma}
#   = \Big[(1+w)\,\frac{\bar\sigma}{s_c^2+\bar\sigma^2} - w\,\frac{\bar\sigma}{s_u^2+\bar\sigma^2}\Big]\,\delta .$$
#
# As $\bar\sigma/(s^2+\bar\sigma^2)$ is the derivative of $\frac12\log(s^2+\bar\sigma^2)$, the solution is
# $\delta\propto(s_c^2+\bar\sigma^2)^{(1+w)/2}\,(s_u^2+\bar\sigma^2)^{-w/2}$. At the start, where $\bar\sigma$ is huge, that
# is $\bar\sigma^{1+w-w}=\bar\sigma$, the width of the noise itself, so that the constant is 1. At the end $\bar\sigma=0$:
#
# $$\text{width of guided samples} = s_c\,\Big(\frac{s_c}{s_u}\Big)^{w} . \tag{6.7}$$
#
# Each unit of weight divides the variety by the same number: the more a label says (the smaller $s_c/s_u$), the larger that
# number. The tilted density narrows only about like $1/\sqrt{1+w}$.

# %%
for w, x1 in samples.items():
    law = s_c * (s_c / s_u) ** w                                # below, times the width that these 1000 starts happen to have
    assert abs(x1.std() / start.std() * schedule.sigma(schedule.t_max) / law - 1) < 0.01         # eq. (6.7)
print("eq. (6.7) holds for w =", ", ".join(map(str, samples)))

# %% [markdown]
# **Where does the story fail?** At $t=0$ it is right: $S_w$ is the score of $p_w$ *there*. A sampler, though, needs at every
# $t$ the score of $p_w$ *with noise added*. The composite is the tilt of the noisy densities. **First tilt, then noise**
# gives a Gaussian of variance $v+\bar\sigma^2$; **first noise, then tilt** one with the precision
# $\frac{1+w}{s_c^2+\bar\sigma^2}-\frac{w}{s_u^2+\bar\sigma^2}$. The two do not commute. So the composite is no denoiser of
# any density, and what chapter 03 proved, that ODE and SDE give the same samples, no longer binds it:

# %%
noisy = final(guided(pair, 3), start, long, ancestral, seeded(9), cond=mine).x
print(f"w = 3: by the ODE {samples[3].mean():.3f} ± {samples[3].std():.3f}, by the SDE {noisy.mean():.3f} ± {noisy.std():.3f}, "
      f"tilted {folk[3][0]:.3f} ± {folk[3][1]:.3f}")

# %% [markdown]
# Three answers to one question. That is no argument against guidance, which was made to please, and does. But say of guided
# samples what they are: *the end of a sampler that was pulled*, and not samples of a known density.

# %% [markdown]
# ## 5 · What it costs on pictures
#
# Back to the four hard classes, the same noises for every weight. Three measures: the classifier's *agreement*; the *spread*
# within a class, which is the standard deviation of the classifier's features, relative to that of real pictures; and the
# share of pixels *outside* the range of pictures, $[-1, 1]$ (by more than a twentieth of it).
#
# **Prediction 6.3.** From $w=0$ to $w=8$:
#
# * **a**: agreement rises; spread falls at first, and recovers for large $w$,
# * **b**: agreement rises at first, then falls below that of $w=0$, because the pictures overshoot,
# * **c**: agreement rises beyond that of *real* pictures; the spread falls far below theirs.

# %% predict="6.3"
predict("6.3", "c")

# %%
@torch.no_grad()
def spread(pictures, owners):                                   # mean over the classes of the features' standard deviation
    f = classifier.features(pictures.to(device)).cpu()
    return torch.stack([f[owners == k].std(0).norm() for k in HARD]).mean().item()


WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0)
begin = time.perf_counter()
pictures = {w: asked if w == 0 else draw(Insist(teacher, w), x_T, labels) for w in progress(WEIGHTS)}
seconds = (time.perf_counter() - begin) / (len(WEIGHTS) - 1)
of_real = spread(torch.cat(list(real.values())), HARD.repeat_interleave(200))
table = {w: ((seen(x) == labels).float().mean().item(), spread(x, labels) / of_real, (x.abs() > 1.1).float().mean().item())
         for w, x in pictures.items()}
print(f"real pictures: agreement {agreement_of_real.mean():.2f}, spread 1.00, outside 0.00")
for w, row in table.items():
    print("w = {}: agreement {:.2f}, spread {:.2f}, outside {:.2f}".format(w, *row))

# %%
plotting.image_rows([pictures[w][:each:2][:7] for w in WEIGHTS], [f"w = {w:g}" for w in WEIGHTS],
                    "asked for: shirt (the same noises)")
plt.show()

# %%
figure, ax = plt.subplots(figsize=(7, 3))
looks = plotting.looks(["agreement", "spread", "outside"])
for i, ((name, look), real_value) in enumerate(zip(looks.items(), (agreement_of_real.mean(), 1.0, 0.0))):
    ax.axhline(real_value, color=look["color"], lw=0.8, ls=":")
    ax.plot(WEIGHTS, [table[w][i] for w in WEIGHTS], **look, label=name)
ax.set(xlabel="w", ylim=(-0.05, 1.15))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
reveal("6.3")

# %% [markdown]
# *First figure: five rows of shirts from the same noises, for rising weight; they become more alike, with harder contrast.*
#
# *Second figure: agreement and spread against the weight, with dotted lines for real pictures; agreement climbs above its line,
# spread falls below its own, and the share of pixels outside the range rises.*
#
# The direction is that of (6.7); the amount is not, as a class of pictures is no Gaussian. Agreement *above* that of real
# pictures is not a success of the model but an exaggeration that we ordered. The third number is a bill of its own: $D_w$ is
# no average of pictures, it lies beyond $D_c$, and nothing keeps it in range. On screens it shows as glaring contrast; the
# usual remedies clip the guess, or shrink it, at each step.
#
# ### Move the sliders
#
# Weight and steps, six starts that ask for shirts. Watch one garment as $w$ grows; then find out how few steps a large
# weight allows. (The rows above are pages of it, for 8 steps.)

# %%
def page(w, steps):
    x = draw(Insist(teacher, w), x_T[:6], labels[:6], log_snr_to_zero(steps, teacher.schedule))
    title = f"w = {w:g}, {steps} steps, {2 * steps} evaluations; taken for shirts: {(seen(x) == 6).sum()} of 6"
    return plotting.image_grid(x, 6, title=title).figure


# %%
flipbook(page, w=[2, -1, -0.5, 0, 0.5, 1, 1.5, 3, 4, 6, 8, 12], steps=[8, 3, 4, 5, 6, 10, 15, 20, 30],
         alt="Six shirts at weight 2 in eight steps.")

# %% [markdown]
# ### Two evaluations become one: a promise
#
# $D_w$ is a function of $x$, $t$, $c$ and $w$, and a function can be learnt. So tell a network one number more, the weight,
# and train it to say what the composite says (Meng et al., 2023). The course has such a student; chapter 07 trains one, and
# then takes the steps away too. `told(student, w)` is the student with its weight fixed, a denoiser as always. **One call
# against two: how near at a noisy picture, and how much faster?**

# %%
student = recipes.load("fashion_guided_student", device)
x_mid, t_mid = schedule.alpha(0.5) * pictures[1.0] + schedule.sigma(0.5) * x_T, torch.full((len(labels),), 0.5)
where = [v.float().to(device) for v in (x_mid, t_mid)]          # the pictures of w = 1, noised up to t = 0.5
with torch.no_grad():
    for w in (0.0, 1.0, 2.0):
        both = guided(teacher, w)(*where, labels.to(device))
        print(f"w = {w}: the student's guess differs from the composite by "
              f"{relative_l2(told(student, w)(*where, labels.to(device)), both):.3f} of its size")
begin = time.perf_counter()
by_student = draw(told(student, 2.0), x_T, labels)
student_seconds = time.perf_counter() - begin
print(f"{len(labels)} pictures, 8 steps: {seconds:.1f} s for the composite, {student_seconds:.1f} s for the student; "
      f"agreement {table[2.0][0]:.2f} and {(seen(by_student) == labels).float().mean():.2f}")

# %% [markdown]
# Half the evaluations, for a guess that is off by some hundredths of its size. How much time that saves (timed once, without
# a warm-up) depends on the machine: at best about half. The exaggeration is the same; only its price per step has fallen.

# %% [markdown]
# ## 6 · Not at every noise level
#
# Must we insist at *all* times? Kynkäänniemi et al. (2024) found that pictures get better if guidance is left out at the
# highest noise levels, and that at the lowest ones it does little. Our Gaussian can say why. Instead of a constant weight,
# ask at each noise level $\bar\sigma$ for the weight $w_{\bar\sigma}$ with which the composite **is** the noised tilt. The
# two precisions of section 4 must agree:
#
# $$\frac{1+w_{\bar\sigma}}{s_c^2+\bar\sigma^2} - \frac{w_{\bar\sigma}}{s_u^2+\bar\sigma^2} = \frac{1}{v+\bar\sigma^2},
#   \qquad \frac1v = \frac{1+w}{s_c^2}-\frac w{s_u^2} . \tag{6.8}$$
#
# **Exercise 6.6 · ●●● · 14 min · eq. (6.8), the closing task**
#
# Write `my_weight(sigma_bar, w, s_c, s_u)`: solve (6.8) for $w_{\bar\sigma}$, where $w$ is the weight wanted at the end. (It
# helps to write $a=s_c^2+\bar\sigma^2$ and $b=s_u^2+\bar\sigma^2$.) Then answer on paper: what is $w_{\bar\sigma}$ at no
# noise, and does it rise or fall with the noise?

# %% exercise="6.6"
def my_weight(sigma_bar, w, s_c, s_u):                          # noise levels (B,), numbers -> (B,)
    ### BEGIN SOLUTION about three lines: v, the two noisy variances, and the solution
    v = 1 / ((1 + w) / s_c**2 - w / s_u**2)
    a, b = s_c**2 + sigma_bar**2, s_u**2 + sigma_bar**2
    return (1 / (v + sigma_bar**2) - 1 / a) / (1 / a - 1 / b)
    ### END SOLUTION


# %% check="6.6"
# NBVAL_CHECK_OUTPUT
my_weight = exercise("6.6", my_weight)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right at no noise only*: noise adds $\bar\sigma^2$ to all three variances, to $v$ as well.
# * *Negative*: bring $1/a$ to the other side: $w_{\bar\sigma}\,(1/a-1/b) = \dots$; since $a<b$, the bracket is positive.
#
# </details>
#
# With some patience (6.8) simplifies to $w_{\bar\sigma} = w\,\dfrac{1+\bar\sigma^2/s_u^2}{1+\bar\sigma^2/v}$. As $v<s_u^2$,
# the denominator grows faster: **the right weight falls as the noise rises**, from $w$ to $w\,v/s_u^2$. The means agree then
# too (try it). **Does the sampler now draw from the tilted density?**

# %%
bars, v = torch.linspace(0, 6, 60, dtype=torch.float64), folk[3][1] ** 2
assert torch.allclose(my_weight(bars, 3, s_c, s_u), 3 * (1 + bars**2 / s_u**2) / (1 + bars**2 / v))  # eq. (6.8), solved


def varying(w, s_c, s_u):                                       # the weight as a function of the time
    return lambda t: my_weight((schedule.sigma(t) / schedule.alpha(t)).reshape(1), w, s_c, s_u).item()


repaired = last(third_order, Insist(pair, varying(3, s_c, s_u)), start, long, cond=mine).x
print(f"w = 3: constant {samples[3].mean():.3f} ± {samples[3].std():.3f}, "
      f"varying {repaired.mean():.3f} ± {repaired.std():.3f}, tilted {folk[3][0]:.3f} ± {folk[3][1]:.3f}")
assert abs(repaired.std() / folk[3][1] - 1) < 0.02 and abs(repaired.mean() - folk[3][0]) < 0.02  # now eq. (6.5) is true

# %% [markdown]
# It does (a mean of 1000 samples is uncertain by 0.01): the folk story, made true by a weight that changes with the noise.
# For other data no such weight need exist, but the shape is a good guide, and "none at high noise" is its crudest form:
# `guided(D, w, interval=(low, high))` has the weight 0 at times outside the interval.
#
# **Is it worth it for three overlapping classes?** Whoever insists pays: more agreement, more distance from the true class.
# So compare *curves*, each point one $w$: the constant weight, the interval $t\le0.5$, and the shape of (6.8), with
# $s_c=0.5$ and for $s_u$ the width of all the data along an axis. At the same doubt, lower is better.

# %%
wide = classes.sample(20_000, seeded(10)).std(0).mean().item()
true_class, second_set = (classes.sample(N, seeded(seed), upper) for seed in (11, 12))
WAYS = {"constant": (lambda w: guided(exact, w), (0.125, 0.25, 0.5, 1.0, 1.5)),
        "interval": (lambda w: guided(exact, w, (0.0, 0.5)), (0.25, 0.5, 1.0, 2.0, 4.0)),
        "varying": (lambda w: Insist(exact, varying(w, 0.5, wide)), (0.25, 0.5, 1.0, 2.0, 4.0))}
curves = {}
print("for each w: doubt, distance")
for name, (way, weights) in WAYS.items():
    drawn = [last(second_order, way(w), x_T2, fine, cond=upper).x for w in weights]
    curves[name] = [(1 - p_of(x).mean().item(), sliced_wasserstein(x, true_class)) for x in drawn]
    print(f"{name:8} " + "  ".join(f"{w:g}: {p:.3f}, {d:.3f}" for w, (p, d) in zip(weights, curves[name])))
floor = sliced_wasserstein(true_class, second_set)
print(f"true samples: doubt {1 - p_of(true_class).mean():.3f}; the floor, between two sets of {N}: {floor:.3f}")

# %%
figure, ax = plt.subplots(figsize=(7.4, 3.2))
for name, look in plotting.looks(list(curves)).items():
    ax.plot(*zip(*curves[name]), **look, label=name)
ax.axhline(floor, color=plotting.TRUTH, lw=3, zorder=0)
ax.set(xscale="log", ylim=(0, None), xlabel="doubt: mean 1 - p(c|x) of the samples", ylabel="distance from the class")
ax.set_xticks(ticks := [0.1, 0.05, 0.02, 0.01, 0.005, 0.002], map(str, ticks))
ax.set_xticks([], minor=True)
ax.set_xlim(0.1, 0.0014)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Three curves of distance (sliced Wasserstein) against the reader's doubt, which falls to the right; all rise from near the
# grey floor. The constant weight's is the uppermost: it pays most distance for the same certainty. The interval and the
# varying weight lie below it, close together.*
#
# Both pay less than the constant weight, and the crude interval no more than the shape of (6.8), which was made for one
# Gaussian among Gaussians and is a guide here, not the optimum. The interval also saves evaluations, if the second guess is
# left out where its weight is 0: our `guided`, for simplicity, does not save them, and counts 2.

# %% [markdown]
# ## The ledger

# %%
def live(method, nfe, took, drawn, weights):                    # w = 2, agreement on the four hard classes
    share = (seen(drawn) == labels).float().mean().item()
    return ledger.Row(f"{method}, w = 2 (live)", "fashion_mnist", nfe, 8, len(labels), took, "this machine", "class_agreement",
                      share, agreement_of_real.mean().item(), len(labels), 1, guidance=2.0, weights=weights)


DEPTHS = {"dpm_solver_pp_2": 30, "guided_teacher": 16, "guided_student": 16}                      # which rows, by their steps
rows = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv") if r.dataset == "fashion_mnist" and r.samples >= 1000
        and DEPTHS.get(r.method) == r.depth]
largest = {(r.method, r.guidance, r.metric): r for r in sorted(rows, key=lambda r: r.samples)}
shipped = [largest[key] for key in sorted(largest)]
lines = [live("guided_teacher", 16, seconds, pictures[2.0], "fashion_teacher"),
         live("guided_student", 8, student_seconds, by_student, "fashion_guided_student"),
         *(replace(r, method=f"{r.method}, w = {r.guidance:g}") for r in shipped if r.metric == "class_agreement")]
ledger.table(lines, "method NFE seconds batch metric value floor n status").show()

# %% [markdown]
# The live rows are of the four hard classes only, and their floor is the agreement on real pictures of these; the others are
# of all ten classes, and of as many pictures as column n says. For agreement, "floor" is what real held-out pictures reach,
# so more is no merit. (`dpm_solver_pp_2` is the unguided teacher of chapter 04, $w=0$.)
#
# Agreement alone would choose the largest weight. **Which one does the Fréchet distance choose?** A path for each model,
# through rising weights:

# %%
figure, ax = plt.subplots(figsize=(9.2, 3.6))
for method, look in plotting.looks(["guided_student", "guided_teacher", "dpm_solver_pp_2"]).items():
    path = {w: (r.value, largest[method, w, "frechet"].value - largest[method, w, "frechet"].floor)
            for (name, w, metric), r in sorted(largest.items())
            if name == method and metric == "class_agreement" and (method, w, "frechet") in largest}
    if path:
        cost = largest[method, min(path), "frechet"].nfe
        ax.plot(*zip(*path.values()), **look, label=f"{method}, {cost} evaluations")
    for w, at in path.items() if method != "guided_student" else ():           # its marks lie beside the teacher's
        ax.annotate(f"{w:g}", at, xytext=(6, -14), textcoords="offset points", fontsize=9)
ax.axvline(shipped[0].floor, color=plotting.TRUTH, lw=2, zorder=0)
ax.set(xlabel="class agreement", ylabel="Fréchet distance\nabove the floor")
ax.margins(0.12)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Fréchet distance above the floor against agreement; the numbers are weights, the student's in the same order, from 0 on.
# The grey line is the agreement on real pictures: right of it somebody insisted. Low is near to real pictures.*

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | two denoisers, one network | hide a tenth of the labels, row by row |
# | Bayes, for the scores | $S_c = S_u+\nabla\log p_t(c\mid x)$ |
# | guidance | $D_w = D_c+w\,(D_c-D_u)$, the same for scores and noises; two evaluations |
# | conventions | $w=0$ conditional; `guidance_scale` $=1+w$; a negative prompt stands in the place of $D_u$ |
# | what it is not | samples of $p_c^{1+w}p_u^{-w}$: tilting and noising do not commute |
# | Gaussian law | width $s_c\,(s_c/s_u)^w$; the tilted density has $1/v=(1+w)/s_c^2-w/s_u^2$ |
# | the repair, for Gaussians | $w_{\bar\sigma}=w\,(1+\bar\sigma^2/s_u^2)/(1+\bar\sigma^2/v)$: less at high noise |
#
# * Asking for a class and insisting on it are two things; look at real data before you call a model disobedient.
# * Agreement is bought with variety, which on Gaussians falls exponentially in the weight, and with a second evaluation.
# * Agreement above that of real pictures is exaggeration, and a better score on that measure is no better model.
#
# **Limits.** The law (6.7) is exact for Gaussians of equal shape and a guide elsewhere. On pictures, agreement and spread
# were measured on a few dozen of them (with a GPU a few hundred), with one noise each, by one classifier that errs itself
# and that judges what was pulled towards its own decisions; a share of that size is uncertain by several hundredths. The
# weight that suits is a matter of taste and of the network: guidance also hides weaknesses of a poor one.
#
# **What is still open.** The steps: eight, and two evaluations in each. Chapter 07 builds the guidance into the network, and
# then halves the steps until one is left.

# %% [markdown]
# ## Further reading
#
# * P. Dhariwal, A. Nichol, *Diffusion models beat GANs on image synthesis*, 2021, arXiv:2105.05233: guidance by a
#   classifier.
# * J. Ho, T. Salimans, *Classifier-free diffusion guidance*, 2022, arXiv:2207.12598: (6.3) and the hidden labels.
# * C. Meng, R. Rombach, R. Gao, D. Kingma, S. Ermon, J. Ho, T. Salimans, *On distillation of guided diffusion models*, 2023,
#   arXiv:2210.03142: the student that is told the weight.
# * T. Kynkäänniemi, M. Aittala, T. Karras, S. Laine, T. Aila, J. Lehtinen, *Applying guidance in a limited interval improves
#   sample and distribution quality in diffusion models*, 2024, arXiv:2404.07724.
# * T. Karras, M. Aittala, T. Kynkäänniemi, J. Lehtinen, T. Aila, S. Laine, *Guiding a diffusion model with a bad version of
#   itself*, 2024, arXiv:2406.02507: away from a weaker model, in place of away from no label.
# * A. Bradley, P. Nakkiran, *Classifier-free guidance is a predictor-corrector*, 2024, arXiv:2408.09000; M. Chidambaram, K.
#   Gatmiry, S. Chen, H. Lee, J. Lu, *What does guidance do?*, 2024, arXiv:2409.13074: what guided samples are, and are not.
