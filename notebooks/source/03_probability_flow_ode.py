# ---
# course:
#   title: One score, two perspectives
#   minutes: 110
#   needs: [2]
#   shows: the walk without its noise is a smooth path, with an inverse, a likelihood and a choice of solvers
# ---

# %% [markdown]
# # 03 · One score, two perspectives
#
# Chapter 02 ended with a family of equations, (2.12), that all have the same marginals. At one end of it, $\lambda=1$,
# stands the random walk that took a thousand steps. At the other end, $\lambda=0$, nothing is random any more. This
# chapter looks at the same score from that end.
#
# After this chapter you can
#
# * **derive** the probability flow ODE, first for one Gaussian and then for any density, and **implement** its velocity
#   (3.1),
# * **measure** that ODE and SDE have the same marginals, and how differently their paths run (section 2),
# * **implement** Heun's step (3.2), and **measure** the order of a solver,
# * **predict** whether paths cross, which solver wins at ten evaluations, what a likelihood prefers, and how long an
#   average of two noises is (predictions 3.1 to 3.4),
# * **derive** the exact log-likelihood of a picture from a stretch of the line, and **implement** it (3.3 and 3.4),
# * **encode** real pictures to noise and back, and **implement** the interpolation between two of them (3.5),
# * **transfer** all this to a solver that chooses its own steps (3.6).
#
# Allow just under two hours: 65 minutes for the exercises, the rest for reading.

# %%
import math
import os
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import levels, per_row, score, velocity
from course_lib.metrics import fold, sliced_wasserstein
from course_lib.ode_samplers import (
    bits_per_dim,
    dequantise,
    encode,
    euler,
    exact_divergence,
    heun,
    hutchinson,
    log_likelihood,
    rk45,
)
from course_lib.sampling import Counted, final, last, prior, sample
from course_lib.schedules import LinearVP, uniform
from course_lib.sde_samplers import ancestral, euler_maruyama
from course_lib.targets import GaussianMixture, ring

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
torch.backends.cudnn.allow_tf32 = False                         # a GPU would round to three digits, and RK45 chase the rounding


def seeded(seed, device="cpu"):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator(device).manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# Four garments that the network has never seen. We add noise until nothing is left of them, and let the sampler of
# chapter 02 walk back, twice. **Does it bring them back?**

# %%
teacher = recipes.load("fashion_teacher", device)
grid = uniform(50, teacher.schedule)
garments = data.fashion_mnist("test")[0][[0, 2, 8, 18]].to(device)                             # (4, 1, 28, 28)
alpha, sigma = levels(teacher, garments, grid[0])
noised = alpha * garments + sigma * torch.randn(garments.shape, generator=seeded(0)).to(device)
walks = [final(teacher, noised, grid, ancestral, seeded(seed, device)).x for seed in (1, 2)]
plotting.image_rows([garments, *walks], ["a picture", "walk 1", "walk 2"], "noised, and walked back")
plt.show()
print(f"share of the picture in the noise: alpha = {alpha:.4f}")

# %% [markdown]
# *Three rows of four garments. The second and third row begin at the same noise, made from the first row, and show
# other garments, in each row different ones. (One of them is a boot below the boot: a boot of another cut.)*
#
# The walk forgets. Where it comes from is lost in the first noise, and where it goes is decided by the noise on the
# way. So the sampler of chapter 02 can make pictures, but there are three things that it cannot do:
#
# * **encode** a picture: name the noise that belongs to it,
# * tell **how likely** the picture is: infinitely many walks lead to it, and their probabilities would have to be added
#   up,
# * take **long steps**: its paths are rough at every scale, as we shall see, and no rule for smooth curves helps.
#
# One equation repairs all three.
#
# ## 1 · A flow without noise
#
# **The simplest case: one Gaussian on a line.** The data are $\mathcal N(m, \tau^2)$. Then $x_t=\alpha
# x_0+\sigma\varepsilon$ is Gaussian too, with mean $\alpha m$ and width $w$, where $w^2 = \alpha^2\tau^2+\sigma^2$. Which
# map takes samples of $p_t$ to samples of $p_s$, *with no noise at all*? A stretch about the mean:
#
# $$x_s - \alpha_s m = \frac{w_s}{w_t}\,\big(x_t - \alpha_t m\big). \tag{3.1}$$
#
# Now let $s$ move. The point moves with it, and its velocity is the derivative of (3.1) with respect to $s$ at $s=t$:
#
# $$\frac{dx}{dt} = \alpha' m + \frac{w'}{w}\,(x-\alpha m).$$
#
# What are the two rates? (2.5) says that a mean grows as $(\alpha m)' = f\,\alpha m$, and a variance as $(w^2)' =
# 2f\,w^2+g^2$ (there for a fixed $x_0$; but a random start changes nothing in how one step shrinks and adds noise). With
# $(w^2)' = 2ww'$,
#
# $$\frac{w'}{w} = \frac{(w^2)'}{2w^2} = f + \frac{g^2}{2w^2}.$$
#
# **That is where the factor ½ comes from**: noise feeds the *variance* at the rate $g^2$, and a width grows, in
# proportion, half as fast as its square. Put both rates in; $f\alpha m$ and $f(x-\alpha m)$ add up to $fx$:
#
# $$\frac{dx}{dt} = f\,x + \frac{g^2}2\cdot\frac{x-\alpha m}{w^2} = f\,x-\tfrac12\,g^2\,\nabla\log p_t(x), \tag{3.2}$$
#
# for $-(x-\alpha m)/w^2$ is the score of $p_t$, by (1.2). The Gaussian has left the formula; only its score is in it.
# That smells of a general law, and (2.12) with $\lambda=0$ is the same equation.
#
# **The general case** takes two small facts, both on a line. *First*, points that move with a velocity $v(x)$ take
# their density $p$ along. What is between $a$ and $b$ changes by what flows in at $a$, less what flows out at $b$; in a
# short time $h$ that is $h\,[v(a)p(a) - v(b)p(b)]$. Divide by $h$ and by the length $b-a$, and let both go to 0:
#
# $$\frac{\partial p}{\partial t} = -\frac{\partial}{\partial x}\big(v\,p\big)
#  \qquad\text{(the continuity equation)}. \tag{3.3}$$
#
# *Second*, noise. A kick $d$ of mean 0 and variance $g^2h$ moves the density to the average of $p(x-d)$ over $d$.
# Expand: $p(x) - p'(x)\,d + \tfrac12p''(x)\,d^2$; on average the middle term vanishes, and $d^2$ becomes $g^2h$. So
# noise alone makes $\partial p/\partial t = \tfrac12g^2p''$. And now the trick of the whole chapter, the one of (1.3),
# $p' = p\,(\log p)'$:
#
# $$\tfrac12 g^2\,p'' = \tfrac12g^2\,\frac{\partial}{\partial x}\Big(p\,\frac{\partial\log p}{\partial x}\Big)
#  = -\frac{\partial}{\partial x}\Big(\underbrace{-\tfrac12g^2\,\frac{\partial\log p}{\partial x}}_{\text{a velocity}}\;p\Big).
#  \tag{3.4}$$
#
# Compare with (3.3): **to the density, noise is a velocity.** It carries the crowd from where it is dense to where it
# is thin, down the score. Add the drift, which is a velocity anyway, and the forward SDE changes its density exactly as
# the velocity
#
# $$v(x,t) = f(t)\,x - \tfrac12\,g(t)^2\,\nabla\log p_t(x) \tag{3.5}$$
#
# does. Start from the same density, and the two have the same density at all times. $dx/dt=v(x,t)$ is the **probability
# flow ODE** (ordinary differential equation). In more dimensions each coordinate adds its own term to (3.3) and (3.4),
# and the result reads the same. And going *back* is nothing new: an ODE has no noise, so one walks the same curve in
# the other direction.
#
# **Exercise 3.1 · ●○○ · 6 min · eq. (3.5)**
#
# Write the velocity. `score(D, x, t)` is the score; the rates are given. For the way back nothing changes sign here:
# $v$ is $dx/dt$, and a step back will multiply it by a negative $dt$.

