# ---
# course:
#   title: Diffusion SDEs
#   minutes: 120
#   needs: [0, 1]
#   shows: one family of SDEs turns data into noise, the score alone reverses it, and a thousand small steps reach the data
# ---

# %% [markdown]
# # 02 · Diffusion SDEs: a thousand small steps
#
# Chapter 01 ended with a repair: Langevin dynamics, level by level from large noise to small, gets the shares of two
# islands right, if it is patient. It leaves questions that it cannot answer itself: which levels, how many steps at each,
# of what size? Here nothing is left to taste. We turn data into noise by a process so simple that its law is known at
# every instant, then run exactly that process backwards. All that the way back needs is the score.
#
# After this chapter you can
#
# * **derive** the noise level after $k$ small noising steps, and **implement** it (exercise 2.1),
# * **derive** the drift and diffusion of any schedule $\alpha(t), \sigma(t)$ by taking one derivative (exercise 2.2),
# * **derive** one small step backwards in time from Bayes' rule, and **implement** it (exercises 2.3 and 2.4),
# * **implement** DDPM's ancestral step for jumps of any length (exercise 2.5),
# * **predict** what a schedule does at its singular end, what a long step back looks like, what a distance can show, how
#   few steps go wrong, and what less noise does (predictions 2.1 to 2.5),
# * **measure** how many steps a sampler needs, beside the floor below which nothing can be measured (sections 5 to 7),
# * **transfer** all this to a sampler with as much or as little noise as you like (exercise 2.6).
#
# Allow two hours: 75 minutes for the exercises, the rest for reading.

# %%
import os
import time
from functools import cache
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import eps, levels, per_row, score
from course_lib.metrics import sliced_wasserstein
from course_lib.sampling import final, prior, sample
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, uniform
from course_lib.score_matching import annealed_langevin
from course_lib.sde_samplers import ancestral, euler_maruyama, langevin_correction, predictor_corrector
from course_lib.targets import GaussianMixture, ring, two_islands
from course_lib.widgets import flipbook, progress

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
SCHEDULES = {"linear VP": LinearVP(), "cosine VP": CosineVP(), "VE": VE(), "sub-VP": SubVP(), "flow": Flow()}


def seeded(seed, device="cpu"):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator(device).manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# Two islands hold 80 % and 20 % of the data, and each is 0.5 wide (its standard deviation). The score is *exact*, the
# twenty levels are those of chapter 01, and each of 2000 walkers may ask for the score 100 times. **How many end on the
# large island, and how wide is it?**

# %%
def left_island(x):                                             # x (B, 2) -> share of the samples, vertical width
    left = x[x[:, 0] < 0]
    return len(left) / len(x), left[:, 1].std().item()


def show_islands(x, ax, title):
    plotting.shaded(islands.log_prob, 3.6, ax)
    plotting.scatter(x[:300], ax, 3.6, title, size=8)
    ax.set(ylim=(-1.9, 1.9))


islands, annealing = two_islands(), VE(sigma_max=5.0)
sigmas = torch.logspace(0.7, -1, 20, dtype=torch.float64)       # 5.0 ... 0.1, five steps at each
start = 5.0 * torch.randn(2000, 2, generator=seeded(0))
ts = annealing.time_of_log_snr(-2 * sigmas.log())               # the times at which VE has these levels: alpha = 1
*_, walkers = annealed_langevin(islands.denoiser(annealing), start, ts, steps=5, generator=seeded(1))
share, wide = left_island(walkers)
print(f"on the left: {share:.1%}, due: 80.0 %    width there: {wide:.3f}, due: 0.500")
show_islands(walkers, plt.subplots(figsize=(6, 3.4))[1], f"annealed Langevin: {share:.0%} on the left")
plt.show()

# %% [markdown]
# *Two grey spots, the left one four times as heavy as the right one; the orange walkers are too many on the right, and
# many lie outside the grey.*
#
# The walkers lag behind the falling noise: the shares freeze before they are right, and the islands come out too wide.
# More patience heals it, as chapter 01 showed. By the end of section 4 the *same 100* evaluations give the right share
# and the right width, with nothing tuned.

# %% [markdown]
# ## 1 · From data to noise, one small step at a time
#
# **The rule.** Shrink a little, add a little noise, and repeat:
#
# $$x_k = \sqrt{1-\beta_k}\; x_{k-1} + \sqrt{\beta_k}\;\varepsilon_k, \qquad \varepsilon_k \sim \mathcal N(0, I) \text{ independent},
# \quad 0<\beta_k<1. \tag{2.1}$$
#
# Why the square roots? If $x_{k-1}$ has variance 1, then $x_k$ has variance $(1-\beta_k) + \beta_k = 1$ again. Such a
# chain is called *variance preserving* (VP).
#
# **Two steps by hand.** Put $x_1$ into the formula for $x_2$:
#
# $$x_2 = \underbrace{\sqrt{1-\beta_2}\sqrt{1-\beta_1}}_{\alpha_2}\; x_0
#   + \sqrt{1-\beta_2}\sqrt{\beta_1}\;\varepsilon_1 + \sqrt{\beta_2}\;\varepsilon_2 .$$
#
# The two noises are independent and Gaussian, so their sum is Gaussian and their *variances* add:
#
# $$\sigma_2^2 = (1-\beta_2)\,\beta_1 + \beta_2 = 1 - (1-\beta_1)(1-\beta_2) = 1 - \alpha_2^2. \tag{2.2}$$
#
# (Multiply out the product to see the middle step.) So two noising steps are *one* step with other numbers, and there
# is no need to simulate a chain: we can jump. Two tempting wrong answers are worth a line each: $\beta_1 + \beta_2$
# forgets that the second step shrinks the noise of the first, and $\beta_1\beta_2$ is smaller than either, as if noise
# on noise made less noise.
#
# Here is (2.2) worked as code, with the letters of the formulas:

# %%
beta = torch.tensor([0.1, 0.3], dtype=torch.float64)
e1, e2 = torch.randn(2, 100_000, generator=seeded(2), dtype=torch.float64)
x0 = 2.0
x1 = (1 - beta[0]).sqrt() * x0 + beta[0].sqrt() * e1
x2 = (1 - beta[1]).sqrt() * x1 + beta[1].sqrt() * e2
alpha2 = ((1 - beta[0]) * (1 - beta[1])).sqrt()
print(f"mean      {x2.mean():.3f}   alpha_2 x0   {alpha2 * x0:.3f}")
print(f"variance  {x2.var():.3f}   1-alpha_2^2  {1 - alpha2**2:.3f}")
print(f"tempting: sum of betas {beta.sum():.3f}, product of betas {beta.prod():.3f}")
assert torch.allclose((1 - beta[1]) * beta[0] + beta[1], 1 - alpha2**2)                         # eq. (2.2)

# %% [markdown]
# The next step is like the second: if $x_{k-1} = \alpha_{k-1} x_0 + \sigma_{k-1}\varepsilon$ with
# $\alpha_{k-1}^2+\sigma_{k-1}^2=1$, then $x_k$ has signal $\sqrt{1-\beta_k}\,\alpha_{k-1}$, and noise variance
# $(1-\beta_k)(1-\alpha_{k-1}^2) + \beta_k = 1 - (1-\beta_k)\alpha_{k-1}^2$. By induction, for every $k$,
#
# $$x_k = \alpha_k x_0 + \sigma_k \varepsilon, \qquad \alpha_k = \prod_{j\le k} \sqrt{1-\beta_j}, \qquad
# \sigma_k = \sqrt{1-\alpha_k^2}. \tag{2.3}$$
#
# This is (0.1), now derived from small steps. In this course $\alpha$ always means the *cumulative* factor that leads
# from $x_0$ to $x_k$. (Papers that write $\alpha_k$ for $1-\beta_k$ write $\sqrt{\bar\alpha_k}$ for ours.)
#
# **Exercise 2.1 · ●○○ · 8 min · eq. (2.3)**
#
# Write `my_levels(beta)`: from the $T$ numbers $\beta_1,\dots,\beta_T$ it returns all the signal levels
# $\alpha_1, \dots, \alpha_T$ and all the noise levels $\sigma_1,\dots,\sigma_T$ (standard deviations), each as a tensor
# of shape `(T,)`. The running products of a tensor `a` are `a.cumprod(0)`.

# %% exercise="2.1"
def my_levels(beta):                                            # (T,) -> alpha (T,), sigma (T,)
    ### BEGIN SOLUTION two lines: alpha as a running product, then sigma
    alpha = (1 - beta).cumprod(0).sqrt()
    return alpha, (1 - alpha**2).sqrt()
    ### END SOLUTION


# %% check="2.1"
# NBVAL_CHECK_OUTPUT
my_levels = exercise("2.1", my_levels)

