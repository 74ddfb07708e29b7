# ---
# course:
#   title: Parallel sampling
#   minutes: 140
#   needs: [4]
#   shows: the whole trajectory denoised at once gives the same picture in a few dozen rounds
# ---

# %% [markdown]
# # 05 · Parallel sampling: the same answer, all at once
#
# Chapter 04 made each step count, so that thirty do the work of a thousand. But thirty evaluations still wait for one
# another like people in a queue, and a machine with room for hundreds of rows sits at each of them with one. This chapter
# does not change the solver, the number of its steps, or its answer. It changes *when* the steps are computed: **all of
# them at once, from a guess of the whole trajectory, and once more from the mended guess, until nothing moves**. What
# comes out is the solution that the queue would have found, and it comes out after very few rounds.
#
# After this chapter you can
#
# * **derive** the sweep that mends a whole trajectory at once, and why it can rest only on the sequential solution, and
#   **implement** it (exercise 5.1),
# * **predict** when its error grows before it falls, and by how much (prediction 5.1), and what ten times as many steps
#   do to the number of sweeps (prediction 5.2),
# * **mend** a stochastic sampler so that it, too, has a fixed point (exercise 5.2),
# * **implement** the rule that says which states have settled (exercise 5.3), and the slopes that make sweeps fewer
#   (exercise 5.4), and the correction of parareal (exercise 5.5),
# * **measure** sequential depth and seconds, **keep the two apart**, and **predict** which of them gains
#   (predictions 5.3 and 5.4),
# * **transfer** a fitted cost model to a question that nobody has answered for you (exercise 5.6).
#
# Allow two hours and a half: 75 minutes for the exercises, the rest for reading. The end of section 4 is a good place for
# a break. Sections 6 (parareal) and 10 (an aside) stand by themselves and may wait for another day.

# %%
import csv
import math
import os
import time
from functools import cache, partial
from itertools import islice

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import Preconditioned, V
from course_lib.fast_samplers import ddim
from course_lib.measure.costs import CostModel
from course_lib.metrics import sliced_wasserstein
from course_lib.networks import MLP
from course_lib.ode_samplers import euler
from course_lib.parallel import converged, gaussian_slopes, parareal, picard, step_noise
from course_lib.sampling import final, prior, sample
from course_lib.schedules import VE, CosineVP, LinearVP, log_snr_uniform, quadratic, uniform
from course_lib.score_matching import denoising_loss
from course_lib.sde_samplers import ancestral, euler_maruyama
from course_lib.speculation import reflection_coupling, speculative
from course_lib.targets import GaussianMixture, ring
from course_lib.training import train
from course_lib.widgets import animation, flipbook

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")


def seeded(seed, device="cpu"):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator(device).manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# Here is a small network, three layers of 128, that learns the ring of eight spots while you read this sentence. **How
# long does one sample take in a thousand ancestral steps, and how much of the machine does that use?**

# %%
def loss(model, x0, generator):
    u = torch.rand(len(x0), generator=generator, device=x0.device)
    t = model.schedule.t_min + (model.schedule.t_max - model.schedule.t_min) * u
    return denoising_loss(model, x0, t, torch.randn(x0.shape, generator=generator, device=x0.device))


torch.manual_seed(0)
spots = ring().sample(20_000, seeded(0)).float()
network = train(loss, Preconditioned(MLP(), CosineVP(), V()), [spots], steps=300, batch=256, lr=2e-3, device=device).model