# %% exercise="3.1"
def my_velocity(D, x, t):                                       # x (B, ...), t () or (B,) -> (B, ...)
    f, g2 = per_row(D.schedule.drift(t), x), per_row(D.schedule.diffusion2(t), x)
    ### BEGIN SOLUTION one line: eq. (3.5)
    return f * x - g2 / 2 * score(D, x, t)
    ### END SOLUTION


# %% check="3.1"
# NBVAL_CHECK_OUTPUT
my_velocity = exercise("3.1", my_velocity)

# %% [markdown]
# **Is it right?** Two tests that need no sampler. On a Gaussian it must be the derivative of the stretch (3.1). On a
# mixture, whose density $p_t(x)$ we know at all $x$ and $t$, the two sides of the continuity equation (3.3) must be
# equal; we take all three derivatives by automatic differentiation.

# %%
def slope(function, u):                                         # the derivative of function at every entry of u
    return torch.func.jvp(function, (u,), (torch.ones_like(u),))[1]


c, m, width = LinearVP(), 0.6, 0.4
bell = GaussianMixture([[m]], width)
x, t = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None], torch.tensor(0.4, dtype=torch.float64)


def w(t):                                                       # the width of x_t
    return (c.alpha(t) ** 2 * width**2 + c.sigma(t) ** 2).sqrt()


def stretched(x, t, s):                                         # eq. (3.1), the exact flow of a Gaussian
    return c.alpha(s) * m + w(s) / w(t) * (x - c.alpha(t) * m)


moving = slope(lambda s: stretched(x, t, s), t)
assert torch.allclose(my_velocity(bell.denoiser(c), x, t), moving)                              # eq. (3.2)

# %%
pair = GaussianMixture([[-1.0], [1.0]], 0.25, [0.7, 0.3])
D_pair = pair.denoiser(c)


def p(x, t):                                                    # the exact density of x_t: x (N, 1), t () -> (N, 1)
    a, v = c.alpha(t), c.alpha(t) ** 2 * pair.stds**2 + c.sigma(t) ** 2
    return (pair.weights * (-((x - a * pair.means[:, 0]) ** 2) / (2 * v)).exp() / (2 * math.pi * v).sqrt()).sum(1, keepdim=True)


change = slope(lambda t: p(x, t), t)
inflow = -slope(lambda x: my_velocity(D_pair, x, t) * p(x, t), x)
print(f"largest |dp/dt| {change.abs().max():.3f}, largest difference of the two sides {(change - inflow).abs().max():.1e}")
assert torch.allclose(change, inflow, atol=1e-10)                                               # eqs. (3.3) to (3.5)

# %% [markdown]
# The flow of this mixture can be seen whole, in a picture with time to the right, $x$ upwards, and the density in grey.
# We start eleven points of noise on the right and walk them to the left, along the ODE, and beside it along the reverse
# SDE.
#
# **Prediction 3.1.** The paths of the SDE cross each other all the time. What do the paths of the ODE do?
#
# * **a**: cross as well, since both have the same densities,
# * **b**: never cross,
# * **c**: cross only near the end, where they crowd together.

# %% predict="3.1"
predict("3.1", "b")

# %%
ts = uniform(400, c)
start = torch.erfinv(torch.linspace(-0.9, 0.9, 11, dtype=torch.float64))[:, None] * 2**0.5      # evenly spread quantiles
u = torch.linspace(-2.6, 2.6, 140, dtype=torch.float64)
shade = torch.stack([pair.marginal(c, t).log_prob(u[:, None]).exp() for t in ts[::4]], 1)      # (140, 101)
bundles = {"ODE": torch.stack([start, *sample(D_pair, start, ts, heun)]),
           "SDE": torch.stack([start, *sample(D_pair, start, ts, euler_maruyama, seeded(3))])}
figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.9), sharey=True)
for ax, (name, xs) in zip(axes, bundles.items()):
    ax.pcolormesh(ts[::4], u, shade.clamp(max=0.9), cmap=plt.get_cmap("Greys", 6), rasterized=True, shading="nearest")
    ax.plot(ts, xs[..., 0], color=plotting.ESTIMATE if name == "ODE" else plotting.SECOND, lw=0.8)
    ax.set(title=name, xlabel="t: data on the left, noise on the right", ylim=(-2.6, 2.6))
plt.show()

# %%
reveal("3.1")

# %% [markdown]
# *Two panels over the same grey density, which splits towards the left into two bands. Left, the eleven paths of the
# ODE: smooth curves that keep their order, eight of which end in the lower band. Right, the paths of the SDE: jagged,
# crossing many times.*
#
# In one dimension this says everything: the order of the points is kept, so the lowest 70 % of the noise must become
# the lowest 70 % of the data. **The watershed is known before any step is taken**: it is the point with 70 % of the
# noise below it, and the data's gap has 70 % below it too.

# %%
watershed = 2**0.5 * torch.erfinv(torch.tensor([[2 * 0.7 - 1]], dtype=torch.float64))          # 70 % of N(0, 1) lie below
sides = torch.cat([watershed - 0.02, watershed + 0.02])
ends = final(D_pair, sides, ts, heun).x[:, 0]
print(f"start at {sides[0, 0]:.3f} and {sides[1, 0]:.3f}: end at {ends[0]:.3f} and {ends[1]:.3f}")
assert ends[0] < 0 < ends[1]

# %% [markdown]
# ## 2 · The same marginals
#
# Now on the ring of eight spots. The ODE's samples against exact ones at five times, the SDE's, and the **floor** of
# chapter 02, the distance between two sets of exact samples. An instrument is worth something only if it can say no, so
# there is a fourth column: the ODE with the ½ forgotten. **Which of the three keep to the floor?**

# %%
D, N = ring().denoiser(LinearVP()), 20_000 if full else 2000
ts, moments = uniform(300, D.schedule), (75, 150, 225, 270, 300)
x_T = prior(D, (N, 2), seeded(4), dtype=torch.float64)