# %% [markdown]
# Ho et al. (2020) took $T = 1000$ steps with $\beta$ rising evenly from $10^{-4}$ to $0.02$. With your function we jump
# to any of the thousand. **When does the picture disappear?**

# %%
alpha, sigma = my_levels(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
boot = data.fashion_mnist("test")[0][:1]                                                       # (1, 1, 28, 28)
noise = torch.randn(boot.shape, generator=seeded(3))
shown = [1, 50, 150, 500, 1000]
noised = torch.cat([alpha[k - 1].float() * boot + sigma[k - 1].float() * noise for k in shown])
plotting.image_grid(noised, columns=5, title="k = " + ", ".join(map(str, shown)))
plt.show()
print("alpha ", "  ".join(f"{alpha[k - 1]:.4f}" for k in shown))
print("sigma ", "  ".join(f"{sigma[k - 1]:.4f}" for k in shown))

# %% [markdown]
# *An ankle boot, clean on the left, fades into noise; by the middle of the chain, at k = 500, nothing of it can be made
# out.*
#
# At $k = 1000$ a signal of less than 1 % is left. This matters: sampling starts from *pure* noise, and pure noise is the
# right start only if the *signal-to-noise ratio* $\alpha/\sigma$ is nearly 0 at the end. For VP this means
# $\alpha\approx0$; the schedule VE, which you will meet in section 2, keeps $\alpha=1$ and makes $\sigma=50$ instead.
# Print $\alpha/\sigma$ at the start of every sampler that you use: one that starts at step 981 of 1000, say, or where
# that ratio is far from 0, gives pictures of one and the same medium brightness.

# %% [markdown]
# ## 2 · From steps to a differential equation
#
# **Thinner and thinner steps.** Give the chain a clock: $t = k/T$, a step lasts $h = 1/T$, and $\beta_k = \beta(t)\,h$
# shrinks with the step. Since $\sqrt{1-\beta h} = 1 - \tfrac12\beta h + O(h^2)$, one step of (2.1) is
# $x_{t+h} = x_t - \tfrac12\beta(t)\, x_t\, h + \sqrt{\beta(t)\,h}\;\varepsilon$. Give the two rates names of their own:
#
# $$x_{t+h} = x_t + f(t)\, x_t\, h + g(t)\sqrt{h}\;\varepsilon
# \qquad\text{which as } h\to 0 \text{ is written}\qquad dx = f(t)\,x\,dt + g(t)\,dw. \tag{2.4}$$
#
# This is a *stochastic differential equation* (SDE). $dw$ stands for the kick $\sqrt h\,\varepsilon$, and (2.4) for the
# limit of ever smaller steps; for us it *means* the left formula with a small $h$, which is called an Euler-Maruyama
# step. $f x$ is the drift, with the rate $f$ (the library's `drift`), and $g$ the diffusion. Why does the noise come with
# $\sqrt h$? Because variances add: $n$ steps of length $h$ must make as much noise as one step of length $nh$, and
# $n\cdot(\sqrt h)^2 = nh$.
#
# **What does it do to mean and variance?** Fix $x_0$, and let $m$ and $v$ be mean and variance of $x_t$. One step
# multiplies $x_t$ by $1 + fh$ and adds independent noise of variance $g^2 h$:
#
# $$m(t+h) = (1+fh)\,m(t), \qquad v(t+h) = (1+fh)^2\, v(t) + g^2 h .$$
#
# Subtract $m(t)$ and $v(t)$, divide by $h$, drop what vanishes with $h$ (the square gives $2fh$):
#
# $$m' = f\,m, \qquad v' = 2f\,v + g^2. \tag{2.5}$$
#
# **The other way round: from $\alpha$ and $\sigma$ to the SDE.** We would rather *choose* how signal and noise develop,
# that is, we want $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$. So put $m = \alpha x_0$ and $v = \sigma^2$ into (2.5), and solve
# for $f$ and $g^2$:
#
# $$f = \frac{\alpha'}{\alpha} = \frac{d\log\alpha}{dt}, \qquad g^2 = \frac{d\,\sigma^2}{dt} - 2 f\,\sigma^2. \tag{2.6}$$
#
# So *every* schedule is one SDE, derived and not looked up, as long as $g^2 \ge 0$. Check the case that we came from:
# with $\sigma^2 = 1-\alpha^2$ we get $d\sigma^2/dt = -2\alpha\alpha' = -2f\alpha^2$, hence
# $g^2 = -2f\alpha^2 - 2f(1-\alpha^2) = -2f = \beta$, as it must be.
#
# | schedule | $\alpha(t)$ | $\sigma(t)$ |
# |---|---|---|
# | linear VP | $e^{-B/2}$ with $B(t) = \int_0^t \beta$, $\beta(t) = 0.1 + 19.9\,t$ (Ho's $\beta_k$ times 1000) | $\sqrt{1-\alpha^2}$ |
# | cosine VP | $\cos(\pi t/2)$ | $\sin(\pi t/2)$ |
# | VE, variance exploding | $1$ | $\sigma_{\min}\sqrt{r^{2t}-1}$, with $r=\sigma_{\max}/\sigma_{\min}$ |
# | sub-VP | as linear VP | $1-\alpha^2$ |
# | flow | $1-t$ | $t$ |
#
# **Exercise 2.2 · ●●○ · 12 min · eq. (2.6)**
#
# Write `my_sde(schedule, t)`: it returns $f(t)$ and $g(t)^2$ of any schedule, from its `schedule.alpha(t)` and
# `schedule.sigma(t)` alone. Derivatives come from `slope`, which differentiates any function of $t$ exactly:
# `slope(schedule.alpha, t)` is $\alpha'(t)$, and `slope(lambda u: u**3, t)` is $3t^2$.

# %%
def slope(function, t):                                         # (B,) -> (B,), the derivative at every entry of t
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]


print(slope(lambda u: u**3, torch.tensor([1.0, 2.0])))          # 3 t^2

# %% exercise="2.2"
def my_sde(schedule, t):                                        # t (B,) -> f (B,), g^2 (B,)
    ### BEGIN SOLUTION two lines: f, then g squared
    f = slope(schedule.alpha, t) / schedule.alpha(t)
    return f, slope(lambda u: schedule.sigma(u) ** 2, t) - 2 * f * schedule.sigma(t) ** 2
    ### END SOLUTION


# %% check="2.2"
# NBVAL_CHECK_OUTPUT
my_sde = exercise("2.2", my_sde)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"right only for VE"*, or the differences are large everywhere else: in VE $f = 0$, so every slip in the terms with
#   $f$ is hidden.
# * *TypeError: ... not callable*: `slope` takes a function, `schedule.alpha`, and not its value, `schedule.alpha(t)`.
# * *You get the slope of $\sigma$ and want that of $\sigma^2$*: write a small function of your own, `lambda u: ...`,
#   and hand it to `slope`.
# * *Your $g^2$ is negative*: a sign. $f$ is negative for all VP schedules, so $-2f\sigma^2$ must be positive.
#
# </details>
#
# What does your function say? Close to the noisy end the rates differ wildly from schedule to schedule.