# %%
def clock():
    """Seconds, once a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run, repeats=3):
    """The least seconds of several runs, and what the last of them returned."""
    times = []
    for _ in range(repeats):
        begin = clock()
        with torch.no_grad():
            result = run()
        times.append(clock() - begin)
    return min(times), result


x = prior(network, (1024, 2), seeded(1, device), device=device)
t = torch.full((1024,), 0.5, device=device)
thousand = uniform(1000, network.schedule)
queue, _ = seconds_of(lambda: final(network, x[:1], thousand, ancestral, generator=seeded(2, device)), repeats=1)
alone, _ = seconds_of(lambda: network(x[:1], t[:1]), 20)
crowd, _ = seconds_of(lambda: network(x, t), 20)
print(f"1000 steps, one sample:              {queue:.2f} s")
print(f"one evaluation of a single row:      {1e6 * alone:.0f} microseconds")
print(f"one evaluation of 1024 rows, a row:  {1e6 * crowd / 1024:.1f} microseconds")
print(f"share of the machine that is used:   {crowd / 1024 / alone:.1%}")

# %% [markdown]
# The time of a single row is almost all *overhead*: starting the operations, fetching the weights. The arithmetic
# could be done for a hundred rows or so in the same time, but the sampler has only one row to offer: the step from $t$
# needs the state that the step before has yet to produce. A graphics card wastes more still. More devices do not
# help: the queue is as long as before.
#
# The claim of this chapter: **the same sample, the same thousand steps, in a few dozen rounds or fewer.**

# %% [markdown]
# ## 1 · Two dots on one trajectory
#
# Before the mathematics, look. One sample travels from noise to the ring along the ODE of chapter 03, in a hundred DDIM
# steps (on the quadratic grid of chapter 04). Two ways to compute the path, both allowed *one round* of the network at a
# time. **Sequential** (orange): a dot that moves one step a round. **Parallel** (blue): a guess of all hundred states, at
# first "all of them are where the start is"; each round evaluates all steps as one batch and mends the whole guess. Grey
# is the true path. **Who is there first?**

# %%
exact = ring().denoiser(CosineVP())                             # no network error in the way
ts = quadratic(100, exact.schedule)                            # steps that grow shorter towards the data
start = prior(exact, (200, 2), seeded(0), dtype=torch.float64)[61:62]                           # one with a bend in its way
truth = torch.stack([start, *sample(exact, start, ts, ddim)])                                   # (101, 1, 2)
sweeps = [start.expand_as(truth), *(sweep.trajectory for sweep in picard(exact, start, ts, ddim, tolerance=1e-3))]


def race(round, ax=None):
    """Both ways after so many rounds."""
    figure, ax = plt.subplots(figsize=(4.4, 3.4)) if ax is None else (ax.figure, ax)
    k, guess = min(round, 100), sweeps[min(round, len(sweeps) - 1)][:, 0]
    plotting.shaded(ring().log_prob, 2.4, ax, n=240)
    ax.plot(*truth[:, 0].T, color=plotting.TRUTH, lw=6, alpha=0.6, solid_capstyle="round")
    ax.plot(*guess.T, "-o", color=plotting.SECOND, lw=0.8, ms=2)
    ax.plot(*guess[-1:].T, "s", color=plotting.SECOND, ms=8)
    ax.plot(*truth[:k + 1, 0].T, color=plotting.ESTIMATE, lw=1.5)
    ax.plot(*truth[k:k + 1, 0].T, "o", color=plotting.ESTIMATE, ms=9)
    middle, gap = truth.mean((0, 1)), (guess - truth[:, 0]).norm(dim=1).max()
    ax.set(xlim=(middle[0] - 0.6, middle[0] + 0.9), ylim=(middle[1] - 0.36, middle[1] + 0.6))
    ax.set_title(f"round {round}\nerror of blue {gap:.1g}")
    return figure


_, axes = plt.subplots(2, 3, figsize=(9, 4.9))
for ax, k in zip(axes.flat, (0, 1, 2, 3, 5, len(sweeps) - 1)):
    race(k, ax)
plt.show()

# %% [markdown]
# *Six panels of one curved path to a spot of the ring. At round 0 all blue dots lie on the start, under the orange one.
# At round 1 they form an almost straight line that shoots past the spot; at round 2 a curve that turns too early; at
# round 3 it is nearly right, and from round 5 on it cannot be told from the true path. All the while the orange dot has
# hardly left the start: it has made as many steps as there were rounds, and there are a hundred to make.*
#
# The first sweep makes the end of the path no better, and yet a few sweeps later everything is right. The animation lets
# both go on to the end; the slider lets you turn the rounds by hand.

# %%
last_sweep = len(sweeps) - 1
rounds = [*range(last_sweep + 1), *range(last_sweep + 4, 100, 5), 100]
animation(race, rounds, [600] * (last_sweep + 1) + [150] * (len(rounds) - last_sweep - 2) + [2500],
          alt="The blue trajectory snaps onto the grey path within a few rounds; the orange dot creeps along it for a hundred.")

# %%
flipbook(race, play=True, round=rounds, alt="Round 0: all blue dots lie under the orange one, at the start of the grey path.")

# %% [markdown]
# *The animation: within five rounds the blue trajectory lies on the grey path; the orange dot needs a hundred rounds to
# crawl to its end.*
#
# This is no approximation in the manner of chapter 04, where a coarser grid gave a nearby answer. It is the *same* grid,
# the same hundred steps, and the same hundred states. How can a batch know what comes out of a queue?

# %% [markdown]
# ## 2 · From a queue to a sum
#
# **The queue.** In this chapter we count steps from the top: $X_0$ is the pure noise at $t_0$, and $X_n$ the state at the
# end of the grid $t_0>t_1>\dots>t_n$. (Do not mix up the capital $X_0$, the *start*, with the clean picture $x_0$.) Write
# $\Phi_j$ for the sampler's step from $t_j$ to $t_{j+1}$. The sequential sampler is
#
# $$X_{j+1} = \Phi_j(X_j), \qquad j = 0, \dots, n-1 . \tag{5.1}$$
#
# **Two steps by hand.** $X_1 = X_0 + (\Phi_0(X_0)-X_0)$: the start plus what the first step changes. And
# $X_2 = X_1 + (\Phi_1(X_1)-X_1) = X_0 + (\Phi_0(X_0)-X_0) + (\Phi_1(X_1)-X_1)$. So it goes on: every state is the
# start plus *all the changes above it*,
#
# $$X_{j+1} = X_0 + \sum_{i=0}^{j}\big(\Phi_i(X_i) - X_i\big). \tag{5.2}$$
#
# Nothing has been assumed; it is (5.1), added up. But it reads differently. If somebody *gave* us all the states on the
# right, the $n$ changes would not depend on one another any more: one batch of $n$ rows, one round, and then a running
# sum, which costs nothing. Nobody gives them to us, so we guess, and put what comes out back in:
#
# $$X^{k+1}_{j+1} = X_0 + \sum_{i=0}^{j}\big(\Phi_i(X^k_i) - X^k_i\big), \qquad X^{k+1}_0 = X_0 . \tag{5.3}$$
#
# That is **Picard's iteration**, older than computers; for diffusion models it is ParaDiGMS (Shih et al., 2023).
# One application of (5.3) is a *sweep*. Three things about it follow in a few lines.
#
# * **It rests only on the right answer.** If a sweep changes nothing, take (5.3) for $j$ and for $j-1$ and subtract:
#   $X_{j+1} - X_j = \Phi_j(X_j)-X_j$, which is (5.1), for every $j$. There is one solution of (5.1) from a given start,
#   so there is no other place to rest. *The answer is that of the queue, and not merely close to it.*
# * **After $k$ sweeps the first $k$ states are exact.** $X_0$ is. And if $X^k_0,\dots,X^k_k$ are exact, the sums up to
#   $X^{k+1}_{k+1}$ hold only exact terms. So $n$ sweeps always suffice.
# * **News travels fast.** A change of $X_3$ reaches *all* states below in the next sweep, through the sum. That is why it
#   may be over long before sweep $n$.
#
# The worked part is the batch: one row for each step and sample, each row with its own two times. A step of this course
# takes a time per row, so nothing new is needed:

# %%
def all_at_once(D, path, ts, step, z=None):                     # path (n+1, B, ...), ts (n+1,), z (n, B, ...) -> (n, B, ...)
    """Phi_j(X_j) for all j in one call of D: rows in the order step 0 of every sample, step 1 of every sample, ..."""
    B = path.shape[1]
    t, s = (v.repeat_interleave(B) for v in (ts[:-1], ts[1:]))                                  # (n B,)
    y = step(D, path[:-1].flatten(0, 1), t, s, None if z is None else z.flatten(0, 1))
    return y.reshape(path[:-1].shape)


y = all_at_once(exact, truth, ts, ddim)
assert torch.allclose(y, truth[1:])                                                             # eq. (5.1), all steps at once
assert torch.allclose(truth[1:], truth[0] + (y - truth[:-1]).cumsum(0))                         # eq. (5.2)

# %% [markdown]
# **Exercise 5.1 · ●○○ · 8 min · eq. (5.3)**
#
# Write `my_sweep(path, y)`: one sweep of (5.3). `path` holds the $n+1$ states as they are, shape $(n+1, B, \dots)$, and
# `y` what the steps make of them, `y[j]` $=\Phi_j(X_j)$, shape $(n, B, \dots)$. Return the new trajectory, again $n+1$
# states, the start unchanged in front.

# %% exercise="5.1"
def my_sweep(path, y):                                          # (n+1, B, ...), (n, B, ...) -> (n+1, B, ...)
    ### BEGIN SOLUTION two lines: the increments, and the start with their running sums
    increments = y - path[:-1]
    return torch.cat([path[:1], path[:1] + increments.cumsum(0)])
    ### END SOLUTION


# %% check="5.1"
# NBVAL_CHECK_OUTPUT
my_sweep = exercise("5.1", my_sweep)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Shapes do not match*: `path` has one state more than `y`. The states that steps start from are `path[:-1]`.
# * *Right for one step only*: the sums run along dimension 0, over all increments above a state.
# * *"changes its inputs in place"*: build a new tensor with `torch.cat`; do not write into `path`.
#
# </details>
#
# **Your sweep, run until it rests**, against the queue. The third column counts how many states at the top are exact:

# %%
path = start.expand(len(ts), 1, 2)
print("sweep   largest error   exact states (of 100)")
for k in range(1, 13):
    path = my_sweep(path, all_at_once(exact, path, ts, ddim))
    error = (path - truth).norm(dim=-1)[:, 0]
    right = int((error[1:] < 1e-12).long().cumprod(0).sum())
    print(f"{k:5}   {error.max():13.1e}   {right:5}")
    assert right >= k                                                                           # exact after k sweeps

# %% [markdown]
# The guarantee, $k$ states after $k$ sweeps, is kept and is nearly useless: what makes the method fast is that the
# *whole* path comes right together. Does it always come nearer with each sweep?
#
# **Prediction 5.1.** Again a hundred DDIM steps on the ring, but under the VE schedule, where $X_0$ is noise of size
# 50. How does the largest error of the trajectory go from sweep to sweep?
#
# * **a**: it falls with every sweep, though more slowly,
# * **b**: it grows for some sweeps, far beyond the size of the first guess's error, and then falls ever faster,
# * **c**: it grows, and only near sweep 100 does it come down, when the exact states reach the end.

# %% predict="5.1"
predict("5.1", "b")

# %% [markdown]
# Let us see what can be known beforehand. Let the data be Gaussian, so that every step is *linear* with a known factor,
# $\Phi_i(x) = a_i x + \text{const}$ (chapter 04 computed it for DDIM). Write $e^k_i$ for what $X^k_i$ lacks of the right
# state. Subtract (5.3) from (5.2):
#
# $$e^{k+1}_{j+1} = \sum_{i=0}^{j}(a_i-1)\,e^k_i . \tag{5.4}$$
#
# An error at $i$ would be multiplied by $a_i$ on its way through step $i$. Picard passes it on as it is, times 1; the
# difference is what the next sweep gets wrong. Put (5.4) into itself once:
#
# $$e^2_{j+1} = \sum_{i_2\le j}(a_{i_2}-1)\sum_{i_1<i_2}(a_{i_1}-1)\,e^0_{i_1} .$$
#
# Each further sweep puts one more such factor in front. So the errors of sweep $k$ are sums of
# products of $k$ *different* factors, $(a_{i_1}-1)\cdots(a_{i_k}-1)$ with $i_1<i_2<\dots<i_k$, times an error of the
# first guess. With $L=\sum_i|a_i-1|$, multiply out $L^k$: each such product of absolute values appears there $k!$ times,
# once for each order of its factors. Hence
#
# $$\max_j|e^k_j| \;\le\; \frac{L^k}{k!}\,\max_j|e^0_j|, \qquad L = \sum_i |a_i-1| . \tag{5.5}$$
#
# There is the answer. The bound is multiplied by $L/k$ in sweep $k$: it **grows while $k<L$**, though never beyond
# $e^L$ (of whose series it is one term), and then **falls ever faster**, because $k!$ outgrows the powers of any $L$. And
# $L$ is the total contraction of the way, counted as a logarithm: under VE a DDIM path shrinks from 50 to about 1, and
# $\log 50=3.9$. **Is (5.5) true on a Gaussian as wide as the ring (1.07 along each axis), and a guide on the ring?**

# %%
def history(D, ts, step, width=1.07):
    """Errors and residuals (K,) sweep by sweep, the first guess's error, and L of (5.5)."""
    x = prior(D, (1, 2), seeded(3), dtype=torch.float64)
    right = torch.stack([x, *sample(D, x, ts, step, generator=seeded(4))])
    found = list(islice(picard(D, x, ts, step, generator=seeded(4), tolerance=0.0), 36))
    errors = torch.tensor([(sweep.trajectory - right).norm(dim=-1).max() for sweep in found])
    L = (1 - gaussian_slopes(step, D.schedule, ts, width)).abs().sum().item()
    return errors, [sweep.residual for sweep in found], (x - right).norm(dim=-1).max().item(), L


CASES = {"VE, DDIM": (VE(), ddim), "VE, ancestral": (VE(), ancestral), "VP, DDIM": (CosineVP(), ddim)}
looks = plotting.looks(list(CASES))
figure, axes = plt.subplots(1, 3, figsize=(9.2, 3.4))
for name, (schedule, step) in CASES.items():
    errors, _, first, L = history(GaussianMixture([[0.0, 0.0]], 1.07).denoiser(schedule), uniform(100, schedule), step)
    k = torch.arange(1.0, len(errors) + 1)
    bound = first * (k * math.log(L) - (k + 1).lgamma()).exp()                                  # L^k / k!
    assert (errors <= bound + 1e-12 * first).all()                                              # eq. (5.5)
    axes[0].plot(k, bound, color=plotting.TRUTH, lw=4)
    axes[0].plot(k, errors, ms=3, **looks[name])
    errors, residuals, first, L = history(ring().denoiser(schedule), uniform(100, schedule), step)
    for ax, values in zip(axes[1:], (errors, residuals)):
        ax.plot(range(1, len(values) + 1), values, ms=3, **looks[name], label=name)
    print(f"{name:14} L = {L:.2f}; on the ring the error is largest at sweep {int(errors.argmax()) + 1}, "
          f"{errors.max() / first:.3g} times that of the first guess")
