# ---
# course:
#   title: DDIM and fast solvers
#   minutes: 110
#   needs: [3]
#   shows: part of the ODE can be solved on paper, so 30 steps do what 1000 did
# ---

# %% [markdown]
# # 04 · DDIM and fast solvers: from 1000 steps to 30
#
# Chapter 03 turned sampling into an ordinary differential equation (ODE), handed it to general-purpose solvers, and ended
# with a question: if the data are one single point, every path is known in advance; why does a solver need many steps even
# then? Because Euler and Heun know nothing of our equation. But we do: we chose the noise ourselves, so a large part of the
# equation can be solved with a pencil. What is left for the computer is only what nobody knows beforehand, the data. This
# chapter finds that part, and asks of every solver the same question: **for which data is its step exact?**
#
# After this chapter you can
#
# * **derive** the variables in which the ODE of a single data point is a straight line, and **implement** DDIM as Euler's
#   method there (exercise 4.1, prediction 4.1),
# * **derive** by how much DDIM shrinks a Gaussian, to the last digit, and **implement** the time grid that shrinks it least
#   (exercise 4.2, predictions 4.2 and 4.3),
# * **choose** times for a model that knows only a thousand of them (exercise 4.3),
# * **derive** and **implement** the second-order solver DPM-Solver++(2M), **measure** the order of a solver, and **predict**
#   when a higher order loses (exercise 4.4, prediction 4.4),
# * **implement** the bridge from DDIM to ancestral sampling (exercise 4.5, prediction 4.5),
# * **measure** on pictures how many evaluations a solver needs to be near the exact ODE, and **predict** whether that makes
#   them good pictures (section 6, prediction 4.6),
# * **transfer** all this to a step that is exact for other data than DDIM's (exercise 4.6).
#
# Allow under two hours: 80 minutes for the exercises, the rest for reading.

# %%
import math
import os
import time
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import eps, levels, velocity
from course_lib.fast_samplers import ddim, dpm_solver_pp, dpm_solver_pp_sde, optimise_grid
from course_lib.ode_samplers import euler, heun
from course_lib.sampling import final, last, prior, sample
from course_lib.schedules import (
    VE,
    CosineVP,
    Flow,
    LinearVP,
    SubVP,
    angle,
    equal_angles,
    karras,
    log_snr_to_zero,
    log_snr_uniform,
    quadratic,
    uniform,
)
from course_lib.sde_samplers import ancestral
from course_lib.targets import GaussianMixture, ring
from course_lib.widgets import flipbook, progress

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
SCHEDULES = (LinearVP(), CosineVP(), VE(), SubVP(), Flow())


def seeded(seed):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# The simplest data set in the world holds one picture, a boot. Its denoiser needs no training: whatever it is shown, it
# returns the boot. There is nothing to find out, nothing to average, no network error. **How many evaluations of this
# constant function does Euler's method of chapter 03 need to draw the boot?**

# %%
class Point:
    """The denoiser of a data set that holds a single picture."""

    def __init__(self, picture, schedule):
        self.picture, self.schedule = picture, schedule

    def __call__(self, x, t, cond=None):
        return self.picture.expand_as(x)


boot = data.fashion_mnist("test")[0][:1].double()                                              # (1, 1, 28, 28)
only_boot = Point(boot, LinearVP())
noise = prior(only_boot, boot.shape, seeded(0), dtype=torch.float64)
drawn = {n: final(only_boot, noise, uniform(n, LinearVP()), euler).x for n in (3, 5, 10, 100, 1000)}
for n, x in drawn.items():
    print(f"{n:5} evaluations: {(x - boot).std():.4f} of noise left, {LinearVP().sigma(LinearVP().t_min):.4f} are due at t_min")

# %%
plotting.image_grid(torch.cat([*drawn.values(), boot]), columns=6, title=", ".join(map(str, drawn)) + " Euler steps, and the boot")
plt.show()

# %% [markdown]
# *Six ankle boots. With three steps the boot is lost in noise, with five it is grainy, with ten faintly so; with 100 and
# 1000 steps it looks like the clean boot at the right.*
#
# A solver that evaluates a *constant* a hundred times, and still leaves too much noise, is wasting our time. The picture
# is not to blame. What curves is the *schedule*: $\alpha(t)$ and $\sigma(t)$, which we chose and know. Let us get them
# out of the way.

# %% [markdown]
# ## 1 · The part that can be solved on paper
#
# **One point first.** Let the data be the single point $m$. Then $x_t = \alpha_t m + \sigma_t\varepsilon$ is Gaussian at
# every $t$, and the ODE of chapter 03 moves each sample so that it keeps its place in that Gaussian: its number
# $\varepsilon = (x_t - \alpha_t m)/\sigma_t$ *never changes*. So the whole path is known. Divide it by $\alpha_t$:
#
# $$\frac{x_t}{\alpha_t} = m + \frac{\sigma_t}{\alpha_t}\,\varepsilon. \tag{4.1}$$
#
# In the variables $\bar x = x/\alpha$ and $\bar\sigma = \sigma/\alpha$ the path is a **straight line** with the slope
# $\varepsilon$. On a straight line one Euler step is as good as a thousand. In $x$ and $t$ the same path is a curve, and
# each Euler step leaves it along the tangent. **What do Euler steps do in either pair of variables?**

# %%
c, m, e = LinearVP(), 0.5, -1.2                                 # schedule, the data point, and the noise of one path
t, dots = uniform(200, c), uniform(5, c)
path, bar = c.alpha(t) * m + c.sigma(t) * e, c.sigma(t) / c.alpha(t)
point = Point(torch.tensor([[m]], dtype=torch.float64), c)
start = (c.alpha(dots[0]) * m + c.sigma(dots[0]) * e).reshape(1, 1)
walked = torch.cat([start, *sample(point, start, dots, euler)])[:, 0]
assert torch.allclose(path / c.alpha(t), m + bar * e)                                           # eq. (4.1)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7))
left.plot(t, path, color=plotting.TRUTH, lw=3, label="exact path")
left.plot(dots, walked, "o-", color=plotting.ESTIMATE, label="5 Euler steps")
left.set(xlabel="t", ylabel="$x_t$", xlim=(1.03, -0.03))
right.plot(bar, path / c.alpha(t), color=plotting.TRUTH, lw=3)
right.plot(bar[[0, -1]], (m + bar * e)[[0, -1]], "o-", color=plotting.SECOND, label="1 Euler step")
right.set(xlabel=r"$\sigma/\alpha$", ylabel=r"$x_t/\alpha_t$", xlim=(bar[0] * 1.03, -5))
for ax in (left, right):
    ax.legend(loc="upper left")
plt.show()

# %% [markdown]
# *Left, the path of one sample against time, from noise on the left to data on the right: a grey curve, and five orange
# Euler steps that leave it and end off the mark. Right, the same path in the new variables: a straight line, and one blue step
# that ends on it.*
#
# **Any data.** Now take the ODE itself, $dx/dt = f x - \tfrac12 g^2\,\nabla\log p_t(x)$, with the score
# $-\hat\varepsilon/\sigma$, where $\hat\varepsilon(x, t) = (x - \alpha\,D(x,t))/\sigma$ is the noise that the denoiser
# believes in. By the quotient rule, and with $f = \alpha'/\alpha$,
#
# $$\frac{d\bar x}{dt} = \frac{x'}{\alpha} - \frac{\alpha'}{\alpha}\,\frac{x}{\alpha}
#   = \frac{f x}{\alpha} + \frac{g^2}{2\sigma\alpha}\,\hat\varepsilon - f\,\frac{x}{\alpha} = \frac{g^2}{2\sigma\alpha}\,\hat\varepsilon .$$
#
# The linear term is gone. And the factor? Put $g^2 = 2\sigma\sigma' - 2f\sigma^2$, which is (2.6): then
# $g^2/(2\sigma\alpha) = (\sigma' - f\sigma)/\alpha$, and that is just the derivative of $\sigma/\alpha$, by the quotient rule
# again. So
#
# $$d\bar x = \hat\varepsilon\; d\bar\sigma, \qquad \bar x = x/\alpha,\quad \bar\sigma = \sigma/\alpha . \tag{4.2}$$
#
# All schedules have become one equation. Nothing in it is curved except $\hat\varepsilon$, the one thing that depends on
# the data. Let us check (4.2) against the library's slope for every schedule.

# %%
x = torch.randn(64, 2, generator=seeded(1), dtype=torch.float64)
t = torch.tensor(0.6, dtype=torch.float64)
for c in SCHEDULES:
    D = ring().denoiser(c)
    ratio_slope = torch.func.jvp(lambda u, c=c: c.sigma(u) / c.alpha(u), (t,), (torch.ones_like(t),))[1]
    slope_of_bar = (velocity(D, x, t) - c.drift(t) * x) / c.alpha(t)                            # quotient rule
    assert torch.allclose(slope_of_bar, eps(D, x, t) * ratio_slope)                             # eq. (4.2)
print("eq. (4.2) holds for", ", ".join(type(c).__name__ for c in SCHEDULES))

# %% [markdown]
# **Exercise 4.1 · ●●○ · 10 min · eq. (4.2)**
#
# Write `my_ddim(D, x, t, s)`: *one Euler step of (4.2)* from $t$ to $s<t$. In words: go from $x$ to $\bar x$, move along
# the slope $\hat\varepsilon(x_t, t)$ by the difference of the two $\bar\sigma$, and go back from $\bar x$ to $x$, at $s$.
# `levels(D, x, t)` gives $\alpha_t$ and $\sigma_t$, shaped to multiply `x`, and $\hat x_0=$ `D(x, t)`, which costs
# one evaluation: ask once.

