# ---
# course:
#   title: Progressive distillation
#   minutes: 110
#   needs: [4, 6]
#   shows: a student does in one step what its teacher does in two; repeat, and 64 steps become one
# ---

# %% [markdown]
# # 07 · Progressive distillation: one step in place of two
#
# Chapters 04 and 05 left the network alone and looked for better ways to use it. They came down to about ten
# evaluations, and there they stopped. This chapter changes what the network *says*. A student is trained to do in one
# step what its teacher does in two. Then the student becomes the teacher, and there is a new student. After six rounds,
# 64 steps are one.
#
# After this chapter you can
#
# * **derive** and **implement** the guess with which one DDIM step lands wherever you want (exercise 7.1), and with it
#   the student's target (exercise 7.2),
# * **predict** whether a regression from pure noise can be sharp (prediction 7.1),
# * **implement** a loss that sees the steps that matter (exercise 7.3), and the ladder of grids (exercise 7.4),
# * **measure** how near each student is to the first teacher, and **predict** how the errors of six stages combine
#   (prediction 7.2),
# * **predict** what a student does with more steps than it has learnt (prediction 7.3), and whether the ladder is needed
#   on the ring (prediction 7.4), and say what is lost,
# * **compute** after how many samples the training has paid for itself (exercise 7.5),
# * **transfer** all this to a sampler with fresh noise (exercise 7.6).
#
# Allow under two hours: an hour for the exercises, the rest for reading.

# %%
import math
import os
import time
from dataclasses import replace
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import X0, Eps, Preconditioned, Student, V, guided, noised, per_row, score, told
from course_lib.fast_samplers import ddim, dpm_solver_pp, fine_grid, midpoint
from course_lib.networks import MLP
from course_lib.progressive import guidance_loss, halving_loss
from course_lib.sampling import final, last, prior, sample
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, angle
from course_lib.score_matching import denoising_loss
from course_lib.targets import GaussianMixture, ring
from course_lib.training import train
from course_lib.widgets import flipbook

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
SCHEDULES = (LinearVP(), CosineVP(), VE(), SubVP(), Flow())
schedule = CosineVP()


def seeded(seed):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator().manual_seed(seed)


def grid(n):
    """n equal steps in t, from noise to clean data at t = 0."""
    return torch.linspace(schedule.t_max, 0, n + 1)


# %% [markdown]
# ## The failing case
#
# Here is a model without any fault: the exact denoiser of the ring. No training could improve it. (The grids of this
# chapter end at $t=0$: there $\sigma=0$, and the last DDIM step returns the guess itself.) **How well does it sample
# when it is asked only a few times?**

# %%
target = ring()
exact = target.denoiser(schedule)
x_T = prior(exact, (1000, 2), seeded(0))
truth = last(dpm_solver_pp, exact, x_T.double(), fine_grid(schedule, schedule.t_max, 0.0), order=3).x


def apart(x, y):                                                # mean distance of the samples, one by one
    return (x - y).norm(dim=1).mean().item()


for ax, n in zip(plotting.panels(5, size=1.84), (64, 8, 4, 2, 1)):
    x = final(exact, x_T, grid(n), ddim).x
    plotting.shaded(target.log_prob, 2.3, ax)
    plotting.scatter(x[:300], ax, 2.3, f"{n} step{'s' * (n > 1)}\nerror {apart(x, truth):.2f}", size=3)
plt.show()

# %% [markdown]
# *Five panels: with 64 DDIM steps the samples sit on the eight spots; with eight they are near them; with four they are
# drawn inwards; with two they fill a small disc; with one step all of them lie on a single point in the middle. The
# error is the mean distance to where the exact path ends.*
#
# The denoiser is right: seen through pure noise, the mean of the data *is* in the middle. And that is the fault. It
# answers the question "what is the mean of all data that may be behind this?", and DDIM takes the answer for its
# destination. It is a good heading for a short step, and no destination. The same on pictures: the guided teacher of
# chapter 06.

# %%
teacher_image = recipes.load("fashion_teacher", device)
kinds = torch.arange(8, device=device)
noise_image = prior(teacher_image, (8, 1, 28, 28), seeded(1)).to(device)
WEIGHT = 1.0                                                    # of the guidance
from_teacher = {n: final(guided(teacher_image, WEIGHT), noise_image, grid(n), ddim, cond=kinds) for n in (16, 4, 1)}
labels = [f"{n} step{'s' * (n > 1)},\n{r.nfe} evaluations" for n, r in from_teacher.items()]
plotting.image_rows([r.x.cpu() for r in from_teacher.values()], labels)
plt.show()

# %% [markdown]
# *Three rows of eight garments from the same noises. Sixteen guided steps give clear ones; four lose folds and prints;
# one step gives grainy, blurred shapes: a mean of the class.*
#
# No better network helps, and no better solver: with one evaluation, there is nothing left for a solver to decide.
# **So we train a network to answer another question: where should a *long* step go?**

# %% [markdown]
# ## 1 · Which guess makes the step land?
#
# A teacher goes from $t$ by way of the mid-point $m$ to $s<m$, in two DDIM steps, and lands on some $z$. A student is
# to land on the same $z$ with *one* DDIM step from $x_t$. Its step is fixed; what it may choose is its guess. So we look
# for the guess $\tilde x$ that makes the step land on $z$.
#
# **First a picture.** In chapter 04's variables, $\bar x=x/\alpha$ and $\bar\sigma=\sigma/\alpha$, a DDIM step is a
# piece of a straight line, and at $\bar\sigma=0$ this line meets the guess. (There the step would end with no noise
# left: on $\hat x_0$.) So draw a line from the start through the landing, and see where it meets $\bar\sigma=0$. That
# is all.
#
# **Now the formula.** Put the believed noise $\hat\varepsilon = (x_t-\alpha_t\hat x_0)/\sigma_t$ into DDIM's step
# (4.3), and gather the two places in which the guess stands:
#
# $$x_s = \alpha_s\hat x_0 + \sigma_s\,\frac{x_t-\alpha_t\hat x_0}{\sigma_t}
#   = \frac{\sigma_s}{\sigma_t}\,x_t + \Big(\alpha_s-\frac{\sigma_s}{\sigma_t}\,\alpha_t\Big)\,\hat x_0 . \tag{7.1}$$
#
# The step is *linear* in the guess. The factor in front of it is positive, since $\alpha_s/\sigma_s>\alpha_t/\sigma_t$:
# there is more signal at $s$, nearer to the data. So the equation $x_s=z$ has exactly one solution, for every $z$:
#
# $$\tilde x = \frac{z-\dfrac{\sigma_s}{\sigma_t}\,x_t}{\alpha_s-\dfrac{\sigma_s}{\sigma_t}\,\alpha_t} . \tag{7.2}$$
#
# At $s=0$ ($\sigma_s=0$, $\alpha_s=1$) it is $\tilde x=z$, as it should be.
#
# **Exercise 7.1 · ●○○ · 8 min · eq. (7.2)**
#
# Write `my_x0_between(schedule, x, t, z, s)`, the guess with which a DDIM step from `x` at $t$ lands on `z` at $s$. The
# levels are given, shaped to multiply `x`.