for ax, title in zip(axes, ("error, Gaussian", "error, ring", "residual, ring")):
    ax.set(yscale="log", xlabel="sweep", title=title, ylim=(1e-8, None))
axes[0].legend(axes[0].lines[:1], ["bound (5.5)"], loc="upper right")
figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %%
reveal("5.1")

# %% [markdown]
# *Three panels against the number of sweeps, logarithmic. Gaussian data: three error curves, each below a thick grey
# bound of the same shape; VP with DDIM falls at once, VE with DDIM rises for a few sweeps, VE with ancestral steps rises
# higher and longer, and then both fall ever more steeply. The ring: the same shapes, higher and longer. The right panel,
# the residual, looks like the middle one.*
#
# The *residual of a sweep* is the largest change that it made, in units of each step's noise (section 4 says why). It is
# all that one sees in practice, where the truth is unknown, and it tells the same story. Two lessons. **Never stop
# because a sweep made things worse**, and never assert that they get better each time: early growth is the rule, not a
# fault. And note what (5.5) does *not* contain: $n$. The number of sweeps depends on $L$, the contraction of the whole
# way, not on how many steps it is cut into.
#
# **Prediction 5.2.** Ancestral sampling on the ring, cosine schedule again, takes some number of sweeps at 100 steps,
# until no state moves by more than a tenth of its step's noise. How many at 1000 steps, on a grid ten times as fine?
#
# * **a**: about ten times as many,
# * **b**: hardly more,
# * **c**: fewer: each step does less, so each is easier.

# %% predict="5.2"
predict("5.2", "b")

# %%
for n in (30, 100, 300, 1000):
    sweep = converged(picard(exact, start, uniform(n, exact.schedule), ancestral, generator=seeded(5), tolerance=0.1))
    L = (1 - gaussian_slopes(ancestral, exact.schedule, uniform(n, exact.schedule), 1.07)).abs().sum()
    print(f"{n:5} steps: {sweep.rounds:3} rounds, L = {L:.2f}")

# %%
reveal("5.2")

# %% [markdown]
# So parallel sampling pays most where the queue is longest: a thousand steps gain far more than thirty. But wait:
# ancestral steps draw noise, and for noise the word "fixed point" needs a second look.

# %% [markdown]
# ## 3 · Noise must be drawn first
#
# The tempting way to write a stochastic sweep is the way in which every sequential sampler is written: draw the noise
# where it is needed, inside the step. **Do its changes die away?**

# %%
def restless(D, ts, step, draw):
    """A sweep, path -> path, that draws noise as it goes."""
    def sweep(path):
        z = torch.stack([draw() for _ in ts[1:]])
        return my_sweep(path, all_at_once(D, path, ts, step, z))
    return sweep


def largest_changes(sweep, path, sweeps=40):
    changes = []
    for _ in range(sweeps):
        new = sweep(path)
        changes.append((new - path).norm(dim=-1).max().item())
        path = new
    return changes


ts_30 = uniform(30, exact.schedule)
guess = start.expand(31, 1, 2)
g = seeded(6)
never = largest_changes(restless(exact, ts_30, ancestral, lambda: torch.randn(1, 2, generator=g, dtype=torch.float64)), guess)
print("largest change in sweeps 1, 10, 20, 30, 40:", ", ".join(f"{never[k - 1]:.3g}" for k in (1, 10, 20, 30, 40)))

# %% [markdown]
# It never settles, and it cannot: each sweep solves a *different* equation. For given noise $z_j$ the step
# $\Phi_j(x)=\text{step}(x, z_j)$ is a function like any other, with no chance in it, and all of section 2 holds. So we
# must decide on the noise of all $n$ steps **before** the first sweep, and then leave it alone. What a sweep makes of a
# trajectory then depends on the trajectory alone. (This is what the course's rule "noise is an argument" was made for.)
#
# **Exercise 5.2 · ●○○ · 8 min · noise as an argument**
#
# Mend `restless`. Your `my_frozen(D, ts, step, draw)` returns a sweep, too, but one that gives the same result for the
# same trajectory, however often it is called. `draw()` gives the noise of one step, shape $(B,\dots)$; call it once for
# each step, in the order in which the sequential sampler would.

# %% exercise="5.2"
def my_frozen(D, ts, step, draw):                               # -> a function (n+1, B, ...) -> (n+1, B, ...)
    ### BEGIN SOLUTION one line here, and z as before in the sweep
    z = torch.stack([draw() for _ in ts[1:]])
    ### END SOLUTION

    def sweep(path):
        return my_sweep(path, all_at_once(D, path, ts, step, z))
    return sweep


# %% check="5.2"
# NBVAL_CHECK_OUTPUT
my_frozen = exercise("5.2", my_frozen)

# %%
g = seeded(6)
settles = largest_changes(my_frozen(exact, ts_30, ancestral, lambda: torch.randn(1, 2, generator=g, dtype=torch.float64)), guess)
print("largest change in sweeps 1, 10, 20, 30, 40:", ", ".join(f"{settles[k - 1]:.3g}" for k in (1, 10, 20, 30, 40)))
assert settles[-1] < 1e-12 < 1e-2 < never[-1]

# %% [markdown]
# Now the promise of the title, in numbers. The library's `picard` is your sweep with a window (next section); it draws
# the noise in the order of `sample`. With tolerance 0 it goes on until nothing moves. **How far is parallel from
# sequential**, in float64, for ODE and SDE steps, three schedules, one sample and 64, windows smaller and larger than the
# grid?

# %%
print(f"{'':24}" + "".join(f"{f'batch {B}, window {W}':>22}" for B, W in ((1, 15), (64, 15), (64, 100))))
for step in (ddim, euler, ancestral, euler_maruyama):
    for schedule in (LinearVP(), CosineVP(), VE()):
        D, grid, gaps = ring().denoiser(schedule), log_snr_uniform(40, schedule), []
        for B, W in ((1, 15), (64, 15), (64, 100)):
            x = prior(D, (B, 2), seeded(7), dtype=torch.float64)
            in_turn = torch.stack([x, *sample(D, x, grid, step, generator=seeded(8))])
            at_once = converged(picard(D, x, grid, step, generator=seeded(8), window=W, tolerance=0.0)).trajectory
            gaps.append((at_once - in_turn).abs().max().item())
        assert max(gaps) < 1e-10                                                                # eq. (5.1), from (5.3)
        print(f"{step.__name__:15}{type(schedule).__name__:9}" + "".join(f"{gap:22.1e}" for gap in gaps))

# %% [markdown]
# Rounding, and nothing else. A stochastic sampler, too, is reproduced to the last digits: same noise, same sample. (How many
# digits that is, the network says: float32 has some seven, but a GPU takes no more than three or four of them into a
# convolution, unless `torch.backends.cudnn.allow_tf32` is False, and rounds a large batch otherwise than a small one.)

# %% [markdown]
# ## 4 · A window, and when to stop
#
# Two practical worries. A thousand steps of a large model may not fit into memory as one batch; and the rows far down are
# wasted as long as everything above them still moves. So look only at a **window** of $W$ steps, begin it at the top, and
# let it slide: as soon as the states at its upper edge have settled, they are final, and the window moves past them.
#
# When has a state settled? When a sweep hardly moves it. "Hardly" needs a unit, and the sampler has a natural one. On the
# way from $t_{j+1}$ up to $t_j$ the forward process adds noise of the standard deviation
#
# $$w_j = \sqrt{\sigma_{t_j}^2-(\alpha_{t_j}/\alpha_{t_{j+1}})^2\,\sigma_{t_{j+1}}^2} \tag{5.6}$$
#
# (that is $\sqrt\beta$ of (2.9)), and a stochastic step back draws about as much. A change that is a small share of $w_j$
# drowns in what the step adds anyway. So with a tolerance $\tau$, say 0.1: *a state has settled when, in every sample,
# the root mean square of its change is at most $\tau w_j$*. Early steps, where noise is coarse, are judged coarsely, and
# late ones finely.
#
# And only a *leading* run may settle: a calm state below a restless one will be moved again. The first state of the
# window always settles, for it was made from a final one.

# %%
a, s = exact.schedule.alpha(ts), exact.schedule.sigma(ts)
w = step_noise(exact.schedule, ts)                                                              # (n,)
assert torch.allclose(w, (s[:-1] ** 2 - (a[:-1] / a[1:] * s[1:]) ** 2).sqrt())                  # eq. (5.6)
print("w at the first, a middle and the last step:", ", ".join(f"{v:.3f}" for v in w[[0, 50, -1]]))

# %% [markdown]
# **Exercise 5.3 · ●●○ · 15 min · eq. (5.6)**
#
# Write `my_settled(change, noise, tolerance)`: how many of the window's $m$ states settle. `change` $(m, B, \dots)$ is
# what the sweep changed in each, `noise` $(m,)$ holds their units $w_j$. For each state and sample take the *root mean
# square* of the change over all its entries, and let the *worst sample* decide. Count the states before the first that
# moved by more than `tolerance` times its unit; the answer is a whole number, at least 1.

# %% exercise="5.3"
def my_settled(change, noise, tolerance):                       # (m, B, ...), (m,), number -> whole number
    ### BEGIN SOLUTION three lines: rms per state and sample, the worst sample, the leading run
    size = change.flatten(2).square().mean(2).sqrt().amax(1)                                    # (m,)
    calm = size <= tolerance * noise
    return max(1, int(calm.long().cumprod(0).sum()))
    ### END SOLUTION