# %% exercise="4.1"
def my_ddim(D, x, t, s):                                        # x (B, ...); t, s () or (B,) -> (B, ...)
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    ### BEGIN SOLUTION three lines: eps, x-bar at s, and back to x
    noise = (x - alpha_t * D(x, t)) / sigma_t
    bar_s = x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * noise
    return alpha_s * bar_s
    ### END SOLUTION


# %% check="4.1"
# NBVAL_CHECK_OUTPUT
my_ddim = exercise("4.1", my_ddim)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right for VE only*: there $\alpha=1$, so every forgotten $\alpha$ is hidden.
# * *Shapes do not match*: use `alpha_t` and its like from `levels`, not `D.schedule.alpha(t)`, which has the shape `(B,)`.
# * *Far too noisy*: look at the order of the difference. $\bar\sigma$ must fall, so the difference is negative.
#
# </details>
#
# Now simplify it. With $\bar x_t = \hat x_0 + \bar\sigma_t\hat\varepsilon$ (the definition of $\hat\varepsilon$, divided by
# $\alpha_t$) your step is $\bar x_s = \hat x_0 + \bar\sigma_s\hat\varepsilon$, and times $\alpha_s$
#
# $$x_s = \alpha_s\,\hat x_0 + \sigma_s\,\hat\varepsilon . \tag{4.3}$$
#
# That is the step of chapter 00: keep the guess and the believed noise, and mix them afresh at the lower noise level. Its
# name is **DDIM** (Song, Meng and Ermon, 2021). There it looked like a clever idea; here it is Euler's method, once the known
# part has been taken out. Your step draws the boot in **one** evaluation:

# %%
t, s = torch.tensor([0.7, 0.2], dtype=torch.float64)
x = torch.randn(200, 2, generator=seeded(2), dtype=torch.float64)
for c in SCHEDULES:
    D = ring().denoiser(c)
    remixed = c.alpha(s) * D(x, t) + c.sigma(s) * eps(D, x, t)
    assert (my_ddim(D, x, t, s) - remixed).abs().max() < 1e-12                                  # eq. (4.3)
one = my_ddim(only_boot, noise, *uniform(1, LinearVP()))
print(f"one DDIM step: {(one - boot).std():.4f} of noise left, {LinearVP().sigma(LinearVP().t_min):.4f} are due")

# %% [markdown]
# The failing case is mended: **DDIM is exact, in one step of any length, for data that is a single point.** What about
# two points, or a cloud? There the denoiser's guess changes on the way, and so does $\hat\varepsilon$.
#
# **Prediction 4.1.** The data are $\mathcal N(0, 0.5^2)$. For each fixed $x_0$, (4.1) is a straight line. You take *one*
# DDIM step from pure noise to `t_min`. How wide are the samples?
#
# * **a**: 0.5: straight lines, so one step is exact here too,
# * **b**: practically 0: all of them land on the mean,
# * **c**: about 0.25, half way.

# %% predict="4.1"
predict("4.1", "b")

# %%
cloud = GaussianMixture([[0.0, 0.0]], 0.5).denoiser(LinearVP())
x_T = prior(cloud, (4000, 2), seeded(3), dtype=torch.float64)
for n in (1, 2, 8, 100):
    x = final(cloud, x_T, uniform(n, LinearVP()), lambda D, x, t, s, z, cond: my_ddim(D, x, t, s)).x
    print(f"{n:4} steps: standard deviation {x.std():.4f}, right is 0.5000")

# %%
reveal("4.1")

# %% [markdown]
# The lines from a *known* $x_0$ to its noise are straight. The paths of the ODE are not: they follow the *average* of the
# lines that pass through a place, and that average turns. For a Gaussian we can say exactly how much this costs.

# %% [markdown]
# ## 2 · The law: what DDIM does to a Gaussian
#
# Take data $\mathcal N(0, c^2)$ in one dimension. In the barred variables the samples at noise level $\bar\sigma$ have the
# variance $c^2+\bar\sigma^2$. That suggests an angle: let
#
# $$\bar\sigma = c\,\tan\theta, \qquad\text{so that}\qquad \sqrt{c^2+\bar\sigma^2} = \frac{c}{\cos\theta} .$$
#
# Data is at $\theta=0$, pure noise at $\theta = 90°$. A step goes from $\theta$ to a smaller $\theta'$.
#
# **The exact step.** The ODE keeps every sample's place in the Gaussian, so it multiplies $\bar x$ by the ratio of the
# widths: $\bar x' = \bar x\,\cos\theta/\cos\theta'$.
#
# **DDIM's step.** The denoiser is linear: $\hat x_0 = \frac{c^2}{c^2+\bar\sigma^2}\,\bar x = \cos^2\!\theta\;\bar x$. Then
# the believed noise is $\hat\varepsilon = (\bar x-\hat x_0)/\bar\sigma = \sin^2\!\theta\,\bar x/(c\tan\theta) =
# \sin\theta\cos\theta\,\bar x/c$. Mix them at $\bar\sigma' = c\tan\theta'$:
#
# $$\bar x' = \hat x_0 + \bar\sigma'\,\hat\varepsilon
#  = \bar x\,\cos\theta\,\Big(\cos\theta + \frac{\sin\theta'}{\cos\theta'}\sin\theta\Big)
#  = \bar x\,\frac{\cos\theta}{\cos\theta'}\,\big(\cos\theta\cos\theta' + \sin\theta\sin\theta'\big)
#  = \underbrace{\bar x\,\frac{\cos\theta}{\cos\theta'}}_{\text{exact}}\;\cos(\theta-\theta') .$$
#
# So **DDIM's step is the exact step times the cosine of the angle that it covers**, and $n$ steps multiply:
#
# $$\text{DDIM} = \text{exact}\;\times\;\prod_{i=1}^n\cos(\theta_{i-1}-\theta_i) . \tag{4.4}$$
#
# No limit, no $O(\cdot)$: an equality, for every grid and schedule. Every factor is below 1, so *DDIM always
# makes Gaussians too narrow*; a single step from $90°$ to $0°$ has the cosine 0, which is prediction 4.1. And a point
# ($c\to0$) has $\theta=90°$ at every noise level: no angle is covered, and nothing is lost.
#
# **Is it true to the last digit?** `angle(t, schedule, c)` is $\theta$. We compare for five grids of eight steps: equal
# steps in $t$ (`uniform`), in $\sqrt t$ (`quadratic`), in $\log(\alpha/\sigma)$ (`log_snr_uniform`), in
# $(\sigma/\alpha)^{1/7}$ (`karras`), and in the angle.

# %%
GRIDS = {"uniform": uniform, "quadratic": quadratic, "log-SNR": log_snr_uniform, "Karras": karras, "equal angles": equal_angles}


def law(ts, schedule, std):                                     # the product of (4.4)
    theta = angle(ts, schedule, std)
    return (theta[:-1] - theta[1:]).cos().prod()


std, schedule = 0.5, LinearVP()                                 # std is the c of the text
for name, grid in GRIDS.items():
    ts = grid(8, schedule)
    width = [(schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2).sqrt() for t in (ts[0], ts[-1])]
    exact, x = x_T * width[1] / width[0], final(cloud, x_T, ts, ddim).x
    print(f"{name:13} DDIM/exact {(x / exact).mean():.6f}    product of cosines {law(ts, schedule, std):.6f}")
    assert (x - exact * law(ts, schedule, std)).abs().max() < 1e-12                               # eq. (4.4)

# %% [markdown]
# **Which grid is best?** The angles must add up to the total $\Theta$ between the two ends, and we want the largest product
# of cosines. Take logarithms: $\log\cos$ is *concave* (its derivative, $-\tan$, falls), so by Jensen's inequality the
# average of $\log\cos$ over the steps is at most $\log\cos$ of the average step $\Theta/n$. Equality holds when all steps
# are equal:
#
# $$\prod_i\cos\delta_i \;\le\; \cos^n\!\frac{\Theta}{n} \;\approx\; 1 - \frac{\Theta^2}{2n} . \tag{4.5}$$
#
# (For short steps $\cos\delta\approx1-\delta^2/2$, and $n$ such factors with $\delta=\Theta/n$ lose $n\,\delta^2/2$.) So
# **equal angles are optimal**, whatever the number of steps: not fitted, proved. The table above shows what the
# standard grids lose.
#
# **Exercise 4.2 · ●●○ · 12 min · eq. (4.5)**
#
# Write `my_equal_angles(n, schedule, std)`: the $n+1$ falling times of the grid with equal angles for data of the width
# `std`, from `schedule.t_max` to `schedule.t_min`. You have `schedule.alpha(t)`, `schedule.sigma(t)`, and
# `schedule.time_of_log_snr(v)`, the time at which $\log(\alpha^2/\sigma^2) = v$; it takes tensors. (Use torch's `.atan()`,
# `.tan()` and `.log()`, and float64: `torch.linspace(a, b, n + 1, dtype=torch.float64)`.)

# %% exercise="4.2"
def my_equal_angles(n, schedule, std):                          # whole number, schedule, width -> (n+1,) falling times
    ### BEGIN SOLUTION four lines: the angle at both ends, equal angles between, levels, times
    first, end = ((schedule.sigma(t) / schedule.alpha(t) / std).atan() for t in (schedule.t_max, schedule.t_min))
    theta = first + torch.linspace(0, 1, n + 1, dtype=torch.float64) * (end - first)
    sigma_bar = std * theta.tan()
    return schedule.time_of_log_snr(-2 * sigma_bar.log())
    ### END SOLUTION