# %% exercise="7.1"
def my_x0_between(schedule, x, t, z, s):                        # x, z (B, ...); t, s () or (B,) -> (B, ...)
    alpha_t, sigma_t = per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)
    alpha_s, sigma_s = per_row(schedule.alpha(s), x), per_row(schedule.sigma(s), x)
    ### BEGIN SOLUTION two lines: the ratio of the noise levels, and eq. (7.2)
    ratio = sigma_s / sigma_t
    return (z - ratio * x) / (alpha_s - ratio * alpha_t)
    ### END SOLUTION


# %% check="7.1"
# NBVAL_CHECK_OUTPUT
my_x0_between = exercise("7.1", my_x0_between)

# %% [markdown]
# Is it the inverse of a DDIM step? If $z$ is where the teacher lands with *one* step, (7.2) must return the teacher's
# own guess. And does a student that says $\tilde x$ land on *any* $z$ whatever? A denoiser that always says the same is
# enough to see it.

# %%
class Says:
    """A denoiser that has one thing to say."""

    def __init__(self, guess, schedule):
        self.guess, self.schedule = guess, schedule

    def __call__(self, x, t, cond=None):
        return self.guess


t, s = torch.tensor([0.7, 0.2], dtype=torch.float64)
x, anywhere = torch.randn(2, 100, 2, generator=seeded(2), dtype=torch.float64)
for c in SCHEDULES:
    D = ring().denoiser(c)
    assert torch.allclose(my_x0_between(c, x, t, ddim(D, x, t, s), s), D(x, t), atol=1e-11)      # eq. (7.2) inverts (7.1)
    says = Says(my_x0_between(c, x, t, anywhere, s), c)
    assert torch.allclose(ddim(says, x, t, s), anywhere, atol=1e-11)                            # one step lands on any z
print("eq. (7.2) inverts DDIM under", ", ".join(type(c).__name__ for c in SCHEDULES))

# %% [markdown]
# **What does it look like?** The data are two points on a line, $\pm1$ (a little blurred). A teacher, the exact
# denoiser, takes two steps; the student takes one.

# %%
points = GaussianMixture([[-1.0], [1.0]], 0.15).denoiser(schedule)
t, m, s = torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64)
fine = torch.linspace(t, 0, 200, dtype=torch.float64)           # many small steps: the exact path


def bar(x, u):                                                  # a state x at time u as a point (sigma/alpha, x/alpha)
    return (schedule.sigma(u) / schedule.alpha(u)).item(), (x / schedule.alpha(u)).item()


figure, ax = plt.subplots(figsize=(8.4, 3.4))
for start in (0.35, -0.15, -0.9):
    x = torch.full((1, 1), start, dtype=torch.float64)
    x_m = ddim(points, x, t, m)
    z = ddim(points, x_m, m, s)
    guess = my_x0_between(schedule, x, t, z, s)
    ax.plot(*zip(*map(bar, [x, *sample(points, x, fine, ddim)], fine)), color=plotting.TRUTH, lw=3)
    ax.plot(*zip(bar(x, t), bar(x_m, m), bar(z, s)), "o-", color=plotting.ESTIMATE)
    ax.plot(*zip(bar(x, t), (0, guess.item())), "--", lw=1, color=plotting.SECOND)
    ax.plot(0, points(x, t), "o", ms=7, mfc="none", color=plotting.ESTIMATE)
    ax.plot(0, guess, "D", ms=6, color=plotting.SECOND)
names = "exact path", "teacher, two steps", "student, one step", "teacher's first guess", "student's guess, eq. (7.2)"
ax.legend(ax.lines[:5], names, loc="center left", bbox_to_anchor=(1, 0.5))
ax.set(xlabel=r"$\sigma/\alpha$", ylabel=r"$x/\alpha$", xlim=(2.6, -0.1))
plt.show()

# %% [markdown]
# *Noise level falling from left to right. From three starts, the teacher's two orange steps turn on the way, towards
# $+1$ or $-1$. A dashed blue line from each start through the teacher's landing, prolonged to noise level 0, ends at
# the student's guess, a blue diamond. It lies further out than the teacher's first guess, an open circle.*
#
# The student's guess is bolder than the teacher's: the teacher would have changed its mind on the way, and the student
# says at once what came out of it.

# %% [markdown]
# ## 2 · The target
#
# **Exercise 7.2 · ●●○ · 10 min · eqs. (4.3) and (7.2)**
#
# Write `my_two_step_target(D, x, t, m, s, cond=None)`: the guess with which the student's *one* step from $t$ to $s$
# lands where the two DDIM steps of the teacher `D`, by way of $m$, end. You have `ddim(D, x, t, s, cond=cond)` and
# `my_x0_between`; the schedule is `D.schedule`. (A published program forgot one of the things that have to be passed on
# here. Think of what changes at the mid-point.)

# %% exercise="7.2"
def my_two_step_target(D, x, t, m, s, cond=None):               # x (B, ...); t > m > s, () or (B,); cond (B,) -> (B, ...)
    ### BEGIN SOLUTION three lines: to the mid-point, on to s, and the guess that does it in one
    x_m = ddim(D, x, t, m, cond=cond)
    z = ddim(D, x_m, m, s, cond=cond)
    return my_x0_between(D.schedule, x, t, z, s)
    ### END SOLUTION


# %% check="7.2"
# NBVAL_CHECK_OUTPUT
my_two_step_target = exercise("7.2", my_two_step_target)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN or shapes*: call `my_x0_between` in the order start, its time, landing, its time.
# * *The hint speaks of the teacher's own guess*: you have inverted a single step of the teacher's.
# * *Right without labels only*: both steps need `cond=cond`.
#
# </details>
#
# **A student without fault.** Before any training, let us see whether the plan works if everything goes well. `Perfect`
# says exactly what it should: the target. It asks its teacher twice, so it saves nothing, but a `Perfect` student can
# have a `Perfect` teacher, and so on down to one step. If the derivation is right, all of them end *at the same points*
# as the first teacher, for any data and any schedule.

# %%
class Perfect:
    """The student that has learnt, without error, to do two of its teacher's steps on the grid ts in one."""

    is_posterior_mean = False

    def __init__(self, teacher, ts):
        self.teacher, self.ts, self.schedule = teacher, ts, teacher.schedule

    def __call__(self, x, t, cond=None):
        i = (self.ts - t).abs().argmin()                                  # the student's grid is every second time of ts
        return my_two_step_target(self.teacher, x, *self.ts[i:i + 3], cond)


for c in SCHEDULES:
    D, ts = ring().denoiser(c), torch.linspace(c.t_max, 0, 17, dtype=torch.float64)
    x = prior(D, (200, 2), seeded(3), dtype=torch.float64)
    end = final(D, x, ts, ddim).x
    while len(ts) > 2:
        D, ts = Perfect(D, ts), ts[::2]
        assert (final(D, x, ts, ddim).x - end).abs().max() < 1e-9                       # eq. (7.2): one step = two steps
print("16 steps = 8 = 4 = 2 = 1, for perfect students, under", ", ".join(type(c).__name__ for c in SCHEDULES))