# %% check="5.3"
# NBVAL_CHECK_OUTPUT
my_settled = exercise("5.3", my_settled)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right for points, wrong for images*: take the mean over all entries of a sample: `change.flatten(2)` has the shape
#   $(m, B, d)$.
# * *A tensor where a number was expected*: `int(...)` makes a number of a tensor with one entry.
# * *Off by one*: how many are `True` before the first `False`? For `[True, False, True]` it is 1.
#
# </details>
#
# With your two functions the whole of ParaDiGMS is a short loop:

# %%
def my_picard(D, x, ts, step, z, window, tolerance):            # x (B, ...), z (n, B, ...) -> (n+1, B, ...), rounds
    n, w = len(ts) - 1, step_noise(D.schedule, ts)
    path, lo, rounds = x.expand(n + 1, *x.shape), 0, 0
    while lo < n:
        hi = min(lo + window, n)
        new = my_sweep(path[lo:hi + 1], all_at_once(D, path[lo:hi + 1], ts[lo:hi + 1], step, z[lo:hi]))
        change = new[1:] - path[lo + 1:hi + 1]
        path = torch.cat([path[:lo], new, new[-1:].expand(n - hi, *x.shape)])                   # below: the last known state
        lo, rounds = lo + my_settled(change, w[lo:hi], tolerance), rounds + 1
    return path, rounds


z = torch.randn(100, 1, 2, generator=seeded(9), dtype=torch.float64)
in_turn = torch.stack([start, *sample(exact, start, ts, ancestral, noise=z)])
for window in (10, 30, 100):
    path, rounds_taken = my_picard(exact, start, ts, ancestral, z, window, 0.1)
    sweep = converged(picard(exact, start, ts, ancestral, noise=z, window=window, tolerance=0.1))
    assert rounds_taken == sweep.rounds and torch.allclose(path, sweep.trajectory)
    print(f"window {window:3}: {rounds_taken:3} rounds, {sweep.evaluations:5} evaluations, "
          f"end off by {(path - in_turn)[-1].norm():.5f}")

# %% [markdown]
# A small window takes more rounds and fewer evaluations. Which is better depends on what a round and what an evaluation
# costs on your machine, and we shall come to that. And the tolerance? `course measure parallel` tried four of them on the
# exact ring, with 1000 ancestral steps. **What does a tenth of the tolerance cost, and what does it buy?** (The large
# open circles are yours, measured now. The other ways are those of the next sections.)

# %%
with open(data.ROOT / "data" / "parallel.csv", newline="", encoding="utf-8") as file:
    runs = [{k: v if k in ("model", "step", "method", "device") else float(v) for k, v in row.items()}
            for row in csv.DictReader(file)]
WAYS = {"picard": "Picard", "gaussian slopes": "Gaussian slopes", "both": "Gaussian slopes, then secants", "parareal": "parareal"}
looks = plotting.looks(list(WAYS))
TOLERANCES = (1.0, 0.1, 0.01, 0.001)
x = prior(exact, (1, 2), seeded(0), dtype=torch.float64)
z = torch.randn(1000, 1, 2, generator=seeded(10), dtype=torch.float64)
end = final(exact, x, thousand, ancestral, noise=z).x
mine = [(rounds_taken, (path[-1] - end).square().mean().sqrt()) for path, rounds_taken in
        (my_picard(exact, x, thousand, ancestral, z, 1000, tolerance) for tolerance in TOLERANCES)]

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for method, name in WAYS.items():
    found = sorted((r["tolerance"], r["rounds"], r["distance"]) for r in runs
                   if (r["model"], r["step"], r["method"]) == ("exact", "ancestral", method))
    tolerance, rounds_needed, distance = zip(*found)
    axes[0].plot(tolerance, rounds_needed, **looks[method], label=name)
    axes[1].plot(tolerance, distance, **looks[method])
for ax, values in zip(axes, zip(*mine)):
    ax.plot(TOLERANCES, values, "o", ms=10, mfc="none", color=plotting.ESTIMATE)
    ax.set(xscale="log", yscale="log", xlabel=r"tolerance $\tau$")
axes[0].set_ylabel("rounds for 1000 steps")
axes[1].set_ylabel("distance of the end")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# *Left, rounds against tolerance: nearly flat lines; parareal needs hundreds of rounds, Picard a few dozen, Gaussian
# slopes about half of Picard's, and Gaussian slopes with secants fewer than ten. Right, the distance from the sequential
# sample falls along with the tolerance, and lies far below it. Open orange circles, yours, lie near Picard's line.*
#
# Exactness is cheap: a tolerance a thousand times tighter costs a few sweeps more, since (5.5) falls so steeply at the
# end. (A sweep of parareal is many rounds, section 6, so that there a few sweeps are a hundred rounds.)

# %% [markdown]
# ## 5 · Slopes: tell each error how far it goes
#
# Where do Picard's sweeps go? (5.4) says: a change that arrives at step $j$ leaves it multiplied by the step's slope
# $a_j$, and Picard acts as if all slopes were 1. Let us do better. Let $r$ be what is wrong *locally*, the **residual of
# a step**
#
# $$r_{j+1} = \Phi_j(X_j) - X_{j+1}, \tag{5.7}$$
#
# which a sweep's batch tells for all $j$ at once. We look for corrections $u_j$ such that the corrected trajectory is
# right: $X_{j+1}+u_{j+1} = \Phi_j(X_j+u_j)$. (These $u$ are a sweep's changes, which section 2 and section 4 measured.)
# To first order $\Phi_j(X_j+u_j)\approx\Phi_j(X_j)+a_ju_j$. Subtract $X_{j+1}$:
#
# $$u_{j+1} = a_j\,u_j + r_{j+1}, \qquad u_0 = 0, \qquad X_j \leftarrow X_j + u_j . \tag{5.8}$$
#
# A correction passes through step $j$, is multiplied by its slope, and the step's own residual is added. This is Newton's
# method for the whole trajectory, with $a_j$ in place of the full Jacobian. With $a_j=1$ it must be Picard's sweep, and
# is: then $u_{j+1}=\sum_{i\le j}(\Phi_i(X_i)-X_{i+1})$. The sum of the $X_{i+1}$ is that of the $X_i$ with $X_{j+1}$ more
# and $X_0$ less, so that $X_{j+1}+u_{j+1}=X_0+\sum_{i\le j}(\Phi_i(X_i)-X_i)$, which is (5.3). And *whatever* the $a_j$
# are: where the sweep rests, $u=0$, so $r=0$, which is (5.1). **Slopes decide how soon, never where to.** The library
# computes (5.8) and not (5.3) even for $a_j=1$: residuals vanish in the end, and their rounding errors with them.
#
# **Exercise 5.4 · ●●○ · 12 min · eq. (5.8)**
#
# Write `my_carry(slopes, residuals)`: all corrections $u_1,\dots,u_n$, shape $(n, B, \dots)$ like the residuals.
# `residuals[j]` is $r_{j+1}$, and `slopes` $(n, B)$ has one number for each step and sample, `slopes[j]` $=a_j$. A loop
# is fine.

# %% exercise="5.4"
def my_carry(slopes, residuals):                                # (n, B), (n, B, ...) -> (n, B, ...)
    ### BEGIN SOLUTION about five lines: u = 0, and one line of (5.8) for each step
    u, corrections = torch.zeros_like(residuals[0]), []
    for a, r in zip(slopes, residuals):
        u = a.reshape(-1, *[1] * (r.ndim - 1)) * u + r
        corrections.append(u)
    return torch.stack(corrections)
    ### END SOLUTION


# %% check="5.4"
# NBVAL_CHECK_OUTPUT
my_carry = exercise("5.4", my_carry)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right for batch size 1 only*: a slope has the shape $(B,)$ and meets a state $(B, 2)$ or $(B, 1, 8, 8)$. Shape it
#   first: `a.reshape(-1, *[1] * (r.ndim - 1))`.
# * *The first correction is wrong*: $u_1 = a_0\cdot 0+r_1 = r_1$.
#
# </details>
#
# Which slopes? **Those of a Gaussian.** For data of width $c$ every step is linear, and its factor can be had without any
# derivation: ask the step itself, with the denoiser of that Gaussian, what it makes of $x=1$ without noise. That is
# `gaussian_slopes(step, schedule, ts, c)`. For the ancestral step it must be $a_j = \frac{\alpha_s}{\alpha_t}\,
# \frac{c^2+\bar\sigma_s^2}{c^2+\bar\sigma_t^2}$ with $\bar\sigma=\sigma/\alpha$, and on Gaussian data the *first* sweep
# must land:

# %%
c, rows = 0.6, torch.ones(100, 3, dtype=torch.float64)
cloud = GaussianMixture([[0.8, -0.3]], c).denoiser(CosineVP())
slopes, bar = gaussian_slopes(ancestral, cloud.schedule, ts, c), s / a
assert torch.allclose(slopes, a[1:] / a[:-1] * (c**2 + bar[1:] ** 2) / (c**2 + bar[:-1] ** 2))

x = prior(cloud, (3, 2), seeded(11), dtype=torch.float64)
z = torch.randn(100, 3, 2, generator=seeded(12), dtype=torch.float64)
in_turn = torch.stack([x, *sample(cloud, x, ts, ancestral, noise=z)])
path = x.expand(101, 3, 2)
residuals = all_at_once(cloud, path, ts, ancestral, z) - path[1:]                               # eq. (5.7)
for name, slope in (("slopes of 1, Picard", rows), ("slopes of the Gaussian", slopes[:, None] * rows)):
    new = path[1:] + my_carry(slope, residuals)                                                 # eq. (5.8)
    print(f"{name:24} one sweep: largest error {(new - in_turn[1:]).abs().max():.1e}")