# %% check="4.2"
# NBVAL_CHECK_OUTPUT
my_equal_angles = exercise("4.2", my_equal_angles)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *TypeError: linspace ... Tensor*: give it numbers, `float(first)`, or scale `torch.linspace(0, 1, n + 1)` by hand.
# * *Only the ends are right*: the middle of the grid is where a forgotten `std` or a forgotten 2 shows. Check:
#   $\log(\alpha^2/\sigma^2) = -2\log\bar\sigma$.
# * *NaN*: the logarithm of something negative; are your angles in radians, between 0 and $\pi/2$?
#
# </details>
#
# **Prediction 4.2.** With the best grid there is, how many DDIM steps does a Gaussian need until its width is right to
# 1 %? ($\Theta$ is nearly $\pi/2$.)
#
# * **a**: about 12,
# * **b**: about 120,
# * **c**: more than 1000.

# %% predict="4.2"
predict("4.2", "b")

# %%
ns = [2, 4, 8, 15, 30, 60, 120, 250, 500, 1000]
figure, ax = plt.subplots(figsize=(7.4, 3.1))
for name, look in plotting.looks(list(GRIDS)).items():
    ax.plot(ns, [1 - law(GRIDS[name](n, LinearVP()), LinearVP(), 0.5) for n in ns], **look, label=name)
total = (angle(LinearVP().t_max, LinearVP()) - angle(LinearVP().t_min, LinearVP())).item()
ax.plot(ns, [1 - math.cos(total / n) ** n for n in ns], color=plotting.TRUTH, lw=4, zorder=0, label=r"$1-\cos^n(\Theta/n)$")
ax.axhline(0.01, color=plotting.INK, lw=0.8, ls=":")
ax.set(xscale="log", yscale="log", xlabel="DDIM steps", ylabel="width lost (relative)", ylim=(None, 1.3))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
mine = my_equal_angles(120, LinearVP(), 0.5)
assert abs(law(mine, LinearVP(), 0.5) - math.cos(total / 120) ** 120) < 1e-9                    # eq. (4.5), with equality
print(f"120 steps of your grid: {1 - law(mine, LinearVP(), 0.5):.2%} of the width is lost; "
      f"Theta^2/(2n) = {total**2 / 240:.2%}")

# %%
reveal("4.2")

# %% [markdown]
# *The lost width against the number of steps, both axes logarithmic: after a few steps all grids fall along
# parallel lines, like 1/n; the triangles of equal angles lie on the grey line of the law, below all others.*
#
# This is the honest price of a first-order method: a better grid shifts the line, and only a better *method* makes it
# steeper. That is section 4. First, data that is not a Gaussian.
#
# ### Back to the ring
#
# Now eight spots of width 0.15 on a circle: each nearly a point, for which DDIM was made. We measure the *path error*: the
# mean distance of each sample from where the exact ODE would have taken it (a very fine solution is at hand in 2-D).
#
# **Prediction 4.3.** Ten equal steps in $t$, linear VP schedule. The path error of DDIM, compared with plain Euler's, is
#
# * **a**: much smaller: DDIM has the straight lines,
# * **b**: about the same: both are first order,
# * **c**: larger.

# %% predict="4.3"
predict("4.3", "c")

# %%
target, c = ring(), LinearVP()
D = target.denoiser(c)
N = 4000 if full else 1000
x_T = prior(D, (N, 2), seeded(4), dtype=torch.float64)
truth = last(dpm_solver_pp, D, x_T, log_snr_uniform(400, c), order=3).x                         # error below 1e-6


def error(x):                                                   # mean distance to the exact end of each path
    return (x - truth).norm(dim=1).mean().item()


check = last(dpm_solver_pp, D, x_T, log_snr_uniform(800, c), order=3).x
print(f"the fine solution moves by {error(check):.1e} when its steps are halved")
assert error(check) < 1e-5
for n in (5, 10, 30):
    ts = uniform(n, c)
    print(f"{n:3} equal steps: Euler {error(final(D, x_T, ts, euler).x):.4f}    DDIM {error(final(D, x_T, ts, ddim).x):.4f}")

# %%
reveal("4.3")

# %% [markdown]
# Surprised? Ask again for which data each step is exact. Through much noise the ring looks like *one broad cloud* of width
# 1.07 in each direction, and only late on like points. For a cloud, DDIM shrinks, by (4.4). And plain Euler? Under a VP
# schedule, data $\mathcal N(0, I)$ *stays* $\mathcal N(0, I)$ at all times: its score is $-x$, and with $f=-\frac12g^2$ the
# ODE's slope $fx-\frac12g^2\cdot(-x)$ is zero. Euler is exact. The ring's 1.07 is close to 1. So each method is good where
# its own "solved part" resembles the data: DDIM for points, Euler in $t$ under VP for clouds of width 1. We shall use this
# in the last exercise. (And the price of a method is a matter of the grid too:)

# %%
print(f"path error at 10 steps   {'Euler':>8}{'DDIM':>9}")
for name, grid in GRIDS.items():
    ts = grid(10, c)
    print(f"{name:24} {error(final(D, x_T, ts, euler).x):8.4f} {error(final(D, x_T, ts, ddim).x):8.4f}")
scale = target.sample(20_000, seeded(5)).std(0).mean()
print(f"the ring's width in each direction: {scale:.3f}")

# %% [markdown]
# Moving the same ten steps to better places helps more than changing the method. The ring's own best grid is not known on
# paper, but we can *learn* it: the samples at the end are a differentiable function of the times, so let the gradient of
# the mean squared error run back through all the steps of the solver into the grid. That is `optimise_grid`. **Does it
# find equal angles on a Gaussian, and what does it find on the ring?**

# %%
by_ddim = partial(sample, step=ddim)
few = prior(D, (200, 2), seeded(6), dtype=torch.float64)        # starts to learn from; the error is measured on others
learnt_cloud = optimise_grid(cloud, few, 10, by_ddim, std=1.5)  # begins with the angles of a wrong width
print(f"Gaussian: largest distance to equal angles {(learnt_cloud - equal_angles(10, LinearVP(), 0.5)).abs().max():.1e}")
assert (learnt_cloud - equal_angles(10, LinearVP(), 0.5)).abs().max() < 1e-4                    # eq. (4.5), by gradient
learnt = optimise_grid(D, few, 10, by_ddim, iterations=30)
print(f"ring: path error of DDIM {error(final(D, x_T, learnt, ddim).x):.4f} with the learnt grid, "
      f"{error(final(D, x_T, equal_angles(10, c), ddim).x):.4f} with equal angles")

# %%
figure, ax = plt.subplots(figsize=(8, 2.4))
for i, (name, ts) in enumerate({**{k: g(10, c) for k, g in GRIDS.items()}, "learnt, ring": learnt}.items()):
    ax.plot(ts, torch.full_like(ts, -i), "o-", lw=0.8, color=plotting.ESTIMATE if "learnt" in name else plotting.SECOND)
    ax.text(-0.03, -i, name, ha="left", va="center")
ax.set(xlim=(1.03, -0.2), xlabel="t, from noise to data", yticks=[], ylim=(-5.6, 0.6))
ax.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# *Six rows of eleven dots along the time axis. Uniform spreads them evenly; quadratic, log-SNR and Karras take small steps
# near the data; equal angles and the learnt grid leap from pure noise to about the middle, and take most steps after it.*
#
# On the Gaussian the gradient finds what Jensen's inequality proved. On the ring it finds a grid that is somewhat better
# than equal angles: they were an excellent first guess, though the ring is no Gaussian.

# %% [markdown]
# ## 3 · A thousand times, of which you may pick thirty
#
# Many published models were trained at whole-number times only: $k = 1, \dots, 1000$, with $k=0$ for clean data. There a
# grid is a choice of whole numbers, and three slips are so common that large libraries have shipped each of them: *starting
# late* (with 50 steps at 981, because the stride is counted from the wrong end), a *stride* $T/n$ cut to a whole number,
# which never reaches 0 unless $n$ divides $T$, and an *end* that is repeated or is 1 in place of 0. A step to $k=0$, where
# $\alpha=1$ and $\sigma=0$, lands on $\hat x_0$ by (4.3): that is the clean ending.
#
# **Exercise 4.3 · ●○○ · 6 min · the grid**
#
# Write `my_times(n, T)`: $n+1$ whole numbers (a tensor of dtype int64) that fall from $T$ to $0$ in steps as equal as
# possible: the equally spaced real numbers, each rounded to the nearest whole one.

# %% exercise="4.3"
def my_times(n, T):                                             # two whole numbers -> (n+1,) falling whole numbers
    ### BEGIN SOLUTION one line: linspace, round, long
    return torch.linspace(T, 0, n + 1, dtype=torch.float64).round().long()
    ### END SOLUTION


# %% check="4.3"
# NBVAL_CHECK_OUTPUT
my_times = exercise("4.3", my_times)

# %% [markdown]
# What would the slips cost? **DDIM on the ring with 13 steps, right and with each of the three grids.** Two numbers tell: the
# path error, and the smallest signal that the sampler *thinks* is in its pure noise, $\alpha$ at the start (it should be
# nearly 0; where it is not, pictures come out at one medium brightness).