# %% [markdown]
# ### What has the student become?
#
# **The simplest case, by hand.** The data are $\mathcal N(0,c^2)$, and the teacher is the exact denoiser. Chapter 04
# measured noise by an angle, $\bar\sigma=c\tan\theta$, and found that a DDIM step multiplies $\bar x$ by
# $\frac{\cos\theta}{\cos\theta'}\cos(\theta-\theta')$. Two steps from $\theta_t$ by $\theta_m$ to $\theta_s$ multiply
# it by
#
# $$q = \frac{\cos\theta_t}{\cos\theta_s}\,\cos(\theta_t-\theta_m)\,\cos(\theta_m-\theta_s),$$
#
# and (7.2), above and below divided by $\alpha_s$, is
#
# $$\tilde x = \frac{q-r}{1-r}\,\bar x_t,\qquad r = \frac{\tan\theta_s}{\tan\theta_t} . \tag{7.3}$$
#
# So the student is linear again, but with another factor than the denoiser's $\cos^2\theta_t$. Take the extreme case,
# two steps from pure noise to the data: $\theta_t\to90°$, $\theta_s=0$, so $r\to0$ and
# $\bar x_t=c\tan\theta_t\,\varepsilon$. Then
#
# $$\tilde x = q\,\bar x_t
#  = \cos\theta_t\,\cos(90°-\theta_m)\cos\theta_m\cdot c\,\frac{\sin\theta_t}{\cos\theta_t}\,\varepsilon
#  \;\to\; c\,\sin\theta_m\cos\theta_m\;\varepsilon \;=\; \tfrac c2\,\sin 2\theta_m\;\varepsilon .$$
#
# **From pure noise the denoiser says 0, the mean, whatever $\varepsilon$ is. The student says something else for each
# $\varepsilon$**, up to $\frac c2\varepsilon$ if the mid-point is at 45°. (Not $c\,\varepsilon$: the teacher's two
# steps have lost half of the width, and the student learns its teacher, faults included.)

# %%
c, std = CosineVP(), 0.5
gauss = GaussianMixture([[0.0]], std).denoiser(c)
t, m, s = torch.tensor([0.9, 0.55, 0.2], dtype=torch.float64)
a, b, e = (angle(u, c, std) for u in (t, m, s))
q, r = a.cos() / e.cos() * (a - b).cos() * (b - e).cos(), e.tan() / a.tan()
x = torch.ones(1, 1, dtype=torch.float64)
factor = my_two_step_target(gauss, x, t, m, s).item() * c.alpha(t)                               # of x-bar = x/alpha
assert abs(factor - (q - r) / (1 - r)) < 1e-12                                                  # eq. (7.3)
print(f"factor of the student {factor:.4f}, of the denoiser {a.cos() ** 2:.4f}")
try:
    score(Student(MLP(1), c, V()), x.float(), t)
except ValueError as refusal:
    print("score of a student:", refusal)

# %% [markdown]
# The output of a student is no posterior mean any more. So it has no score either: Tweedie's formula, backwards, would
# give a wrong one, and the library refuses. What a student says is *directions for one step of one length*.
#
# Chapter 00 showed that one step gives a blur, and chapter 01 why: a regression that cannot know the answer learns the
# mean of all answers. Now the last stage of the ladder regresses, from pure noise at $t_{\max}$, straight to the data.
#
# **Prediction 7.1.** The first teacher is the exact denoiser of the ring with 32 steps. After five rounds of perfect
# students, what does the last one, with one step, say when it sees pure noise?
#
# * **a**: the mean, a blur: from pure noise nobody can know more,
# * **b**: a clean point on the ring, a different one for each noise,
# * **c**: points about half way between the mean and the ring.

# %% predict="7.1"
predict("7.1", "b")

# %%
D, ts, ladder = exact, grid(32), {}
while len(ts) > 2:
    D, ts = Perfect(D, ts), ts[::2]
    ladder[len(ts) - 1] = D
models = {"the denoiser": exact} | {f"student, {n} step{'s' * (n > 1)}": ladder[n] for n in (8, 2, 1)}
for ax, (name, D) in zip(plotting.panels(4, size=2.3), models.items()):
    plotting.shaded(target.log_prob, 2.3, ax)
    plotting.scatter(D(x_T[:300], torch.tensor(schedule.t_max)), ax, 2.3, name, size=4)
plt.show()

# %%
reveal("7.1")

# %% [markdown]
# *What four models say of the same pure noise. The denoiser: one point in the middle, for all. The student with eight
# steps: a small cloud; with two steps a wider one; with one step, the eight spots of the ring.*
#
# In denoising, many $x_0$ may lie behind one $x_t$: that is what leaves a blur, and a loss that cannot fall to zero.
# Here the target is a *function* of $x_t$; nothing about it is left to chance. **The smallest possible loss is 0**, and
# a network that is large enough can come near it. We shall see it happen.

# %% [markdown]
# ## 3 · Which errors should count?
#
# What a network puts out is a matter of choice: the guess $\hat x_0$ itself; or the noise, from which the guess is
# $\hat x_0=(x-\sigma F)/\alpha$; or the mixture $v=\alpha\varepsilon-\sigma x_0$, from which, where
# $\alpha^2+\sigma^2=1$, the guess is $\hat x_0=\alpha x-\sigma F$ (put $x=\alpha x_0+\sigma\varepsilon$ and $F=v$ in:
# the noise cancels, and $(\alpha^2+\sigma^2)\,x_0$ is left). All have the form
# $\hat x_0=c_{\rm skip}\,x+c_{\rm out}\,F$. If the output $F$ is off by $\delta$, the guess is off by
# $c_{\rm out}\,\delta$. And with $F^*$ for the output whose guess is $\tilde x$, a loss on $F$ is a weighted loss on
# the guess:
#
# $$\lvert F-F^*\rvert^2 = \frac{1}{c_{\rm out}^2}\,\lvert\hat x_0-\tilde x\rvert^2 . \tag{7.4}$$
#
# For a noise network, $c_{\rm out}=-\sigma/\alpha$: its weight is $\alpha^2/\sigma^2$, the signal-to-noise ratio (snr).
# For a $v$-network under a variance-preserving schedule, $c_{\rm out}=-\sigma$: its weight is $1/\sigma^2 =
# \text{snr}+1$. A third weight, between the two, is the larger of snr and 1. **What do they make of the four steps of a
# four-step student?** The table has two halves. Left: how far the guess is off if $F$ is off by 0.01. Right: which share
# of the loss each step gets if all guesses are off by the same, its weight divided by the sum of the four weights.

# %%
one = torch.ones(1, 2)
snr = schedule.log_snr(grid(4)[:-1]).exp()
shares = {"snr": snr, "max(snr, 1)": snr.clamp(min=1), "snr + 1": snr + 1}
networks = {kind: Preconditioned(MLP(), schedule, kind()) for kind in (Eps, V, X0)}
print("  t       snr     | an error of 0.01 in F: noise       v      x0  | share:   " + "  ".join(shares))
for i, t in enumerate(grid(4)[:-1]):
    out = [0.01 * network.coefficients(one, t)[1].abs().item() for network in networks.values()]
    share = [(w[i] / w.sum()).item() for w in shares.values()]
    print(f"{t:.3f} {snr[i]:9.5f}  |" + " " * 22 + "".join(f"{e:8.4f}" for e in out) + "  |"
          + " " * 2 + "".join(f"{e:11.5f}" for e in share))