assert torch.allclose(path[1:] + my_carry(rows, residuals), my_sweep(path, residuals + path[1:])[1:])

# %% [markdown]
# One sweep, and a thousand steps would take one sweep, too. On other data the Gaussian slopes are a guess, good from afar
# and poor near the spots. But we need not guess for long: after two sweeps every step has been seen at two inputs, and a
# **secant** measures its slope, one number for each step and sample by least squares,
#
# $$a_j = \frac{\langle \Delta x_j,\; \Delta y_j\rangle}{\langle\Delta x_j,\Delta x_j\rangle}, \tag{5.9}$$
#
# where $\Delta x_j$ and $\Delta y_j$ are how the step's input and output changed from one sweep to the next. That costs
# no evaluation. (A secant through two nearby points can be wild, so the library keeps it between 0 and the larger of 1
# and the Gaussian slope.) **How many rounds do the four choices of slopes take on the ring?**

# %%
CHOICES = {"Picard: 1": {}, "Gaussian": {"std": 1.07}, "secants": {"secant": True},
           "Gaussian, then secants": {"std": 1.07, "secant": True}}
print(f"{'slopes':24}{'1000 ancestral':>22}{'100 DDIM':>22}\n{'':24}" + 2 * f"{'rounds':>12}{'off by':>10}")
for name, how in CHOICES.items():
    line = f"{name:24}"
    for step, n in ((ancestral, 1000), (ddim, 100)):
        x, grid = prior(exact, (1, 2), seeded(13), dtype=torch.float64), uniform(n, exact.schedule)
        end = final(exact, x, grid, step, generator=seeded(14)).x
        sweep = converged(picard(exact, x, grid, step, generator=seeded(14), tolerance=0.1, **how))
        line += f"{sweep.rounds:12}{(sweep.trajectory[-1] - end).norm():10.1e}"
    print(line)

# %% [markdown]
# From a thousand rounds to a handful, and the sample is the same to within a few thousandths of the spots' width. Slopes
# help the stochastic sampler most, because there Picard's $L$ is large: 4.8 for a thousand ancestral steps (section 2),
# and 0.06 for DDIM, whose Gaussian slopes are so close to 1 that only secants, which see the spots, can help.

# %% [markdown]
# ## 6 · Parareal: blocks, coarse and fine
#
# A second road to the same place comes from the world of differential equations (Lions, Maday and Turinici, 2001; for
# diffusion models SRDS, Selvam et al., 2024). Cut the grid into $M$ blocks, and call the states between them **nodes**
# $N_0=X_0, N_1, \dots, N_M=X_n$. Two solvers lead through block $m$: a *fine* one $F_m$, all its steps one after the
# other, and a *coarse* one $C_m$, a single long step. We want $N_{m+1}=F_m(N_m)$.
#
# The fine solves are expensive, but from *given* nodes all blocks can run side by side. When a node has moved meanwhile,
# we want to know $F_m(N^{\text{new}}_m)$ and have only $F_m(N_m)$. The coarse step is cheap enough to be run again, and
# tells roughly what the move will do:
#
# $$N^{\text{new}}_{m+1} = F_m(N_m) + C_m(N^{\text{new}}_m) - C_m(N_m) . \tag{5.10}$$
#
# Compare (5.8): what arrives from above is passed on, here not by a slope but by a coarse solver. And as there, where the
# nodes rest, the coarse terms cancel, and $N_{m+1}=F_m(N_m)$ is exact *whatever* $C$ is. By the same induction node $k$
# is exact after $k$ sweeps.
#
# **Exercise 5.5 · ●●● · 15 min · eq. (5.10)**
#
# Write `my_parareal(nodes, fine, coarse)`: one sweep. `nodes` has the shape $(M+1, B, \dots)$; `fine(m, x)` and
# `coarse(m, x)` lead $x$ through block $m$, for $m=0,\dots,M-1$. Return the new nodes, the start in front. Write it so
# that all fine solves *could* run at once: none of them may need a new node. A block takes one fine solve and two coarse ones.

# %% exercise="5.5"
def my_parareal(nodes, fine, coarse):                           # (M+1, B, ...) -> (M+1, B, ...)
    ### BEGIN SOLUTION about five lines: the fine ends of all blocks, then down the nodes
    ends = [fine(m, nodes[m]) for m in range(len(nodes) - 1)]
    new = [nodes[0]]
    for m, end in enumerate(ends):
        new.append(end + coarse(m, new[m]) - coarse(m, nodes[m]))
    return torch.stack(new)
    ### END SOLUTION


# %% check="5.5"
# NBVAL_CHECK_OUTPUT
my_parareal = exercise("5.5", my_parareal)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"right, but nothing is gained"*: the sequential solution after one sweep sounds too good; each of your fine solves
#   has
#   waited for the one above it.
# * *Cannot assign in place*: collect the new nodes in a list, and `torch.stack` it at the end.
# * *Only the first node is right*: the second coarse step starts from the node as it *was*.
#
# </details>
#
# Eight blocks of eight DDIM steps on the ring: **the error of each node, sweep by sweep**, yours and the library's.

# %%
M, grid = 8, log_snr_uniform(64, exact.schedule)
tops = grid[::8]
x = prior(exact, (16, 2), seeded(15), dtype=torch.float64)
right = torch.stack([x, *sample(exact, x, grid, ddim)])[::8]
fine = lambda m, x: final(exact, x, grid[8 * m:8 * m + 9], ddim).x                              # noqa: E731
coarse = lambda m, x: ddim(exact, x, tops[m], tops[m + 1])                                      # noqa: E731
nodes = torch.stack([x, *sample(exact, x, tops, ddim)])                                         # first guess: all coarse
print("sweep      " + "".join(f"node {m:<5}" for m in range(1, M + 1)))
for k, sweep in zip(range(1, 7), parareal(exact, x, grid, ddim, blocks=M, tolerance=0.0)):
    nodes = my_parareal(nodes, fine, coarse)
    errors = (nodes - right).norm(dim=-1).amax(1)[1:]
    assert torch.allclose(nodes, sweep.trajectory[::8]) and (errors[:k] < 1e-12).all()          # eq. (5.10)
    print(f"{k:5}      " + "".join(f"{error:<10.0e}" for error in errors))

# %% [markdown]
# A staircase of exact nodes, and the last node is good long before the staircase reaches it. For ancestral steps the
# coarse step needs noise, too: the block's own, summed up with the right weights (`over_blocks`), so that fine and coarse
# tell the same story.
#
# **Picard or parareal?** A sweep of parareal is a little queue of its own, $n/M$ fine steps and then up to $M$ coarse
# ones, so its rounds are many, with $M\approx\sqrt n$ about $2\sqrt n$ a sweep. But it spends *fewer evaluations*,
# because its sweeps are few. (The figure of section 4 shows its rounds; here are both prices.)

# %%
NAMES = {"picard": "Picard", "gaussian slopes": "Gaussian slopes", "secant slopes": "secants", "both": "Gaussian, then secants",
         "both, window": "the same, window 250", "parareal": "parareal"}
print("1000 ancestral steps, tolerance 0.1")
for model, label in (("exact", "exact ring"), ("fashion_teacher", "picture network")):
    for method, name in NAMES.items():
        r = next(r for r in runs if (r["model"], r["step"], r["tolerance"], r["batch"], r["method"])
                 == (model, "ancestral", 0.1, 1, method))
        print(f"{label:17}{name:24}{r['rounds']:5.0f} rounds{r['evaluations']:7.0f} evaluations")

# %% [markdown]
# Rounds or evaluations: on hardware with room to spare you want few of the former; on hardware that is busy anyway, few
# of the latter. Keep that in mind for section 8. First, pictures.

# %% [markdown]
# ## 7 · On pictures
#
# The network of the earlier chapters, a hundred DDIM steps (at full scale: a thousand ancestral ones), three garments at
# once, slopes and secants with $c=0.5$, about the spread of a pixel. **Are they the same pictures, and in how many
# rounds?**

# %%
teacher = recipes.load("fashion_teacher", device)
steps, step, window = (1000, ancestral, None) if full else (100, ddim, 25)
labels = torch.tensor([7, 8, 3], device=device)
x = prior(teacher, (3, 1, 28, 28), seeded(16, device), device=device)
grid = uniform(steps, teacher.schedule)
teacher_queue, sequential = seconds_of(lambda: final(teacher, x, grid, step, generator=seeded(17, device), cond=labels), 1)
pictures = {}
for tolerance in (0.1, 0.01):
    at_once = partial(picard, teacher, x, grid, step, window=window, tolerance=tolerance, std=0.5, secant=True, cond=labels)
    spent, sweep = seconds_of(lambda at_once=at_once: converged(at_once(generator=seeded(17, device))), 1)
    difference = (sweep.trajectory[-1] - sequential.x).cpu()
    pictures[tolerance] = spent, sweep, difference
    print(f"tolerance {tolerance:4}: {sweep.rounds} rounds for {steps} steps, {sweep.evaluations} evaluations;\n"
          f"    pixels, whose range is 2, differ by {difference.square().mean().sqrt():.4f} (rms), "
          f"at most {difference.abs().max():.3f}")

# %%
rows = [torch.cat([sequential.x.cpu(), torch.full_like(x.cpu(), -1)])]
rows += [torch.cat([sweep.trajectory[-1].cpu(), 5 * difference.abs() - 1]) for _, sweep, difference in pictures.values()]
figure = plotting.image_rows(rows, ["sequential", *(f"parallel, {tolerance}" for tolerance in pictures)],
                             "left: pictures; right: 5 times their difference")