def too_far(D, x, t, s, z=None, cond=None):                     # an Euler step with the full score
    return x + (s - t) * (2 * my_velocity(D, x, t) - D.schedule.drift(t) * x)


samplers = {"ODE": heun, "SDE": euler_maruyama, "no half": too_far}
with torch.no_grad():
    states = {name: torch.stack([x_T, *sample(D, x_T, ts, step, seeded(5))]) for name, step in samplers.items()}

# %%
def truth(t, seed):
    return ring().marginal(D.schedule, t).sample(N, seeded(seed))


floors = {i: [sliced_wasserstein(truth(ts[i], 10 + k), truth(ts[i], 30 + k)) for k in range(8)] for i in moments}
print("    t   " + "".join(f"{name:>9}" for name in samplers) + "    floor (range of eight)")
for i in moments:
    found = {name: sliced_wasserstein(xs[i], truth(ts[i], 10)) for name, xs in states.items()}
    print(f"{ts[i]:.4f}  " + "".join(f"{d:9.4f}" for d in found.values()) + f"    {min(floors[i]):.4f} to {max(floors[i]):.4f}")
    assert max(found["ODE"], found["SDE"]) < 2 * max(floors[i])                                # the same marginals

# %% [markdown]
# ODE and SDE stay at the floor or below it, at all five times; the ODE without the ½ does not, anywhere. It has all the
# pull of the reverse SDE and none of its noise, so its cloud shrinks. In the picture, the two that pass:

# %%
figure, axes = plt.subplots(2, 4, figsize=(8, 4.2))
for row, name in zip(axes, ("ODE", "SDE")):
    for ax, i in zip(row, moments[1:]):
        marginal, extent = ring().marginal(D.schedule, ts[i]), 2.6
        plotting.shaded(marginal.log_prob, extent, ax, n=60)
        plotting.scatter(states[name][i, :100], ax, extent, f"{name}, t = {ts[i]:.2f}", size=6)
        ax.plot(*states[name][i - 75:i + 1, :6].unbind(-1), color=plotting.SECOND, lw=0.7)
plt.show()

# %% [markdown]
# *Two rows of four moments: a grey cloud becomes a ring of eight spots, and in both rows the orange dots fill the grey.
# The blue tails, the last 75 steps of six points, are scribbles in the lower row. In the upper row they are smooth, and so
# short at first that the dots hide them.*
#
# That is the claim: **one score, two perspectives.** Ask for the density at a time $t$, and nobody can tell the ODE
# from the SDE. Ask for a path, and they have nothing in common. How little, one number says. **How long is a path, in
# steps of different fineness?**

# %%
for n in (50, 200, 800):
    lengths = []
    for name in ("ODE", "SDE"):
        xs = torch.stack([x_T[:200], *sample(D, x_T[:200], uniform(n, D.schedule), samplers[name], seeded(6))])
        lengths.append((xs[1:] - xs[:-1]).norm(dim=-1).sum(0).mean())
    print(f"{n:4} steps: mean length of a path {lengths[0]:6.2f} (ODE) {lengths[1]:6.2f} (SDE)")

# %% [markdown]
# The ODE's path has a length. The SDE's gets longer and longer: $n$ kicks, each of the size $\sqrt{1/n}$, add up to
# $\sqrt n$, so four times the steps make a path about twice as long. A curve that is rough at every scale cannot be
# followed in long steps. A smooth one can, and for smooth curves there are two centuries of good methods.
#
# ## 3 · Solvers, and their order
#
# **Euler.** The exact step from $t$ to $s$ is $x_s = x_t + \int_t^s v\,d\tau$. Take the slope for constant, and the
# integral is a rectangle:
#
# $$x_s \approx x_t + (s-t)\,v(x_t, t). \tag{3.6}$$
#
# In a step of length $h$ the slope changes by about $h$ times something, so the step is wrong by about $h^2$. There are
# $1/h$ steps, so the error at the end goes like $h^2/h = h^1$: **order 1**.
#
# **Heun.** A trapezoid is better than a rectangle: use the mean of the slopes at both ends. The slope at the far end is
# unknown, since we are not there yet; Euler's guess of the far point is good enough:
#
# $$v_1 = v(x_t, t), \qquad \tilde x = x_t+(s-t)\,v_1, \qquad v_2 = v(\tilde x, s), \qquad
# x_s \approx x_t + (s-t)\,\tfrac12(v_1+v_2). \tag{3.7}$$
#
# A trapezoid misses an integral over $h$ by about $h^3$; and $\tilde x$, wrong by $h^2$, is multiplied by $h$, which is
# $h^3$ as well. So the error at the end goes like $h^2$: **order 2**, halve the step and the error falls to a quarter.
# The price is two evaluations a step.
#
# **Exercise 3.2 · ●●○ · 10 min · eq. (3.7)**
#
# Write Heun's step. `velocity(D, x, t)` is the library's copy of your exercise 3.1; `t` and `s` may be one number or
# one per row. Two evaluations are enough.

# %% exercise="3.2"
def my_heun(D, x, t, s, z=None, cond=None):                     # x (B, ...); t, s () or (B,) -> (B, ...); z, cond not used
    h = per_row(s - t, x)                                       # < 0 on the way back
    ### BEGIN SOLUTION three lines: the slope here, the slope at the trial point, the step with their mean
    v1 = velocity(D, x, t)
    v2 = velocity(D, x + h * v1, s)
    return x + h * (v1 + v2) / 2
    ### END SOLUTION


# %% check="3.2"
# NBVAL_CHECK_OUTPUT
my_heun = exercise("3.2", my_heun)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right for batch size 1 only*: you multiply by `s - t` itself; use `h`, which is shaped to multiply `x`.
# * *NaN*: a slope asked for at a negative time, or at $t=0$. Is $\tilde x$'s time $s$?
# * *Close, but not right*: each slope needs the point *and* the time that belong together.
#
# </details>
#
# A check of one step can't tell order 2 from a good order 1, but a measurement can. On the Gaussian the exact end is
# known, by (3.1). **How does the error fall when the steps get shorter?** On logarithmic axes a power $n^{-k}$ is a
# line of slope $-k$.

# %%
D_bell, ns = bell.denoiser(c), (20, 40, 80, 160, 320)
z = torch.randn(200, 1, generator=seeded(7), dtype=torch.float64)


def error_on_bell(step, n):
    exact = stretched(z, c.t_max, c.t_min)
    return (final(D_bell, z, uniform(n, c), step).x - exact).abs().mean().item()


errors = {step: [error_on_bell(step, n) for n in ns] for step in (euler, my_heun)}
orders = {step: math.log2(e[-2] / e[-1]) for step, e in errors.items()}
print("measured order, from the two finest grids:  " + "  ".join(f"{k.__name__} {v:.2f}" for k, v in orders.items()))
assert abs(orders[euler] - 1) < 0.06 and abs(orders[my_heun] - 2) < 0.1                         # eqs. (3.6) and (3.7)