# %% [markdown]
# (Is (7.4) right? With a $v$-network, and data $x_0$ in place of $\tilde x$:)

# %%
model, (x, x0) = networks[V], torch.randn(2, 6, 2, generator=seeded(4))
t = torch.linspace(0.1, 0.9, 6)
in_output = (model.predict(x, t) - model.target(x0, x, t)).square()
in_guess = (schedule.log_snr(t).exp() + 1)[:, None] * (model(x, t) - x0).square()
assert torch.allclose(in_output, in_guess, rtol=1e-4)                                           # eq. (7.4) for v: snr + 1

# %% [markdown]
# Read the first line, pure noise. A noise network must subtract nearly all of $x$ and divide the rest by
# $\alpha\approx0$: an error of a hundredth in $F$ becomes a guess that is off by more than one. With many steps that
# did not matter: a first short step hardly uses the guess. With few steps it *is* the picture. And the weight snr gives
# this line practically no share: the loss does not even see the error. So for distillation
#
# * the network predicts $v$ or $x_0$ (ours predict $v$),
# * and the weight of the guess's error never vanishes:
#
# $$L = \mathbb E\;\max(\text{snr}_t,1)\;\lvert\hat x_0(x_t,t)-\tilde x\rvert^2 . \tag{7.5}$$
#
# **Exercise 7.3 · ●○○ · 6 min · eq. (7.5)**
#
# Write `my_loss(guess, target, t, schedule)`: the mean over all entries, with a time for each row.
# `schedule.log_snr(t)` is the *logarithm* of the snr.

# %% exercise="7.3"
def my_loss(guess, target, t, schedule):                        # guess, target (B, ...); t (B,) -> ()
    ### BEGIN SOLUTION two lines: the weight of each row, and the mean of the weighted squares
    weight = schedule.log_snr(t).exp().clamp(min=1)
    return (per_row(weight, guess) * (guess - target).square()).mean()
    ### END SOLUTION


# %% check="7.3"
# NBVAL_CHECK_OUTPUT
my_loss = exercise("7.3", my_loss)

# %% [markdown]
# ## 4 · The ladder
#
# A stage needs no samples of the teacher: take *data*, add noise up to a random one of the student's times, ask the
# teacher for its two steps from there, and learn. The student starts as a copy of its teacher, for it has nearly the
# same thing to say. Its grid is every second time of the teacher's. The first time, pure noise, must be among them, and
# the last, 0, too.
#
# **Exercise 7.4 · ●●○ · 8 min · the grids**
#
# Write `my_halvings(ts, until)`: the list of the *students'* grids, from the first student's, with half as many steps
# as `ts`, to the last one's with `until` steps. `ts` has $n+1$ times, where $n$ is `until` times a power of two, and
# its times need not be evenly spaced.

# %% exercise="7.4"
def my_halvings(ts, until):                                     # (n+1,) falling times, whole number -> list of grids
    grids = []
    ### BEGIN SOLUTION three lines: a loop that thins the grid and keeps it
    while len(ts) - 1 > until:
        ts = ts[::2]
        grids.append(ts)
    ### END SOLUTION
    return grids


# %% check="7.4"
# NBVAL_CHECK_OUTPUT
my_halvings = exercise("7.4", my_halvings)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *It never ends*: the loop must make `ts` shorter.
# * *One time too few*: $n$ steps have $n+1$ times; for $n=4$ and `until` 1 the lengths are 3 and 2.
#
# </details>
#
# Now everything is yours: the target, the loss, the grids. First a teacher: a small network, trained by denoising as in
# chapter 01, on samples of the ring. (It is trained for a few seconds, and is far from perfect; that is part of the
# story.)

# %%
def all_times(model, x0, generator):
    t = torch.rand(len(x0), generator=generator, device=x0.device) * (schedule.t_max - schedule.t_min) + schedule.t_min
    return denoising_loss(model, x0, t, torch.randn(x0.shape, generator=generator, device=x0.device))


spots = target.sample(20_000, seeded(6)).float()
settings = {"batch": 256, "ema": 0.98, "warmup": 20, "device": "cpu"}
torch.manual_seed(0)
untrained = Preconditioned(MLP(width=96), schedule, V())
taught = train(all_times, untrained, [spots], steps=3000 if full else 500, lr=4e-3, **settings)
teacher = taught.model
end = final(teacher, x_T, grid(64), ddim).x                     # where the teacher's 64 steps lead
print(f"64 steps of the teacher: {apart(end, truth):.3f} from the exact ends; {taught.seconds:.0f} s of training")


# %%
def stage(teacher, ts, error=my_loss):
    """The loss of one stage: the student's step over two of the teacher's, at a random place of its grid."""
    def loss(student, x0, generator):
        i = 2 * torch.randint(len(ts) // 2, (len(x0),), generator=generator)
        t, m, s = ts[i], ts[i + 1], ts[i + 2]
        x, _ = noised(schedule, x0, t, generator)               # alpha x0 + sigma eps
        with torch.no_grad():                                   # the teacher does not learn
            goal = my_two_step_target(teacher, x, t, m, s)
        return error(student(x, t), goal, t, schedule)
    return loss


probe = [make(teacher, grid(64))(Student.of(teacher), spots[:256], seeded(7)) for make in (stage, halving_loss)]
assert torch.allclose(*probe)                                   # eq. (7.5): your stage is the library's
print(f"before any training the first student's loss is {probe[0]:.1e}: two short steps are nearly one")

# %%
STEPS = 1000 if full else 200
students, D, ts = {}, teacher, grid(64)
for its_grid in my_halvings(ts, 1):
    trained = train(stage(D, ts), Student.of(D), [spots], steps=STEPS, lr=2e-3, **settings)
    D, ts = trained.model, its_grid
    students[len(ts) - 1] = D
    print(f"{len(ts) - 1:3} steps: {trained.seconds:4.1f} s, loss {sum(trained.losses[-20:]) / 20:.1e}")
print(f"(the teacher's own loss, denoising, ended at {sum(taught.losses[-100:]) / 100:.2f})")

# %% [markdown]
# The students' losses end orders of magnitude below the teacher's (though weights and targets differ). The teacher
# could not know what it was asked; the students can.
#
# **Prediction 7.2.** Six stages, and each student is a little off its own teacher. How far from the *first* teacher's
# ends may the last student be?
#
# * **a**: at most the sum of the six distances, each from a student to its own teacher,
# * **b**: their product, roughly: each student magnifies its teacher's errors, so six stages are a disaster,
# * **c**: no more than the last of the six: only the last student is used.

# %% predict="7.2"
predict("7.2", "a")

# %%
ends = {64: end} | {n: final(D, x_T, grid(n), ddim).x for n, D in students.items()}
plain = {n: final(teacher, x_T, grid(n), ddim).x for n in ends}
total = 0.0
print(f"{'steps':>5}{'to its teacher':>16}{'sum so far':>12}{'to the first':>14}{'teacher, as few steps':>23}{'times nearer':>14}")
for before, n in pairwise(ends):
    total += (step := apart(ends[n], ends[before]))
    first = apart(ends[n], end)
    print(f"{n:5}{step:16.4f}{total:12.4f}{first:14.4f}{apart(plain[n], end):23.4f}{apart(plain[n], end) / first:14.1f}")
    assert first <= total + 1e-6                                                                # eq. (7.6)
assert apart(plain[4], end) > 5 * apart(ends[4], end)

# %%
reveal("7.2")

# %% [markdown]
# With $S_n(x)$ for the end of the student with $n$ steps, this is nothing but the triangle inequality:
#
# $$\lvert S_1-S_{64}\rvert
#  \;\le\; \lvert S_1-S_2\rvert + \lvert S_2-S_4\rvert + \dots + \lvert S_{32}-S_{64}\rvert . \tag{7.6}$$
#
# Each stage adds what *it* fails to copy. (Within a stage, an error made in one step is carried on by the steps after
# it, which can shrink or stretch it; but a later stage has fewer and fewer steps.) The last stages add most: what they
# must copy is the most unlike what they start from. **Where does that leave us, with respect to the teacher and to the
# truth?**

# %%
counts = [n for n in ends if n < 64]
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.2), sharey=True)
for ax, reference in ((left, end), (right, truth)):
    ax.plot(counts, [apart(plain[n], reference) for n in counts], "s--", color=plotting.SECOND, label="DDIM, teacher")
    ax.plot(counts, [apart(ends[n], reference) for n in counts], "o-", color=plotting.ESTIMATE, label="DDIM, students")
    ax.set(xscale="log", yscale="log", xlabel="steps = evaluations")
    ax.set_xticks(counts, map(str, counts))
    ax.set_xticks([], minor=True)