figure.set_size_inches(7, 3.6)
plt.show()

# %% [markdown]
# *Three rows of the same three garments. The difference maps at the right, five times enlarged, show outlines at
# tolerance 0.1, strong ones along the bag's upper and lower edges, and next to nothing at 0.01.*
#
# At 0.01 the pictures are the same to the eye, and nearly so to the map. At 0.1 they are the same garments with the same
# folds, but an edge may run elsewhere. Why? Each settled state is *left* with an error of up to about a tenth of its
# unit. Later steps pass it on (DDIM draws no noise in which it could drown), and where the network must decide between
# one edge and another its slopes are larger than 1. So the tolerance bounds the last change of each state, and not the
# distance of the picture. If you need the very same picture, tighten it; that costs a few rounds. If any *good* picture
# will do, need you? The Fréchet distance of 200 pictures drawn in sequence and of the same 200 drawn in parallel, with the
# same starts and noise, a thousand ancestral steps, tolerance 0.1, slopes and secants in a window of 100:

# %%
shipped = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv")
           if r.dataset == "fashion_mnist" and r.metric == "frechet" and r.samples == 200 and r.method in ("ancestral", "picard")]
for r in shipped:
    print(f"{r.method:10} depth {r.depth:5}, evaluations {r.nfe:6}: Fréchet distance {r.value:.2f} (real pictures {r.floor:.2f})")

# %% [markdown]
# Thirty rounds for a thousand steps, and the distance has not moved by more than other noise would move it: chapter 04 found a
# spread of 0.17 from seed to seed with five times as many pictures. (So few pictures inflate the distance, for the real
# ones too, but both rows alike.)

# %% [markdown]
# ## 8 · Two ledgers, kept apart
#
# Now the question that counts: is it *faster*? Two ledgers must not be mixed up. **Sequential depth**: how many
# evaluations wait for another. It belongs to the algorithm and is the same on every machine. **Wall-clock**: seconds. It
# belongs to the algorithm *and* the machine, *and* to how much work the machine had before.
#
# The network of the failing case, one sample, a thousand ancestral steps, on this machine:

# %%
def repeats(batch):
    return 3 if batch == 1 else 1                               # short runs are the ones that the clock disturbs


@cache
def in_sequence(batch):
    """1000 ancestral steps of the network, one after the other: seconds, and the samples."""
    x = prior(network, (batch, 2), seeded(18, device), device=device)
    spent, result = seconds_of(lambda: final(network, x, thousand, ancestral, generator=seeded(19, device)), repeats(batch))
    return spent, result.x


def duel(name, batch, **how):
    """The same steps at once: a line of the table, and seconds, the last sweep, and how far apart the samples end."""
    x, (slow, expected) = prior(network, (batch, 2), seeded(18, device), device=device), in_sequence(batch)
    at_once = partial(picard, network, x, thousand, ancestral, **how)
    fast, sweep = seconds_of(lambda: converged(at_once(generator=seeded(19, device))), repeats(batch))
    gap = (sweep.trajectory[-1] - expected).norm(dim=1).max().item()
    print(f"{name:22}{batch:5}{sweep.rounds:10}{sweep.evaluations:14}{slow:12.3f} s{fast:12.3f} s{slow / fast:10.1f}{gap:12.4f}")
    return fast, sweep, gap


HEAD = f"{'method':22}{'batch':>5}{'rounds':>10}{'evaluations':>14}{'sequential':>14}{'parallel':>14}{'gain':>10}{'off by':>12}"
print(HEAD)
SLOPES = {"std": 1.07, "secant": True}                           # Gaussian slopes, then secants
ones = {name: duel(name, 1, **how) for name, how in (("Picard", {}), ("Picard, slopes", SLOPES))}

# %% [markdown]
# The failing case is mended: the same sample, many times sooner, on the same machine, and not one evaluation less:
# several times *more*. They are done in batches, and the machine had been idle. Then what about sixteen samples?
#
# **Prediction 5.3.** Sixteen samples at once instead of one, Gaussian slopes and secants. The gain in seconds over the
# sequential sampler, which now also works on batches of sixteen, is
#
# * **a**: about the same: rounds are rounds,
# * **b**: larger: there is more work to share,
# * **c**: much smaller.

# %% predict="5.3"
predict("5.3", "c")

# %%
print(HEAD)
for name, how in (("Picard", {}), ("Picard, slopes", SLOPES), ("the same, window 250", {**SLOPES, "window": 250})):
    duel(name, 16, **how)

# %%
reveal("5.3")

# %% [markdown]
# The gain is a fraction of what it was, and plain Picard, which spends the most evaluations, gains least or even loses.
# And that network is tiny. A row of the picture network is many hundreds of times the work:
#
# **Prediction 5.4.** One picture by a thousand ancestral steps of the Fashion-MNIST network, on the CPU that measured
# `data/parallel.csv`, by slopes and secants over the whole grid. That takes some dozen rounds. In seconds it is
#
# * **a**: dozens of times faster, like its rounds,
# * **b**: five times faster or so,
# * **c**: hardly faster, or even slower.

# %% predict="5.4"
predict("5.4", "c")

# %%
BARS = [("network", 1, "network\none sample"), ("network", 16, "network\n16 samples"),
        ("fashion_teacher", 1, "picture network\none picture")]
LOOKS = {"picard": plotting.ESTIMATE, "both": plotting.SECOND, "both, window": plotting.THIRD, "parareal": plotting.FOURTH}
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.6))
for i, (method, color) in enumerate(LOOKS.items()):
    for j, (model, batch, _) in enumerate(BARS):
        r = next(r for r in runs if (r["model"], r["step"], r["batch"], r["method"], r["tolerance"])
                 == (model, "ancestral", batch, method, 0.1))
        for ax, gain in zip(axes, (r["steps"] / r["rounds"], r["sequential_seconds"] / r["seconds"])):
            ax.bar(j + 0.2 * (i - 1.5), gain - 1, 0.18, bottom=1, color=color, label=None if j else NAMES[method])
            where, side = (1.08, "bottom") if gain > 1 else (0.93, "top")
            ax.text(j + 0.2 * (i - 1.5), gain * where, f"{gain:.0f}" if gain > 10 else f"{gain:.2g}", ha="center", va=side, fontsize=9)
for ax, title in zip(axes, ("ledger 1: depth, steps / rounds", "ledger 2: seconds, sequential / parallel")):
    ax.axhline(1, color=plotting.INK, lw=0.8)
    ax.set(yscale="log", title=title, ylim=(0.1, 400))
    ax.set_xticks(range(len(BARS)), [name for *_, name in BARS])
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()
print("measured on", ", ".join(sorted({r["device"] for r in runs})))

# %%
reveal("5.4")

# %% [markdown]
# *Two panels of bars on a logarithmic axis around 1. Left, depth: every method gains, slopes with secants about a hundred
# times, parareal about five times, and that in all three columns alike. Right, seconds: for one sample of the small
# network all gain; for sixteen samples all gain less, Picard and slopes over the whole grid several times less; for the
# picture network the bars of Picard and of slopes over the whole grid hang below 1, and the window and parareal, which
# spend the fewest evaluations, do best.*
#
# Read the two panels together. In the first column the machine was idle: parallel sampling sells idleness. In the last it
# was busy with one picture already, and several evaluations for each one of the queue are simply more work; there the
# frugal ways win, those with *more* rounds and fewer evaluations, and even they win little. Whoever shows you the left
# panel alone is selling something. (Shih et al. say the same of their own method: on a *single* GPU, their large model
# got slower.) So **what would it take?** More devices. How many?

# %% [markdown]
# ## 9 · What will it cost? A model, and its limits
#
# Two numbers describe a device well enough to begin with: an evaluation of a batch of $m$ rows takes $\ell + \rho m$
# seconds, a *latency* and a time *per row*. If $P$ devices share the rows of a sweep, they tell each other the results
# once a round, which takes $\kappa+\mu m$ more, where $\mu$ is for each of the $m$ rows, for everyone receives them all.
# With $n$ steps, $R$ rounds, $E$ evaluations (of one sample) and $B$ samples:
#
# $$T_{\text{seq}} = n\,(\ell+\rho B), \qquad
#   T_{\text{par}} = R\,(\ell+\kappa) + E B\,\Big(\frac{\rho}{P}+\mu\Big), \tag{5.11}$$
#
# with $\kappa=\mu=0$ for one device. On one device, parallel wins when $R\ell+EB\rho < n\ell+nB\rho$, that is when
#
# $$B \;<\; \frac{n-R}{E-n}\cdot\frac{\ell}{\rho} . \tag{5.12}$$
#
# $\ell/\rho$ is the number of rows that come nearly free with the first. That is the break-even. **Measure it on this
# machine: seconds of an evaluation against rows, and the line that fits.** (Small and large batches count alike: least
# squares of *relative* errors.)

# %%
def evaluation_times(D, shape, counts, cond=None):
    times = []
    for m in counts:
        x, t = torch.randn(m, *shape, device=device), torch.full((m,), 0.5, device=device)
        labels = None if cond is None else cond.expand(m)
        times.append(seconds_of(lambda x=x, t=t, labels=labels: D(x, t, labels), 5)[0])
    return torch.tensor(times)