# %% [markdown]
# The order promises a better end *eventually*. A network is paid by the evaluation, though, and Heun pays twice.
#
# **Prediction 3.2.** On the ring, with **ten evaluations** each, ten steps of Euler or five of Heun: who ends nearer to
# the exact end of the path?
#
# * **a**: Heun, by its higher order,
# * **b**: Euler,
# * **c**: much the same, since the cost is the same.

# %% predict="3.2"
predict("3.2", "b")

# %%
starts = x_T[:300]
exact_end = last(rk45, D, starts, uniform(1, D.schedule), rtol=1e-8, atol=1e-8).x             # section 4 explains rk45
budgets = (6, 10, 20, 40, 80, 160, 320)


def error_on_ring(step, n):
    return (final(D, starts, uniform(n, D.schedule), step).x - exact_end).norm(dim=1).mean().item()


euler_curve = [error_on_ring(euler, k) for k in budgets]
heun_curve = [error_on_ring(my_heun, k // 2) for k in budgets]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
looks = plotting.looks(["Euler", "Heun", "RK45"])
for step, e in errors.items():
    k = 1 if step is euler else 2
    left.plot(ns, [e[-1] * (ns[-1] / n) ** k for n in ns], color=plotting.TRUTH, lw=3, label=f"slope −{k}")
    left.plot(ns, e, **looks[name := ["Euler", "Heun"][k - 1]], label=name)
right.plot(budgets, euler_curve, **looks["Euler"], label="Euler")
right.plot(budgets, heun_curve, **looks["Heun"], label="Heun")
left.set(xscale="log", yscale="log", xlabel="steps", ylabel="error at the end", title="one Gaussian")
left.set_xticks(ns, ns)
left.minorticks_off()
right.set(xscale="log", yscale="log", xlabel="evaluations", title="the ring, at equal cost")
left.legend()
right.legend()
plt.show()
print(f"ring, 10 evaluations: Euler {euler_curve[1]:.3f}, Heun {heun_curve[1]:.3f};  "
      f"320: Euler {euler_curve[-1]:.1e}, Heun {heun_curve[-1]:.1e}")

# %%
reveal("3.2")

# %% [markdown]
# *Left, error against steps on the Gaussian: Euler's dots follow the grey line of slope −1, Heun's the one of slope −2.
# Right, the ring at equal evaluations: on the left side Heun's curve lies above Euler's, then they cross, and far right
# Heun is well below.*
#
# "Higher order always wins" is false. Order is a promise about short steps, and with few evaluations the steps are not
# short. Chapter 04 is about what to do there. And the error is no single number: **it depends on where you start.** Let
# a start walk round a circle in the noise. Most starts have one spot that they flow to; between two of them lies a
# watershed, as above.

# %%
def circle(degrees, radius=1.0):                                # starting points (B, 2) on a circle in the noise
    angle = torch.as_tensor(degrees, dtype=torch.float64).reshape(-1) * (math.pi / 180)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


degrees = torch.linspace(0, 90, 91)
goal = last(rk45, D, circle(degrees), uniform(1, D.schedule), rtol=1e-6, atol=1e-6).x
_, ax = plt.subplots(figsize=(8, 2.8))
lines = plotting.looks(runs := [(euler, 10), (heun, 5), (heun, 20)])
for step, n in runs:
    e = (final(D, circle(degrees), uniform(n, D.schedule), step).x - goal).norm(dim=1)
    ax.plot(degrees, e, **{**lines[step, n], "marker": ""}, label=f"{step.__name__}, {n} steps")
ax.set(yscale="log", xlabel="direction of the start, in degrees (a spot lies at 0, 45, 90)", ylabel="error at the end",
       xticks=range(0, 91, 15))
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Error against the direction of the start, three curves that rise around 22.5 and 67.5 degrees, the watersheds between
# spots: with short steps to a narrow peak, with long steps to a broad hump.*
#
# Move the start across a watershed yourself, and change the solver and its steps: on the left, near two of the spots,
# the path (colour, a dot for each step) beside the exact one (grey), on the right where this run stands among all
# step counts. The picture above is a summary of what you will find.

# %%
from course_lib.widgets import flipbook

SOLVERS = {"Euler": (euler, 1), "Heun": (heun, 2)}


def page(solver, start, steps):
    step, cost = SOLVERS[solver]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8))
    plotting.shaded(ring().log_prob, 2.2, left, n=120)
    x = circle(start)
    exact = torch.stack([x, *rk45(D, x, uniform(40, D.schedule), rtol=1e-5, atol=1e-5)])
    left.plot(*exact[:, 0].T, color=plotting.TRUTH, lw=3)
    mine = torch.stack([x, *sample(D, x, uniform(steps, D.schedule), step)])
    left.plot(*mine[:, 0].T, "o-", color=plotting.ESTIMATE)
    left.set(title=f"{solver}, {steps} steps", xlim=(0.7, 1.9), ylim=(-0.3, 1.3))               # two spots of the ring
    counts = (2, 3, 5, 8, 12, 20, 40)
    e = {n: (final(D, x, uniform(n, D.schedule), step).x - exact[-1]).norm().item() for n in counts}
    right.plot([cost * n for n in counts], list(e.values()), color=plotting.ESTIMATE)
    right.plot(cost * steps, e[steps], "o", color=plotting.ESTIMATE)
    right.set(xscale="log", yscale="log", xlabel="evaluations", ylim=(1e-3, 1),
              title=f"error {e[steps]:.3f}, {cost * steps} evaluations")
    right.set_xticks([cost * n for n in counts], [cost * n for n in counts])
    right.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    return figure


flipbook(page, solver=list(SOLVERS), start=[20, 22, 23, 25, 0, 5, 10, 15], steps=[5, 8, 12, 20, 40, 2, 3])

# %% [markdown]
# ## 4 · Let the solver choose
#
# How long may a step be? Where the path is straight, long; where it bends, short. A solver can find out by itself. It
# computes each step with two methods of different order; **the difference between their answers is a free estimate of
# the error** of the worse one. Is it below a tolerance, the step is kept; is it above, the step is tried again with a
# shorter $h$. With Euler (error of a step $\approx Kh^2$) inside Heun we would choose the next step so that its error
# meets the tolerance:
#
# $$K h_{\text{new}}^2 = \text{tol}\quad\text{and}\quad Kh^2 = \text{error}\qquad\Longrightarrow\qquad
# h_{\text{new}} = h\,\Big(\frac{\text{tol}}{\text{error}}\Big)^{1/2}, \tag{3.8}$$
#
# times 0.9 to be on the safe side. The closing exercise builds this solver. The standard one, **RK45**, does the same
# with orders 5 and 4 and the power $1/5$; six new slopes a step make both (Dormand and Prince, 1980). `rk45(D, x, ts,
# rtol, atol)` takes tolerances where others take steps. **What does a digit cost, and where do the steps go?**

# %%
class Listening:
    """A denoiser that remembers the times at which it was asked."""

    def __init__(self, D):
        self.D, self.schedule, self.times = D, D.schedule, []

    def __call__(self, x, t, cond=None):
        self.times.append(float(t))
        return self.D(x, t, cond)