by_exact = [apart(final(exact, x_T, grid(n), ddim).x, truth) for n in counts]
right.plot(counts, by_exact, ":", color=plotting.INK, label="DDIM, exact denoiser")
right.axhline(apart(end, truth), color=plotting.TRUTH, lw=3, zorder=0, label="the teacher's 64 steps")
left.set(ylabel="mean distance", title="to the teacher's end")
right.set_title("to the exact end")
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Two panels, distance against steps, both axes logarithmic. Left, to the end of the teacher's 64 steps: DDIM with the
# teacher climbs steeply as steps get fewer; the students' curve lies more than ten times lower throughout. Right, to
# the exact end: the students stay on the grey line of the teacher's own error down to one step; DDIM with the teacher
# leaves it upwards as steps get fewer; DDIM with the exact denoiser is below the line with many steps, and far above it
# with one or two.*
#
# The left panel is the success: a student with *one* step is nearer to the teacher's end than the teacher itself is
# with eight. The right panel is the honest part. **A student copies its teacher, faults included.** Its error with
# respect to the truth is the teacher's error, to which it adds almost nothing; it will not be better. And yet, with one
# or two steps, this faulty network beats the *exact* denoiser by far.

# %%
def page(model, steps, ax=None):
    figure, ax = plt.subplots(figsize=(4.2, 4.6)) if ax is None else (ax.figure, ax)
    x = final(teacher if model == "teacher" else students[int(model.split()[1])], x_T, grid(steps), ddim).x
    plotting.shaded(target.log_prob, 2.3, ax)
    title = f"{model}, {steps} step{'s' * (steps > 1)}\n{apart(x, end):.3f} from the end"
    plotting.scatter(x[:300], ax, 2.3, title, size=4)
    return figure


axes = plotting.panels(8, size=2.2, columns=4)
for i, n in enumerate((8, 4, 2, 1)):
    page("teacher", n, axes[i])
    page(f"student {n}", n, axes[4 + i])
plt.show()

# %% [markdown]
# *Two rows of four panels, from the same noises, with 8, 4, 2 and 1 steps. Upper row, DDIM with the teacher: the
# samples are drawn inwards and end in a point. Lower row, the students: the eight spots in all four panels, with stray
# samples between them, which are the teacher's own.*
#
# ### Move the sliders
#
# Every student may be asked to walk with any number of steps. Its own number is in its name. Before you play:
#
# **Prediction 7.3.** The student with four steps walks in *sixteen*, on the grid of sixteen equal steps, which contains
# its own. Compared with its own four steps, the distance to the teacher's end becomes
#
# * **a**: smaller: more steps, more accuracy,
# * **b**: about the same: it gives the same directions, four times as often,
# * **c**: much larger.

# %% predict="7.3"
predict("7.3", "c")

# %%
for n in (1, 2, 4, 8, 16, 64):
    row = [apart(final(D, x_T, grid(n), ddim).x, end) for D in (students[4], teacher)]
    print(f"{n:3} steps: the student of four {row[0]:.4f}, the teacher {row[1]:.4f}")

# %%
reveal("7.3")

# %%
flipbook(page, model=["student 4", "student 1", "student 2", "student 8", "student 16", "teacher"],
         steps=[4, 1, 2, 3, 6, 8, 16, 64],
         alt="The student with four steps, asked for four: the samples sit on the eight spots of the ring.")

# %% [markdown]
# A student has *one* number of steps. With more of them it gets worse, with fewer as well: each of its answers is for a
# leap from one of its times to the next. (Chapter 08 has models to which one may give more steps; chapter 04's solvers
# are no use here either, since they mix guesses for steps of different lengths.)
#
# ### What if the loss were that of a noise network?
#
# Section 3 claimed that the weight snr does not see the first step. **Does it matter?** The stage from eight steps to
# four once more, with nothing but the weight changed.

# %%
def by_snr(guess, goal, t, schedule):                           # the weight of a noise network
    return (per_row(schedule.log_snr(t).exp(), guess) * (guess - goal).square()).mean()


blind = train(stage(students[8], grid(8), by_snr), Student.of(students[8]), [spots], steps=STEPS, lr=2e-3, **settings).model
x, (t, m, s) = x_T[:500], grid(8)[:3]
first = ddim(students[8], ddim(students[8], x, t, m), m, s)
for name, D in (("max(snr, 1)", students[4]), ("snr", blind)):
    print(f"weight {name:12} first step {apart(ddim(D, x, t, s), first):.4f} off its teacher's two, "
          f"all four steps {apart(final(D, x_T, grid(4), ddim).x, ends[8]):.4f} off")

# %% [markdown]
# It does: the first step is learnt many times worse, and the three steps after it cannot make up for that.
#
# ### Why halve at all?
#
# One could go from 64 to 1 at once: draw noises, run the teacher's 64 steps from each, and let a one-step student learn
# the pairs by heart (Luhman and Luhman, 2021). Each pair costs 64 evaluations. Halving asks the teacher twice for each
# row, in each of six stages: 12 for a row of every stage. We grant the direct student as many of the teacher's
# evaluations as all six stages took, and half of their training steps.
#
# **Prediction 7.4.** On the ring, with one step: whose samples are nearer to the teacher's end?
#
# * **a**: the halved student's: six small changes are easier to learn than a large one,
# * **b**: the direct student's, or both are about as near,
# * **c**: the halved student's by far: who regresses from pure noise straight to the end learns the mean, a blur.

# %% predict="7.4"
predict("7.4", "b")