counts, few = torch.tensor([1, 4, 16, 64, 256, 1024]), torch.tensor([1, 4, 16, 64])
here = {"network": (counts, evaluation_times(network, (2,), counts)),
        "fashion_teacher": (few, evaluation_times(teacher, (1, 28, 28), few, torch.zeros(1, dtype=torch.long, device=device)))}
for name, (m, times) in here.items():
    model = CostModel.fit(m, times)
    print(f"{name:16} latency {1e3 * model.latency:7.3f} ms, a row {1e3 * model.per_row:7.4f} ms: "
          f"{model.free_rows:6.1f} rows come free")
model = CostModel.fit(*here["network"])
for name, (_, sweep, _) in ones.items():
    most = (1000 - sweep.rounds) / (sweep.evaluations - 1000) * model.free_rows
    gains = [model.speed_up(1000, sweep.rounds, sweep.evaluations, B) for B in (1, 16)]
    print(f"{name}: even at a batch of {most:.0f} by (5.12); gain {gains[0]:.1f} at 1, {gains[1]:.1f} at 16 by (5.11)")
assert math.isclose(model.parallel(7, 5000, 3, 1), 7 * model.latency + 15_000 * model.per_row)   # eq. (5.11)

# %% [markdown]
# Does that agree with what you saw in section 8? In its proportions: much at batch 1, little at 16, and Picard, which
# spends more evaluations, below slopes. (The model counts evaluations only; sums, noise and carrying take time, too,
# which shows where there is little else.) Now many devices. With one thread for each process, `course measure
# devices` took evaluations of one process, exchanges between two, and the whole run with one and with two (slopes and
# secants; the picture network in a window of 250). The lines below are **fitted to the evaluations and the exchanges only**; the dots are the runs. **Does the model predict
# the dots, and what does it say of 64 devices?**

# %%
with open(data.ROOT / "data" / "devices.csv", newline="", encoding="utf-8") as file:
    timed = [{k: v if k in ("model", "what", "device") else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def of(model, what, **where):
    return [r for r in timed if (r["model"], r["what"]) == (model, what) and all(r[k] == v for k, v in where.items())]


def fitted(model):
    """Latency and time a row of evaluations and of exchanges, as a CostModel."""
    alone, talk = (CostModel.fit(*(torch.tensor([r[k] for r in of(model, what)]) for k in ("rows", "seconds")))
                   for what in ("evaluation", "exchange"))
    return CostModel(alone.latency, alone.per_row, exchange=talk.latency, exchange_per_row=talk.per_row)


models = {name: fitted(name) for name in ("network", "fashion_teacher")}
devices = [1, 2, 4, 8, 16, 32, 64]
CURVES = [("network", 1, "network, one sample"), ("network", 16, "network, 16 samples"),
          ("fashion_teacher", 1, "picture network, one picture")]
looks = dict(zip(CURVES, plotting.looks([label for *_, label in CURVES]).values()))
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4))
for name, color, marks in (("network", plotting.ESTIMATE, "o+"), ("fashion_teacher", plotting.THIRD, "^x")):
    for what, mark in zip(("evaluation", "exchange"), marks):
        left.plot(*zip(*((r["rows"], 1e3 * r["seconds"]) for r in of(name, what))), mark, ms=6, color=color,
                  label=f"{what}, {'network' if name == 'network' else 'picture network'}")
    m, model = torch.logspace(0, 3, 50), models[name]
    left.plot(m, 1e3 * (model.latency + model.per_row * m), color=color, lw=1)
    left.plot(m, 1e3 * (model.exchange + model.exchange_per_row * m), color=color, lw=1, ls=":")
left.set(xscale="log", yscale="log", xlabel="rows", ylabel="milliseconds")
left.legend()
for (name, batch, label), look in looks.items():
    (before,), model = of(name, "sequential", batch=batch), models[name]
    measured = of(name, "picard", batch=batch)
    rounds_taken, evaluations = (measured[0][k] for k in ("rounds", "evaluations"))
    gains = [model.speed_up(1000, rounds_taken, evaluations, batch, P) for P in devices]
    right.plot(devices, gains, **{**look, "marker": ""}, label=label)
    right.plot([r["devices"] for r in measured], [before["seconds"] / r["seconds"] for r in measured], **{**look, "ls": ""}, ms=7)
    for r in measured:
        print(f"{label:30} {r['devices']:.0f} process{'es' * (r['devices'] > 1):3} gain {before['seconds'] / r['seconds']:6.2f} measured, "
              f"{model.speed_up(1000, rounds_taken, evaluations, batch, int(r['devices'])):6.2f} predicted")
right.axhline(1, color=plotting.INK, lw=0.8)
right.set(xscale="log", yscale="log", ylim=(0.05, 150), xlabel="devices", ylabel="sequential / parallel seconds")
right.set_xticks(devices, map(str, devices))
right.set_xticks([], minor=True)
right.legend()
plt.show()

# %% [markdown]
# *Left, milliseconds against rows, both logarithmic: the small network's evaluations rise slowly up to some hundred rows
# and then in proportion; the picture network's do so almost from the first row; exchanges (crosses) cost as much as a
# small evaluation of the small network, and far less than one of the picture network. Right, the predicted gain against 1
# to 64 devices, with what was measured at 1 and 2: the small network gains on one device already, and each doubling adds
# less; the picture network starts near or below 1 and rises almost in proportion to the devices.*
#
# Small work is latency, and devices cannot share that: for the small network more devices bring less and less, and
# talking to them costs. Large work *is* shared: with each of the first doublings of the devices the picture network
# nearly doubles its gain, until latency and messages, $R(\ell+\kappa)+EB\mu$, are all that is left. Where a dot lies well
# below its line, look for what the model leaves out: the sampler's own work, the step's arithmetic and the sums, and
# memory for a thousand states. Beside a tiny network that counts, beside a large one less.
#
# **What the model does not know.** *One*: a straight line is a coarse picture of a processor; caches and vector units
# make steps in it, and a GPU takes no longer for 100 rows than for one. *Two*: its exchange was measured between two
# processes in one box. Between boxes it is slower, and among 64 devices slower again; every number beyond 2 devices is a
# prediction. *Three*: two processes on two cores also compete for memory. *Four*: it takes rounds and evaluations as
# given, but you can trade one for the other with the window. On a GPU $\ell/\rho$ can be hundreds of rows for a network
# of this size, so that one GPU may do what the right panel asks of many CPU cores; these figures do not show it.
#
# **Run it yourself.** `torchrun --nproc-per-node 2 -m course_lib.recipes.images` starts two processes which share the rows of
# every sweep (`--help` lists tolerance, window and steps), draw ten garments, and print rounds and seconds; with GPUs
# each process takes one. All get the same pictures, bit for bit the same on every rank. If one process dies, or says
# nothing for longer than `--timeout`, the others stop with an error that says so. `converged(picard(..., group=group))`
# does the same in your own program.

# %% [markdown]
# ## 10 · An aside: guess ahead, and be forgiven
#
# There is another way to use idle rows, which gives up the *path* and keeps the *law*. A stochastic step draws from
# $\mathcal N(m, s^2I)$, and only its mean needs the network. So hold the last $\hat x_0$ still, and **draft** several
# steps ahead with the means $\tilde m$ that follow from it, for free; then evaluate the network at all drafts as one
# batch. Now we know the right means $m$, and have drafts from slightly wrong Gaussians. Can a draft be *kept*?
#
# In one dimension, draw two bell curves of width $s$ a distance $|\Delta|=|\tilde m-m|$ apart. The area under *both* is
# what they share. It is made of two tails, each beyond the middle, half of $|\Delta|$ from a centre:
# $2\,\mathcal{N}_{\text{cdf}}(-\frac{|\Delta|}{2s})$. Accept a draft $x$ with probability $\min(1, p(x)/\tilde p(x))$,
# where $p$ is the right density and $\tilde p$ the drafted one: then accepted drafts fill precisely the shared area, so
# that
#
# $$\Pr[\text{accept}] = 2\,\mathcal N_{\text{cdf}}\Big(-\frac{|\Delta|}{2s}\Big) . \tag{5.13}$$
#
# (In more dimensions only the direction of $\Delta$ counts; across it the two curves are alike.) What is left of $p$ is
# the crescent on the far side, and it is the *mirror image* of the left-over of $\tilde p$. So a refused draft is not
# thrown away: mirror its noise along $\Delta$, put it around the right mean, and the whole is exactly $\mathcal
# N(m,s^2I)$. Keep all drafts up to the first refusal, and the mirrored state; all that follows is drafted anew. This is
# **speculative sampling** (De Bortoli et al., 2025), the trick of language models for Gaussians. **Is the rate as in
# (5.13), and is the law exact?**

# %%
R, std = 50_000, torch.full((50_000,), 0.3, dtype=torch.float64)
mean = torch.zeros(R, 2, dtype=torch.float64)
for gap in (0.1, 0.3, 0.9):
    drafted = mean + torch.tensor([0.6, 0.8], dtype=torch.float64) * gap
    draft = drafted + std[:, None] * torch.randn(R, 2, generator=seeded(20), dtype=torch.float64)
    x, accepted = reflection_coupling(draft, drafted, mean, std, torch.rand(R, generator=seeded(21), dtype=torch.float64))
    expected = torch.special.erfc(torch.tensor(gap / 0.3 / 8**0.5)).item()                      # 2 cdf(-gap/(2 s))
    assert abs(accepted.double().mean() - expected) < 0.01                                      # eq. (5.13)
    assert x.mean(0).abs().max() < 0.01 and (x.T.cov() - 0.09 * torch.eye(2)).abs().max() < 0.003
    print(f"gap {gap / 0.3:.2f} s: accepted {accepted.double().mean():.3f}, by (5.13) {expected:.3f}")