# %%
n, T = 13, 1000
late = torch.cat([torch.arange(n).flip(0) * (T // n) + 1, torch.zeros(1, dtype=torch.long)])
choices = {"yours": my_times(n, T), "late start": late, "whole-number stride": T - torch.arange(n + 1) * (T // n),
           "ends at 1": torch.linspace(T, 1, n + 1).round().long()}
for name, k in choices.items():
    x = final(D, x_T, k.double() / T, ddim).x
    print(f"{name:20} {k[0]:5} ... {k[-2]:4} {k[-1]:3}   alpha at the start {c.alpha(k[0] / T):.4f}   path error {error(x):.4f}")

# %% [markdown]
# The whole-number stride stops in noise, at $k=12$. The other two slips hide: the path error does not see them, and
# the late start is found only by printing $\alpha$. On the ring they are harmless. On pictures the late start shows as
# medium brightness, and with few levels a grid that ends at 1 shows as grain.

# %% [markdown]
# ## 4 · Second order: use the guess before
#
# (4.2) hides the denoiser in $\hat\varepsilon$. For a higher order we want an equation in which the guess $\hat x_0$ itself
# stands alone. Divide by $\sigma$ in place of $\alpha$: $x/\sigma = \bar x/\bar\sigma$, and by the quotient rule and (4.2),
# with $\hat\varepsilon = (\bar x - \hat x_0)/\bar\sigma$,
#
# $$d\Big(\frac{\bar x}{\bar\sigma}\Big) = \frac{\hat\varepsilon\,d\bar\sigma}{\bar\sigma} - \frac{\bar x\,d\bar\sigma}{\bar\sigma^2}
#  = -\hat x_0\,\frac{d\bar\sigma}{\bar\sigma^2} = \hat x_0\;d\Big(\frac1{\bar\sigma}\Big) = \hat x_0\;d\,e^{\lambda},
#  \qquad \lambda = \log\frac{\alpha}{\sigma} .$$
#
# $\lambda$ is half the log-SNR; it *rises* on the way to the data. $\bar x$ has dropped out on the right! Integrate from $t$
# to $s$, and multiply by $\sigma_s$ (note that $\sigma_s = \alpha_s e^{-\lambda_s}$):
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\int_{\lambda_t}^{\lambda_s} e^{\lambda-\lambda_s}\;\hat x_0(\lambda)\;d\lambda . \tag{4.6}$$
#
# This is still exact. The state enters only through the known factor in front; the denoiser enters only through its
# guesses along the way, *averaged* with known weights, the latest counting most. Solvers of this kind are called
# *exponential integrators*. The one question left is how to continue $\hat x_0(\lambda)$ from $\lambda_t$ on. Write
# $h = \lambda_s-\lambda_t$ for the step.
#
# **Constant.** If $\hat x_0$ stays what it is, the integral is $1-e^{-h}$ times $\hat x_0$:
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1-e^{-h})\,\hat x_0 . \tag{4.7}$$
#
# This is DDIM for the third time: put $\hat\varepsilon = (x_t-\alpha_t\hat x_0)/\sigma_t$ into (4.3), and
# $\sigma_s\alpha_t/\sigma_t = \alpha_s e^{-h}$. So DDIM is the first-order exponential integrator.
#
# **A straight line.** At the step before, at time $r>t$, we had asked the denoiser too. Remember that guess; it is free. Let
# $k = \lambda_t-\lambda_r$ be the length of that last step, and continue the line through the two guesses:
#
# $$\hat x_0(\lambda) \approx \hat x_0(t) + (\lambda-\lambda_t)\,\Delta, \qquad \Delta = \frac{\hat x_0(t)-\hat x_0(r)}{k} .$$
#
# The new integral, with $u=\lambda-\lambda_t$ and by parts, is
# $\int_0^h e^{u-h}\,u\,du = \big[u\,e^{u-h}\big]_0^h - \int_0^h e^{u-h}\,du = h - (1-e^{-h})$. Hence
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t + \alpha_s\,(1-e^{-h})\,\hat x_0(t) + \alpha_s\,(h-1+e^{-h})\,\Delta . \tag{4.8}$$
#
# That is **DPM-Solver++(2M)** (Lu et al., 2022): *second* order, *multistep*, one evaluation a step. (The paper writes
# $\tfrac h2(1-e^{-h})$ for our last weight. Both are $h^2/2$ for small $h$, and both are second order; ours is the
# integral itself.) Check the weight for small $h$: $h-1+e^{-h} = h^2/2 - \dots$, as it must be for a line that starts from 0.

# %%
t, s = torch.tensor([0.7, 0.2], dtype=torch.float64)
x = torch.randn(200, 2, generator=seeded(7), dtype=torch.float64)
for c in SCHEDULES:
    D_c = ring().denoiser(c)
    h = (c.log_snr(s) - c.log_snr(t)) / 2
    first = c.sigma(s) / c.sigma(t) * x + c.alpha(s) * (1 - (-h).exp()) * D_c(x, t)
    assert (first - my_ddim(D_c, x, t, s)).abs().max() < 1e-12                                  # eq. (4.7) is DDIM
u, h = torch.linspace(0, 1.7, 20_001, dtype=torch.float64), torch.tensor(1.7, dtype=torch.float64)
assert abs(torch.trapezoid((u - h).exp() * u, u) - (h - 1 + (-h).exp())) < 1e-8                 # the weight of (4.8)
print("weights at h = 1.7: constant", f"{1 - (-h).exp():.4f}, slope {h - 1 + (-h).exp():.4f}; h^2/2 would be {h**2 / 2:.4f}")

# %% [markdown]
# **Exercise 4.4 · ●●● · 20 min · eqs. (4.7) and (4.8)**
#
# Write `my_2m(D, x, ts)`: the whole sampler. `x` is the state at `ts[0]`; walk down all $n$ steps of the grid and return the
# state at `ts[-1]` (which is above 0). The first step has no step before it and is (4.7); all others are (4.8). Half the
# log-SNR at time $t$ is `D.schedule.log_snr(t) / 2`. The loop and the levels are given. Ask `D` once a step.

# %% exercise="4.4"
def my_2m(D, x, ts):                                            # x (B, ...), ts (n+1,) -> (B, ...)
    lam_r = x0_r = None                                         # what the step before has seen
    for t, s in pairwise(ts):
        (_, sigma_t), (alpha_s, sigma_s) = levels(D, x, t), levels(D, x, s)
        lam_t, lam_s = D.schedule.log_snr(t) / 2, D.schedule.log_snr(s) / 2
        ### BEGIN SOLUTION about five lines: the guess, h, the slope, eq. (4.8), and what to remember
        x0, h = D(x, t), lam_s - lam_t
        slope = 0 if x0_r is None else (x0 - x0_r) / (lam_t - lam_r)
        x = sigma_s / sigma_t * x + alpha_s * ((1 - (-h).exp()) * x0 + (h - 1 + (-h).exp()) * slope)
        lam_r, x0_r = lam_t, x0
        ### END SOLUTION
    return x


# %% check="4.4"
# NBVAL_CHECK_OUTPUT
my_2m = exercise("4.4", my_2m)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *TypeError with None*: in the first step there is no older guess; set the slope to 0 there.
# * *Right for one step, wrong from two on*: the slope's term. Print $h$ and $k$: they are two different numbers.
# * *Right for two steps, wrong from three on*: the history. After each step the present guess becomes the older one.
# * *NaN or huge*: is an exponent positive? Both weights hold $e^{-h}$, with $h>0$. Or is $k=0$? What the next step must
#   remember is $\lambda_t$, where the guess was made, and not $\lambda_s$.
#
# </details>
#
# **Is it of second order?** A method is of order $p$ if twice as many steps make the error $2^p$ times smaller: a
# straight line of slope $-p$ on logarithmic axes. Measure it where the exact answer is known in closed form, a Gaussian.
# (A picture of samples could not tell: on a histogram first and second order look alike.) Beside yours: DDIM, chapter 03's
# Heun, which pays two evaluations a step, and the library's third order, the parabola through three guesses.

# %%
def gaussian_end(x, ts, schedule, mean=0.3, std=0.5):           # the exact flow of N(mean, std^2), chapter 03
    (a, v), (b, w) = ((schedule.alpha(t), (schedule.alpha(t) ** 2 * std**2 + schedule.sigma(t) ** 2).sqrt()) for t in ts[[0, -1]])
    return b * mean + (x - a * mean) * w / v


c = LinearVP()
G = GaussianMixture([[0.3, 0.3]], 0.5).denoiser(c)
x = prior(G, (64, 2), seeded(8), dtype=torch.float64)
third = partial(dpm_solver_pp, order=3)
solvers = {"DDIM": (lambda k: k, lambda D, x, ts: final(D, x, ts, ddim).x),                     # steps for k evaluations
           "Heun": (lambda k: k // 2, lambda D, x, ts: final(D, x, ts, heun).x),
           "your 2M": (lambda k: k, my_2m), "third order": (lambda k: k, lambda D, x, ts: last(third, D, x, ts).x)}
counts = (10, 20, 40, 80, 160, 320)
errors = {name: [(solve(G, x, ts := quadratic(n(k), c)) - gaussian_end(x, ts, c)).norm(dim=1).mean().item() for k in counts]
          for name, (n, solve) in solvers.items()}
orders = {name: math.log2(e[-2] / e[-1]) for name, e in errors.items()}
print("measured order, from 160 to 320 evaluations:", ", ".join(f"{name} {p:.2f}" for name, p in orders.items()))
assert abs(orders["DDIM"] - 1) < 0.05 and abs(orders["your 2M"] - 2) < 0.1                      # eqs. (4.7), (4.8)

# %% [markdown]
# In the long run each order wins by as much as it promises. Now the short run. In chapter 03 Heun lost to Euler at ten
# evaluations, but Heun pays twice a step. Your solver pays once.
#
# **Prediction 4.4.** The ring, *five* evaluations on the uniform grid. Order the path errors of first, second and third
# order:
#
# * **a**: the higher the order, the smaller the error,
# * **b**: second order is best: more than DDIM, less daring than third,
# * **c**: the higher the order, the *larger* the error.

# %% predict="4.4"
predict("4.4", "c")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.2, 3.4))
looks = plotting.looks(list(solvers))
for name, e in errors.items():
    axes[0].plot(counts, e, **looks[name], label=name)
axes[0].set_title("Gaussian, quadratic grid")
few_counts = (4, 6, 10, 20, 50, 100)
for ax, (name, grid) in zip(axes[1:], (("uniform", uniform), ("log-SNR", log_snr_uniform))):
    for solver, (n, solve) in solvers.items():
        ax.plot(few_counts, [error(solve(D, x_T, grid(n(k), c))) for k in few_counts], **looks[solver])
    ax.set_title(f"ring, {name} grid")
for ax in axes:
    ax.set(xscale="log", yscale="log", xlabel="evaluations")
axes[0].set_ylabel("path error")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()
for solver in ("DDIM", "your 2M", "third order"):
    n, solve = solvers[solver]
    print(f"{solver:12} five evaluations, uniform grid: {error(solve(D, x_T, uniform(n(5), c))):.3f}")

# %%
reveal("4.4")

# %% [markdown]
# *Three panels of error against evaluations. On the Gaussian the lines have slopes 1, 2, 2 and 3. On the ring with the
# uniform grid 2M and third order start far above DDIM and are still above it at 100 evaluations, while Heun has crossed below
# it. With the log-SNR grid all three cross below DDIM at about ten.*
#
# So it was not the price: order speaks of small steps. With long ones the guess of the step before is out of date, and a
# line or a parabola through old guesses points anywhere. The uniform grid is the worst case: its last step is enormous in
# $\lambda$, in which the line is drawn. So each order needs *its* grid: DDIM equal angles; a multistep solver steps that
# are about even in $\lambda$.
#
# Then let the gradient choose the grid for second order as well. **How near can five evaluations come?**

# %%
by_2m = partial(dpm_solver_pp, order=2)
learnt_2m = {n: optimise_grid(D, few, n, by_2m, iterations=30) for n in progress((5, 10))}
tries = {"DDIM, uniform": (by_ddim, lambda n: uniform(n, c)), "DDIM, equal angles": (by_ddim, lambda n: equal_angles(n, c)),
         "2M, log-SNR": (by_2m, lambda n: log_snr_uniform(n, c)), "2M, learnt grid": (by_2m, learnt_2m.get)}
for name, (sampler, grid) in tries.items():
    print(f"{name:20}" + "".join(f"{n:5} evaluations {error(last(sampler, D, x_T, grid(n)).x):.4f}" for n in (5, 10)))

# %%
for ax, (name, (sampler, grid)) in zip(plotting.panels(4, size=2.3), tries.items()):
    plotting.shaded(target.log_prob, 2.4, ax)
    plotting.scatter(last(sampler, D, x_T, grid(5)).x[:300], ax, 2.4, f"{name}\n5 evaluations", size=4)
plt.show()

# %% [markdown]
# *Four scatter plots over the grey ring, five evaluations each. DDIM with equal steps in t ends inside the circle of
# spots; with equal angles most samples reach the spots; second order on the log-SNR grid shoots out beyond them; on its
# learnt grid it fills all eight.*
#
# The same five evaluations, dozens of times nearer. But note that this grid was fitted to this target and this solver.
# The recipe for models whose truth is not at hand: for a handful of steps a low order; for ten to thirty, order two or
# three on a log-SNR grid; and measure.

# %% [markdown]
# ## 5 · Between the ODE and the SDE
#
# DDIM draws no noise, ancestral sampling (chapter 02) draws some at each step. There is a bridge. In (4.3) the noise at $s$
# is all old: $\sigma_s\hat\varepsilon$. Replace a part of it by fresh noise $z$, and keep the *variance* at $\sigma_s^2$:
#
# $$x_s = \alpha_s\,\hat x_0 + \sqrt{\sigma_s^2-\tau^2}\;\hat\varepsilon + \tau\,z, \qquad 0\le\tau\le\sigma_s . \tag{4.9}$$
#
# If $x_t = \alpha_t x_0 + \sigma_t\varepsilon$ and the guess were perfect, then $x_s$ would be $\alpha_s x_0$ plus Gaussian
# noise of variance $(\sigma_s^2-\tau^2) + \tau^2 = \sigma_s^2$: the right marginal, for *every* $\tau$. One special choice
# is known to you. With $\tau^2=\tilde\beta = (\sigma_s^2/\sigma_t^2)\,\beta$ from (2.10), where $\beta = \sigma_t^2 -
# a^2\sigma_s^2$ and $a = \alpha_t/\alpha_s$, the old noise keeps $\sigma_s^2-\tilde\beta =
# \sigma_s^2(\sigma_t^2-\beta)/\sigma_t^2 = (a\,\sigma_s^2/\sigma_t)^2$, and (4.9) becomes the mean and noise of the
# ancestral step. So let
#
# $$\tau = \eta\,\sqrt{\tilde\beta} : \qquad \eta = 0 \text{ is DDIM}, \quad \eta = 1 \text{ is ancestral (DDPM)}. \tag{4.10}$$
#
# **Exercise 4.5 · ●●○ · 12 min · eqs. (4.9) and (4.10)**
#
# Write `my_ddim_eta(D, x, t, s, z, eta)`, for all schedules, any $s<t$, and also for $s=0$. Do not clamp what stands
# under the root: if it were negative, something would be wrong, and a clamp would hide it. Assert that it is not. (The check
# also tries an `eta` that is too large, and expects your assertion to stop it.)

# %% exercise="4.5"
def my_ddim_eta(D, x, t, s, z, eta):                            # x, z (B, ...); t, s () or (B,) -> (B, ...)
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    x0 = D(x, t)
    noise = (x - alpha_t * x0) / sigma_t
    ### BEGIN SOLUTION about four lines: beta-tilde, tau, the check of the radicand, and eq. (4.9)
    beta = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    tau = eta * (sigma_s**2 / sigma_t**2 * beta).sqrt()
    assert (sigma_s**2 - tau**2 >= 0).all()
    return alpha_s * x0 + (sigma_s**2 - tau**2).sqrt() * noise + tau * z
    ### END SOLUTION


# %% check="4.5"
# NBVAL_CHECK_OUTPUT
my_ddim_eta = exercise("4.5", my_ddim_eta)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN, or your own assertion fails*: $\tau$ is larger than $\sigma_s$. Is it made of $\tilde\beta$, or of $\beta$?
# * *Right for $\eta=0$ only*: fresh noise comes in, and the old noise must make room for it.
# * *Wrong for VE only*: some formula of yours is made of alphas alone. Use (2.9).
#
# </details>

# %%
t, s = torch.tensor([0.7, 0.2], dtype=torch.float64)
x, z = torch.randn(2, 200, 2, generator=seeded(9), dtype=torch.float64)
for c in SCHEDULES:
    D_c = ring().denoiser(c)
    assert (my_ddim_eta(D_c, x, t, s, z, 0.0) - my_ddim(D_c, x, t, s)).abs().max() < 1e-12       # eq. (4.10), eta = 0
    assert (my_ddim_eta(D_c, x, t, s, z, 1.0) - ancestral(D_c, x, t, s, z)).abs().max() < 1e-12  # eq. (4.10), eta = 1
print("eta = 0 is DDIM, eta = 1 is the ancestral step")

# %% [markdown]
# A tempting shortcut: "DDIM is DDPM without the noise". So take the ancestral step, $\eta=1$, and put $z=0$.
#
# **Prediction 4.5.** On a single spot of width 0.15, with 100 steps, how wide are the samples of "DDPM with $z=0$"?
#
# * **a**: as wide as DDIM's,
# * **b**: somewhat narrower than DDIM's, and right with 1000 steps,
# * **c**: they collapse onto a point.

# %% predict="4.5"
predict("4.5", "c")

# %% [markdown]
# `width` is the instrument of chapter 02: on a Gaussian each step is $x_s = A x_t + C z$, so the variance goes
# $v\to A^2v+C^2$, and the width at the end is exact without any samples. **Which $\eta$ gives the right width, with how
# many steps?**

# %%
c, spot = LinearVP(), GaussianMixture([[0.0]], 0.15)
one_zero = torch.tensor([[1.0], [0.0]], dtype=torch.float64)


def width(step, ts):                                            # exact std of the samples at ts[-1]
    D, v = spot.denoiser(c), c.sigma(ts[0]) ** 2
    for t, s in pairwise(ts):
        A, C = step(D, one_zero, t, s, one_zero.flip(0))        # row 1: x = 1, z = 0; row 2: x = 0, z = 1
        v = A**2 * v + C**2
    return v.sqrt().item()


ns = (10, 30, 100, 300)
print("steps           " + "".join(f"{n:9}" for n in ns))
for eta in (0.0, 0.5, 1.0):
    widths = [width(lambda D, x, t, s, z, eta=eta: my_ddim_eta(D, x, t, s, z, eta), equal_angles(n, c, 0.15)) for n in ns]
    print(f"eta = {eta:.1f}       " + "".join(f"{w:9.4f}" for w in widths))
silent = [width(lambda D, x, t, s, z: my_ddim_eta(D, x, t, s, 0 * z, 1.0), equal_angles(n, c, 0.15)) for n in ns]
print("eta = 1, z = 0  " + "".join(f"{w:9.4f}" for w in silent))
print(f"exact width {spot.marginal(c, c.t_min).stds.item():.4f}")
assert abs(widths[-1] / 0.15 - 1) < 0.05 and silent[-1] < 0.01                                   # eq. (4.9): the right marginal

# %%
reveal("4.5")

# %% [markdown]
# Every $\eta$ has the right marginals *in the limit* of many steps. With few steps all are too narrow, and the more so the
# more noise they draw, because fresh noise must be denoised again. So for few steps and a perfect denoiser, $\eta=0$. With a
# *trained* denoiser the fresh noise has a merit: it washes out earlier errors. Which effect wins is a matter of
# measurement, and section 6 has a case.
#
# ### Move the sliders
#
# Solver, grid, steps and $\eta$ (which only DDIM uses) for 12 starts on the ring. Try to find the smallest number of steps
# whose path error is below 0.02. Then turn up $\eta$: the paths become rough, and the path error loses its meaning, since each
# sample now follows a path of its own. The figure shows four pages of the widget.

# %%
def walk(solver, grid, steps, eta):                             # -> states (steps+1, 12, 2), the same starts always
    x, ts = x_T[:12], GRIDS[grid](steps, c)
    states = {"Euler": lambda: sample(D, x, ts, euler),
              "DDIM": lambda: sample(D, x, ts, lambda D, x, t, s, z, cond: my_ddim_eta(D, x, t, s, noise_of(t, x), eta)),
              "2nd order": lambda: dpm_solver_pp(D, x, ts, order=2), "3rd order": lambda: dpm_solver_pp(D, x, ts, order=3)}
    return torch.stack([x, *states[solver]()])


def noise_of(t, x):                                             # the same noise whenever the same time comes
    return torch.randn(x.shape, generator=seeded(round(1e6 * float(t))), dtype=x.dtype)


def page(solver, grid, steps, eta, ax=None):
    figure, ax = plt.subplots(figsize=(4.2, 4.6)) if ax is None else (ax.figure, ax)
    states = walk(solver, grid, steps, eta)
    plotting.shaded(target.log_prob, 2.4, ax)
    gap = (states[-1] - truth[:12]).norm(dim=1).mean()
    plotting.paths(states, ax, 2.4, f"{solver}, {steps} steps\n{grid}\n" + (f"path error {gap:.3f}" if not eta else f"eta = {eta}"))
    return figure


for ax, setting in zip(plotting.panels(4, size=2.3), (("DDIM", "uniform", 8, 0.0), ("DDIM", "equal angles", 8, 0.0),
                                                      ("DDIM", "equal angles", 30, 1.0), ("2nd order", "uniform", 8, 0.0))):
    page(*setting, ax=ax)
plt.show()

# %%
flipbook(page, solver=["DDIM", "Euler", "2nd order", "3rd order"], grid=["equal angles", *list(GRIDS)[:-1]],
         steps=[8, 2, 3, 4, 5, 6, 10, 15, 20, 30, 50], eta=[0.0, 0.5, 1.0],
         alt="Twelve paths of eight DDIM steps on equal angles: smooth lines from grey dots to the spots of the ring.")

# %% [markdown]
# *Four panels of paths from noise to the ring: DDIM on the uniform grid ends inside the spots' circle; on equal angles it
# ends on the spots; with eta = 1 the paths are jagged; second order on the uniform grid overshoots, far beyond the ring.*

# %% [markdown]
# ## 6 · On pictures: 1000 becomes 30
#
# The network `fashion_teacher`, two starting noises, and DDIM, the way we started the course. **How many DDIM steps are as
# good as 30 evaluations of a higher order?** "Good" means near to the exact ODE, for which we take a third-order solution
# with 100 evaluations.

# %%
teacher = recipes.load("fashion_teacher", device)
labels = torch.tensor([7, 8], device=device)
x_T_image = prior(teacher, (2, 1, 28, 28), seeded(10)).to(device)
METHODS = {"Euler": (partial(sample, step=euler), uniform), "DDIM": (partial(sample, step=ddim), uniform),
           "2nd order": (partial(dpm_solver_pp, order=2), log_snr_uniform), "3rd order": (third, log_snr_uniform)}
MANY = 1000 if full else 300                                    # on one core, 1000 take half a minute


def picture(method, n):
    sampler, grid = METHODS[method]
    begin = time.perf_counter()
    result = last(sampler, teacher, x_T_image, grid(n, teacher.schedule), cond=labels)
    return result.x.cpu(), result.nfe, time.perf_counter() - begin


exact_pictures, _, _ = picture("3rd order", 100)
asked = [*((method, n) for method in METHODS for n in (10, 30)), ("DDIM", 100), ("DDIM", MANY)]
runs = {(method, n): picture(method, n) for method, n in progress(asked)}

# %%
def off(x):                                                     # mean difference of the pixels, whose range is 2
    return (x - exact_pictures).abs().mean().item()


for (method, _), (x, nfe, seconds) in runs.items():
    print(f"{method:10} {nfe:4} evaluations: {off(x):.5f}, {seconds:.2f} s")
slow, _, slow_seconds = runs["DDIM", MANY]
print(f"DDIM, {MANY / 100:.0f} times the evaluations, from 100 to {MANY}: {off(runs['DDIM', 100][0]) / off(slow):.2f} times nearer")
best = min((off(x), method) for (method, n), (x, _, _) in runs.items() if n == 30)
print(f"as near as {best[1]} at 30: DDIM needs about {MANY * off(slow) / best[0]:.0f} evaluations, if its error goes on like 1/n")

# %%
rows = {f"{method}\n{n}": runs[method, n][0] for method, n in
        (("DDIM", MANY), ("DDIM", 30), ("3rd order", 30), ("DDIM", 10), ("3rd order", 10))}
differences = [torch.cat([x, 5 * (x - exact_pictures).abs() - 1]) for x in rows.values()]
figure = plotting.image_rows(differences, list(rows), "left: pictures; right: 5 times their error")
figure.set_size_inches(5.2, 5)
plt.show()

# %% [markdown]
# *Five rows of two pictures and two error maps. The pictures look nearly alike. The maps are blank for the longest DDIM run
# and for third order at 30; DDIM shows faint outlines at 30 and clear ones at 10, and so does third order at 10.*
#
# The eye would have passed DDIM at 30. The numbers say more: the last line. **What takes DDIM many hundreds of evaluations
# takes third order 30, and nothing was lost**: the same network, the same noise, the same pictures.
#
# **And fewer than thirty?** Then the grid decides, as on the ring, and this network's grid can be learnt too: the same
# `optimise_grid`, with the gradient running back through eight evaluations of the network into the times. It learns on two
# pictures. Is the grid any good for *other* starts and other classes?

# %%
two, eight = prior(teacher, (2, 1, 28, 28), seeded(15)).to(device), prior(teacher, (8, 1, 28, 28), seeded(21)).to(device)
kinds = torch.arange(8, device=device)
learnt_grid = optimise_grid(teacher, two, 8, by_2m, iterations=14, fine=60, cond=kinds[[1, 7]])
eight_exact = last(by_2m, teacher, eight, log_snr_uniform(100, teacher.schedule), cond=kinds).x
for name, ts in {**{name: grid(8, teacher.schedule) for name, grid in GRIDS.items()}, "learnt": learnt_grid}.items():
    found = last(by_2m, teacher, eight, ts, cond=kinds).x
    print(f"{name:13} 8 evaluations of second order: {(found - eight_exact).abs().mean():.4f} from the exact pictures")

# %% [markdown]
# The learnt grid is nearest by far, on pictures that it never saw: what it has learnt is not the two pictures but where
# *this network's* guesses change. It costs some seconds once, and then nothing.
#
# ### Near the ODE, near the data
#
# Near the exact ODE is not near the *data*. The network has errors, and the ODE, solved ever more exactly, carries every one
# of them to the end. Section 5 said that fresh noise washes out earlier errors; but the step that draws it, the
# ancestral one, is of first order. **Can we have fresh noise *and* second order?**
#
# Take $\eta=1$ in (4.9), and write its shares with $h=\lambda_s-\lambda_t$. Since $a\,\sigma_s/\sigma_t = e^{-h}$, the old
# noise keeps $a\,\sigma_s^2/\sigma_t = \sigma_s e^{-h}$, which leaves $\tau = \sigma_s\sqrt{1-e^{-2h}}$ for the new. With
# $\hat\varepsilon = (x_t-\alpha_t\hat x_0)/\sigma_t$, and $\sigma_s e^{-h}\alpha_t/\sigma_t = \alpha_s e^{-2h}$, the step
# is
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,e^{-h}\,x_t + \alpha_s\,(1-e^{-2h})\,\hat x_0 + \sigma_s\sqrt{1-e^{-2h}}\;z .$$
#
# Two short steps with the same guess are one long one: the factors $e^{-h}$ multiply, and the variances of their noises add up
# to that of the long step. So cut a step into infinitely many, each with the guess of its own moment. The first and the last
# term stay as they are, and $1-e^{-2h} = \int_{\lambda_t}^{\lambda_s} 2\,e^{2(\lambda-\lambda_s)}\,d\lambda$ shows how the
# guesses are averaged:
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,e^{-h}\,x_t + \alpha_s\int_{\lambda_t}^{\lambda_s} 2\,e^{2(\lambda-\lambda_s)}\;\hat x_0(\lambda)\;d\lambda
#   + \sigma_s\sqrt{1-e^{-2h}}\;z . \tag{4.11}$$
#
# Beside (4.6), everything is forgotten twice as fast, and noise fills the room. It is exact in the linear part and in the
# noise; only $\hat x_0(\lambda)$ is continued by guessing. With the straight line of (4.8), whose weight is now
# $\int_0^h 2e^{2(u-h)}u\,du = h - \tfrac12(1-e^{-2h})$, it is **SDE-DPM-Solver++(2M)**, in the library `dpm_solver_pp_sde`.
# Is that what it does? Two steps by hand:

# %%
times = torch.tensor([0.7, 0.45, 0.2], dtype=torch.float64)
x, *zs = torch.randn(3, 200, 2, generator=seeded(11), dtype=torch.float64)
for c in SCHEDULES:
    D_c = ring().denoiser(c)
    (k, h), (r, t, s) = (c.log_snr(times) / 2).diff(), times
    x_t = ancestral(D_c, x, r, t, zs[0])                                                        # a constant guess: eta = 1
    share, change = 1 - (-2 * h).exp(), (D_c(x_t, t) - D_c(x, r)) / k
    x_s = (c.sigma(s) / c.sigma(t) * (-h).exp() * x_t
           + c.alpha(s) * (share * D_c(x_t, t) + (h - share / 2) * change) + c.sigma(s) * share.sqrt() * zs[1])
    *_, found = dpm_solver_pp_sde(D_c, x, times, noise=torch.stack(zs))
    assert (found - x_s).abs().max() < 1e-10                                                    # eq. (4.11)
print("two steps of eq. (4.11) are dpm_solver_pp_sde")

# %% [markdown]
# One more thing, the end of the grid. At `t_min` the noise is fainter than a grey level, and a log-SNR grid spends a good part
# of its steps on noises that can hardly be seen. `log_snr_to_zero` takes its equal steps only down to a log-SNR of 5 (noise
# of $e^{-5/2}$, a twelfth of the signal), and the last one from there to $t=0$, where (4.3) lands on $\hat x_0$. **What does
# either sampler draw with ten evaluations, from the same starts?**

# %%
classes = torch.arange(8, device=device)
x_T_row = prior(teacher, (8, 1, 28, 28), seeded(12)).to(device)
fresh = partial(dpm_solver_pp_sde, generator=torch.Generator(device).manual_seed(13))
by_ten = {"DDIM\n10": last(by_ddim, teacher, x_T_row, uniform(10, teacher.schedule), cond=classes),
          "fresh noise\n10": last(fresh, teacher, x_T_row, log_snr_to_zero(10, teacher.schedule), cond=classes)}
assert {result.nfe for result in by_ten.values()} == {10}
plotting.image_rows([result.x.cpu() for result in by_ten.values()], list(by_ten), "ten evaluations each")
plt.show()

# %% [markdown]
# *Two rows of eight garments, each of another class. Like the walks of chapter 03, the two rows begin at the same noises
# and end at different garments. By eye neither row is clearly the better one.*
#
# Eight pictures prove nothing. For a number we need thousands, and minutes of computing; those rows ship with the course.
# The **Fréchet distance** compares the features of $n$ pictures with those of the training set; lower is better. It is
# inflated when $n$ is small, for real pictures too: that is its floor, the distance of $n$ held-out real pictures, as many of
# each class. So we look at what a sampler has *above* the floor. Where a row was drawn with three seeds, the figure behind ±
# is the standard deviation of the three distances.
#
# **Prediction 4.6.** *Ten* evaluations on the grid `log_snr_to_zero`. By the Fréchet distance, which pictures are nearest
# to the data?
#
# * **a**: second order without noise: with few steps, section 5 advised against noise,
# * **b**: first order with noise, the ancestral step: the safest with long steps,
# * **c**: second order with noise.

# %% predict="4.6"
predict("4.6", "c")

# %%
NAMES = {"ddim": "DDIM", "ancestral": "ancestral", "ancestral_to_zero": "ancestral, to 0",
         "dpm_solver_pp_2": "2nd order, to 0", "dpm_solver_pp_sde": "2nd order + noise, to 0"}
shipped = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv")
           if r.dataset == "fashion_mnist" and r.guidance == 0 and r.method in NAMES]
largest = {(r.method, r.nfe): r for r in sorted(shipped, key=lambda r: r.samples) if r.metric == "frechet"}
quality = sorted(largest.values(), key=lambda r: r.value - r.floor)
for r in quality:
    sure = f"± {r.spread:.2f} ({r.seeds} seeds)" if r.spread else "(one seed)"
    print(f"{NAMES[r.method]:23}{r.nfe:4} evaluations, {r.seconds / r.batch:.3f} s each: {r.value - r.floor:.2f} {sure} "
          f"above the floor {r.floor:.2f}, n = {r.samples:,}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True)
for ax, cost, label in ((axes[0], lambda r: r.nfe, "evaluations"), (axes[1], lambda r: r.seconds / r.batch, "seconds a picture")):
    for i, (method, look) in enumerate(plotting.looks(list(NAMES)).items()):
        if points := sorted((cost(r), r.value - r.floor, r.spread or 0) for r in quality if r.method == method):
            across, value, spread = zip(*points)
            ax.errorbar([a * (0.9 + 0.05 * i) for a in across], value, spread, capsize=3, **look, label=NAMES[method])
    ax.set(xscale="log", yscale="log", xlabel=label)
axes[0].set_ylabel("Fréchet distance\nabove the floor")
axes[0].set_yticks([0.5, 1, 1.5, 2, 3, 5], ["0.5", "1", "1.5", "2", "3", "5"])
axes[0].set_yticks([], minor=True)
axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
reveal("4.6")

# %% [markdown]
# *Fréchet distance above the floor against evaluations, left, and against seconds a picture, right;
# points of the same cost are set a little apart. Second order with noise lies lowest at 10 evaluations, and at 30; the
# ways without noise lie together above it, and more evaluations do not bring them down. Ancestral sampling on the grid to
# 0 starts far above all at 10 and comes down at 30; on the uniform grid it falls slowly from 30 to 1000.*
#
# What does the figure say?
#
# * **A more exact ODE is not a better picture.** Without noise, second order is no better with 30 evaluations than with
#   10, and DDIM with 30 is no better either. The solver has done its work; what is left is the network's error, and no
#   solver of *its* ODE can take that away.
# * **Fresh noise helps on this grid, against the advice of section 5**, which was for a perfect denoiser. Same grid, same
#   order, same evaluations: with noise the distance is clearly smaller, by more than the spread of the seeds. That the
#   noise washes out the network's errors is the explanation that fits; the figure shows the gain, and not its cause.
# * **Noise needs second order.** Same grid, same noise, but first order, "ancestral, to 0": with ten evaluations it is
#   worst by far. Its steps are too long for a constant guess.
# * **Ten are enough here**, as far as these pictures can tell. Second order with noise and ten evaluations is level
#   with ancestral sampling at thirty, a hundred and a thousand: the differences are no larger than the spread of the
#   seeds, and the ancestral rows on the uniform grid were drawn with one seed only. For the same reason nobody can say
#   from this figure that ancestral sampling with a thousand evaluations is better than with thirty.
#
# And the end of the grid, is it a part of the gain? For the ancestral step the ledger says no: at 30 evaluations it is
# not better on the grid to 0 than on the uniform one, which ends at `t_min`. For second order it is a *large* part. The
# author tried ten evaluations in equal log-SNR steps all the way to `t_min` (three seeds; not in the ledger): both ways,
# with noise and without, were clearly worse than on the grid to 0, and the noise then brought no gain. On such a grid
# many of the ten steps go to noise that nobody can see, and the rest get too long. So do not credit the noise alone:
# order, noise and grid work together.

# %% [markdown]
# ### Against the field
#
# Are our solvers any good? `course measure solvers` ran them beside those of the libraries *diffusers* and *azula*: the same
# ring, the same 2048 starts, and the path error against the exact end of each path, for every deterministic solver, option and
# grid that they export. (Left out are runs that begin halfway down the noise, and so solve only a part.) **Who is nearest at
# equal evaluations?**

# %%
import csv

with open(data.ROOT / "data" / "solvers.csv", newline="", encoding="utf-8") as file:
    measured = [row | {"evaluations": int(row["evaluations"]), "error": float(row["error"])}
                for row in csv.DictReader(file) if row["target"] == "ring"]
BUDGETS = (5, 10, 20, 50)


def nearest(k, ours, learnt=True):                              # the best row with at most k evaluations
    rows = [r for r in measured if (r["library"] == "course") == ours and r["evaluations"] <= k]
    return min((r for r in rows if learnt or r["grid"] != "optimised"), key=lambda r: r["error"])


for k in BUDGETS:
    print(f"{k} evaluations")
    for name, r in (("the others", nearest(k, False)), ("course", nearest(k, True)), ("no learning", nearest(k, True, learnt=False))):
        print(f"    {name:12} {r['error']:.2g}   {r['library']}: {r['solver']}, {r['grid']}")

# %%
figure, ax = plt.subplots(figsize=(7, 3.1))
for ours, mark, color, name in ((False, "s", plotting.SECOND, "the others"), (True, "o", plotting.ESTIMATE, "the course")):
    rows = [r for r in measured if (r["library"] == "course") == ours and r["error"] < 10]
    ax.plot([r["evaluations"] * (1.03 if ours else 0.97) for r in rows], [r["error"] for r in rows], mark, ms=3, color=color, alpha=0.6)
    ax.plot(BUDGETS, [nearest(k, ours)["error"] for k in BUDGETS], mark + ("-" if ours else "--"), color=color, lw=2,
            label=f"{name}, the best of all")
ax.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="path error")
ax.set_xticks(BUDGETS, map(str, BUDGETS))
ax.set_xticks([], minor=True)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

evaluation = runs["2nd order", 30][2] / 30 * 1e6                # of the network, on two pictures, in microseconds
for solver in ("ddim", "DDIM", "dpm_solver_pp, order 2", "DPM-Solver++, order 2"):
    own = min(float(r["microseconds"]) for r in measured if r["solver"] == solver and r["microseconds"])
    print(f"{solver:24} {own:4.0f} microseconds a step of its own; beside a network, {own / evaluation:.1%} of section 6's")

# %% [markdown]
# *A cloud of blue squares and orange dots, error against evaluations, with a line through the best of each: the orange line
# lies below the dashed blue one.*
#
# With ten and twenty evaluations second and third order win, on grids that were learnt on this very ring. That is not quite
# fair: the field's solvers must work on any model. The lines "no learning" show what remains without it, and there a close
# relative wins that you have not written. `abm` draws its polynomial through the slope of a straight line from data to noise,
# in the clock $u=\sigma/(\alpha+\sigma)$, in which the last step to the data is like any other; the top of
# `course_lib/fast_samplers.py` derives it and DPM-Solver++ side by side, and `few_steps` is `abm` with order and grid by a
# rule. Every line is the best of many, chosen after the fact, for us and for them. (The times are those of the machine that
# measured.)

# %% [markdown]
# ## 7 · Closing task: exact for a Gaussian
#
# DDIM is exact for a point, and shrinks clouds. Make a step that is exact for a cloud of width $c$, and *see whether the
# ring, which is a cloud of width 1.07 from afar, likes it better*.
#
# Measure $x$ in units of its own width. With the angle $\theta$ of section 2, and the radius $r$,
#
# $$\alpha c = r\cos\theta, \qquad \sigma = r\sin\theta, \qquad r = \sqrt{\alpha^2c^2+\sigma^2}, \qquad \tilde x = x/r .$$
#
# For data $\mathcal N(0,c^2I)$ the exact flow leaves $\tilde x$ where it is: $r$ is the width of $x_t$. For other data it
# moves. In terms of what the denoiser sees, $x = \alpha\hat x_0+\sigma\hat\varepsilon$ says
#
# $$\tilde x = \cos\theta\;\frac{\hat x_0}{c} + \sin\theta\;\hat\varepsilon . \tag{4.12}$$
#
# **Exercise 4.6 · ●●● · 18 min · eqs. (4.2) and (4.12)**
#
# On paper first: show from (4.2) that
#
# $$\frac{d\tilde x}{d\theta} = \hat v, \qquad \hat v = -\sin\theta\;\frac{\hat x_0}{c} + \cos\theta\;\hat\varepsilon , \tag{4.13}$$
#
# as if $\hat x_0$ and $\hat\varepsilon$ in (4.12) were constants. (Hint: $\bar x = c\,\tilde x/\cos\theta$ and
# $d\bar\sigma = c\,d\theta/\cos^2\theta$; then use (4.12) for $\tilde x$.) Then write `my_angular(D, x, t, s, c)`: one Euler
# step of (4.13) from $\theta_t$ to $\theta_s$, and back to $x_s$. `torch.atan2(sigma, c * alpha)` is $\theta$. One evaluation.

# %% exercise="4.6"
def my_angular(D, x, t, s, c):                                  # x (B, ...); t, s () or (B,); c > 0 -> (B, ...)
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    x0 = D(x, t)
    noise = (x - alpha_t * x0) / sigma_t
    ### BEGIN SOLUTION about five lines: both angles, both radii, v, the Euler step, and back
    theta_t, theta_s = torch.atan2(sigma_t, c * alpha_t), torch.atan2(sigma_s, c * alpha_s)
    r_t, r_s = (c**2 * alpha_t**2 + sigma_t**2).sqrt(), (c**2 * alpha_s**2 + sigma_s**2).sqrt()
    v = -theta_t.sin() * x0 / c + theta_t.cos() * noise
    return r_s * (x / r_t + (theta_s - theta_t) * v)
    ### END SOLUTION


# %% check="4.6"
# NBVAL_CHECK_OUTPUT
my_angular = exercise("4.6", my_angular)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Far too noisy*: $\theta_s-\theta_t$ is negative on the way to the data.
# * *The derivation gets stuck*: from $d\bar x=\hat\varepsilon\,d\bar\sigma$ you should reach
#   $d\tilde x/d\theta = \hat\varepsilon/\cos\theta - \tilde x\,\tan\theta$. Put (4.12) in, and $1-\sin^2\theta=\cos^2\theta$.
#
# </details>
#
# For data $\mathcal N(0,c^2I)$, $\hat v=0$, and the step is exact however long. **And on the ring?** DDIM,
# plain Euler, and yours with $c=1.07$, on two of our grids, with five evaluations and with ten.

# %%
c = LinearVP()
one = my_angular(cloud, x_T, *uniform(1, c), 0.5)
width_ratio = [(c.alpha(t) ** 2 * 0.25 + c.sigma(t) ** 2).sqrt() for t in (c.t_max, c.t_min)]
assert (one - x_T * width_ratio[1] / width_ratio[0]).abs().max() < 1e-12                        # exact for N(0, c^2), in one step
steps = {"DDIM": ddim, "Euler": euler, "yours, c = 1.07": lambda D, x, t, s, z, cond: my_angular(D, x, t, s, 1.07)}
print(f"{'path error':18}" + "".join(f"{g}, {n}".rjust(18) for g in ("uniform", "equal angles") for n in (5, 10)))
for name, step in steps.items():
    row = [error(final(D, x_T, GRIDS[g](n, c), step).x) for g in ("uniform", "equal angles") for n in (5, 10)]
    print(f"{name:18}" + "".join(f"{e:18.4f}" for e in row))

# %% [markdown]
# Two ideas together, the right grid and the right solved part, and *five* evaluations of a first-order step come nearer
# than DDIM's best with ten. Plain Euler is close behind, and on the uniform grid level: under a VP schedule it, too, is
# exact for a cloud, of width 1. (Under the cosine schedule with $c=1$ the angle is $\pi t/2$ and the radius 1, so there
# your step *is* plain Euler in $t$.) The idea is at work in the preconditioning of Karras et al. (2022) and in
# "v-prediction" networks, whose output is $\hat v$. But note what we used: knowledge of the data's width. On pictures,
# whose pixels are not one cloud, DDIM's family with a higher order does better, as section 6 measured. Every solver is
# exact for *some* data; choose the one whose data resembles yours.

# %% [markdown]
# ## The ledger

# %%
def live(method, dataset, nfe, batch, seconds, metric, value, weights):
    return ledger.Row(f"{method} (live)", dataset, nfe, nfe, batch, seconds, "this machine", metric, value, 0.0, batch, 1,
                      weights=weights)


begin = time.perf_counter()
result = last(by_2m, D, x_T, learnt_2m[10])
rows = [live("2M, learnt grid", "ring", 10, N, time.perf_counter() - begin, "path_error", error(result.x), "exact"),
        live("DDIM", "fashion_mnist", MANY, 2, slow_seconds, "pixel_error", off(slow), "fashion_teacher")]
for method in ("DDIM", "3rd order"):
    x, nfe, seconds = runs[method, 30]
    rows.append(live(method, "fashion_mnist", nfe, 2, seconds, "pixel_error", off(x), "fashion_teacher"))
ledger.table([*rows, *shipped], "method data NFE seconds batch metric value floor n status").show()

# %% [markdown]
# The live rows measure the distance from the exact solution of the ODE, whose floor is 0; the others the distance from the
# data, whose floor is that of real pictures.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | the straight variables | $d\bar x=\hat\varepsilon\,d\bar\sigma$, with $\bar x = x/\alpha$, $\bar\sigma=\sigma/\alpha$ |
# | DDIM, three readings | Euler there; $x_s=\alpha_s\hat x_0+\sigma_s\hat\varepsilon$; $x_s = \frac{\sigma_s}{\sigma_t}x_t+\alpha_s(1-e^{-h})\hat x_0$ |
# | exact for | one point, in one step |
# | on a Gaussian | exact times $\prod\cos(\theta_{i-1}-\theta_i)\le\cos^n(\Theta/n)$, with $\sigma/\alpha=c\tan\theta$ |
# | second order | add $\alpha_s(h-1+e^{-h})\,\Delta$, the slope through the last two guesses, $\lambda=\log(\alpha/\sigma)$ |
# | fresh noise | $x_s=\alpha_s\hat x_0+\sqrt{\sigma_s^2-\tau^2}\,\hat\varepsilon+\tau z$, $\tau=\eta\sqrt{\tilde\beta}$ |
# | fresh noise, any order | in (4.6): $e^{-h}$ more in front, $2e^{2(\lambda-\lambda_s)}$ under the integral, and $\sigma_s\sqrt{1-e^{-2h}}\,z$ |
# | exact for a cloud | $d\tilde x=\hat v\,d\theta$ |
#
# * The schedule was our choice; never spend evaluations on it.
# * The grid is worth as much as the order, and the best grid depends on the solver and on the data.
# * Order is a promise about small steps. With few, large ones, measure.
# * The exact solution keeps the network's errors. Fresh noise, with second order, came nearer to the data.
#
# **Limits.** Path errors compare with the exact ODE of *one* denoiser; they say nothing about that denoiser's own error.
# The law (4.4) is exact for Gaussians and a guide elsewhere. Learnt grids were fitted to one target and one solver, and
# ours to a target whose truth is cheap. The distance to the ODE was measured on two small pictures, the quality on three
# times 1000 pictures at most, and both on one network: that fresh noise helps *this* network says little about how much it
# helps another. Large models with strong guidance (chapter 06) are stiffer, and high orders fail earlier there.
#
# **What is still open.** Ten to thirty evaluations, still one after the other. Chapter 05 lets them wait for each other less;
# chapters 07 to 09 train the need for them away.

# %% [markdown]
# ## Further reading
#
# * J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, 2021, arXiv:2010.02502: DDIM, $\eta$, and the barred
#   variables (their section 4.3).
# * C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu, *DPM-Solver*, 2022, arXiv:2206.00927, and *DPM-Solver++*, 2022,
#   arXiv:2211.01095: exponential integrators in $\hat\varepsilon$ and in $\hat x_0$; (4.6), (4.8) and (4.11).
# * Q. Zhang, Y. Chen, *Fast sampling of diffusion models with exponential integrator*, 2022, arXiv:2204.13902: the same
#   idea, found independently (DEIS).
# * T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space of diffusion-based generative models*, 2022,
#   arXiv:2206.00364: Heun, grids, preconditioning by the data's width, and fresh noise against a network's errors.
# * W. Zhao, L. Bai, Y. Rao, J. Zhou, J. Lu, *UniPC*, 2023, arXiv:2302.04867: a corrector that costs no evaluation.
# * S. Lin, B. Liu, J. Li, X. Yang, *Common diffusion noise schedules and sample steps are flawed*, 2023, arXiv:2305.08891:
#   late starts and medium brightness.
# * A. Sabour, S. Fidler, K. Kreis, *Align your steps*, 2024, arXiv:2404.14507: optimised grids for large models.