asked = {}
for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
    ear = Listening(D)
    x = last(rk45, ear, starts, uniform(1, D.schedule), rtol=tol, atol=tol).x
    asked[tol] = (ear.times, (x - exact_end).norm(dim=1).mean().item())
    print(f"tolerance {tol:.0e}: {len(ear.times):4} evaluations, mean error {asked[tol][1]:.1e}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
left.plot(budgets, euler_curve, **looks["Euler"], label="Euler")
left.plot(budgets, heun_curve, **looks["Heun"], label="Heun")
evaluations, far = zip(*[(len(times), e) for times, e in asked.values()])
left.plot(evaluations, far, **looks["RK45"], label="RK45")
left.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="mean error at the end")
left.legend()
right.eventplot([times for times, _ in list(asked.values())[:5]], lineoffsets=range(5), linelengths=0.7, lw=0.8,
                color=plotting.THIRD)
right.set(xlabel="t at which the score was asked", yticks=range(5), yticklabels=[f"{tol:.0e}" for tol in list(asked)[:5]],
          title="RK45, by tolerance")
plt.show()

# %% [markdown]
# *Left, error against evaluations: RK45 starts late, at some thirty evaluations and above both others, and then falls
# more steeply than they do. Right, one row of ticks a tolerance: they are densest at small t, where the paths turn into their
# spots, and sparse in between; at t = 1 each run begins with a few cautious steps.*
#
# More steps are more accurate and more expensive, with every solver; the solver only sets the price. RK45 is the one
# for *exact* answers, which the rest of this chapter needs. It is not the one for ten evaluations: it does not even get
# started.
#
# ## 5 · How likely is a picture?
#
# **A stretch of the line.** Let $y = ax$ with $a>0$. An interval of length $\ell$ becomes one of length $a\ell$, with
# the same probability in it. So the density is divided by $a$: $\log p_{\text{new}}(ax) = \log p(x) - \log a$.
#
# **A small step of the flow** takes $x$ to $x+h\,v(x)$, and its neighbour $x+\ell$ to $x+\ell+h\,v(x+\ell)$. Their
# distance grew from $\ell$ to $\ell\,(1+h\,v'(x))$: near $x$ the step *is* a stretch, with $a = 1+hv'(x)$. And
# $\log(1+hv') \approx hv'$, so a point that goes with the flow sees its log-density fall at the rate $v'$:
#
# $$\frac{d}{dt}\log p_t(x_t) = -\,v'(x_t,t). \tag{3.9}$$
#
# **In $d$ dimensions** a small cube becomes a small parallelepiped, whose volume is the determinant of $I+hJ$, with the
# Jacobian $J=\partial v/\partial x$. To first order in $h$ only the product of its diagonal counts,
# $\prod_i(1+hJ_{ii})\approx1+h\sum_iJ_{ii}$: every other term of a determinant has at least two factors from off the
# diagonal, each with an $h$. That sum is the trace of $J$, or the *divergence* of $v$, and
#
# $$\log p_{t_{\min}}(x) = \log p_{t_{\max}}\big(x_{t_{\max}}\big)
#   + \int_{t_{\min}}^{t_{\max}} \operatorname{tr}\frac{\partial v}{\partial x}(x_t,t)\;dt. \tag{3.10}$$
#
# Read it aloud: walk from the picture up to the noise, add up how much the flow spreads on the way, and look up the
# density of the noise where you arrive. No approximation is in it; this is the *instantaneous change of variables*
# (Chen et al., 2018). And it is worth a second look: the *score* is $\nabla\log p$, and here its flow gives us $\log p$
# itself, the normalising constant included.
#
# **The trace is expensive**: one backward pass for each of 784 dimensions. You know the remedy from (1.6). With random
# signs $e$, a *probe* with $\mathbb E[ee^\top]=I$ (Hutchinson's estimator),
#
# $$\operatorname{tr}J = \mathbb E\big[e^\top J\,e\big]. \tag{3.11}$$
#
# **Exercise 3.3 · ●●○ · 12 min · eq. (3.11)**
#
# `v` is a function `(B, ...) -> (B, ...)`. Return $v(x)$ and, for each row, the estimate $e^\top Je$. As in exercise
# 1.3, `torch.autograd.grad(number, x)[0]` with the number $v(x)\cdot e$, summed over everything, gives the rows $e^\top
# J$.

# %% exercise="3.3"
def my_hutchinson(v, x, probe):                                 # function, (B, ...), (B, ...) -> (B, ...), (B,)
    x = x.detach().requires_grad_()
    y = v(x)
    ### BEGIN SOLUTION two lines: the rows e'J (B, ...), and the estimate (B,), a sum over all but the rows
    eJ = torch.autograd.grad((y * probe).sum(), x)[0]
    estimate = (eJ * probe).flatten(1).sum(1)
    ### END SOLUTION
    return y.detach(), estimate


# %% check="3.3"
# NBVAL_CHECK_OUTPUT
my_hutchinson = exercise("3.3", my_hutchinson)

# %% [markdown]
# **How good is one probe?** On the ring at one time, the exact divergence of one point against 2000 probes.

# %%
def signs(shape, generator):
    return 2 * torch.randint(2, shape, generator=generator, dtype=torch.float64) - 1