# %%
N, n = 4000, 300
x, grid = prior(exact, (N, 2), seeded(22), dtype=torch.float64), uniform(n, exact.schedule)
in_turn = final(exact, x, grid, ancestral, generator=seeded(25)).x
guessed = speculative(exact, x, grid, ancestral, ahead=8, generator=seeded(26))
print(f"accepted {guessed.acceptance:.3f}, by (5.13) {guessed.expected:.3f}")
print(f"{guessed.rounds} rounds for {n} steps (until the slowest of {N} is there), {guessed.evaluations:.0f} evaluations a sample")
real = [ring().sample(N, seeded(30 + i)) for i in range(6)]
other = [ring().sample(N, seeded(40 + i)) for i in range(6)]
sets = {"sequential": [in_turn] * 6, "speculative": [guessed.x] * 6, "real, the floor": other}
for name, found in sets.items():
    distances = torch.tensor([sliced_wasserstein(a, b) for a, b in zip(found, real)])
    print(f"{name:16} sliced W2 from six real sets: mean {distances.mean():.3f}, {distances.min():.3f} to {distances.max():.3f}")

# %% [markdown]
# The rate is that of the formula, the distances cannot be told from the floor, and the rounds are a fraction of the
# steps. (No set of samples proves a law *exact*; the argument above does, and the figures fail to contradict it.) But
# compare with section 5: slopes with secants took a handful of rounds for a thousand steps (of one sample), and gave the
# very sample that the queue would have given. What speculation has in its favour: no tolerance to choose, no trajectory
# to keep in memory, and few evaluations wasted. *Exact* means two things in this chapter: the same point, and the same
# distribution.

# %% [markdown]
# ## 11 · Closing task: share out the people, or the steps?
#
# You run a small office with $P$ devices, and $B$ people are waiting for one picture each. Two ways to use the devices:
#
# * **people shared out**: each device takes some of the people, as evenly as can be, and draws all of *its* pictures
#   sequentially, as one batch, in $n$ steps. The devices never talk. The office is done when the busiest device is.
# * **steps shared out**: all devices together draw all $B$ pictures by parallel sampling.
#
# **Exercise 5.6 · ●●● · 15 min · eq. (5.11), an unseen case**
#
# Write `my_choice(model, n, rounds, evaluations, people, devices)`: how many times *sooner* the office is done if the
# steps are shared out, that is seconds of the first way over seconds of the second. `model` has `model.sequential(n,
# batch)` and `model.parallel(rounds, evaluations, batch, devices)`, the two halves of (5.11); or use its numbers,
# `latency` $\ell$, `per_row` $\rho$, `exchange` $\kappa$ and `exchange_per_row` $\mu$. `evaluations` is $E$, counted for
# one sample.

# %% exercise="5.6"
def my_choice(model, n, rounds, evaluations, people, devices):  # CostModel and five whole numbers -> number
    ### BEGIN SOLUTION two or three lines: the busiest device's people, and both times
    busiest = math.ceil(people / devices)
    return model.sequential(n, busiest) / model.parallel(rounds, evaluations, people, devices)
    ### END SOLUTION


# %% check="5.6"
# NBVAL_CHECK_OUTPUT
my_choice = exercise("5.6", my_choice)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right for one person only*: how many people does the busiest of the devices draw? With 20 people and 8 devices it is
#   3.
# * *Right for one device only*: the two ways are the same device then; think about which rows each device has with two.
#
# </details>
#
# **When should steps be shared out?** Two, eight and 32 devices, the picture network's fitted numbers, and an office that
# fills up:

# %%
measured = of("fashion_teacher", "picard", batch=1)[0]
R, E = int(measured["rounds"]), int(measured["evaluations"])
print("people waiting   " + "".join(f"{B:8}" for B in (1, 2, 4, 8, 16, 64)))
for P in (2, 8, 32):
    gains = [my_choice(models["fashion_teacher"], 1000, R, E, B, P) for B in (1, 2, 4, 8, 16, 64)]
    print(f"{P:3} devices      " + "".join(f"{gain:8.2f}" for gain in gains))

# %% [markdown]
# Above 1, share out the steps; below 1, the people. Parallel sampling is for *one* person who is waiting in front of many
# idle devices: it buys a shorter wait with more work. With as many people as devices, each device has one person, and the
# question is that of section 8: does parallel sampling gain on *one* device? With this network hardly, so that the table
# passes 1 about there, and with more people the queue for each is the better use of the same machines: the work is less,
# and no device ever waits for another. (A network as small as that of the failing case would pass 1 later.) Latency or
# throughput: ask which of them you are paid for.

# %% [markdown]
# ## The ledger

# %%
def live(method, dataset, nfe, depth, batch, seconds, metric, value, weights):
    return ledger.Row(f"{method} (live)", dataset, nfe, depth, batch, seconds, "this machine", metric, value, 0.0, batch, 1,
                      weights=weights)


rows = [live("ancestral", "ring", 1000, 1000, 1, in_sequence(1)[0], "path_error", 0.0, "ring network")]
for name, (spent, sweep, gap) in ones.items():
    rows.append(live(name, "ring", sweep.evaluations, sweep.rounds, 1, spent, "path_error", gap, "ring network"))
rows.append(live(step.__name__, "fashion_mnist", steps, steps, 3, teacher_queue, "pixel_error", 0.0, "fashion_teacher"))
for tolerance, (spent, sweep, difference) in pictures.items():
    rows.append(live(f"Picard, {tolerance}", "fashion_mnist", sweep.evaluations, sweep.rounds, 3, spent, "pixel_error",
                     difference.abs().mean().item(), "fashion_teacher"))
ledger.table([*rows, *shipped], "method data NFE depth seconds batch metric value floor status").show()

# %% [markdown]
# NFE are the evaluations of one sample, depth the rounds. The live rows measure the distance from the sequential
# solution (for pixels the mean absolute one, which is smaller than the root mean square of section 7), the shipped ones
# that from the data.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | the queue | $X_{j+1}=\Phi_j(X_j)$, noise drawn beforehand |
# | as a sum | $X_{j+1}=X_0+\sum_{i\le j}(\Phi_i(X_i)-X_i)$; put the guess in on the right: Picard |
# | exact | where a sweep rests; the first $k$ states after $k$ sweeps |
# | the error | at most $L^k/k!$ times the first, $L=\sum\lvert a_i-1\rvert$ (Gaussian data): grows while $k<L$, then collapses; no $n$ in it |
# | settled | a leading run whose change is at most $\tau w_j$, the step's own noise |
# | slopes | $u_{j+1}=a_ju_j+r_{j+1}$: 1 is Picard, the Gaussian's one sweep on Gaussian data, secants learn the rest |
# | parareal | $N^{\text{new}}_{m+1}=F_m(N_m)+C_m(N^{\text{new}}_m)-C_m(N_m)$ |
# | cost | $n(\ell+\rho B)$ against $R(\ell+\kappa)+EB(\rho/P+\mu)$ |
# | speculation | same law, another path; accept with probability $2\,\mathcal N_{\text{cdf}}(-\lvert\Delta\rvert/2s)$ |
#
# * Parallel sampling changes *when* things are computed, not *what*.
# * It does more work in fewer rounds. It gains where the machine was idle: one sample, many steps, many devices.
# * Always give both ledgers.
#
# **Limits.** The bound (5.5) is proved for linear steps; on the ring it is a guide. The tolerance bounds the last change,
# not the distance from the solution: on pictures the latter was larger than one would wish for at 0.1. Wall-clock was
# measured on CPU cores; beyond two devices there is a model and no measurement. With chapter 04's ten evaluations there
# is little left to gain here: a handful of sweeps is most of ten. On one device the best use of both chapters is often
# chapter 04 alone. Rounds were measured on a small data set and a small network; large models, and strong guidance
# (chapter 06), may have steeper slopes and take more sweeps.
#
# **What is still open.** Chapters 04 and 05 took the trained network as it is. From chapter 07 on we train a new one, for
# which one step is enough.

# %% [markdown]
# ## Further reading
#
# * A. Shih, S. Belkhale, S. Ermon, D. Sadigh, N. Anari, *Parallel sampling of diffusion models*, 2023, arXiv:2305.16317:
#   ParaDiGMS, the sliding window, and the tolerance in units of the noise.
# * Z. Tang, J. Tang, H. Luo, F. Wang, T.-H. Chang, *Accelerating parallel sampling of diffusion models*, 2024,
#   arXiv:2402.09970: ParaTAA, a triangular Anderson acceleration.
# * X. Gonzalez, A. Warrington, J. Smith, S. Linderman, *Towards scalable and stable parallelization of nonlinear RNNs*,
#   2024, arXiv:2407.19115: the recursion (5.8) with diagonal slopes (quasi-DEER), and when it is stable.
# * N. Selvam, A. Merchant, S. Ermon, *Self-refining diffusion samplers*, 2024, arXiv:2412.08292: parareal for diffusion
#   models (SRDS).
# * J.-L. Lions, Y. Maday, G. Turinici, *Résolution d'EDP par un schéma en temps « pararéel »*, C. R. Acad. Sci. Paris
#   332, 2001.
# * V. De Bortoli, A. Galashov, A. Gretton, A. Doucet, *Accelerated diffusion models via speculative sampling*, 2025,
#   arXiv:2501.05370.