# %%
evaluations = 6 * STEPS * settings["batch"] * 2
pairs = prior(exact, (evaluations // 64, 2), seeded(8))
answers = final(teacher, pairs, grid(64), ddim).x


def by_heart(student, z, answer, generator):
    return (student(z, torch.tensor(schedule.t_max)) - answer).square().mean()


direct = train(by_heart, Student.of(teacher), [pairs, answers], steps=3 * STEPS, lr=2e-3, **settings).model
print(f"{evaluations:,} evaluations of the teacher are {len(pairs):,} pairs")
for name, D in (("halved", students[1]), ("direct", direct)):
    print(f"{name}: one step ends {apart(final(D, x_T, grid(1), ddim).x, end):.4f} from the teacher's end")

# %%
reveal("7.4")

# %% [markdown]
# An honest answer: *on the ring, going straight to one step works as well, or better*. In two dimensions some ten
# thousand pairs leave no gaps, and the map from noise to spot is easy to learn. On pictures the noise has hundreds of
# dimensions or more, any number of pairs is few, and the map is complicated. There the ladder has three merits. It never
# runs out of examples, since each row is new noise on a piece of data. Each stage asks for a small change only. And it
# leaves a student on every rung, so that one may stop where the quality is still good. (These are reasons, not a
# measurement: on pictures the direct way was not tried here.)

# %% [markdown]
# ## 5 · Guidance first
#
# Chapter 06 paid *two* evaluations a step for guidance, $D_w=D_c+w\,(D_c-D_u)$. That is another thing that a student
# can take over, before any halving: it is *told* the weight $w$ as one more number and learns to say in one evaluation
# what the guided teacher says in two (Meng et al., 2023):
#
# $$L = \mathbb E\;\lvert F(x_t,t,c,w) - F^*\rvert^2, \qquad F^* \text{ from } D_w(x_t,t,c),\quad w\sim U[0,2]. \tag{7.7}$$
#
# Here $F^*$ is the output whose guess is $D_w$. The target is again a function of what the student sees, *provided it
# is told $w$*. If $w$ were drawn and not told, the student would learn the mean over all $w$: the blur once more,
# this time in the strength of the guidance. In the library that is `guidance_loss`; `told(student, w)` is the student
# with $w$ held fixed, and goes wherever `guided(teacher, w)` goes. **Three overlapping classes, whose exact denoiser
# is the teacher: does one evaluation do?**

# %%
clover = ring(3, 1.0, 0.5)
D = clover.denoiser(schedule)
classes = torch.randint(3, (20_000,), generator=seeded(9))
leaves = clover.sample(20_000, seeded(10), classes).float()
torch.manual_seed(0)
single = train(guidance_loss(D, 2.0), Student(MLP(width=96, classes=3, numbers=1), schedule, V()), [leaves, classes],
               steps=3000 if full else 400, lr=3e-3, **settings).model
x, cond = prior(D, (600, 2), seeded(11)), torch.arange(600) % 3
ends_of = {w: (final(guided(D, w), x, grid(32), ddim, cond=cond), final(told(single, w), x, grid(32), ddim, cond=cond))
           for w in (0.0, 0.5, 1.0, 2.0, 4.0)}
for w, (two, one) in ends_of.items():
    print(f"w = {w}: {two.nfe} evaluations against {one.nfe}; ends {apart(two.x, one.x):.3f} apart; "
          f"guidance moved them by {apart(two.x, ends_of[0.0][0].x):.3f}" + "  (never told this weight)" * (w > 2))
assert apart(ends_of[1.0][0].x, ends_of[1.0][1].x) < 0.1 * apart(ends_of[1.0][0].x, ends_of[0.0][0].x)    # eq. (7.7)

# %%
axes = plotting.panels(4, size=2.3)
for ax, (w, i) in zip(axes, ((0.0, 0), (0.0, 1), (2.0, 0), (2.0, 1))):
    plotting.shaded(clover.log_prob, 2.5, ax)
    for k, color in enumerate((plotting.ESTIMATE, plotting.SECOND, plotting.THIRD)):
        plotting.scatter(ends_of[w][i].x[cond == k][:100], ax, 2.5, color=color, size=5)
    ax.set_title(f"w = {w:g}\n{('guided: 2 a step', 'told: 1 a step')[i]}")
plt.show()

# %% [markdown]
# *Four panels of samples of three classes. With weight 0 the classes overlap, with weight 2 each is drawn together at
# the outer side of its leaf; in both cases the guided teacher's panel and the student's look alike.*
#
# Half of the evaluations, for every weight in the range at once. Outside the range it was never told anything, and the
# last line shows it. From here on the ladder goes on as before, with the weight told at every stage
# (`halving_loss(teacher, ts, largest=2.0)` draws it for each row).

# %% [markdown]
# ## 6 · On pictures
#
# The course ships this whole ladder for `fashion_teacher`: first `fashion_guided_student`, then students with 8, 4, 2
# and 1 steps, each told its guidance weight. They took longer than a notebook may;
# `course train fashion_progressive_4`, say, makes one again.
#
# One thing was done better than on the ring. The *first* rung learns from a denoiser, and for a denoiser we know better
# steps than DDIM. Nothing in (7.2) asks how the teacher came to $z$. So its teacher takes one step of second order in
# place of two of first, the **midpoint method**: a DDIM step to $m$, only to ask there; then from $x_t$ all the way to
# $s$ with *that* guess, $D(x_m, m)$. The same two evaluations. What is the target? The second part is a DDIM step from
# $x_t$ with the guess $D(x_m,m)$, so the guess with which the student lands there is $D(x_m,m)$ itself:

# %%
t, m, s = torch.tensor([0.7, 0.45, 0.2], dtype=torch.float64)
x = torch.randn(100, 2, generator=seeded(12), dtype=torch.float64)
for c in SCHEDULES:
    D = ring().denoiser(c)
    assert torch.allclose(my_x0_between(c, x, t, midpoint(D, x, t, s), s), D(ddim(D, x, t, m), m), atol=1e-11)
print("the target of a midpoint step is the guess at the mid-point")

# %% [markdown]
# In exercise 7.2 that was a wrong answer. It is wrong for *students* as teachers, on every later rung: their answers
# are no slopes of a flow that a better solver could follow more closely; two of their own steps are all there is.
#
# **What do the five models draw from the noises of the failing case?**

# %%
built = recipes.manifest()
single_image = recipes.load("fashion_guided_student", device)
rungs = {n: recipes.load(f"fashion_progressive_{n}", device) for n in (8, 4, 2, 1)}
for name in ("fashion_guided_student", *(f"fashion_progressive_{n}" for n in rungs)):
    made = built[name]
    print(f"{name:24} {made['steps']:,} training steps, {made['train_seconds'] / 60:.0f} min, {made['device']}")


def draw(D, n, step=ddim):
    return final(D, noise_image, grid(n), step, cond=kinds)


drawn = {n: draw(told(D, WEIGHT), n) for n, D in rungs.items()}
undistilled = {n: draw(guided(teacher_image, WEIGHT), n) for n in rungs}
top, top_told = (draw(D, 8, midpoint) for D in (guided(teacher_image, WEIGHT), told(single_image, WEIGHT)))

# %%
rows = {"teacher, guided\n8 midpoint steps": top, "told the weight\n8 midpoint steps": top_told}
rows |= {f"student, {n} step{'s' * (n > 1)}": r for n, r in drawn.items()}
rows |= {f"teacher, {n} step{'s' * (n > 1)}": undistilled[n] for n in (4, 1)}
plotting.image_rows([r.x.cpu() for r in rows.values()], [f"{name}: {r.nfe}" for name, r in rows.items()],
                    "after the colon: evaluations")
plt.show()


def off(x):                                                     # mean difference of the pixels, whose range is 2
    return (x - top.x).abs().mean().item()


print(f"from the first row: told the weight {off(top_told.x):.3f}")
for n in rungs:
    print(f"    {n} step{'s' * (n > 1):1}  student {off(drawn[n].x):.3f}   guided teacher by DDIM {off(undistilled[n].x):.3f}")

# %% [markdown]
# *Eight rows of eight garments from the same eight noises: the guided teacher with eight midpoint steps on top; below
# it the network that is told the weight, with the same steps at half the price; the students with 8, 4, 2 and 1 steps;
# and at the bottom the guided teacher by DDIM with 4 steps and with 1.*
#
# Compare the row "student, 4 steps" with "teacher, 4 steps", which costs twice as many evaluations, and the row
# "student, 1 step" with the last one. Then go down the students' rows and look for the rung where details begin to go.
#
# Eight pictures prove nothing. The Fréchet distance to the data, measured on a thousand pictures of each method, ships in
# the ledger; now with weight 0.25, near which the guided teacher's pictures are nearest to real ones (chapter 06). **What
# quality does each method give for its evaluations?**

# %%
METHODS = {"progressive": "students, DDIM", "guided_student_ddim": "told the weight, DDIM",
           "guided_student": "told the weight, 2M", "guided_teacher": "guided teacher, 2M",
           "dpm_solver_pp_sde": "teacher, SDE solver, w = 0"}
shipped = {(r.method, r.nfe): replace(r, method=METHODS[r.method])                              # one n for all: the distance
           for r in ledger.read(data.ROOT / "data" / "ledger.csv")                              # depends on it
           if r.dataset == "fashion_mnist" and r.metric == "frechet" and r.samples == 1000 and r.method in METHODS
           and r.guidance == (0.0 if r.method == "dpm_solver_pp_sde" else 0.25)}
shown = sorted(shipped.values(), key=lambda r: (r.nfe, r.value))
ax = plotting.quality_against_cost(shown, plt.subplots(figsize=(9.2, 3.6))[1])
low, high = ax.get_ylim()
ax.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
ticks = (0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50, 100)
ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
ax.minorticks_off()
ax.set(xlim=(0.85, 38), ylim=(low, high), ylabel="Fréchet distance\nabove the floor")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(f"evaluations  {'method':28}Fréchet distance (between real pictures {shown[0].floor:.2f})")
for r in shown:
    print(f"{r.nfe:11}  {r.method:28}{r.value:6.2f}" + (f" ± {r.spread:.2f}" if r.spread else ""))

# %% [markdown]
# *Fréchet distance above the floor against evaluations, both axes logarithmic, one line a method. All with guidance weight
# 0.25, but for the SDE solver, which is unguided. 2M is chapter 04's solver of second order, and ± the spread over seeds.*
#
# Read off: how many evaluations does a solver need for what the students do with four? And what has halving changed at
# four evaluations? ("Told the weight, DDIM" is the network that it began with.) Differences below the spread mean nothing.
#
# Read with care, too. The distance is to the *data*, and the students were never asked to be near the data, only near
# their guided teacher. Guidance itself moves samples, towards the data or away from it as $w$ grows (chapter 06), and the
# teacher has errors of its own; both are in every student's number. And what they learnt is its path *without* noise;
# chapter 04's best sampler, with fresh noise, is not a function of the start, and cannot be learnt in this way.

# %% [markdown]
# ## 7 · What it costs
#
# A student is not free: somebody pays for the training. Count in evaluations of the network, and count a gradient as
# two more (going backward costs about twice as much as going forward). In every stage a training row costs two
# evaluations of the teacher (two steps; in the guidance stage, with the label and without it) and three of the student.
# Afterwards each *sample* costs `until` evaluations in place of the guided teacher's $2n$.
#
# **Exercise 7.5 · ●●○ · 10 min · counting**
#
# Write `my_break_even(n, until, rows)`: the number of samples after which the whole distillation, of guidance first and
# then of $n$ steps down to `until` by halving, has paid for itself in evaluations, if every stage sees `rows` rows
# (training steps times batch). $n/$`until` is a power of two.

# %% exercise="7.5"
def my_break_even(n, until, rows):                              # three whole numbers -> number of samples
    ### BEGIN SOLUTION two or three lines: stages, cost of all of them, saving of one sample
    stages = 1 + math.log2(n / until)
    cost = stages * rows * (2 + 3)
    return cost / (2 * n - until)
    ### END SOLUTION


# %% check="7.5"
# NBVAL_CHECK_OUTPUT
my_break_even = exercise("7.5", my_break_even)

# %%
rows_seen = built["fashion_guided_student"]["steps"] * 64                                       # batches of 64
print(f"every stage as long as the guidance stage, {rows_seen:,} rows:")
for n, until in ((16, 8), (16, 4), (16, 1), (64, 1)):
    samples = my_break_even(n, until, rows_seen)
    print(f"    {n:3} guided steps -> {until} evaluation{'s' * (until > 1)}: paid after {samples:,.0f} samples")

# %% [markdown]
# Somebody who wants a few thousand pictures once should use a better solver. Somebody who serves millions, or one
# person who does not like to wait, should distil: the break-even counts work, and waiting has a price of its own.
#
# **What is lost**, besides the work:
#
# * **the score**: the student's answers are no posterior means. No likelihood, no SDE sampler, no Langevin corrector,
#   no classifier guidance; and no *other* solver, for solvers need the slope.
# * **the choice of the number of steps**: prediction 7.3.
# * **anything the teacher did wrong stays wrong**: the ceiling is the teacher's ODE, on the teacher's grid.
# * **freshness**: a deterministic map from noise to data. The errors of chapter 04, section 6, which fresh noise washed
#   out, stay in. To that there is an answer.

# %% [markdown]
# ## 8 · Closing task: two steps forward, one step back
#
# A student with $n/2$ steps makes leaps of $2h$ where its teacher made steps of $h$. Use it for a sampler of steps $h$
# *with fresh noise* (Meng et al., 2023). To get from $t$ to $s=t-h$:
#
# 1. leap: one DDIM step of the student from $t$ to $u=2s-t$, twice as far (or to $u=0$ if that is negative);
# 2. go back up from $u$ to $s$ as the *forward process* does: it shrinks the signal by $a=\alpha_s/\alpha_u$ and adds
#    fresh Gaussian noise, $x_s = a\,x_u+\tau\,z$.
#
# If the leap is exact, $x_u=\alpha_u x_0+\sigma_u\varepsilon$ in distribution. Then $a\,x_u = \alpha_s
# x_0+a\,\sigma_u\varepsilon$: the signal is right, and $\tau$ has to bring the noise to what is due at $s$. Variances
# of independent noises add. What is $\tau$?
#
# **Exercise 7.6 · ●●● · 15 min · an unseen step**
#
# Write `my_overshoot(D, x, t, s, z)`. It should work for every schedule, and rows whose $u$ is cut off at 0 need no
# special care.

# %% exercise="7.6"
def my_overshoot(D, x, t, s, z):                                # x, z (B, ...); t, s () or (B,) -> (B, ...)
    ### BEGIN SOLUTION about five lines: u, the leap, the ratio of the alphas, tau, and the way back
    u = (2 * s - t).clamp(min=0)
    x_u = ddim(D, x, t, u)
    a = per_row(D.schedule.alpha(s) / D.schedule.alpha(u), x)
    sigma_u, sigma_s = per_row(D.schedule.sigma(u), x), per_row(D.schedule.sigma(s), x)
    return a * x_u + (sigma_s**2 - (a * sigma_u) ** 2).sqrt() * z
    ### END SOLUTION


# %% check="7.6"
# NBVAL_CHECK_OUTPUT
my_overshoot = exercise("7.6", my_overshoot)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN*: is what stands under the root negative? The noise at $u$ shrinks by $a$ before it is subtracted.
# * *Wrong for Flow or sub-VP only*: some formula of yours uses $\alpha^2+\sigma^2=1$.
#
# </details>
#
# **Does it keep the distribution?** On a Gaussian we can build a student whose leap is exact: where the exact flow
# leads, put through `my_x0_between`. On a Gaussian a step is $x_s=Ax_t+Cz$, and the variance goes $v\to A^2v+C^2$
# (chapter 02), so no sampling is needed. At each time of a grid of eight steps the width should be
# $\sqrt{\alpha^2c^2+\sigma^2}$.

# %%
class ExactLeap:
    """For data N(0, std^2): the guess whose DDIM step over two of the grid's steps h follows the exact flow."""

    def __init__(self, schedule, std, h):
        self.schedule, self.std, self.h = schedule, std, h

    def width(self, t):
        return (self.schedule.alpha(t) ** 2 * self.std**2 + self.schedule.sigma(t) ** 2).sqrt()

    def __call__(self, x, t, cond=None):
        u = (t - 2 * self.h).clamp(min=0)
        return my_x0_between(self.schedule, x, t, x * self.width(u) / self.width(t), u)


one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
for c in SCHEDULES:
    ts = torch.linspace(c.t_max, 0, 9, dtype=torch.float64)
    D = ExactLeap(c, 0.5, ts[0] / 8)
    v = D.width(ts[0]) ** 2
    for t, s in pairwise(ts):
        v = my_overshoot(D, one, t, s, zero) ** 2 * v + my_overshoot(D, zero, t, s, one) ** 2
        assert abs(v.sqrt() / D.width(s) - 1) < 1e-6                                            # the marginal, at every time
    print(f"{type(c).__name__:10} width at the end {v.sqrt().item():.6f}, right is 0.5")

# %% [markdown]
# Every marginal is right, at every step and under every schedule, though each step throws away part of the old noise.
# (Our students on the ring cannot be used so: the sampler asks at *all* times of the finer grid, and they were taught
# at every second one only. A student for this sampler is trained at all of them, with leaps of the same length.)

# %% [markdown]
# ## The ledger

# %%
def live(method, n, D, reference):
    begin = time.perf_counter()
    result = final(D, x_T, grid(n), ddim)
    spent = time.perf_counter() - begin
    return ledger.Row(f"{method} (live)", "ring", result.nfe, result.depth, len(x_T), spent, "this machine", "path_error",
                      apart(result.x, reference), 0.0, len(x_T), 1, weights="ring network")


rows = [live("DDIM", n, teacher, truth) for n in (64, 4, 1)] + [live("progressive", n, students[n], truth) for n in (4, 1)]
ledger.table(rows, "method data NFE depth seconds batch metric value").show()

# %% [markdown]
# Distances to the exact ends. The shipped rows, on pictures, stand in section 6.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | a DDIM step is linear in the guess | $x_s=\frac{\sigma_s}{\sigma_t}x_t+\big(\alpha_s-\frac{\sigma_s}{\sigma_t}\alpha_t\big)\hat x_0$ |
# | the guess that lands on $z$ | $\tilde x = \big(z-\frac{\sigma_s}{\sigma_t}x_t\big)\big/\big(\alpha_s-\frac{\sigma_s}{\sigma_t}\alpha_t\big)$ |
# | the target | $z$ = the teacher's two DDIM steps, by way of the mid-point's state *and* time |
# | the loss | $\mathbb E\,\max(\text{snr},1)\,\lvert\hat x_0-\tilde x\rvert^2$, whose minimum is 0; the network predicts $v$ or $x_0$ |
# | the ladder | start as the teacher, learn on every second time, become the teacher |
# | errors | add over the stages: $\lvert S_1-S_{64}\rvert\le\sum\lvert S_n-S_{2n}\rvert$ |
# | guidance first | told $w$, one evaluation says what $D_c+w(D_c-D_u)$ says in two |
# | with fresh noise | leap to $u=2s-t$, then up: $\frac{\alpha_s}{\alpha_u}x_u+\sqrt{\sigma_s^2-(\alpha_s\sigma_u/\alpha_u)^2}\,z$ |
#
# * A denoiser's guess is a heading. A student's guess is a destination.
# * The path without noise is a function of its start, so a regression can be sharp.
# * A student is as good as its teacher, for one number of steps.
#
# **Limits.** All distances on the ring are to *one* teacher, trained for seconds with one seed; the factor by which
# students are nearer depends on how long they are trained. That errors add is proved, how large each one is, is not: on
# pictures the last stages lose visibly more. The pictures' students have the size of their teacher; whether a smaller
# one would do was not tried.
#
# **What is still open.** The ladder has many rungs, and each must be climbed. Chapter 08 goes to the end of the path in
# one stroke: it learns the end from *neighbouring* points of the path, and needs neither a ladder nor, in the end, a
# teacher.

# %% [markdown]
# ## Further reading
#
# * T. Salimans, J. Ho, *Progressive distillation for fast sampling of diffusion models*, 2022, arXiv:2202.00512: the
#   ladder, $v$-prediction, and the weights of section 3.
# * C. Meng, R. Rombach, R. Gao, D. Kingma, S. Ermon, J. Ho, T. Salimans, *On distillation of guided diffusion models*,
#   2023, arXiv:2210.03142: the guidance stage, and the sampler of section 8.
# * E. Luhman, T. Luhman, *Knowledge distillation in iterative generative models for improved sampling speed*, 2021,
#   arXiv:2101.02388: straight from noise to the teacher's end.
# * X. Liu, X. Zhang, J. Ma, J. Peng, Q. Liu, *InstaFlow*, 2023, arXiv:2309.06380: straighten the paths first, then one
#   step.
# * D. Berthelot, A. Autef, J. Lin, D. A. Yap, S. Zhai, S. Hu, D. Zheng, W. Talbott, E. Gu, *TRACT: denoising diffusion
#   models with transitive closure time-distillation*, 2023, arXiv:2303.04248: fewer stages, so that less is lost on the
#   way.
# * S. Lin, A. Wang, X. Yang, *SDXL-Lightning: progressive adversarial diffusion distillation*, 2024, arXiv:2402.13929:
#   the ladder with a discriminator (chapter 09).