# %%
t = torch.tensor([0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
print("at t =".ljust(13) + "".join(f"{v:9.2f}" for v in t) + " " * 7 + "".join(f"{v:10.2f}" for v in t))
for name, schedule in SCHEDULES.items():
    f, g2 = my_sde(schedule, t)
    print(f"{name:10} f " + "".join(f"{v:9.3f}" for v in f) + "    g^2 " + "".join(f"{v:10.3f}" for v in g2))
    assert torch.allclose(f, schedule.drift(t)) and torch.allclose(g2, schedule.diffusion2(t))  # eq. (2.6)

# %% [markdown]
# The library has the same $f$ and $g^2$ in closed form, as `schedule.drift(t)` and `schedule.diffusion2(t)`. Now let us
# simulate the steps of (2.4) for all five schedules. **Do the simulated paths have the mean $\alpha(t)$ and the
# standard deviation $\sigma(t)$ that we asked for?** All paths start from $x_0 = 1$.

# %%
def simulate(schedule, x, ts, generator):                       # x (B,), rising times ts (n+1,) -> states (n+1, B)
    states = [x]
    for s, t in pairwise(ts):                                   # forward: from s to t > s
        h, f, g2 = t - s, schedule.drift(s), schedule.diffusion2(s)
        noise = torch.randn(len(x), generator=generator, dtype=x.dtype)
        x = x + f * x * h + (g2 * h).sqrt() * noise                                             # eq. (2.4)
        states.append(x)
    return torch.stack(states)


def rising(end, n=1000):
    return torch.linspace(0, end, n + 1, dtype=torch.float64)


x0 = torch.ones(2000, dtype=torch.float64)
forward = {name: (ts := rising(c.t_max), simulate(c, x0, ts, seeded(4))) for name, c in SCHEDULES.items()}

# %%
print("schedule    t_max    alpha  sim. mean (± error)     sigma  sim. std")
for name, (ts, xs) in forward.items():
    c, end, error = SCHEDULES[name], ts[-1], xs[-1].std() / 2000**0.5                           # of a mean of 2000 paths
    print(f"{name:10} {end:.4f}  {c.alpha(end):7.4f}  {xs[-1].mean():9.4f} ± {error:.4f}   {c.sigma(end):8.4f}"
          f"  {xs[-1].std():8.4f}")
    middle = xs[500]
    assert abs(middle.mean() - c.alpha(ts[500])) < 4 * c.sigma(ts[500]) / 2000**0.5             # eq. (2.5), the mean
    assert abs(middle.std() / c.sigma(ts[500]) - 1) < 0.07                                      # eq. (2.5), the variance

# %%
figure, axes = plt.subplots(1, 5, figsize=(9.2, 2.6))
for ax, (name, (ts, xs)) in zip(axes, forward.items()):
    c, dots = SCHEDULES[name], slice(50, None, 95)
    ax.plot(ts, c.alpha(ts), color=plotting.TRUTH, lw=2.5, label=r"$\alpha$")
    ax.plot(ts, c.sigma(ts), color=plotting.TRUTH, lw=2.5, ls=(0, (2, 1)), label=r"$\sigma$")
    ax.plot(ts[dots], xs[dots].mean(1), "o", ms=4, color=plotting.ESTIMATE, label="simulated mean")
    ax.plot(ts[dots], xs[dots].std(1), "s", ms=4, color=plotting.SECOND, label="simulated std")
    ax.set(title=name, xlabel="t", ylim=(-5, 50) if name == "VE" else (-0.15, 1.2))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# *Five panels, one a schedule: the round dots of the simulated mean lie on the grey line of alpha, the square dots of
# the simulated standard deviation on the dashed grey line of sigma.*
#
# Formula and simulation agree for every schedule, within the error of 2000 samples and 1000 steps. (At the end of VE
# the noise is so large that 2000 paths do not fix the mean better than to about 1. The cosine schedule
# is the worst: at its very end the simulated deviation is a few per cent too high. Remember that.) From now on we can
# jump to any time in one go, and simulate only where we must: on the way back.
#
# ### A trap: the singular end
#
# The cosine schedule reaches $\alpha = 0$ at $t = 1$, and $f = \alpha'/\alpha$ is infinite there. You may object that
# nobody needs $f(1)$: the last forward step starts from $t = 1-h$, where all is finite. Take 1000 equal steps from 0 to
# exactly 1.
#
# **Prediction 2.1.** $\sigma(1) = 1$, so the variance at the end should be 1. What will the simulation give?
#
# * **a**: 1, up to sampling error,
# * **b**: 2,
# * **c**: infinity, or NaN.

# %% predict="2.1"
predict("2.1", "b")

# %%
for end in (1.0, CosineVP().t_max):
    xs = simulate(CosineVP(), x0, rising(end), seeded(5))
    print(f"to t = {end:.4f}: variance {xs[-1].var():.3f}, formula {CosineVP().sigma(end) ** 2:.3f}")

# %%
reveal("2.1")

# %% [markdown]
# The last step is a lesson in what a finite step can do: near the end $f \approx -1/(1-t)$ and $g^2 \approx 2/(1-t)$,
# so with $1-t=h$ the step multiplies by $1 + fh = 0$ and adds variance $g^2h = 2$. On the way *back*, a first step from
# a hair before $t = 1$ is far worse. **By which factor does it blow up the noise that it is given?**

# %%
D = ring().denoiser(CosineVP())
x = torch.randn(2000, 2, generator=seeded(6), dtype=torch.float64)
for t in (1 - 1e-9, D.schedule.t_max):
    one = euler_maruyama(D, x, t, t - 0.001, torch.zeros_like(x))
    print(f"start at {t:.9f}: after one step of 0.001 the samples are {one.std() / x.std():.3g} times as large")
try:
    D.schedule.drift(1.0)
except ValueError as error:
    print("ValueError:", error, sep="\n")

# %% [markdown]
# Why a million? Drift and score term together give $-h/(1-t)$ times $x$: before the step $1/(1-t)=10^9$, and times
# $h=10^{-3}$ this is a factor of $10^6$ (its sign is lost in the standard deviation).
#
# Hence the rule of this course: grids start at `schedule.t_max`, where the log-SNR $\log(\alpha^2/\sigma^2)$ is $-10$
# (or at 1, for a schedule that never gets there), and the library refuses to evaluate an infinite rate.

# %% [markdown]
# ## 3 · One small step back
#
# We are at $x_t$, and want to draw $x_s$ for an earlier time $s = t - h$: a sample of $p(x_s \mid x_t)$. Bayes' rule
# turns it around into things that we know:
#
# $$p(x_s \mid x_t) \;\propto\; p(x_t \mid x_s)\; p_s(x_s).$$
#
# The first factor is the forward step (2.4), a Gaussian. The second, $p_s$, is the *marginal*: the density of $x_s$ over
# all data. Take one dimension, write $x$ for the known $x_t$, and take logarithms:
#
# $$\log p(x_s \mid x) = -\frac{(x - x_s - f x_s h)^2}{2 g^2 h} + \log p_s(x_s) + \text{const}.$$
#
# Now let $h$ be small. A step moves by about $g\sqrt h$, so $x_s$ is close to $x$, and two things may be simplified,
# each with an error that vanishes faster than what we keep: $f x_s h \approx f x h$, and the density's logarithm is a
# straight line,
#
# $$\log p_s(x_s) \approx \log p_t(x) + (x_s - x)\, \nabla \log p_t(x),$$
#
# with the score $\nabla\log p_t$ as its slope. Write $d = x_s - x + fxh$ for the part of the move that is not drift.
# Then the exponent is $-d^2/(2g^2h) + d\,\nabla\log p_t(x)$ + const.
#
# Was it right to drop the rest? $d$ is of size $\sqrt h$. So $d^2/(2g^2h)$ is of size 1 and $d\,\nabla\log p_t$ of size
# $\sqrt h$: these we keep. The curvature of $\log p$, the change of the score, of $f$ and of $g$ from $s$ to $t$, and
# $f x_s h$ against $f x h$ each change the exponent by an amount of size $h$ or less, and we drop them.
#
# What is left is a parabola in $d$. Completing the square puts its
# top at $d = g^2 h\,\nabla\log p_t(x)$ and leaves its width alone. In words, $p(x_s\mid x_t)$ is a Gaussian again, of
# variance $g^2h$, and
#
# $$x_s = x_t - h\,\big[f(t)\,x_t - g(t)^2\,\nabla\log p_t(x_t)\big] + g(t)\sqrt h\; z, \qquad z\sim \mathcal N(0, I). \tag{2.7}$$
#
# In more dimensions the noise of each coordinate is independent, and the same holds coordinate by coordinate.
#
# As $h\to0$ this is an SDE that runs from noise to data, the *reverse-time SDE* (Anderson, 1982):
#
# $$dx = \big[f\,x - g^2\,\nabla\log p_t(x)\big]\,dt + g\,d\bar w, \qquad dt<0. \tag{2.8}$$
#
# Here $d\bar w$ is the kick of a step backwards. The derivation is honest about one step, and it leaves one thing open:
# that the errors of $1/h$ steps together still vanish as $h\to0$. That is a theorem; here we shall measure it.
#
# A tempting wrong idea: "running backwards means changing the sign of the drift and the noise". Noise has no sign:
# $-\varepsilon$ is as good a noise as $\varepsilon$. Noise on the way back goes on *spreading* the samples, and only the
# score pulls them together.
#
# **How small is small?** Here is a case where the exact $p(x_s\mid x_t)$ can be drawn: two narrow spots at $\pm1$, at
# time $t=0.5$, and a point $x_t = 0.1$ near the middle. In the code below, `jump` is the forward jump from $s$ to
# $t$ (section 6 derives it as (2.9)), and the line after it is Bayes' rule on a mesh: forward jump times $p_s$. We
# compare the result with the Gaussian of (2.7), for steps of $h = 0.4$, $0.1$ and $0.001$.
#
# **Prediction 2.2.** What does the exact $p(x_s\mid x_t)$ look like for the longest step, $h = 0.4$?
#
# * **a**: one hump, a little skew,
# * **b**: two separate peaks,
# * **c**: one peak, at the nearer spot.

# %% predict="2.2"
predict("2.2", "b")

# %%
pair, c = GaussianMixture([[-1.0], [1.0]], 0.15), LinearVP()
t, x_t, u = 0.5, torch.tensor([[0.1]], dtype=torch.float64), torch.linspace(-6, 6, 4001, dtype=torch.float64)


def gaussian(u, mean, variance):
    return (-((u - mean) ** 2) / (2 * variance)).exp() / (2 * torch.pi * variance).sqrt()


def one_step_back(s):                                           # exact density and its Gaussian (2.7), on the mesh u
    a = c.alpha(t) / c.alpha(s)                                 # x_t given x_s is N(a x_s, sigma_t^2 - a^2 sigma_s^2)
    jump = gaussian(x_t, a * u, c.sigma(t) ** 2 - a**2 * c.sigma(s) ** 2)[0]
    exact = jump * pair.marginal(c, s).log_prob(u[:, None]).exp()                               # Bayes' rule
    mean = x_t - (t - s) * (c.drift(t) * x_t - c.diffusion2(t) * score(pair.denoiser(c), x_t, t))
    return exact / torch.trapezoid(exact, u), gaussian(u, mean[0, 0], c.diffusion2(t) * (t - s))


figure, axes = plt.subplots(1, 3, figsize=(9, 2.5))
for ax, h in zip(axes, (0.4, 0.1, 0.001)):
    exact, approximate = one_step_back(t - h)
    ax.fill_between(u, exact, color=plotting.TRUTH, alpha=0.6, label="exact")
    ax.plot(u, approximate, color=plotting.ESTIMATE, label="Gaussian (2.7)")
    reach = 3.2 * (c.diffusion2(t) * h).sqrt().item()
    overlap = torch.trapezoid(torch.minimum(exact, approximate), u)
    ax.set(title=f"h = {h}: overlap {overlap:.1%}", yticks=[], xlim=(0.1 - reach, 0.1 + reach), xlabel="$x_s$")
axes[0].set_ylim(top=1.75 * axes[0].get_ylim()[1])
axes[0].legend(loc="upper center")
plt.show()
assert overlap > 0.95                                                                           # eq. (2.7), for small h

# %%
reveal("2.2")

# %% [markdown]
# *Left, a step of 0.4: the exact density has two separate peaks, the Gaussian one broad hump that misses both. Middle,
# a step of 0.1: they begin to agree. Right, a step of 0.001: one curve.*
#
# Keep this picture in mind, it is the whole course: **a small step back is a Gaussian, a big step back is not.** After
# a big jump there are several pasts that $x_t$ may have come from, and no single Gaussian covers them. Hence a thousand
# small steps, hence the slowness, and hence every later chapter.
#
# **Exercise 2.3 · ●●○ · 15 min · eq. (2.7)**
#
# Write `my_reverse_step(D, x, t, s, z)`: one Euler-Maruyama step from $t$ down to $s < t$ with the noise `z` that is
# handed in. `D.schedule` has `.drift(t)` and `.diffusion2(t)` (your exercise 2.2, in closed form), and `score(D, x, t)`
# is the score from chapter 01. `t` and `s` hold one time per row, or a single one for all; `per_row(c, x)` shapes such a
# coefficient so that it multiplies `x`, be it a batch of points `(B, 2)` or of images `(B, 1, 8, 8)`. The first two
# lines are given.

# %% exercise="2.3"
def my_reverse_step(D, x, t, s, z):                             # x, z (B, ...); t, s () or (B,) -> (B, ...)
    h = per_row(t - s, x)                                       # > 0
    f, g2 = per_row(D.schedule.drift(t), x), per_row(D.schedule.diffusion2(t), x)
    ### BEGIN SOLUTION one line: the state, minus h times the bracket of (2.7), plus the noise
    return x - h * (f * x - g2 * score(D, x, t)) + (g2 * h).sqrt() * z
    ### END SOLUTION


# %% check="2.3"
# NBVAL_CHECK_OUTPUT
my_reverse_step = exercise("2.3", my_reverse_step)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *I get NaN*: a square root of something negative, almost surely $g^2 h$ with $h = s - t$.
# * *Shapes do not match*, or *right for batch size 1 only*: a tensor of shape `(B,)` met one of shape `(B, 2)`. Wrap it
#   in `per_row(..., x)`.
# * *My samples fly off*: the sign of the score, or of $h$. Think of data $\mathcal N(0,1)$ under VP: every $p_t$
#   is $\mathcal N(0,1)$, its score is $-x$, and the step must give
#   $x - h(-\tfrac12 g^2 x + g^2x) + \dots = (1-\tfrac12g^2h)\,x + g\sqrt h\,z$, which shrinks.
#
# </details>
#
# Two checks that catch what a histogram of the samples lets pass. The first: on $\mathcal N(0,1)$ a step of a VP schedule must
# shrink, as in the fold above. The second: **is your noise Gaussian?** A published lab once multiplied two draws of
# noise without noticing: the variance stays right, and the tails grow heavy. The *kurtosis*,
# $\mathbb E[z^4]/\mathbb E[z^2]^2$, tells: it is 3 for a Gaussian, and $3\cdot3=9$ for the product of two.

# %%
unit, t, s = GaussianMixture([[0.0, 0.0]], 1.0).denoiser(LinearVP()), 0.6, 0.59
x, z = torch.full((50_000, 2), 0.7, dtype=torch.float64), torch.randn(50_000, 2, generator=seeded(7), dtype=torch.float64)
g2h = LinearVP().diffusion2(t) * (t - s)
assert torch.allclose(my_reverse_step(unit, x, torch.tensor(t), torch.tensor(s), 0 * z), (1 - g2h / 2) * x)      # eq. (2.7)
kick = my_reverse_step(unit, x, torch.tensor(t), torch.tensor(s), z) - (1 - g2h / 2) * x
twice = (z * z.flip(0)) * g2h.sqrt()
for name, noise in (("your kick", kick), ("noise drawn twice", twice)):
    kurtosis = (noise**4).mean() / noise.var() ** 2
    print(f"{name:18} variance / g^2 h: {noise.var() / g2h:.3f}    kurtosis: {kurtosis:.3f}")
    assert abs(kurtosis - 3) < 0.2 if noise is kick else kurtosis > 6                           # Gaussian, or not

# %% [markdown]
# Both have the right variance; only the fourth moment tells them apart. Yours is Gaussian.
#
# ## 4 · The loop
#
# A sampler is a *time grid* $t_0 > t_1 > \dots > t_n$, a start $x$ at $t_0$, and a loop that steps from each time to
# the next. `uniform(n, schedule)` gives $n$ equal steps from `t_max` to `t_min`. Two details are small, and worth an
# exercise because they go wrong so often. First, the loop must pass *times*, not loop indices: it is easy to be off by
# one, and the resulting histogram looks fine. Second, the end: at $t_n$ there is still noise of size $\sigma(t_n)$. The
# last move should not be one more noisy state; it should *land* on the estimate of the clean data,
# $\hat x_0 = D(x, t_n)$, to which no noise is added.
#
# **Exercise 2.4 · ●●○ · 10 min · the loop**
#
# Write `my_sampler(D, x, ts, step, noise)`. `x` is the state at time `ts[0]`; `ts` has $n+1$ falling times;
# `step(D, x, t, s, z)` goes from `t` to `s`; `noise` has shape `(n, *x.shape)`, and step $i = 0, 1, \dots$ takes
# `noise[i]`. After all the steps return $\hat x_0$ of the last state.

# %% exercise="2.4"
def my_sampler(D, x, ts, step, noise):                          # x (B, ...), ts (n+1,), noise (n, B, ...) -> x0_hat (B, ...)
    ### BEGIN SOLUTION three lines: a loop, a step in it, and the landing
    for i in range(len(ts) - 1):
        x = step(D, x, ts[i], ts[i + 1], noise[i])
    return D(x, ts[-1])
    ### END SOLUTION


# %% check="2.4"
# NBVAL_CHECK_OUTPUT
my_sampler = exercise("2.4", my_sampler)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *IndexError*: $n+1$ times make $n$ steps, so the last pair is `(ts[n-1], ts[n])`.
# * *NaN*: $t$ and $s$ are swapped somewhere, so that $h<0$.
# * *Close, but not right*: print the pairs `(t, s)` together with the index of the noise, and compare with the list for
#   $n=2$: `(ts[0], ts[1])` with `noise[0]`, then `(ts[1], ts[2])` with `noise[1]`.
#
# </details>
#
# Back to the islands, with the same budget of 100 evaluations: 99 steps and the landing. `prior` draws the start, pure
# noise of the size $\sigma$ that the schedule has at `t_max`. **Are the balance and the width right now?**

# %%
D_islands, ts = islands.denoiser(LinearVP()), uniform(99, LinearVP())
x = prior(D_islands, (2000, 2), seeded(8))
noise = torch.randn(99, 2000, 2, generator=seeded(9))
arrived = my_sampler(D_islands, x, ts, my_reverse_step, noise)
(share, wide), error = left_island(arrived), (0.8 * 0.2 / 2000) ** 0.5
print(f"on the left: {share:.1%}, due: 80.0 % ± {error:.1%} (one standard error of 2000 samples)")
print(f"width there: {wide:.3f}, due: 0.500")
assert abs(share - 0.8) < 4 * error and abs(wide - 0.5) < 0.04

# %%
show_islands(arrived, plt.subplots(figsize=(6, 3.4))[1], f"reverse SDE: {share:.0%} on the left")
plt.show()

# %% [markdown]
# *The same two islands; now four out of five dots lie on the left one, and the dots keep to the grey.*
#
# The failing case is mended, with no better score and no more evaluations. Noise was the bridge for Langevin too; what is
# new is that nobody chose levels or sizes. At $t$ near 1 the islands are one cloud, in which the score leads every walker
# to its place; while the noise falls, each step goes exactly as far as (2.7) says, and the cloud parts in the right
# proportion.
#
# ### The walk, seen in time
#
# The next pictures show a bundle of such paths on our main test, a ring of eight Gaussians. **Does the bundle at time
# $t$ fill the exact marginal density $p_t$, at every $t$?** (Grey is exact, from `ring().marginal(schedule, t)`.
# `sample` is the library's loop: it yields every state.)

# %%
target = ring()


def bundle(schedule, n=300, B=100):                             # states (n+1, B, 2) and their times (n+1,)
    D, ts = target.denoiser(schedule), uniform(n, schedule)
    x = prior(D, (B, 2), seeded(10))
    return torch.stack([x, *sample(D, x, ts, euler_maruyama, seeded(11))]), ts


bundles = {name: bundle(schedule) for name, schedule in SCHEDULES.items()}


def draw_moment(schedule, percent, ax):
    states, ts = bundles[schedule]
    i, c = round(percent / 100 * (len(ts) - 1)), SCHEDULES[schedule]
    extent = 2.5 * (1.2 * c.alpha(ts[i]) ** 2 + c.sigma(ts[i]) ** 2).sqrt().item()
    plotting.shaded(target.marginal(c, ts[i]).log_prob, extent, ax)
    ax.plot(*states[max(0, i - 15):i + 1, :15].unbind(-1), color=plotting.SECOND, lw=0.6)
    plotting.scatter(states[i], ax, extent, f"t = {ts[i]:.3f}\nα = {c.alpha(ts[i]):.2f}, σ = {c.sigma(ts[i]):.2f}", size=6)


for ax, percent in zip(plotting.panels(4, size=2.3), (0, 70, 85, 100)):
    draw_moment("linear VP", percent, ax)
plt.show()

# %% [markdown]
# *Four moments of the way back under linear VP: a round cloud becomes a ring, then eight spots; the dots fill the grey
# density at every moment, and the blue tails show the jittery paths.*
#
# Move through the other schedules below. VE starts from a cloud that is fifty times larger than the data (the window
# shrinks with it), and its eight spots appear only at the very end; the others differ in *when* the ring breaks up. All
# of them end in the same picture.

# %%
def page(schedule, percent):
    figure, ax = plt.subplots(figsize=(4.2, 4.6))
    draw_moment(schedule, percent, ax)
    return figure


flipbook(page, schedule=list(SCHEDULES), percent=list(range(0, 101, 5)),
         alt="The start of the way back: orange dots, one round cloud, over the round grey density of the noise.")

# %% [markdown]
# ## 5 · Did we arrive? Distances and their floor
#
# Pictures convince too easily. We need a number for "these samples come from that distribution": the sliced Wasserstein
# distance between our samples and as many exact ones. In 1-D the distance is simple: sort both sets, and take the root
# mean square difference of the sorted values. In 2-D we project both sets on 64 directions, and average the squares of
# these 1-D distances before the root is taken.
#
# Such a number means nothing by itself, because two sets of *exact* samples are not at distance 0 either. Their
# distance is the **floor**: a perfect sampler reaches it, and none gets below it but by luck. The floor has a spread of
# its own, from one pair of sets to the next. **What can be told apart with $n$ samples?** We compare a good sampler
# (1000 steps) with a bad one (10 steps). `final` runs the library's loop to its last state and counts the evaluations.
# It stops at `t_min` without a landing; the noise left there, 0.007, is nothing beside spots of width 0.15.

# %%
D, N, SEEDS = target.denoiser(LinearVP()), 2500, 3


def exact(n, seed):
    return target.sample(n, seeded(seed))


def draw(step, n):                                              # SEEDS independent sets of N samples, and their cost
    x = prior(D, (SEEDS * N, 2), seeded(12))
    begin = time.perf_counter()
    result = final(D, x, uniform(n, D.schedule), step, seeded(13))
    return result.x.reshape(SEEDS, N, 2), result.nfe, time.perf_counter() - begin


good, _, good_seconds = draw(euler_maruyama, 1000)
bad, _, _ = draw(euler_maruyama, 10)

# %%
def whole(x):                                                   # a view: all samples as they are
    return x


@cache                                                          # asked for again and again below
def distances(x, n=N, view=whole):                              # one distance per set (SEEDS,)
    return torch.tensor([sliced_wasserstein(view(x[i, :n]), view(exact(n, 100 + i))) for i in range(len(x))])


@cache
def floor(n=N, view=whole, pairs=12):                           # the same between two sets of exact samples
    return torch.tensor([sliced_wasserstein(view(exact(n, 200 + i)), view(exact(n, 300 + i))) for i in range(pairs)])


for n in (120, 500, N):
    f, g, b = floor(n), distances(good, n), distances(bad, n)
    print(f"n = {n:5}:  floor {f.mean():.3f} ± {f.std():.3f}    1000 steps {g.mean():.3f} ± {g.std():.3f}"
          f"    10 steps {b.mean():.3f} ± {b.std():.3f}")

# %% [markdown]
# Read the lines from the top. With few samples everything is close to the floor, the good, the bad, and the truth
# itself: distances from 120 samples are mostly noise. With a few thousand, 10 steps stand out. Now for the cases in
# between.
#
# **Prediction 2.3.** Euler-Maruyama and two more samplers run with 1000, 100, 30 and 10 evaluations, a few thousand
# samples each: *ancestral sampling* (section 6), and a *predictor-corrector*, which adds a Langevin move after each step
# (section 7). Coming down from 1000, where does the distance first stand clearly above the floor?
#
# * **a**: at 100 already: every loss of accuracy shows in the distance,
# * **b**: only at 10, and even there barely for the best of the three,
# * **c**: everywhere: even 1000 steps leave an error that so many samples reveal.

# %% predict="2.3"
predict("2.3", "b")

# %%
STEPS = {"Euler-Maruyama": (euler_maruyama, 1), "ancestral": (ancestral, 1), "predictor-corrector": (predictor_corrector(), 2)}
runs = {("Euler-Maruyama", 1000): (good, 1000, good_seconds)}
for name, (step, cost) in progress(STEPS.items()):
    for nfe in (1000, 100, 30, 10):                             # equal evaluations: a corrector doubles the cost of a step
        if (name, nfe) not in runs:
            runs[name, nfe] = draw(step, nfe // cost)
f = floor(view=whole)
print(f"floor {f.mean():.3f} ± {f.std():.3f} (mean and spread of {len(f)} pairs of exact sets, {N} samples each)")
for (name, nfe), (x, _, seconds) in runs.items():
    d = distances(x, view=whole)
    print(f"{name:20} {nfe:5} evaluations: {d.mean():.3f} ± {d.std():.3f}   {seconds / SEEDS:.2f} s for {N} samples")

# %%
reveal("2.3")

# %% [markdown]
# ### A better instrument
#
# Why is the floor so high? Throw $n$ samples on eight spots: each gets $n/8$ of them, give or take $\sqrt{n/8}$. Moving
# the surplus of one spot to another means moving it all the way across the ring, and that lottery is most of the
# distance, for exact samples as for ours. But here it carries no information at all. The ring looks the same after a
# turn by 45°, and so do the start and the exact denoiser: *every* sampler in this chapter gives each spot its eighth on
# average, by symmetry. So turn every sample by a multiple of 45° into the sector of the first spot, and compare there.
# The floor falls, while the errors that we are looking for stay. (This instrument is blind to a wrong balance between
# the spots; for that we had the islands.)

# %%
def fold(x):                                                    # (N, 2) -> (N, 2), turned into the first sector
    turn = (torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)).round() * (torch.pi / 4)
    c, s = turn.cos(), turn.sin()
    return torch.stack([c * x[:, 0] + s * x[:, 1], c * x[:, 1] - s * x[:, 0]], 1)


assert torch.allclose(fold(target.means), target.means[:1].expand(8, 2), atol=1e-6)             # eight spots become one
f = floor(view=fold)
print(f"floor after folding {f.mean():.4f} ± {f.std():.4f}, {floor(view=whole).mean() / f.mean():.0f} times lower than before")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
looks = plotting.looks(list(STEPS))
for ax, view, title in ((axes[0], whole, "all samples as they are"), (axes[1], fold, "folded into one sector")):
    f = floor(view=view)
    ax.axhspan(f.min(), f.max(), color=plotting.TRUTH, alpha=0.45, lw=0, label="two exact sets (range)")
    for name, look in looks.items():
        d = torch.stack([distances(runs[name, nfe][0], view=view) for nfe in (10, 30, 100, 1000)])  # (4, SEEDS)
        ax.plot((10, 30, 100, 1000), d.mean(1), **look, label=name)
        ax.vlines((10, 30, 100, 1000), d.min(1).values, d.max(1).values, color=look["color"], lw=1)
    ax.set(xscale="log", yscale="log", xlabel="evaluations", title=title)
axes[0].set_ylabel("sliced Wasserstein distance")
axes[0].set_ylim(top=1.5)
axes[0].legend(loc="upper right")
plt.show()

# %% [markdown]
# *Distance against evaluations, both axes logarithmic, the floor as a grey band. Left, two curves start far above the
# band at 10 evaluations and ancestral sampling at its edge; from 30 on all lie in it. Right, after folding, the band lies
# much lower: at 30 all curves stand far above it, and at 1000 they come down to it.*
#
# This is the claim of the chapter, now visible: **1000 small steps reach the data distribution, as closely as these
# samples can tell; 100 come near, 30 do not, 10 are far off.** And it is a warning: the left panel, the natural thing
# to plot, would have let us believe that 30 steps are enough. **What does the error of Euler-Maruyama look like to the
# eye?**

# %%
def show(name, *evaluations):
    for ax, nfe in zip(plotting.panels(len(evaluations), size=2.3), evaluations):
        plotting.shaded(target.log_prob, 2.3, ax)
        plotting.scatter(runs[name, nfe][0][0, :300], ax, 2.3, f"{name}\n{nfe} steps", size=4)
    plt.show()


show("Euler-Maruyama", 1000, 100, 30, 10)

# %% [markdown]
# *Four scatter plots over the grey ring: with 1000 steps the dots fill the eight spots; with fewer steps the spots
# swell, and with 10 they have dissolved into a cloud.*

# %% [markdown]
# ## 6 · DDPM's step: ancestral sampling
#
# Euler-Maruyama treats $f$, $g$ and the score as constant during a step. But we know more: the forward process is
# Gaussian and known exactly, over *any* distance. If only we knew $x_0$, we could draw $x_s$ given $x_t$ without any
# approximation. DDPM does so, and puts its best guess, $\hat x_0 = D(x_t, t)$, in the place of $x_0$.
#
# **Forward, from $s$ to $t$.** From $x_s = \alpha_s x_0 + \sigma_s\varepsilon$ to
# $x_t = \alpha_t x_0 + \sigma_t\varepsilon'$: the signal must be multiplied by the ratio $a$ of the two alphas. This
# leaves $a^2$ of the old variance, and new noise must fill it up to the new one:
#
# $$x_t = a\,x_s + \sqrt\beta\;\varepsilon, \qquad a = \frac{\alpha_t}{\alpha_s}, \qquad
# \beta = \sigma_t^2 - a^2\sigma_s^2. \tag{2.9}$$
#
# For neighbouring steps of a VP chain this is (2.1). For skipped steps it is the *effective* beta: under VP it becomes
# $1-\alpha_t^2/\alpha_s^2$, and it depends on both times. Using the $\beta_t$ of the fine chain for a long jump is a
# classic mistake.
#
# **Back, given $x_0$** (one dimension). As a function of $x_s$, Bayes' rule multiplies two Gaussians:
#
# $$q(x_s\mid x_t, x_0) \propto
# \exp\Big[-\frac{(x_s-\alpha_s x_0)^2}{2\sigma_s^2}\Big]\;\exp\Big[-\frac{(x_t - a x_s)^2}{2\beta}\Big].$$
#
# The exponent is a parabola in $x_s$. Collect $x_s^2$: the precision (inverse variance) is
# $1/\sigma_s^2 + a^2/\beta = (\beta + a^2\sigma_s^2)/(\sigma_s^2\beta) = \sigma_t^2/(\sigma_s^2\beta)$, by (2.9).
# Collect $x_s$: the precision times the mean is $\alpha_s x_0/\sigma_s^2 + a x_t/\beta$. Hence
#
# $$q(x_s\mid x_t,x_0) = \mathcal N\big(\tilde\mu,\tilde\beta\big), \qquad
# \tilde\beta = \frac{\sigma_s^2}{\sigma_t^2}\,\beta, \qquad
# \tilde\mu = \frac{\alpha_s\,\beta\;x_0 + a\,\sigma_s^2\;x_t}{\sigma_t^2}. \tag{2.10}$$
#
# Look at the two ends. For $s\to t$: $\beta\to0$, and the mean is $x_t$: nothing happens. For $s=0$: $\sigma_s = 0$, so
# $\tilde\beta=0$, and the mean is $x_0$: **the last step lands on $\hat x_0$ and adds no noise.** With $\beta$ in place
# of $\tilde\beta$ it would add noise until the very end, and pictures would be grainy.
#
# (2.10) can be checked on numbers: on a mesh of values $x_s$, the product of the two Gaussians against the formula.

# %%
c, x_0, x_t, t, s = CosineVP(), 1.2, -0.3, 0.7, 0.3
a = c.alpha(t) / c.alpha(s)
beta = c.sigma(t) ** 2 - a**2 * c.sigma(s) ** 2
product = gaussian(u, c.alpha(s) * x_0, c.sigma(s) ** 2) * gaussian(x_t, a * u, beta)
product = product / torch.trapezoid(product, u)
beta_tilde = c.sigma(s) ** 2 / c.sigma(t) ** 2 * beta
mu = (c.alpha(s) * beta * x_0 + a * c.sigma(s) ** 2 * x_t) / c.sigma(t) ** 2
assert torch.allclose(product, gaussian(u, mu, beta_tilde))                                     # eq. (2.10)
assert torch.allclose(beta, 1 - c.alpha(t) ** 2 / c.alpha(s) ** 2)                              # the effective beta under VP
print(f"beta {beta:.3f}, beta-tilde {beta_tilde:.3f}, mean {mu:.3f}")

# %% [markdown]
# **Exercise 2.5 · ●●● · 20 min · eqs. (2.9) and (2.10)**
#
# Write `my_ancestral(D, x, t, s, z)`: a draw from $q(x_s\mid x_t, x_0)$ with $\hat x_0 = D(x, t)$ for $x_0$ and the
# noise `z`, for all five schedules (not only VP), any $s<t$, and also for $s = 0$. Ask $D$ once. `levels(D, x, t)`
# returns $\alpha(t)$ and $\sigma(t)$, shaped to multiply `x`.

# %% exercise="2.5"
def my_ancestral(D, x, t, s, z):                                # x, z (B, ...); t, s () or (B,) -> (B, ...)
    ### BEGIN SOLUTION about six lines: the levels at t and s, a, beta, beta_tilde, and the draw
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    a = alpha_t / alpha_s
    beta = sigma_t**2 - a**2 * sigma_s**2
    mean = (alpha_s * beta * D(x, t) + a * sigma_s**2 * x) / sigma_t**2
    return mean + (sigma_s**2 / sigma_t**2 * beta).sqrt() * z
    ### END SOLUTION


# %% check="2.5"
# NBVAL_CHECK_OUTPUT
my_ancestral = exercise("2.5", my_ancestral)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN*: a square root of a negative $\beta$; is the ratio $a$ upside down, or are $s$ and $t$ swapped? (Do not clamp
#   it: a clamp would hide the mistake.)
# * *Wrong for VE only*: there $\alpha = 1$ at all times, so any formula made of alphas alone gives no noise. Use (2.9).
# * *Wrong only where $s = 0$*: look at the factor of `z`; it must vanish there.
#
# </details>
#
# **Is your step DDPM's?** Ho et al. (2020, algorithm 2) write it with a network $\hat\varepsilon$ that predicts the noise,
# and for neighbouring steps of a VP chain only:
#
# $$x_s = \frac{1}{\sqrt{1-\beta}}\Big(x_t - \frac{\beta}{\sigma_t}\,\hat\varepsilon(x_t, t)\Big) + \sqrt{\tilde\beta}\;z .$$
#
# Put $\hat x_0 = (x_t - \sigma_t\hat\varepsilon)/\alpha_t$ into (2.10) and you find it again. Their formula must give the
# same numbers as your step.

# %%
alpha, sigma = my_levels(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
ts, D64 = torch.arange(1, 1001, dtype=torch.float64) / 1000, target.denoiser(LinearVP())
print(f"their chain and linear VP: alphas differ by at most {(alpha - LinearVP().alpha(ts)).abs().max():.4f}")
x, z = torch.randn(2, 500, 2, generator=seeded(14), dtype=torch.float64)
t, s = ts[599], ts[598]
beta = 1 - LinearVP().alpha(t) ** 2 / LinearVP().alpha(s) ** 2
theirs = (x - beta / LinearVP().sigma(t) * eps(D64, x, t)) / (1 - beta).sqrt() \
    + (LinearVP().sigma(s) ** 2 / LinearVP().sigma(t) ** 2 * beta).sqrt() * z
print(f"largest difference between their step and yours: {(my_ancestral(D64, x, t, s, z) - theirs).abs().max():.1e}")
assert torch.allclose(my_ancestral(D64, x, t, s, z), theirs)                                    # Ho et al., algorithm 2

# %% [markdown]
# So *DDPM is 1000 ancestral steps on a linear VP schedule*. And for small steps it is nearly Euler-Maruyama: both
# converge to the same SDE. For long steps they part ways.
#
# **Prediction 2.4.** With 30 steps, are the spots that ancestral sampling makes too wide, too narrow, or right?
#
# * **a**: too wide: noise is added again and again,
# * **b**: right: (2.10) is exact for a jump of any length,
# * **c**: too narrow.

# %% predict="2.4"
predict("2.4", "c")

# %% [markdown]
# We need no samples to find out. On a single Gaussian spot $\mathcal N(0, 0.15^2)$ the denoiser is linear in $x$, so a step is
# $x_s = A x_t + C z$, and the variance goes $v \to A^2 v + C^2$. The step itself tells its two numbers: feed it
# $x=1, z=0$ to get $A$, and $x=0, z=1$ to get $C$. **This gives the width at the end exactly, for any sampler and any
# grid.** Beside it we plot the ring's samples of section 5. All eight spots lie at the same distance from the middle,
# so the spread of $|x|$ is the width of a spot in the radial direction, whichever spot a sample belongs to.

# %%
spot = GaussianMixture([[0.0]], 0.15)
one_zero = torch.tensor([[1.0], [0.0]], dtype=torch.float64)


def width(step, n):                                             # exact std of the samples after n steps
    D, v = spot.denoiser(LinearVP()), LinearVP().sigma(LinearVP().t_max) ** 2
    for t, s in pairwise(uniform(n, LinearVP())):
        A, C = step(D, one_zero, t, s, one_zero.flip(0))        # row 1: x = 1, z = 0; row 2: x = 0, z = 1
        v = A**2 * v + C**2
    return v.sqrt().item()


truth = spot.marginal(LinearVP(), LinearVP().t_min).stds.item()
ns = (10, 14, 20, 30, 50, 100, 300, 1000)
mine = {"Euler-Maruyama": my_reverse_step, "ancestral": my_ancestral}
widths = {name: [width(step, n) for n in ns] for name, step in mine.items()}

# %%
_, ax = plt.subplots(figsize=(9, 3))
ax.axhline(truth, color=plotting.TRUTH, lw=3, label="exact width")
for name in widths:
    ax.plot(ns, widths[name], **{**looks[name], "marker": ""}, label=f"{name}, one spot (exact)")
    radial = [runs[name, n][0].norm(dim=-1).std().item() for n in (30, 100, 1000)]
    ax.plot((30, 100, 1000), radial, **{**looks[name], "ls": ""}, label=f"{name}, the ring's spots")
ax.set(xscale="log", xlabel="steps", ylabel="standard deviation", ylim=(0, 0.3))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
reveal("2.4")

# %% [markdown]
# *The exact width is a grey line at 0.15. The curve of Euler-Maruyama comes down to it from above (at 10 and 14 steps it
# is off the scale), that of ancestral sampling comes up from below; dots measured on the ring lie close to both curves.*

# %%
show("ancestral", 30, 10)

# %% [markdown]
# *Two scatter plots over the grey ring: with 30 ancestral steps the spots have shrunk; with 10 steps stray samples lie
# between them as well.*
#
# A tempting idea has failed: that the step is exact because $q$ is exact. $q$ is exact for a *known* $x_0$. We know only
# the mean of $x_0$ given $x_t$, and the spread around that mean is lost at each step. (For data that is one single point
# there is no spread, and the ancestral step *is* exact, in one jump.) The smaller the step, the less is lost.

# %% [markdown]
# ## 7 · Predictor and corrector
#
# The third sampler in the figure repairs as it goes: after each step (the *predictor*) it stays at the same time and
# does a few Langevin moves (the *corrector*; Song et al., 2021). Why do these not spoil the distribution? Take one
# forward step of pure noise of variance $\delta$, and then one step back of the same size. Forward leads from $p_t$ to
# a slightly noisier density; (2.7) with $f=0$ and $g^2h=\delta$ leads back:
#
# $$x \;\to\; x + \sqrt{\delta}\,z_1 \;\to\; x + \delta\,\nabla\log p_t(x) + \sqrt{\delta}\,z_1 + \sqrt{\delta}\,z_2
# \;=\; x + \delta\,\nabla\log p_t(x) + \sqrt{2\delta}\,z . \tag{2.11}$$
#
# (To this order it does not matter where the score is taken, and two noises of variance $\delta$ are one of variance
# $2\delta$.) There and back is no change: $p_t$ is left alone, up to errors that vanish with $\delta$, and this *is*
# the Langevin step of chapter 01. What is not distributed like $p_t$ is drawn towards it. **Let us see both**, at
# $t = 0.1$ on the ring: one start is exact, the other one is stretched by 15 %. The library's `langevin_correction` makes
# a move of the size $\delta = 2\,(0.16\,\sigma_t)^2$: small beside the noise at $t$, at every $t$.

# %%
t, M = 0.1, 2000
moment = target.marginal(LinearVP(), t)
reference, right = moment.sample(M, seeded(15)), moment.sample(M, seeded(16))
starts, generator = {"exact start": right, "stretched start": 1.15 * right}, seeded(17)
print("corrections     " + "".join(f"{k:9}" for k in (0, 5, 20, 100)))
for name, x in starts.items():
    states = [x]
    for _ in range(100):
        states.append(langevin_correction(D, states[-1], t, torch.randn(x.shape, generator=generator, dtype=x.dtype)))
    row = [sliced_wasserstein(fold(states[k]), fold(reference)) for k in (0, 5, 20, 100)]
    print(f"{name:16}" + "".join(f"{distance:9.4f}" for distance in row))
    assert row[-1] < 0.03                                                                       # eq. (2.11)
print(f"floor           {sliced_wasserstein(fold(moment.sample(M, seeded(18))), fold(reference)):9.4f}")

# %% [markdown]
# The exact start stays at the floor; the stretched one is drawn back to it. A correction costs as many evaluations as a
# step. In the figure of section 5, at *equal evaluations*, predictor-corrector is no better here than twice as many
# plain steps; we shall find better uses for an evaluation.
#
# ## 8 · The same on pictures
#
# Nothing in these steps knows about two dimensions. Here is `fashion_teacher`, a small network trained (for hours, by
# `course train fashion_teacher`) to denoise pictures of clothes, and conditioned on a class label. Every row below
# starts from the same three noises. **What is lost when the steps get fewer?** At scale `quick` the longest run has 200
# steps, because a processor takes too long for 1000; at scale `full` it has 1000.

# %%
teacher = recipes.load("fashion_teacher", device)
labels = torch.tensor([1, 7, 8], device=device)
x_T = prior(teacher, (3, 1, 28, 28), seeded(19)).to(device)
pictures, seconds = {}, {}
for n in progress((1000 if full else 200, 100, 30, 10)):
    begin = time.perf_counter()
    pictures[n] = final(teacher, x_T, uniform(n, teacher.schedule), ancestral, seeded(20, device), cond=labels).x
    seconds[n] = time.perf_counter() - begin

# %%
figure = plotting.image_rows(list(pictures.values()), [f"{n} steps\n{seconds[n]:.1f} s" for n in pictures],
                             ", ".join(data.CLASSES[k] for k in labels.tolist()))
figure.set_size_inches(5, 4.6)
plt.show()

# %% [markdown]
# *Four rows of three small pictures of clothes, ancestral sampling with fewer steps from row to row.*
#
# The noise along the way differs from row to row (different steps need different noise), so each row shows other
# garments; compare quality, and not stitches. From the first row to the last the texture goes, and flat grey shapes
# remain. Detail goes first and outlines later, as section 6 foretells: ancestral sampling with few steps is too narrow,
# so the small variations that make a fabric are missing. Three pictures suggest this and do not prove it.

# %% [markdown]
# ## 9 · Closing task: as much noise as you like
#
# (2.11) says that a Langevin move can be added to a step at no harm to $p_t$. Then it can also be *taken away*. To first
# order the score term and the noise of a Langevin move change the density by opposite amounts, each proportional to
# $\delta$. So they cancel for a negative $\delta$ too, as long as the total variance of the noise, $g^2h + 2\delta$, is
# not negative.
#
# **Exercise 2.6 · ●●● · 10 min · eqs. (2.7) and (2.11)**
#
# With paper first. Add to the reverse step (2.7) a Langevin move (2.11) of size $\delta$. Choose $\delta$ so that the
# noise has the variance $\lambda^2 g^2 h$, for any $\lambda\ge0$ that you like. What becomes of the score's factor? Then
# write `my_family(D, x, t, s, z, lam)`: one step from $t$ down to $s<t$, with `lam` for $\lambda$ and `z` for all of the
# noise. For $\lambda=1$ it must be the step of exercise 2.3.

# %% exercise="2.6"
def my_family(D, x, t, s, z, lam):                              # x, z (B, ...); t, s () or (B,); lam >= 0 -> (B, ...)
    ### BEGIN SOLUTION three lines, much like exercise 2.3
    h = per_row(t - s, x)
    f, g2 = per_row(D.schedule.drift(t), x), per_row(D.schedule.diffusion2(t), x)
    return x - h * (f * x - (1 + lam**2) / 2 * g2 * score(D, x, t)) + lam * (g2 * h).sqrt() * z
    ### END SOLUTION


# %% check="2.6"
# NBVAL_CHECK_OUTPUT
my_family = exercise("2.6", my_family)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right for $\lambda=1$ only*: noise and score change together. First solve $g^2h+2\delta=\lambda^2g^2h$ for $\delta$;
#   then the score's factor, which was $g^2h$, becomes $g^2h+\delta$.
# * *A negative $\delta$*: that is right for $\lambda<1$.
#
# </details>
#
# Did you find it? The variance $g^2h+2\delta=\lambda^2g^2h$ asks for $\delta = \tfrac12(\lambda^2-1)\,g^2h$, an addition
# for $\lambda>1$ and a removal for $\lambda<1$, and the score's factor becomes $g^2h+\delta = \tfrac12(1+\lambda^2)\,g^2h$.
# So for every $\lambda\ge0$ the equation
#
# $$dx = \Big[f\,x - \tfrac{1+\lambda^2}{2}\,g^2\,\nabla\log p_t(x)\Big]\,dt + \lambda\, g\,d\bar w, \qquad dt<0, \tag{2.12}$$
#
# has the same marginals $p_t$. With $\lambda=1$ it is the reverse SDE; with $\lambda=0$ there is no noise left: it is an
# ordinary differential equation.
#
# The tempting shortcut is to keep the drift of (2.7) and only turn down the noise, "for cleaner samples".
#
# **Prediction 2.5.** On the single spot of section 6 the noise is turned down to $\lambda=\tfrac12$, and the drift is left
# alone. How wide is the spot at the end?
#
# * **a**: narrower by a few per cent, just a little cleaner,
# * **b**: half as wide,
# * **c**: as wide as it should be, since only the score matters.
#
# %% predict="2.5"
predict("2.5", "b")

# %% [markdown]
# `width` knows the answer without a single sample. **Which $\lambda$ keeps the width of the spot, in your step, and in
# the shortcut?**

# %%
print(f"exact width {truth:.4f}, after 500 steps:")
for lam in (0.0, 0.5, 1.0, 1.5):
    family = width(lambda D, x, t, s, z, lam=lam: my_family(D, x, t, s, z, lam), 500)
    shortcut = width(lambda D, x, t, s, z, lam=lam: my_reverse_step(D, x, t, s, lam * z), 500)
    print(f"lambda {lam:.1f}:   (2.12) {family:.4f}    only the noise scaled {shortcut:.4f}")
    assert abs(family / truth - 1) < 0.05                                                       # eq. (2.12)

# %%
reveal("2.5")

# %% [markdown]
# Every $\lambda$ gives the right width when drift and noise belong together. The shortcut gives samples that are too
# narrow for $\lambda<1$, too wide for $\lambda>1$, and without noise they collapse onto a point. Your step with
# $\lambda = 0$ does *not* collapse: it spreads the samples rightly without any noise at all. How can that be? That is
# chapter 03.

# %% [markdown]
# ## The ledger
#
# What did it cost, and what did it give? The two live rows are this notebook's ancestral sampler on the ring, as it is
# and folded; the others were measured on more samples, folded where they are of the ring, and ship with the course.

# %%
x, nfe, taken = runs["ancestral", 1000]


def live(metric, view):
    d = distances(x, view=view)
    return ledger.Row("ancestral (live)", "ring", nfe, nfe, N, taken / SEEDS, "this machine", metric, d.mean().item(),
                      floor(view=view).mean().item(), N, SEEDS, spread=d.std().item(), weights="exact")


rows = [live("sliced_w2", whole), live("sliced_w2_folded", fold)]
kinds = {"euler_maruyama", "ancestral", "predictor_corrector"}
path = data.ROOT / "data" / "ledger.csv"
committed = ledger.read(path) if path.exists() else []
committed = [r for r in committed if r.method in kinds and r.metric in ("sliced_w2_folded", "frechet")]
ledger.table(rows + committed, "method data NFE seconds batch metric value floor n status").show()

# %% [markdown]
# A value below its floor is luck, and a sign that this instrument sees no error there: so it is with both live rows.
# The folded rows look closely. On four times as many samples the folded floor is lower, and still 1000 steps come down to
# it, within the spread, while 100 steps do not.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | jump to any time | $x_t = \alpha(t)\,x_0 + \sigma(t)\,\varepsilon$, with $\alpha$ cumulative |
# | forward SDE | $dx = f x\,dt + g\,dw$, with $f = \alpha'/\alpha$ and $g^2 = (\sigma^2)' - 2f\sigma^2$ |
# | one small step back | $x_s = x_t - h\,[f x_t - g^2\,\nabla\log p_t] + g\sqrt h\,z$ |
# | from $s$ to $t$ | $x_t = a\,x_s + \sqrt\beta\,\varepsilon$, $a = \alpha_t/\alpha_s$, $\beta=\sigma_t^2-a^2\sigma_s^2$ |
# | ancestral step | $x_s = (\alpha_s\beta\,\hat x_0 + a\sigma_s^2\,x_t)/\sigma_t^2 + (\sigma_s/\sigma_t)\sqrt\beta\,z$ |
# | corrector | $x + \delta\,\nabla\log p_t(x) + \sqrt{2\delta}\,z$ leaves $p_t$ alone |
# | as much noise as you like | score times $\tfrac12(1+\lambda^2)\,g^2$, noise $\lambda g$: the same marginals |
# | the two ends | start at `t_max`, where $\alpha/\sigma\approx0$; land on $\hat x_0$ |
#
# * A small step back is a Gaussian, and a big one is not. That is why it takes a thousand.
# * Few steps: Euler-Maruyama makes the spots too wide, ancestral sampling too narrow.
# * A distance needs its floor, the floor has a spread, and a high floor hides what you are looking for.
#
# **Limits.** Our denoiser on the ring was exact; a learned one adds an error of its own that no number of steps
# removes. "1000 steps reach the distribution" means: within the floor of a few thousand samples, on this target, with
# this schedule and uniform grid. With more samples the floor would fall, and at some point 1000 steps would stand out
# too. Folding made use of a symmetry that real data does not have. And we did not prove that the reverse SDE is the
# limit; we derived one step, and measured the rest.
#
# **What is still open.** A thousand evaluations, one after the other. The course now attacks this number from three
# sides: a smoother path (chapters 03 and 04), all steps at once (chapter 05), and learning to jump (chapters 07 to 09).

# %% [markdown]
# ## Further reading
#
# * J. Sohl-Dickstein, E. Weiss, N. Maheswaranathan, S. Ganguli, *Deep unsupervised learning using nonequilibrium
#   thermodynamics*, 2015, arXiv:1503.03585: the chain of section 1, and its reversal.
# * J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239: 1000 ancestral steps,
#   and the first convincing pictures.
# * Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole, *Score-based generative modeling through
#   stochastic differential equations*, 2021, arXiv:2011.13456: VP, VE, sub-VP, predictor-corrector, and the reverse SDE
#   in one frame.
# * A. Nichol, P. Dhariwal, *Improved denoising diffusion probabilistic models*, 2021, arXiv:2102.09672: the cosine
#   schedule.
# * D. Kingma, T. Salimans, B. Poole, J. Ho, *Variational diffusion models*, 2021, arXiv:2107.00630: everything in terms
#   of log-SNR.
# * T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space of diffusion-based generative models*, 2022,
#   arXiv:2206.00364: schedules from $\alpha$ and $\sigma$, and the family (2.12) seen as "ODE plus Langevin".
# * B. Anderson, *Reverse-time diffusion equation models*, Stochastic Processes and their Applications 12, 1982: the
#   theorem behind (2.8).