point, t = torch.tensor([[0.9, 0.5]], dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
_, exact = exact_divergence(lambda x: my_velocity(D, x, t), point)
_, estimates = my_hutchinson(lambda x: my_velocity(D, x, t), point.expand(2000, 2), signs((2000, 2), seeded(8)))
error = estimates.std() / 2000**0.5
print(f"exact {exact.item():.3f}; mean of 2000 probes {estimates.mean():.3f} ± {error:.3f}")
print("what a single probe said:", "  ".join(f"{value:.3f}" for value in estimates[:8]))
assert abs(estimates.mean() - exact) < 4 * error                                                # eq. (3.11)

# %% [markdown]
# Right on average, and each one off, here by far: with signs in two dimensions $e^\top Je$ is the trace plus or minus
# $J_{12}+J_{21}$, and nothing else. So in two dimensions we take the exact divergence, and keep the probe for pictures,
# where the errors of very many pairs of coordinates partly cancel.
#
# **Exercise 3.4 · ●●○ · 10 min · eq. (3.10)**
#
# Write the log-likelihood by Euler steps *upwards*, from data to noise. `ts` are $n+1$ **rising** times; `slopes(x, t)`
# returns the velocity `(B, ...)` and its divergence `(B,)`, both at once; `log_prior(x)` is the log-density `(B,)` at
# the last time. `pairwise(ts)` runs through the pairs of neighbouring times.

# %% exercise="3.4"
def my_log_likelihood(slopes, x, ts, log_prior):                # x (B, ...) at ts[0], ts (n+1,) rising -> log p (B,)
    gained = torch.zeros(len(x), dtype=x.dtype)
    ### BEGIN SOLUTION about five lines: a loop over the pairs, in it the two slopes and two updates; then the result
    for t, u in pairwise(ts):
        v, divergence = slopes(x, t)
        x = x + (u - t) * v
        gained = gained + (u - t) * divergence
    return log_prior(x) + gained
    ### END SOLUTION


# %% check="3.4"
# NBVAL_CHECK_OUTPUT
my_log_likelihood = exercise("3.4", my_log_likelihood)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Your values are far too small or too large*: is the divergence multiplied by the length of the step?
# * *The sign*: the flow spreads upwards (data are narrow, noise is wide), so the divergence is positive on the whole,
#   and the data's density is higher than the noise's.
# * *Almost right*: `v` and `divergence` must come from the same point and time.
#
# </details>
#
# **Against the truth.** The mixture's own log-density is known. First your Euler walk, whose error halves with the
# step; then the library's `log_likelihood`, the same integral by RK45. Both end at $t_{\max}$ in $\mathcal
# N(0,\sigma^2I)$, which is nearly right, since a little of the signal is left there; handing over the exact density at
# $t_{\max}$ shows how much that matters.

# %%
points = ring().sample(200, seeded(9))
known = ring().marginal(D.schedule, D.schedule.t_min).log_prob(points)                         # exact, in nats
at_top = ring().marginal(D.schedule, D.schedule.t_max).log_prob


def slopes(x, t):
    return exact_divergence(lambda x: my_velocity(D, x, t), x)


print(f"mean log-density, known: {known.mean():.4f} nats")
for n in (100, 200, 400):
    found = my_log_likelihood(slopes, points, uniform(n, D.schedule).flip(0), at_top)
    print(f"yours, {n} steps:         mean error {(found - known).abs().mean():.4f} nats")
for name, log_prior in (("N(0, sigma^2 I)", None), ("exact density", at_top)):
    found = log_likelihood(D, points, rtol=1e-7, atol=1e-7, prior=log_prior)
    print(f"RK45, {name:15}:   mean error {(found - known).abs().mean():.1e} nats")
assert (found - known).abs().max() < 1e-4                                                       # eq. (3.10)

# %% [markdown]
# RK45 has the log-density to four digits behind the point (to seven, with the exact density at the top), from nothing but
# scores. (A *nat* is the unit of a natural logarithm.)
#
# ### Pictures
#
# Now Fashion-MNIST. A picture has only 256 grey levels, and a density of discrete values would be infinite; so each
# level is first spread evenly over its 256th of the range (`dequantise`). The log-density is then told in **bits per
# dimension**: how many bits a pixel costs if this model is used to compress the picture. A model that takes all
# grey levels for equally likely pays 8; less is more likely.
#
# **Prediction 3.3.** We take garments that the model has not seen, the same upside down, as negatives, one with its
# pixels shuffled, plain noise, and an empty picture, nothing but background (which is drawn white here). Which is the
# *most likely* of all?
#
# * **a**: the garments: the model has seen nothing else,
# * **b**: the garments, or the same upside down, to which a pixel is a pixel,
# * **c**: the empty picture.

# %% predict="3.3"
predict("3.3", "c")

# %%
order = torch.randperm(784, generator=seeded(10))
pictures = {"garment": garments, "upside down": garments.flip(2), "negative": -garments[:2],
            "shuffled": garments[2:3].flatten(1)[:, order].reshape(1, 1, 28, 28),
            "noise": 2 * torch.rand(1, 1, 28, 28, generator=seeded(11)) - 1, "empty": -torch.ones(1, 1, 28, 28)}
names = [name for name, x in pictures.items() for _ in x]
x0 = dequantise(torch.cat([x.cpu() for x in pictures.values()]), seeded(12)).to(device)         # (13, 1, 28, 28)


def bits(seed, tol=3e-2):                                                                       # (13,), with one probe
    log_p = log_likelihood(teacher, x0, hutchinson(1, seeded(seed)), rtol=tol, atol=tol)
    return bits_per_dim(log_p, (1, 28, 28)).cpu()


two_probes = torch.stack([bits(13), bits(14)])                                                  # (2, 13)
stricter = bits(13, tol=1e-2)                                                                   # (13,), the first probe again

# %%
cost = two_probes.mean(0)
rank = cost.argsort()
figure, axes = plt.subplots(2, 7, figsize=(8.8, 3.5))
for ax, i in zip(axes.flat, rank):
    plotting.image_grid(x0[i:i + 1], 1, ax, f"{cost[i]:.2f}\n{names[i]}")
axes.flat[-1].set_axis_off()
plt.show()
for name in pictures:
    mine = cost[[n == name for n in names]]
    spread = f" ± {mine.std() / len(mine)**0.5:.2f}" if len(mine) > 1 else ""
    print(f"{name:12} {mine.mean():.2f}{spread} bits per dimension ({len(mine)} picture{'s' * (len(mine) > 1)})")
upright, turned = (cost[[n == name for n in names]] for name in ("garment", "upside down"))
print("upside down, beside the same garment upright:", "  ".join(f"{d:+.2f}" for d in turned - upright))
print(f"two probes differ by {(two_probes[0] - two_probes[1]).abs().mean():.2f} on average;  "
      f"a stricter tolerance changes no cost by more than {(stricter - two_probes[0]).abs().max():.2f}")
assert cost.argmin() == names.index("empty")

# %%
reveal("3.3")

# %% [markdown]
# *Thirteen small pictures in two rows, ordered by bits per dimension, with the most likely first: it is the empty one.
# Garments and upside-down garments follow, mixed with each other; then the negatives, and last the shuffled picture and
# plain noise.*
#
# This has puzzled many: **the most likely picture is not a likely one to see.** Density is one thing, and how much room
# there is another: there is one empty picture, and there are very many others, each of lower density, which together hold
# all the probability. (The mode of a Gaussian in 784 dimensions is its centre, and no sample is ever found near it.) So
# a likelihood does rank noise below clothes, and it is not a test for "is this a garment". Turned over, a garment costs a
# little more or much the same, and far less than garments differ among themselves: no threshold tells the two groups
# apart.
#
# How sure are these numbers? The loose tolerance matters least, and the probe little. The figures behind ± are standard
# errors over two or four pictures, hence rough: the order of the distant groups stands, while garments and upside-down
# ones overlap. And all of it is about *this network's* flow, which was trained to denoise and not for its likelihood.
#
# ## 6 · From a picture to its noise, and back
#
# Now the failing case. The ODE walked upwards gives each picture *one* noise, its code, and walked down again gives the
# picture. `encode` is RK45 from `ts[-1]` to `ts[0]`. **Do we get our garments back?**

# %%
ends = uniform(1, teacher.schedule)                             # only the two ends matter
for tol in (1e-2, 1e-3, 1e-4):
    up = Counted(teacher)
    codes = encode(up, garments, ends, rtol=tol, atol=tol)
    down = last(rk45, teacher, codes, ends, rtol=tol, atol=tol)
    gap = (down.x - garments).abs()
    print(f"tolerance {tol:.0e}: {up.nfe} + {down.nfe} evaluations, root mean square difference "
          f"{gap.square().mean().sqrt():.4f}, largest of a pixel {gap.max():.4f}")
assert gap.square().mean().sqrt() < 1e-2
print(f"one grey level of 256 is {2 / 255:.4f}")

# %%
plotting.image_rows([garments, codes, down.x, walks[0]], ["a picture", "its code", "decoded", "SDE, above"])
plt.show()
alpha, sigma = levels(teacher, garments, ends[-1])
grainy = alpha * garments + sigma * torch.randn(garments.shape, generator=seeded(18)).to(device)
for name, code in (("as above", codes), ("with the noise of t_min", encode(teacher, grainy, ends, rtol=1e-3, atol=1e-3))):
    print(f"lengths of the codes, {name:24}" + "  ".join(f"{r:.1f}" for r in code.flatten(1).norm(dim=1).tolist()))
print(f"of pure noise: {784**0.5:.1f}")

# %% [markdown]
# *Four rows: the garments, their codes, noise in which the garment's outline can still be made out, the decoded
# pictures, which cannot be told from the first row, and the strangers of the failing case.*
#
# The failing case is mended, by a noise that belongs to the picture (from the noise drawn above, the ODE too would make
# other garments): at the last tolerance the root mean square difference is below a grey level. (Single pixels can be off
# by more; RK45 watches over the mean square.) The first tolerance is far too loose for a round trip.
#
# A look at the lengths keeps us honest: with a perfect score the codes would be pure noise, about 28 long, and they are
# shorter. The pictures of the codes say where: in the background, which became a regular pattern, and a garment's shape
# shows through. A small part of it is that a clean picture has not even the little noise of $t_{\min}$: add that noise
# before encoding, and the codes get longer, but not long enough. The rest is the network's error: to its flow, these
# garments are not typical. Round trips do not see it, since the way down undoes the way up, errors of the score and all.
#
# **Between two codes.** With codes we can mix pictures: decode a point between two of them. Which point? The tempting
# one is the average.
#
# **Prediction 3.4.** Two independent draws of pure noise in 784 dimensions both have a length of about $\sqrt{784}=28$.
# How long is the point half-way between them?
#
# * **a**: about 28,
# * **b**: about 20,
# * **c**: about 14.

# %% predict="3.4"
predict("3.4", "b")

# %%
a, b = torch.randn(2, 1000, 784, generator=seeded(15))
print(f"lengths {a.norm(dim=1).mean():.1f} and {b.norm(dim=1).mean():.1f}, half-way {((a + b) / 2).norm(dim=1).mean():.1f};  "
      f"shortest of the 1000 draws: {a.norm(dim=1).min():.1f}")
angle = torch.nn.functional.cosine_similarity(a, b).acos() * (180 / math.pi)
print(f"angle between them: {angle.mean():.1f} ± {angle.std():.1f} degrees")

# %%
reveal("3.4")

# %% [markdown]
# Not one draw of noise in a thousand is as short as that average: the network has never been asked about such a point.
# In high dimension the noise lives on a thin shell, almost a sphere, and the way between two points must follow it.
# Look at the plane that contains $a$ and $b$, at the angle $\theta$ to each other, $\cos\theta = a\cdot b/(|a|\,|b|)$.
# We want the vector at the angle $u\theta$ from $a$; write it $x_u = q_a\,a+q_b\,b$ (let both have length 1). Its part at
# right angles to $a$ is $q_b\sin\theta$ and must be $\sin u\theta$, which gives $q_b$; by symmetry $q_a$ is the same with
# $1-u$ for $u$:
#
# $$x_u = \frac{\sin\big((1-u)\,\theta\big)}{\sin\theta}\;a + \frac{\sin(u\,\theta)}{\sin\theta}\;b
# \qquad\text{(spherical interpolation)}. \tag{3.12}$$
#
# **Exercise 3.5 · ●●○ · 8 min · eq. (3.12)**
#
# Write it for batches: `a` and `b` hold one vector (point or picture) a row, each pair with an angle of its own, and
# `u` is a number. The vectors may have any length: the angle needs their lengths, the sum (3.12) takes `a` and `b` as they
# are. `per_row` takes the angles `(B,)` to a shape that multiplies `a`.

# %% exercise="3.5"
def my_slerp(a, b, u):                                          # a, b (B, ...), u a number in [0, 1] -> (B, ...)
    ### BEGIN SOLUTION three lines: the cosines (B,), the angles shaped to multiply a, the sum of (3.12)
    cosine = (a * b).flatten(1).sum(1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
    theta = per_row(cosine.acos(), a)
    return (((1 - u) * theta).sin() * a + (u * theta).sin() * b) / theta.sin()
    ### END SOLUTION


# %% check="3.5"
# NBVAL_CHECK_OUTPUT
my_slerp = exercise("3.5", my_slerp)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN*: the arc cosine of something larger than 1. Divide by *both* lengths.
# * *Shapes do not match*: norms and products are taken over everything but the rows, `.flatten(1)` first.
#
# </details>
#
# From the first garment's code to the third one's, both ways. **What does the short cut cost?**

# %%
fractions = (0.0, 0.25, 0.5, 0.75, 1.0)
a, b = codes[:1], codes[2:3]
chord = torch.cat([(1 - u) * a + u * b for u in fractions])
arc = torch.cat([my_slerp(a, b, u) for u in fractions])
decoded = last(rk45, teacher, torch.cat([chord, arc]), ends, rtol=1e-3, atol=1e-3).x
plotting.image_rows(list(decoded.chunk(2)), ["chord", "arc"], "from one garment to another")
plt.show()
for name, x, pictures in (("chord", chord, decoded[:5]), ("arc", arc, decoded[5:])):
    print(f"{name:6} lengths " + " ".join(f"{r:5.1f}" for r in x.flatten(1).norm(dim=1).tolist())
          + "   contrasts " + " ".join(f"{picture.std():.2f}" for picture in pictures))

# %% [markdown]
# *Two rows of five pictures that lead from one garment to another. The two ends agree; in the middle the chord's
# pictures are emptier than the arc's.*
#
# The contrast, the standard deviation of a picture's pixels, says the same: half-way the chord's is the lower one. It is
# one pair of garments, and their codes are too short themselves, as we saw: the arc keeps to *their* lengths, not to the
# shell's 28, and its middle is no proper garment either.
#
# ## 7 · Closing task: a solver that chooses its steps
#
# **Exercise 3.6 · ●●● · 20 min · eqs. (3.7) and (3.8)**
#
# Everything is in section 4; nothing there was code. Write `my_adaptive(v, x, t, end, h, tol)`: it takes `x` from time
# `t` **down** to `end`, beginning with a step of length `h > 0`, and returns `x` and the number of evaluations of `v(x,
# t)`. As long as $t>$ `end`, try a step:
#
# * it goes from $t$ to $s = t-h$, but never beyond `end`; if it is cut short, $h$ is now $t-s$,
# * with two evaluations compute Euler's point and Heun's; the *error* is the largest absolute difference between them,
#   over all rows and coordinates,
# * if the error is at most `tol`, move to Heun's point (the better one, for free), and to the time $s$; otherwise stay,
# * in both cases the next $h$ is 0.9 times (3.8).

# %% exercise="3.6"
def my_adaptive(v, x, t, end, h, tol):                          # x (B, ...), t > end, h > 0, tol -> x (B, ...), evaluations
    evaluations = 0
    ### BEGIN SOLUTION about eleven lines: a while loop, the trial, the error, the decision, the new h; then the two results
    while t > end:
        s = max(t - h, end)
        h = t - s
        v1 = v(x, t)
        trial = x - h * v1
        better = x - h / 2 * (v1 + v(trial, s))
        evaluations += 2
        error = (better - trial).abs().max().item()
        if error <= tol:
            x, t = better, s
        h = 0.9 * h * (tol / error) ** 0.5
    return x, evaluations
    ### END SOLUTION


# %% check="3.6"
# NBVAL_CHECK_OUTPUT
my_adaptive = exercise("3.6", my_adaptive)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Stopped after 20 seconds*: a step that is rejected must get clearly shorter. Is the ratio of (3.8) the right way
#   up, and the square root in place? And the 0.9? Without it the next step may just miss the tolerance, again and
#   again, for ever.
# * *The result is right, the number of evaluations is not*: each trial costs two, kept or not.
# * *Close, but not right*: a new $h$ after rejected steps only, or one that starts from the $h$ before the cut.
#
# </details>
#
# **What does the freedom to choose buy?** On the ring, your solver against Heun's equal steps, at the same number of
# evaluations (rejected trials included):

# %%
for tol in (0.2, 0.1, 0.03):
    found, evaluations = my_adaptive(lambda x, t: velocity(D, x, t), starts, D.schedule.t_max, D.schedule.t_min, 0.01, tol)
    even = final(D, starts, uniform(evaluations // 2, D.schedule), heun).x
    mine, theirs = ((x - exact_end).norm(dim=1).mean() for x in (found, even))
    print(f"tolerance {tol:4}: {evaluations:4} evaluations, error {mine:.4f};  Heun in equal steps: {theirs:.4f}")
    assert mine < theirs

# %% [markdown]
# The errors are clearly smaller than with equal steps, and nobody had to choose a grid. A tolerance is a wish for *each
# step*, though, not a promise for the end: the two are related, and they are not the same number.

# %% [markdown]
# ## The ledger
#
# Euler and Heun on the ring, live, beside what ships with the course. The distance is the one of chapter 02, from
# samples, folded by the ring's symmetry as there.

# %%
def exact_samples(seed):
    return fold(ring().sample(N, seeded(seed)))


rows = []
floor = sum(sliced_wasserstein(exact_samples(40 + k), exact_samples(50 + k)) for k in range(6)) / 6
for step, n in ((euler, 100), (euler, 20), (heun, 50), (heun, 10)):
    begin = time.perf_counter()
    result = final(D, x_T, uniform(n, D.schedule), step)
    seconds = time.perf_counter() - begin
    distance = sliced_wasserstein(fold(result.x), exact_samples(17))
    rows.append(ledger.Row(f"{step.__name__} (live)", "ring", result.nfe, result.depth, N, seconds, "this machine",
                           "sliced_w2_folded", distance, floor, N, 1, weights="exact"))
path = data.ROOT / "data" / "ledger.csv"
kinds = ("euler", "heun", "rk45", "euler_maruyama")
committed = [r for r in (ledger.read(path) if path.exists() else []) if r.dataset == "ring" and r.method.split()[0] in kinds]
ledger.table(rows + [r for r in committed if r.metric == "sliced_w2_folded"],
             "method NFE seconds batch device value floor n status").show()

# %% [markdown]
# With 10 or 30 evaluations Euler's ODE steps end nearer to the data than Euler-Maruyama's steps of the SDE; with 100 the
# two are close. RK45 comes down to the floor with some sixty, where a hundred are not enough for the SDE, though a thousand
# are. And at 20 evaluations Heun is behind Euler in this distance too.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | flow of one Gaussian | $x_s-\alpha_sm = (w_s/w_t)\,(x_t-\alpha_tm)$ |
# | points carry their density | $\partial p/\partial t = -\nabla\cdot(v\,p)$ |
# | noise, to the density, is a velocity | $-\tfrac12g^2\,\nabla\log p_t$ |
# | probability flow ODE | $dx/dt = f\,x-\tfrac12g^2\,\nabla\log p_t(x)$ |
# | Euler, order 1 | $x_t+(s-t)\,v(x_t,t)$, one evaluation |
# | Heun, order 2 | $x_t+(s-t)\,\tfrac12\,[v_1+v_2]$, two evaluations |
# | adaptive | $h_{\text{new}} = 0.9\,h\,(\text{tol}/\text{error})^{1/2}$ |
# | log-likelihood | $\log p(x_0) = \log p(x_{t_{\max}})+\int\operatorname{tr}(\partial v/\partial x)\,dt$ |
# | Hutchinson | $\operatorname{tr}J = \mathbb E[e^\top Je]$ |
# | between two codes | the arc, not the chord |
#
# * ODE and SDE share every marginal and no path. The ODE's paths are smooth, never meet, and can be walked both ways.
# * More steps are more accurate and more expensive; order tells how fast the error falls *once steps are short*.
# * A high density does not make a picture a typical one.
#
# **Limits.** "The same marginals" holds for the exact score. With a learned one ODE and SDE have different errors:
# the ODE never corrects what went wrong, while the noise of the SDE lets it forget a part of it. The log-likelihoods
# of pictures are those of the *model's* flow at $t_{\min}$, with two probes and a few pictures; literature uses all
# 10,000. Errors were measured from the exact end of each path, which is stricter than asking for the right
# distribution.
#
# **What is still open.** Ten evaluations. An ODE solver in $t$ needs many steps, and yet there are cases in which it
# ought to need none: if the data are one single point, every path is known in advance. Which part of the ODE is the
# hard one, and which could be solved with a pencil? That is chapter 04.

# %% [markdown]
# ## Further reading
#
# * Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole, *Score-based generative modeling through
#   stochastic differential equations*, 2021, arXiv:2011.13456: the probability flow ODE (section 4.3), its likelihoods
#   and encodings.
# * R. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, *Neural ordinary differential equations*, 2018, arXiv:1806.07366:
#   (3.9).
# * W. Grathwohl, R. Chen, J. Bettencourt, I. Sutskever, D. Duvenaud, *FFJORD*, 2019, arXiv:1810.01367: Hutchinson's
#   estimator for (3.10).
# * T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space of diffusion-based generative models*, 2022,
#   arXiv:2206.00364: Heun's method for sampling, and what to do with noise besides.
# * E. Nalisnick, A. Matsukawa, Y. Teh, D. Gorur, B. Lakshminarayanan, *Do deep generative models know what they don't
#   know?*, 2019, arXiv:1810.09136: the surprise of section 5.
# * J. Dormand, P. Prince, *A family of embedded Runge-Kutta formulae*, Journal of Computational and Applied Mathematics
#   6, 1980: RK45.
# * K. Shoemake, *Animating rotation with quaternion curves*, SIGGRAPH 1985: spherical interpolation.
