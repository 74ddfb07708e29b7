# ---
# course:
#   title: Consistency models and flow maps
#   minutes: 105
#   needs: [4, 7]
#   shows: the end of the path learnt in one shot, with a teacher and without; maps from any time to any other
# ---

# %% [markdown]
# # 08 · Consistency models: the end of the path in one shot
#
# Chapter 07 made steps longer by halves: two steps became one, again and again. This chapter asks for everything at
# once. A start $x_T$ has *one* path through the probability flow, and that path has *one* end. So there is a function
# from starts to ends, and we can try to learn **that function** rather than the slope which, followed patiently,
# leads to its value. It is called a **consistency function**, since all points of a path must agree about where the
# path ends.
#
# After this chapter you can
#
# * **derive** the consistency function of a Gaussian and **implement** it (exercise 8.1), and **derive** the
#   coefficients that make a network the identity where the path ends (exercise 8.2),
# * **predict** where a learnt one errs (prediction 8.1), and **measure** it against the exact ends,
# * **implement** consistency training, which needs no teacher (exercise 8.3), **derive** what it learns on a
#   Gaussian, and **predict** its extreme case (prediction 8.2),
# * **implement** the total derivative along the flow, which replaces pairs of times by one (exercise 8.4),
# * **implement** sampling in several steps (exercise 8.5), and **predict** when more steps hurt (prediction 8.3),
# * **transfer** all this to maps from any time to any other, and to a way of learning them that the chapter has not
#   shown (exercise 8.6).
#
# Allow an hour and three quarters: 65 minutes for the exercises, the rest for reading. The end of section 4 is a good
# place for a break.

# %%
import math
import os
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.consistency import FlowMap, Trainee, consistency_step, flow_map_step, mean_flow_loss, neighbours, pseudo_huber
from course_lib.denoiser import EDM, X0, Eps, FlowVelocity, Student, V, levels, per_row, told, velocity
from course_lib.fast_samplers import ddim, dpm_solver_pp, midpoint
from course_lib.metrics import fold, sliced_wasserstein
from course_lib.networks import MLP
from course_lib.sampling import final, last, prior
from course_lib.schedules import VE, CosineVP, Flow, LinearVP, SubVP, angle, log_snr_uniform
from course_lib.targets import GaussianMixture, ring
from course_lib.training import train
from course_lib.widgets import flipbook, progress

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
SCHEDULES = (LinearVP(), CosineVP(), VE(), SubVP(), Flow())


def seeded(seed, device="cpu"):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator(device).manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# The ring of eight spots, and its *exact* denoiser: no network, no error. We allow one evaluation. The best guess of
# the picture at pure noise is $D(x_T, t_{\max})$. **Where do a thousand of these guesses lie, and where do the same
# thousand paths really end?** Each start is coloured by the spot at which its path ends.

# %%
schedule = CosineVP()
D = ring().denoiser(schedule)
N = 4000 if full else 1000
x_T = prior(D, (N, 2), seeded(0), dtype=torch.float64)
truth = last(dpm_solver_pp, D, x_T, log_snr_uniform(100, schedule), order=3).x                  # the end of every path
spot = torch.cdist(truth, ring().means).argmin(1)
colours = [plotting.CLASSES[k] for k in spot.tolist()]

panels = plotting.panels(3, size=2.9)
for ax, x, extent, title in zip(panels, (x_T, D(x_T, schedule.t_max), truth), (3.8, 2.4, 2.4),
                                ("starts", "one evaluation of D", "ends of the paths")):
    plotting.scatter(x[:1000], ax, extent, title, color=colours[:1000], size=6)
plt.show()

# %% [markdown]
# *Left, a cloud of starts: eight coloured sectors, like slices of a cake. Middle, one dot, in the middle of the ring,
# where there is no data at all. Right, the eight spots, each of one colour.*
#
# The denoiser is perfect, and its answer is useless. It was asked another question: "what is the *mean* of all the
# data that may hide behind this noise?" Behind pure noise anything may hide, so the answer is the mean of everything.
# ("One step should do" fails not for want of training.) The question that we mean is "where does *this path* end?",
# and the left picture shows that it has a clear answer: a slice of a cake for each spot.

# %% [markdown]
# ## 1 · The question, and the answer for a Gaussian
#
# Let $x_t$ run along a path of the probability flow ODE and end in $x_0$. The **consistency function** is
#
# $$f(x_t, t) = x_0 . \tag{8.1}$$
#
# It has the signature of a denoiser, $f(x, t)$, and the same currency, a clean $x_0$. But its value is no mean: the
# library's `score` refuses it.
#
# **A Gaussian first.** Data $\mathcal N(m, c^2)$ make $x_t=\alpha_tx_0+\sigma_t\varepsilon$ Gaussian with the centre
# $\alpha_tm$ and some width $w_t$ (signal and noise are independent: which widths add, and how?). We know from
# chapter 04 what the flow does: **every sample keeps its place in the Gaussian**,
#
# $$\frac{x_t-\alpha_tm}{w_t} \;\text{ never changes along a path.} \tag{8.2}$$
#
# At $t=0$ the same place belongs to $\mathcal N(m,c^2)$, and that is all there is to it.
#
# **Exercise 8.1 · ●○○ · 8 min · eqs. (8.1) and (8.2)**
#
# Write `my_end(x, t, schedule, mean, std)`: the consistency function of $\mathcal N(m, c^2)$, with $m=$ `mean` and
# $c=$ `std`, under any schedule. First, on paper, find $w_t$. `per_row(schedule.alpha(t), x)` is $\alpha_t$ with a
# shape that multiplies `x`, whether `t` is one time or one per row; the same goes for $\sigma_t$.

# %% exercise="8.1"
def my_end(x, t, schedule, mean, std):                          # x (B, ...); t () or (B,); numbers -> (B, ...)
    alpha, sigma = per_row(schedule.alpha(t), x), per_row(schedule.sigma(t), x)
    ### BEGIN SOLUTION two lines: the width of x_t, and the same place in the data
    width = (alpha**2 * std**2 + sigma**2).sqrt()
    return mean + std / width * (x - alpha * mean)
    ### END SOLUTION


# %% check="8.1"
# NBVAL_CHECK_OUTPUT
my_end = exercise("8.1", my_end)

# %% [markdown]
# **Yours against the ODE.** We let a fine solver carry starts from $t=0.9$ to $t=0.4$ and to the data, for every
# schedule. Your function must name the same end from either place:

# %%
x = torch.randn(500, 2, generator=seeded(1), dtype=torch.float64)
for each in SCHEDULES:
    cloud = GaussianMixture([[0.5, 0.5]], 0.7).denoiser(each)
    high, low = torch.tensor([0.9, 0.4], dtype=torch.float64)
    ts = each.time_of_log_snr(torch.linspace(each.log_snr(high), each.log_snr(low), 200, dtype=torch.float64))
    below = last(dpm_solver_pp, cloud, x, ts, order=3).x
    assert (my_end(x, high, each, 0.5, 0.7) - my_end(below, low, each, 0.5, 0.7)).abs().max() < 1e-4  # one path, one end
    assert torch.allclose(my_end(x, torch.tensor(0.0), each, 0.5, 0.7), x)                      # at t = 0: itself
cloud = GaussianMixture([[0.0, 0.0]], 0.5).denoiser(schedule)
start = prior(cloud, (4000, 2), seeded(2), dtype=torch.float64)
f_start = my_end(start, torch.tensor(schedule.t_max, dtype=torch.float64), schedule, 0.0, 0.5)
print(f"width of D(x_T): {cloud(start, schedule.t_max).std():.4f}    of f(x_T): {f_start.std():.4f}    of the data: 0.5000")

# %% [markdown]
# One evaluation, and the width of the data up to the luck of the draw. Compare the two formulas: for $m=0$ the denoiser
# is $\frac{\alpha c^2}{w^2}\,x$, yours $\frac cw\,x$. Both are linear; they differ in *how much* they believe in $x$.
#
# Everything that follows rests on the two facts that the cell has checked:
#
# $$f(x_t, t) = f(x_r, r)\ \text{ for all } t, r \text{ on one path}, \qquad\qquad f(x, 0) = x . \tag{8.3}$$
#
# And conversely: a function with both properties *is* the consistency function. By the first it has one value on the
# whole path, and by the second that value is $x_0$. So we need no table of starts and ends to learn from. It is
# enough to demand (8.3).

# %% [markdown]
# ## 2 · The end that must be nailed down
#
# The first half of (8.3) alone is worthless: the constant function $f=0$ has one value on every path. It is the
# second half that carries all the information, and we do not leave it to training. We *build it in*, by how the
# network $F$ is used:
#
# $$f(x,t) = c_{\text{skip}}(t)\,x + c_{\text{out}}(t)\,F(x, t),
# \qquad c_{\text{skip}}(0) = 1,\quad c_{\text{out}}(0)=0 . \tag{8.4}$$
#
# All our models have this form already; the two coefficients are called the *parameterisation*. If $F$ predicts the
# noise, for instance, then $\hat x_0=(x-\sigma F)/\alpha$, so $c_{\text{skip}}=1/\alpha$ and
# $c_{\text{out}}=-\sigma/\alpha$. **Which of the library's five parameterisations are the identity at $t=0$?**

# %%
alpha, sigma = schedule.alpha(0.0), schedule.sigma(0.0)
for p in (X0(), Eps(), V(), FlowVelocity(), EDM()):
    skip, out = p.c_skip(alpha, sigma), p.c_out(alpha, sigma)
    verdict = "the identity" if skip == 1 and out == 0 else "whatever F says"
    print(f"{type(p).__name__:13} c_skip(0) = {skip:.0f}   c_out(0) = {abs(out):.0f}   {verdict}")

# %% [markdown]
# All but one, and it is easy to see why: at $t=0$ there is no noise to be named, whatever $F$ believes. (A network
# that predicts $x_0$ itself has to *learn* that a clean picture is clean.) So a trained diffusion model can become a
# consistency model without any change of form. In the library a `Student` is such a network: a denoiser's form,
# without the claim to be a mean.
#
# Many published models never go down to $t=0$: their paths end at a smallest noise level $\sigma_{\min}>0$, and the
# identity belongs *there*. It is easily overlooked: a training script beside the library diffusers had it at 0 (pull
# request 6833).
#
# **Exercise 8.2 · ●●○ · 10 min · eq. (8.4)**
#
# Take $\alpha=1$ (a VE schedule), so that $\sigma$ itself tells the time. The EDM parameterisation of Karras et al.
# (2022), for data of the width $\sigma_d$, is
#
# $$c_{\text{skip}} = \frac{\sigma_d^2}{\sigma^2+\sigma_d^2}, \qquad
# c_{\text{out}} = \frac{\sigma_d\,\sigma}{\sqrt{\sigma^2+\sigma_d^2}} .$$
#
# The letter $\sigma$ has two jobs here. In $c_{\text{skip}}$ and in front of the root it says *how far the path's end
# is*. Under the root of $c_{\text{out}}$ the sum $\sigma^2+\sigma_d^2$ is *the variance of $x$*, which keeps the
# network's own output of unit size. Write `my_coefficients(sigma, sigma_min, sigma_data)`: $c_{\text{skip}}$ and
# $c_{\text{out}}$ for paths that end at $\sigma_{\min}$. Which of the two jobs changes? ($\sigma$ is the time here, so
# "how far" is a time that is left: a difference of two $\sigma$, not of their squares.)

# %% exercise="8.2"
def my_coefficients(sigma, sigma_min, sigma_data):              # (B,), two numbers -> c_skip (B,), c_out (B,)
    ### BEGIN SOLUTION two or three lines: how far the end is, and both coefficients with it
    away = sigma - sigma_min
    return sigma_data**2 / (away**2 + sigma_data**2), sigma_data * away / (sigma**2 + sigma_data**2).sqrt()
    ### END SOLUTION


# %% check="8.2"
# NBVAL_CHECK_OUTPUT
my_coefficients = exercise("8.2", my_coefficients)

# %% [markdown]
# **How wrong is the other way?** A picture at the end of its path, $\sigma=\sigma_{\min}$, and a network that says
# something random of unit size:

# %%
picture, F = torch.randn(2, 1000, generator=seeded(3), dtype=torch.float64) * torch.tensor([[0.5], [1.0]])
for sigma_min in (0.002, 0.02, 0.2):
    edge, one = torch.tensor([sigma_min], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    errors = [(skip * picture + out * F - picture).std() for skip, out in (
        my_coefficients(edge, sigma_min, 0.5), (EDM(0.5).c_skip(one, edge), EDM(0.5).c_out(one, edge)))]
    print(f"sigma_min {sigma_min:5}: the picture changes by {errors[0]:.4f} with yours, by {errors[1]:.4f} with EDM as it is")

# %% [markdown]
# Our own schedules all reach $t=0$, and the last time of every grid in this chapter is 0, so `V()` will do as it is.

# %% [markdown]
# ## 3 · Learning from a teacher: consistency distillation
#
# Now demand the first half of (8.3), on a grid $t_0 > t_1 > \dots > t_n = 0$. Draw an interval, $t=t_i$ and
# $r=t_{i+1}$; make a noisy $x_t=\alpha_tx_0+\sigma_t\varepsilon$ from data; and let a **teacher** walk one solver
# step along the path, from $x_t$ to $x_r$. Both lie on one path, so $f$ should say the same of them:
#
# $$\text{loss} = \mathbb E\Big[\frac{1}{t-r}\;d\big(f(x_t,t),\; f^-(x_r, r)\big)\Big] . \tag{8.5}$$
#
# The $f^-$ is the point. It is a *copy* of $f$ which gets **no gradient**: of the two answers, the one from nearer
# the data is the teacher, and only the other one is to move. What can such a target know? In the interval next to the
# data, $r=0$, and $f^-(x_0,0)=x_0$ is exact, by construction. So $f$ learns the truth at $t_{n-1}$; then the copy
# knows it there, and teaches $t_{n-2}$; and so the knowledge travels outwards, interval by interval, up to pure
# noise. (Those who know reinforcement learning will recognise bootstrapping.)
#
# Three details. The distance $d$ is the *pseudo-Huber* distance
# $\sqrt{\lVert\cdot\rVert^2/\text{dim}+\kappa^2}-\kappa$ with $\kappa=0.1$, a square for small differences and a
# modulus for large ones, so that a few starts near a border do not rule everything. The weight $1/(t-r)$ makes close
# pairs count, which differ little; it is a choice (the library's `distillation_loss` takes the gap as a share of
# $\sigma/\alpha$ instead). And the copy follows *slowly*: after each step, $f^-\leftarrow0.9\,f^-+0.1\,f$.
#
# In code the teacher is the exact denoiser, with `midpoint`, a second-order step of two evaluations. The library's
# `Trainee` keeps $f$ and its slow copy together, `neighbours(ts)` draws intervals of a grid, and `levels(f, x, t)` are
# $\alpha_t$ and $\sigma_t$, shaped to multiply `x`:

# %%
def distillation(f, slow, x0, noise, t, r):                     # two functions; (B, 2), (B, 2), (B,), (B,) -> ()
    alpha_t, sigma_t = levels(f, x0, t)
    x_t = alpha_t * x0 + sigma_t * noise
    with torch.no_grad():                                       # the target stands still
        x_r = midpoint(D, x_t, t, r)                            # the teacher's step along the path
        target = slow(x_r, r)
    return (pseudo_huber(f(x_t, t) - target, 0.1) / (t - r)).mean()                             # eq. (8.5)


spots = ring().sample(20_000, seeded(4)).float()


def learn(loss, ts, decay=0.9):
    """A consistency function of the ring, from pairs of adjacent times of the grid, and the seconds that it took."""
    def on_batch(trainee, x0, generator):
        trainee.grow()                                          # the copy follows f, a little
        t, r = neighbours(ts)(len(x0), schedule, generator, trainee.age.item())
        return loss(trainee.f, trainee.slow, x0, torch.randn(x0.shape, generator=generator, device=x0.device), t, r)

    torch.manual_seed(0)
    f = Student(MLP(width=96, fastest=8.0), schedule, V())
    trained = train(on_batch, Trainee(f, decay), [spots], steps=2000 if full else 600, batch=256, lr=6e-3, ema=0.99,
                    device=device)
    return trained.model.f.cpu(), trained.seconds


eight = torch.linspace(schedule.t_max, 0, 9)
distilled, distilled_seconds = learn(distillation, eight)
print(f"trained in {distilled_seconds:.0f} s")

# %% [markdown]
# **Prediction 8.1.** We know the exact end of every path. Where, in the plane of starts, are the errors of the learnt
# $f(\cdot,t_{\max})$ largest?
#
# * **a**: far out, where there were few starts to learn from,
# * **b**: along the borders between starts that go to neighbouring spots,
# * **c**: everywhere alike: it is one smooth function.

# %% predict="8.1"
predict("8.1", "b")

# %%
plane = plotting.mesh(2.8, 60)
ends = last(dpm_solver_pp, D, plane, log_snr_uniform(40, schedule), order=3).x
with torch.no_grad():
    off = (distilled(plane.float(), schedule.t_max) - ends).norm(dim=1)
    shot = distilled(x_T.float(), schedule.t_max)

left, middle, right = plotting.panels(3, size=2.9)
nearest = torch.cdist(ends, ring().means).argmin(1).reshape(60, 60)
left.imshow(nearest.T, origin="lower", extent=(-2.8, 2.8) * 2, cmap=ListedColormap(plotting.CLASSES), vmin=0, vmax=9, alpha=0.7)
middle.imshow(off.reshape(60, 60).T, origin="lower", extent=(-2.8, 2.8) * 2, cmap="Greys", vmin=0, vmax=0.6)
for ax, title in ((left, "which spot, exactly"), (middle, "error of f, up to 0.6")):
    ax.set(xticks=[], yticks=[], title=title)
plotting.shaded(ring().log_prob, 2.4, right, "one step")
plotting.scatter(shot, right, extent=2.4, size=5)
plt.show()
off = (shot - truth).norm(dim=1)
radius, eighths = x_T.norm(dim=1), torch.atan2(x_T[:, 1], x_T[:, 0]) * 8 / (2 * math.pi)
to_border = (0.5 - (eighths - eighths.round()).abs()) * 2 * math.pi / 8                         # the angle up to the nearest
border, far = radius * to_border.sin() < 0.05, radius > 2.5
for name, rows in (("nearer than 0.05 to a border", border), ("elsewhere", ~border & ~far),
                   ("elsewhere, far out", ~border & far)):
    print(f"{name:29} {rows.double().mean():4.0%} of the starts, mean error {off[rows].mean():.3f}, "
          f"largest {off[rows].max():.2f}")

# %%
reveal("8.1")

# %% [markdown]
# *Left, the plane of starts in eight sectors. Middle, the error: dark rays along the borders between the sectors,
# which meet in the very middle, light areas between them, and some grey in the corners, where hardly any start lies.
# Right, a thousand samples of one evaluation each: eight spots over the grey truth, with bridges of stray dots between
# neighbours.*
#
# This is the price of one step. The flow tears apart what lies together: along a border, starts a hair's breadth
# apart end at different spots, so $f$ is nearly a jump there, and a network makes a ramp of it. Starts on the ramp
# land *between* the spots.
#
# **How good is it in numbers?** The mean error against the exact end of each path, and the sliced Wasserstein
# distance to fresh data (folded to one spot, since how many samples fall on each is a lottery), beside its floor:

# %%
real = fold(ring().sample(N, seeded(5)))
floor = sliced_wasserstein(fold(ring().sample(N, seeded(6))), real)


def judge(name, x, nfe):
    print(f"{name:36} evaluations {nfe:2}   path error {(x - truth).norm(dim=1).mean():.3f}   distance to data "
          f"{sliced_wasserstein(fold(x.double()), real):.3f}")


print(f"{'floor: data against data':89} {floor:.3f}")
judge("the exact denoiser, DDIM", final(D, x_T, torch.linspace(schedule.t_max, 0, 65).double(), ddim).x, 64)
judge("the exact denoiser, DDIM", final(D, x_T, eight.double(), ddim).x, 8)
judge("the exact denoiser, at once", D(x_T, schedule.t_max), 1)
judge("distilled", shot, 1)

# %% [markdown]
# One evaluation of the student is not worth 64 of the teacher, but it has left the blur far behind, and by its distance
# to data it is not far from eight of them.
#
# And the slow copy? Later work (Song and Dhariwal, 2024) found that it can be dropped, $f^-=f$ without gradient. That
# is a matter of the learning rate. **Here, with ours, what does a copy do that follows at once?**

# %%
hasty, _ = learn(distillation, eight, decay=0.0)
with torch.no_grad():
    judge("distilled, the copy follows at once", hasty(x_T.float(), schedule.t_max), 1)

# %% [markdown]
# Every interval then chases a target that jumps with each batch, and the errors of eight intervals add up. With a
# gentler learning rate and a long training it may follow at once; in our seconds it must not.

# %% [markdown]
# ## 4 · No teacher: consistency training
#
# The teacher's only task was to find $x_r$ from $x_t$. Could we do it without one? For any $x_0$ and $\varepsilon$ we
# know a line through $x_t$: keep both, and go down to $r$,
#
# $$x_t=\alpha_tx_0+\sigma_t\varepsilon, \qquad x_r = \alpha_rx_0+\sigma_r\varepsilon
# \qquad\text{(the same } x_0 \text{, the same } \varepsilon).$$
#
# That line is not the path; a path follows the *average* of all lines through its place (chapter 04). But the average
# is what matters. A DDIM step of a perfect teacher is $\alpha_r\hat x_0+\sigma_r\hat\varepsilon$, where $\hat x_0$
# and $\hat\varepsilon$ are the means of $x_0$ and $\varepsilon$ given $x_t$. So
#
# $$\mathbb E[x_r \mid x_t] = \text{the teacher's DDIM step from } x_t . \tag{8.6}$$
#
# The line is a *noisy but unbiased* teacher, and noise in a target is nothing new: the denoising loss of chapter 01
# lives by it. "The target is random, so it can't be learned" is wrong here as it was there. Let us check (8.6) where
# everything can be counted: on the ring, given an $x_t$, the lines through it are known. We weigh a million draws of
# $x_0$ by how likely each makes our $x_t$.

# %%
t, r, x_t = 0.6, 0.5, torch.tensor([[0.4, 0.9]], dtype=torch.float64)
(alpha_t, sigma_t), (alpha_r, sigma_r) = ((schedule.alpha(v), schedule.sigma(v)) for v in (t, r))
x0 = ring().sample(1_000_000, seeded(7))
noise = (x_t - alpha_t * x0) / sigma_t                          # the line through x_t that starts in x0
likely = (-noise.square().sum(1) / 2).softmax(0)
mean = likely @ (alpha_r * x0 + sigma_r * noise)
print("mean of the lines at r:", mean.numpy().round(3), "   teacher's DDIM step:", ddim(D, x_t, t, r)[0].numpy().round(3))
assert (mean - ddim(D, x_t, t, r)).abs().max() < 0.01                                           # eq. (8.6)

# %% [markdown]
# **Exercise 8.3 · ●●○ · 15 min · eq. (8.5) without a teacher**
#
# Write `my_training(f, slow, x0, noise, t, r)`: the loss (8.5) as in `distillation` above, with $x_r$ from the line
# instead of the teacher. Three things must be right: which noise $x_r$ gets, where no gradient may flow (`slow` may
# be `f` itself!), and which of the two states teaches. The distance is again `pseudo_huber(difference, 0.1)`, one
# number a row, and the weight $1/(t-r)$. One evaluation of `f` and one of `slow` do it.

# %% exercise="8.3"
def my_training(f, slow, x0, noise, t, r):                      # two functions; (B, ...) twice; (B,) twice -> ()
    alpha_t, sigma_t = levels(f, x0, t)
    alpha_r, sigma_r = levels(f, x0, r)
    ### BEGIN SOLUTION four or five lines: x_t, x_r, the target, the weighted mean distance
    x_t = alpha_t * x0 + sigma_t * noise
    with torch.no_grad():
        target = slow(alpha_r * x0 + sigma_r * noise, r)
    return (pseudo_huber(f(x_t, t) - target, 0.1) / (t - r)).mean()
    ### END SOLUTION


# %% check="8.3"
# NBVAL_CHECK_OUTPUT
my_training = exercise("8.3", my_training)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Shapes do not match*: `alpha_t` from `levels` is shaped to multiply a picture; `t - r` and the distance have one
#   number a row.
# * *"element 0 of tensors does not require grad"*: only the target belongs under `torch.no_grad()`, not `f(x_t, t)`.
# * *The value is right and the gradient is not*: follow the gradient from the target back: does it meet a weight of
#   `slow`?
#
# </details>
#
# **Your loss, trained exactly as before**, on twelve intervals:

# %%
untaught, untaught_seconds = learn(my_training, torch.linspace(schedule.t_max, 0, 13))
with torch.no_grad():
    judge("distilled", shot, 1)
    judge("trained without a teacher (yours)", untaught(x_T.float(), schedule.t_max), 1)

# %% [markdown]
# It works without any teacher, and for the same few seconds it works less well: its targets are noisier. But noise is
# not its only trouble. Is what it learns even *right*?
#
# **Prediction 8.2.** Train on a Gaussian, to perfection, by the squared error, with *one* interval, from $t_{\max}$ to
# 0. What does $f(x, t_{\max})$ become?
#
# * **a**: the denoiser: practically the mean for every start,
# * **b**: the end of the path from $x$, as with many intervals,
# * **c**: something random, for the line from $x$ could end anywhere.

# %% predict="8.2"
predict("8.2", "a")

# %% [markdown]
# **What is learnt, exactly.** Take the squared error for $d$, and data $\mathcal N(0,c^2)$. The best answer to a
# random target is its mean, so
#
# $$f(x_t,t) = \mathbb E\big[f(x_r, r)\,\big|\,x_t\big] . \tag{8.7}$$
#
# Start at the data: $f(x,0)=x$ is linear. If $f(\cdot,r)$ is linear, it can be pulled out of the mean:
# $f(x_t,t)=f(\mathbb E[x_r|x_t],r)$, and by (8.6) that is $f$ of *the DDIM step*; it is linear again. So from
# interval to interval: **the consistency function that is trained on $n$ intervals is DDIM in $n$ steps**. And for
# that, chapter 04 has a law:
#
# $$f_n = f\;\times\;\prod_{i=1}^n\cos(\theta_{i-1}-\theta_i), \qquad \tan\theta = \frac{\sigma}{\alpha c} . \tag{8.8}$$
#
# Each interval costs a factor of about $1-\frac12(\Delta\theta)^2$, *second order in the gap*; $n$ equal ones, which
# share the right angle between them, cost $\frac12(\frac\pi2)^2/n$, first order. With one interval the factor is
# $\cos 90°=0$.
#
# And when $f$ is curved? Then $\mathbb E[f(x_r)]$ differs from $f(\mathbb E[x_r])$ by half the curvature times the
# variance of $x_r$ given $x_t$. All the lines meet in $x_t$, so at $r$ their spread is proportional to the gap, and
# its square, the variance, is of second order as well. Nothing worse than (8.8) happens. (Distillation from a DDIM
# teacher obeys the same law, for it replaces the mean of the lines by what it is. That is why ours had a second-order
# teacher.)
#
# **Does a fit to samples obey the law?** We solve (8.7) by least squares, interval after interval, from random pairs,
# exactly as training would see them.

# %%
std, ns = 0.5, [1, 2, 4, 8, 16, 32, 64]
x0, noise = torch.randn(2, 200_000, generator=seeded(8), dtype=torch.float64) * torch.tensor([[std], [1.0]])


def at(t):
    return schedule.alpha(t) * x0 + schedule.sigma(t) * noise


def law(ts):
    theta = angle(ts, schedule, std)
    return (theta[:-1] - theta[1:]).cos().prod()


lost, predicted = [], []
for n in ns:
    ts, a = torch.linspace(schedule.t_max, 0, n + 1, dtype=torch.float64), 1.0
    for t, r in pairwise(ts):                                   # the factors multiply, so any order will do
        a = a * (at(r) * at(t)).mean() / at(t).square().mean()  # least squares of a x_r on x_t, eq. (8.7)
    right = my_end(torch.ones(1, 1, dtype=torch.float64), ts[0], schedule, 0.0, std).item()
    lost.append(1 - a.item() / right)
    predicted.append(1 - law(ts).item())
    print(f"{n:3} intervals: {lost[-1]:7.2%} of the width is lost, the law says {predicted[-1]:7.2%}")
    assert abs(lost[-1] - predicted[-1]) < 0.01                                                 # eq. (8.8)

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.2))
ax.plot(ns, predicted, color=plotting.TRUTH, lw=5, label="the law (8.8)")
ax.plot(ns, lost, "o", color=plotting.ESTIMATE, label="fitted to samples")
ax.plot(ns[2:], [2.2 / n for n in ns[2:]], ":", color=plotting.INK, lw=1, label="slope -1")
ax.set(xscale="log", yscale="log", xlabel="intervals n", ylabel="width lost (relative)")
ax.set_xticks(ns, map(str, ns))
ax.set_xticks([], minor=True)
ax.legend()
plt.show()

# %%
reveal("8.2")

# %% [markdown]
# *The lost width against the number of intervals, both logarithmic: it starts at 1, bends, and falls like 1/n; the
# dots of the fit lie on the grey line of the law.*
#
# With twelve intervals, as in your training above, this Gaussian would lose something between the lines for eight and
# for sixteen. A student's error of that kind no training time removes.
#
# So consistency training is a bridge: **one interval is the denoiser, infinitely many are the consistency function.**
# That is how it is done in practice. *Easy consistency tuning* (Geng et al., 2024) takes a finished diffusion model,
# which is the left end of the figure, and closes the gap stage by stage (`closing` in the library); noise levels are
# drawn from a log-normal, the weight is the inverse gap, the distance pseudo-Huber (Song and Dhariwal, 2024). That
# wants more steps than we can take live, so the course ships its result, with the number of its steps; this line
# trains it anew, for as many minutes as the cell below prints:
#
#     course train ring_tuned

# %%
def shipped_student(name):
    """A consistency function that comes with the course, and what its training took, judged by its one step."""
    made = recipes.manifest()[name]
    print(f"{name}: {made['steps']:,} steps, {made['train_seconds'] / 60:.0f} min on {made['device']}")
    f = recipes.load(name)
    with torch.no_grad():
        judge(name, f(x_T.float(), schedule.t_max), 1)
    return f


tuned = shipped_student("ring_tuned")
judge("trained without a teacher (yours)", untaught(x_T.float(), schedule.t_max).detach(), 1)

# %% [markdown]
# Better than the seconds of live training without a teacher, at a price of minutes. As the gap closes, the targets
# differ ever less from the answers, and the noise in them counts ever more; that is what limits it. With a teacher
# there is no such noise. Why not go all the way then, and let the gap be *zero*?

# %% [markdown]
# ## 5 · Zero gap: the total derivative
#
# "One value along the path" means that the derivative *along the path* vanishes. On the path two things move: the
# clock, and $x$, with the slope $v(x,t)=dx/dt$. So
#
# $$\frac{d}{dt} f(x_t,t) = \partial_tf(x,t) + J_f(x,t)\,v(x, t) = 0, \tag{8.9}$$
#
# where $J_f$ is the Jacobian of $f$ by $x$. The tempting wrong idea is to set only $\partial_tf$ to zero: "the same
# answer at all times". But at another time the path is *at another place*. Computing $J_f$ would be dear; its product
# with *one* direction is cheap. `torch.func.jvp(f, (x, t), (dx, dt))` returns the value $f(x,t)$ and its derivative
# when $x$ moves in the direction `dx` while $t$ moves in the direction `dt`, in one forward pass of about twice the
# cost. All four are tensors, `dx` shaped like `x` and `dt` like `t`. For example:

# %%
x, t, dx, dt = torch.tensor([3.0, 2.0, 1.0, 0.0])
value, rate = torch.func.jvp(lambda x, t: t * x**2, (x, t), (dx, dt))
print(f"t x^2 = {value:.0f} at x = 3, t = 2; if only x moves, at speed 1, it changes at the rate 2 t x = {rate:.0f}")

# %% [markdown]
# **Exercise 8.4 · ●●○ · 8 min · eq. (8.9)**
#
# Write `my_rate(f, x, t, slope)`: the total derivative $\frac{d}{dt}f(x_t,t)$ for a growing $t$, where $x$ moves with
# $dx/dt=$ `slope`. `t` has the shape `(B,)`. One pass through `f` gives it.

# %% exercise="8.4"
def my_rate(f, x, t, slope):                                    # function; (B, ...), (B,), (B, ...) -> (B, ...)
    ### BEGIN SOLUTION one or two lines
    _, rate = torch.func.jvp(f, (x, t), (slope, torch.ones_like(t)))
    return rate
    ### END SOLUTION


# %% check="8.4"
# NBVAL_CHECK_OUTPUT
my_rate = exercise("8.4", my_rate)

# %% [markdown]
# **Is it zero where it should be?** On the Gaussian, your consistency function of exercise 8.1 along the exact slope:
# with your derivative, with the clock alone, and, for contrast, the denoiser, which is not constant along a path:

# %%
std, B = 0.5, 200
x, t = torch.randn(B, 2, generator=seeded(9), dtype=torch.float64), torch.linspace(0.1, 0.9, B, dtype=torch.float64)
cloud = GaussianMixture([[0.0, 0.0]], std).denoiser(schedule)
slope = velocity(cloud, x, t)
f = lambda x, t: my_end(x, t, schedule, 0.0, std)               # noqa: E731
print(f"f along the flow: {my_rate(f, x, t, slope).abs().max():.1e}")
print(f"f, clock alone:   {my_rate(f, x, t, torch.zeros_like(x)).abs().max():.1e}")
print(f"D along the flow: {my_rate(lambda x, t: cloud(x, t), x, t, slope).abs().max():.1e}")
assert my_rate(f, x, t, slope).abs().max() < 1e-10                                              # eq. (8.9)

# %% [markdown]
# Training on (8.9) has no gap and no bias of (8.8). What becomes of the gradient of (8.5)? Take half the square for
# $d$: its gradient is $\frac{1}{t-r}\big(f(x_t,t)-f^-(x_r,r)\big)$ times the gradient of $f(x_t,t)$, and with $r\to t$
# the first factor becomes the rate. So push $f(x_t,t)$ against $\frac{df}{dt}$, held still (`continuous_loss` in the
# library; Lu and Song, 2024). The slope $v$ comes from
# a teacher or, as in section 4, from the line: $\alpha'x_0+\sigma'\varepsilon$, whose mean it is. In practice the
# derivative is delicate. A network that hears the time through fast waves has wild derivatives, so the noise
# embedding must be slow (our `fastest=8.0`), the rate is normalised, and half precision is out. So this student, too, was
# trained beforehand: **what does one step of its result give, with the exact slope as its
# teacher?** (`course train ring_continuous` trains it anew.)

# %%
continuous = shipped_student("ring_continuous")
judge("distilled, live", shot, 1)

# %% [markdown]
# No grid, no gap, and one step errs about as little as eight DDIM steps of the exact denoiser do. It is no race with the live
# student, which had 600 steps of training (2000 at scale `full`) where this one had 8000; and each is one run. Section 7 uses
# the same derivative for something larger.

# %% [markdown]
# ## 6 · More than one step
#
# A student that has made its one shot can have another. Take the guess $f(x_t,t)$; it has flaws. Add fresh noise, to
# some level $s<t$, which covers the flaws; and ask $f$ again, for an easier question. For times $t_0>t_1>\dots>t_n=0$
# and fresh noise $z_i$,
#
# $$x_{t_{i+1}} = \alpha_{t_{i+1}}\,f(x_{t_i},t_i) + \sigma_{t_{i+1}}\,z_i . \tag{8.10}$$
#
# If $f$ is exact, each $x_{t_{i}}$ has exactly the distribution of noisy data at $t_i$, so every step is right,
# however many there are. The last time must be 0: there $\alpha=1$ and $\sigma=0$, and the result is the guess
# itself. A grid that ends above 0 leaves the noise of its last time in the pictures. (Users of the first published code
# met that; openai/consistency_models, issue 7.)
#
# **Exercise 8.5 · ●●○ · 10 min · eq. (8.10)**
#
# Write the whole sampler `my_sampler(f, x, ts, noise)`: `x` is the state at `ts[0]`, `ts` has $n+1$ falling times of
# which the last is 0, and `noise[i]` is $z_i$. Return the last state. `levels(f, x, s)` are $\alpha_s$ and
# $\sigma_s$, shaped to multiply `x`. Ask `f` once a step: the last step ends at 0, where nothing is left to ask.

# %% exercise="8.5"
def my_sampler(f, x, ts, noise):                                # (B, ...), (n+1,), (n, B, ...) -> (B, ...)
    for (t, s), z in zip(pairwise(ts), noise):
        ### BEGIN SOLUTION two lines: the levels at the next time, and the guess with fresh noise
        alpha_s, sigma_s = levels(f, x, s)
        x = alpha_s * f(x, t) + sigma_s * z
        ### END SOLUTION
    return x


# %% check="8.5"
# NBVAL_CHECK_OUTPUT
my_sampler = exercise("8.5", my_sampler)

# %% [markdown]
# **What do further steps do for our two students?** The same starts, and times equally spaced from $t_{\max}$ to 0.
# Fresh noise means that we no longer follow one path, so the path error is no measure any more; the distance to data
# is.

# %%
STEPS = (1, 2, 4, 8, 16, 32)
z = torch.randn(32, N, 2, generator=seeded(10))
quality = {}
for name, f in (("distilled", distilled), ("without a teacher", untaught)):
    with torch.no_grad():
        drawn = [my_sampler(f, x_T.float(), torch.linspace(schedule.t_max, 0, n + 1), z[:n]) for n in STEPS]
    quality[name] = [sliced_wasserstein(fold(x.double()), real) for x in drawn]
    print(f"{name:18}" + "".join(f"{n:4}: {q:.3f}" for n, q in zip(STEPS, quality[name])) + f"   floor {floor:.3f}")
    if f is distilled:
        several = dict(zip(STEPS, drawn))

# %%
for ax, n in zip(plotting.panels(3, size=2.6), (1, 4, 16)):
    plotting.shaded(ring().log_prob, 2.4, ax, f"{n} step{'s' * (n > 1)}")
    plotting.scatter(several[n][:600], ax, extent=2.4, size=4)
plt.show()

# %% [markdown]
# *The samples of the distilled student, three times: with one step there are bridges of dots between neighbouring
# spots, with four they are thinner, with sixteen nearly gone.*
#
# A few steps help. Do more steps always? Measure it with an error that we know. Take the exact $f$ of the Gaussian
# $\mathcal N(0, 0.5^2)$, and make all its answers 2 % too large.
#
# **Prediction 8.3.** The samples of one step are then 2 % too wide. What about 32 steps of (8.10)?
#
# * **a**: less: fresh noise at every step averages the error out,
# * **b**: many times more,
# * **c**: 2 % again: fresh noise covers all that was before.

# %% predict="8.3"
predict("8.3", "b")

# %% [markdown]
# Everything is Gaussian, so a variance tells all, and no samples are needed: if $x_t$ has the variance $q_t$ then
# $f=1.02\,\frac{c}{w_t}x_t$ has $1.02^2\frac{c^2}{w_t^2}q_t$, and (8.10) turns that into $q_s$. We compare three ways
# to be wrong by 2 %: in $f$ itself; in the *displacement* $f-x$, so that the error vanishes at $t=0$ as (8.4)
# demands; and in the displacement of a **flow map**, a function that goes from $t$ to $s$ directly, without fresh
# noise. (It is the subject of the next section.) Schedule `Flow`, $\alpha=1-t$, $\sigma=t$; times equally spaced in
# their logarithm, then 0.

# %%
def w(t, c=0.5):                                                # the width of x_t under Flow
    return math.sqrt((1 - t) ** 2 * c**2 + t**2)


def widths(ts, wrong=1.02, c=0.5):
    """Standard deviation at the end of the grid: error in f, error in f - x, error in the map from t to s."""
    in_f, in_shift, in_map = w(ts[0]) ** 2, w(ts[0]) ** 2, w(ts[0])
    for t, s in pairwise(ts):
        in_f = ((1 - s) * wrong * c / w(t)) ** 2 * in_f + s**2                                  # eq. (8.10)
        in_shift = ((1 - s) * (1 + wrong * (c / w(t) - 1))) ** 2 * in_shift + s**2
        in_map *= 1 + wrong * (w(s) / w(t) - 1)
    return math.sqrt(in_f), math.sqrt(in_shift), in_map


grids = {n: [*torch.logspace(0, -2, n).tolist(), 0.0] for n in STEPS}
assert all(abs(width - 0.5) < 1e-12 for ts in grids.values() for width in widths(ts, wrong=1.0))  # exact f: every n is right
wrongs = [[abs(width - 0.5) for width in widths(ts)] for ts in grids.values()]

figure, ax = plt.subplots(figsize=(8, 3.2))
for k, (name, look) in enumerate(plotting.looks(["2 % in f", "2 % in f - x", "2 % in a flow map's step"]).items()):
    ax.plot(STEPS, [row[k] for row in wrongs], **look, label=name)
ax.set(xscale="log", yscale="log", xlabel="steps", ylabel="$W_2$ to the data")
ax.set_xticks(STEPS, map(str, STEPS))
ax.set_xticks([], minor=True)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print("steps      " + "".join(f"{n:8}" for n in STEPS))
for k, name in enumerate(("in f", "in f - x", "in a map")):
    print(f"{name:10} " + "".join(f"{row[k]:8.4f}" for row in wrongs))

# %%
reveal("8.3")

# %% [markdown]
# *The distance to the data against steps, both logarithmic. An error in f: a straight rise. An error in f - x: it
# first falls, by luck, then rises. An error in the flow map: level.*
#
# (For two Gaussians around the same centre, $W_2$ is the difference of their widths.) Near the data the noise that is
# added is small, so the next step sees the flaws of the last one and puts its own on top. **More steps of a
# consistency model need not be better**; in the long run they get worse, and they never become "the ODE". How soon
# depends on the kind of the error. The blue line shows one more thing that the boundary condition is good for: an
# error that must vanish at $t=0$ does far less harm. Our students are built like that, and in the table above the
# first steps gain much and the later ones little, on a grid that spends few of its times near the data. On pictures
# it is one step or two that are usually reported. The green line is level because a map to a *near* time has a small
# error: its steps become the ODE's own. That is worth a closer look.

# %% [markdown]
# ## 7 · Beyond the lecture: flow maps
#
# A consistency function knows one destination, $r=0$. A **flow map** knows all: $X_{t\to r}(z)$ is where the path
# through $z$ at time $t$ passes at time $r$. We write it as a journey with an *average velocity* $u$,
#
# $$X_{t\to r}(z) = z - (t-r)\,u(z,t,r), \qquad (t-r)\,u(z_t,t,r)=\int_r^tv(z_\tau,\tau)\,d\tau . \tag{8.11}$$
#
# Everything we know is a special case: for $r=0$ it is the consistency function; for $r\to t$ the average velocity is
# the velocity $v$, and its steps are Euler's.
#
# **For a Gaussian**, (8.2) gives it at once. Under `Flow`, with $m=0$ and $w_t^2=(1-t)^2c^2+t^2$, the map multiplies
# by $w_r/w_t$, so $u=z\,\frac{1-w_r/w_t}{t-r}$.
#
# **How to learn $u$ without integrals?** Differentiate the second half of (8.11) by $t$, along the path; try it on
# paper before you read on. On the right the integral's
# derivative by its upper end is $v(z_t,t)$; on the left the product rule gives $u+(t-r)\frac{du}{dt}$. So
#
# $$u(z_t,t,r) = v(z_t,t) - (t-r)\,\frac{d}{dt}u(z_t,t,r) . \tag{8.12}$$
#
# That is the **MeanFlow** identity (Geng et al., 2025), and $\frac{du}{dt}$ is again the *total* derivative. Your
# `my_rate` computes it. **Does (8.12) hold, and what if $z$ is held still?**

# %%
def u(z, t, r, std=0.5):                                        # (B, 2), (B,), (B,) -> (B, 2)
    (w_t, w_r), gap = ((((1 - v) ** 2 * std**2 + v**2).sqrt() for v in (t, r)), t - r)
    return per_row((1 - w_r / w_t) / gap, z) * z


flow = Flow()
z_t = torch.randn(B, 2, generator=seeded(11), dtype=torch.float64)
r, t = torch.rand(2, B, generator=seeded(12), dtype=torch.float64).mul(0.98).sort(0).values
v = velocity(GaussianMixture([[0.0, 0.0]], 0.5).denoiser(flow), z_t, t)
for name, slope in (("total derivative", v), ("z held still", torch.zeros_like(v))):
    rate = my_rate(lambda z, t: u(z, t, r), z_t, t, slope)
    print(f"{name:17} (8.12) fails by {(u(z_t, t, r) - v + per_row(t - r, z_t) * rate).abs().max():.1e}")
assert (u(z_t, t, r) - v + per_row(t - r, z_t) * my_rate(lambda z, t: u(z, t, r), z_t, t, v)).abs().max() < 1e-9

# %% [markdown]
# In training, $v$ is replaced by the line's slope $\varepsilon-x_0$, whose mean it is, in both places: the rate is linear
# in the slope, so its mean is right too. The right side of (8.12) is held still as the target of a regression. Where
# $r=t$ that is plain flow matching, which needs no derivative; half of the draws are of that kind and keep the velocity
# right. The network is told $r$ as a further number. **A map of the ring, trained live:**

# %%
torch.manual_seed(0)
flow_map = FlowMap(MLP(width=64, numbers=1, fastest=8.0), flow, FlowVelocity())
trained = train(mean_flow_loss(moving=0.5, power=0.5), flow_map, [spots], steps=2000 if full else 500, batch=512, lr=5e-3,
                ema=0.99, device=device)
flow_map, map_seconds = trained.model.cpu(), trained.seconds
print(f"trained in {map_seconds:.0f} s")

# %%
start = torch.randn(N, 2, generator=seeded(13))
blind = ring().denoiser(flow)(start, 1.0)                       # one Euler step of the exact velocity from pure noise


def near(x):                                                    # share within three standard deviations of a spot
    return (torch.cdist(x.double(), ring().means).min(1).values < 3 * 0.15).double().mean().item()


arrived = {n: final(flow_map, start, torch.linspace(1, 0, n + 1), flow_map_step).x for n in STEPS}
print(f"share of exact samples within 3 std of a spot: {near(ring().sample(N, seeded(14))):.2f}")
print(f"exact velocity, one Euler step:                {near(blind):.2f}")
for n, x in arrived.items():
    distance = sliced_wasserstein(fold(x.double()), real)
    print(f"flow map, {n:2} step{'s' * (n > 1):1}                             {near(x):.2f}   distance to data {distance:.3f}")

# %%
for ax, (x, title) in zip(plotting.panels(4, size=2.3), (
        (blind, "velocity, 1 step"), *((arrived[n], f"flow map, {n} step{'s' * (n > 1)}") for n in (1, 2, 4)))):
    plotting.shaded(ring().log_prob, 2.4, ax, title)
    plotting.scatter(x[:600], ax, extent=2.4, size=4)
plt.show()

# %% [markdown]
# *First panel, a single dot in the middle: one Euler step of the exact velocity. Then the flow map with one, two and
# four steps: eight spots with bridges between them; most strays in the middle of the ring vanish with the second step.*
#
# No teacher, no copy that follows slowly, no grid: one regression, and a model that takes any number of steps.
# Whether more of them help depends on the network that you have; what the figure of section 6 promises is only that a
# flow map's errors do not pile up.

# %% [markdown]
# ## 8 · Pictures
#
# On Fashion-MNIST the course ships weights of a consistency function $f$. Its teacher is chapter 06's guided student, whose
# paths we solve by eight steps of `midpoint`, sixteen evaluations. A first attempt learnt like section 3's, in pairs of
# adjacent times, and the knowledge had to travel from the data through every interval: it made pictures, but its second
# step made them worse, as the ledger's figure below shows. With whole paths as cheap as these one can take the definition (8.1) itself for a loss: solve a path, and tell $f$ its end from each of the eight states on the
# way (`path_loss` in the library; for the starts alone it is the *knowledge distillation* of Luhman and Luhman, 2021). No
# copy, no travelling, no error that is handed on; every pair costs two evaluations of the teacher, as in section 3.
# The student starts as chapter 07's student of one step, which is right for the pure noise only.
#
# `course train fashion_consistency` trains it anew, for the recipe's full number of steps; how long the shipped weights
# were trained, the cell prints. **What do one, two, four and eight evaluations give, from the same noise?**

# %%
w_guide = recipes.CONSISTENCY_WEIGHT                            # the guidance weight of all these pictures
teacher = told(recipes.load("fashion_guided_student", device), w_guide)
labels = torch.tensor([9, 8, 3, 5, 2], device=device)
noise = prior(teacher, (5, 1, 28, 28), seeded(15)).to(device)
consistency = told(recipes.load("fashion_consistency", device), w_guide)
halved = {n: told(recipes.load(f"fashion_progressive_{n}", device), w_guide) for n in (8, 4, 2, 1)}
for name in ("fashion_guided_student", *(f"fashion_progressive_{n}" for n in halved), "fashion_consistency"):
    made = recipes.manifest()[name]
    print(f"{name:24} {made['steps']:6,} of {made['full_steps']:,} training steps, {made['train_seconds'] / 60:.0f} min")


def to_zero(n):
    return torch.linspace(schedule.t_max, 0, n + 1)


def draw_pictures(method, n):
    """Five pictures of n steps from the same noise, with their counts."""
    if method == "consistency":
        return final(consistency, noise, to_zero(n), consistency_step, seeded(16, device), cond=labels)
    return final(teacher if method == "teacher" else halved[n], noise, to_zero(n), ddim, cond=labels)


shown = [("teacher", 1000), ("teacher", 30), ("teacher", 2), ("progressive", 8), ("progressive", 4), ("progressive", 2), ("progressive", 1),
         ("consistency", 2), ("consistency", 1)]
pictures = {key: draw_pictures(*key) for key in progress(shown)}
plotting.image_rows([result.x for result in pictures.values()],
                    [f"{method}, NFE {result.nfe}" for (method, _), result in pictures.items()])
plt.show()

# %% [markdown]
# *Nine rows of five pictures, each column from one noise and label. The first rows are the teacher, chapter 06's guided
# student, in a thousand DDIM steps, in thirty, and in two, which smooth all detail away; below, the students of chapter
# 07 with eight, four, two and one evaluation; the last two rows are the consistency model with two evaluations and with
# one.*
#
# A student that does its work draws *the same* picture as the rows at the top, for it was taught the ends of the same
# paths. Only the consistency model's second step draws fresh noise, and may change the picture. **How far down does each
# column keep its garment, and what goes first?** Judge beside the printed training times, and compare the two rows of
# one evaluation. By hand, every method with every number of steps:

# %%
def page(method, steps):
    result = draw_pictures(method, steps)
    return plotting.image_grid(result.x, 5, title=f"{method}, evaluations: {result.nfe}").figure


flipbook(page, method=["consistency", "progressive", "teacher"], steps=[1, 2, 4, 8],
         alt="Five garments by one evaluation of the consistency model.")

# %% [markdown]
# Five pictures prove nothing. **What has been measured?** The ledger's Fréchet distances above their floor, against
# evaluations: the guided models at the weight 0.25 only, and, from before guidance, the course's first sampler and its
# best.

# %%
KINDS = {"consistency": ("consistency, whole paths", w_guide, "o-", plotting.ESTIMATE),         # label, weight, mark
         "consistency_pairs": ("consistency, pairs", w_guide, "D:", plotting.ESTIMATE),
         "progressive": ("progressive", w_guide, "s--", plotting.SECOND),
         "guided_student_ddim": ("guided student, DDIM", w_guide, "X:", plotting.TRUTH),
         "guided_student": ("guided student, 2M", w_guide, "^-", plotting.THIRD),
         "guided_teacher": ("guided teacher, 2M", w_guide, "P", plotting.THIRD),
         "dpm_solver_pp_sde": ("unguided, SDE solver", 0, "<-.", plotting.FOURTH),
         "ancestral": ("unguided, ancestral", 0, "v:", plotting.INK)}
shipped = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv") if r.dataset == "fashion_mnist"
           and r.metric == "frechet" and r.method in KINDS and r.guidance == KINDS[r.method][1]]
counts = [r.samples for r in shipped]
pictures_each = max(counts, key=counts.count)                   # the distance depends on how many pictures there are
shipped = [r for r in shipped if r.samples == pictures_each]

figure, ax = plt.subplots(figsize=(9.2, 4))
for kind, (label, _, mark, color) in KINDS.items():
    rows = sorted((r.nfe, max(r.value - r.floor, 0.01), r.spread or 0) for r in shipped if r.method == kind)
    if rows:
        nfe, value, spread = zip(*rows)
        ax.errorbar(nfe, value, spread, fmt=mark, capsize=3, color=color, label=label)
ax.set(xscale="log", yscale="log", xlabel="evaluations a picture", ylabel="Fréchet distance above floor",
       title=f"every mark from {pictures_each:,} pictures a seed")
low, high = ax.get_ylim()
ax.set_xticks([1, 2, 4, 8, 16, 32, 100, 1000], ["1", "2", "4", "8", "16", "32", "100", "1000"])
ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
ax.minorticks_off()
ax.set_ylim(low, high)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Fréchet distance above the floor against evaluations, one mark for every kind of sampler; lower and further left is
# better. The bars are the spread over three seeds; a mark without a bar is one seed.*
#
# The green marks are what the students were taught to reach: the guided flow, well solved, by one evaluation a step (the
# student of guidance) or two (the teacher). No student here was asked to be better. The grey line is the guided student
# itself in as few DDIM steps, that is, *without* any distillation of steps. So the questions to the figure are: how far
# below the grey line is each student, how near to the green marks, and does the consistency model's second evaluation
# pay? A difference shorter than the bars is none. And keep the training times in mind: methods that were trained for
# different times are compared as they are shipped, not as they could be.
#
# The dotted line with diamonds is the first attempt, in pairs of adjacent times: its second step made things *worse*. Section
# 6 has told us where to look, at low noise, where nothing covers an error any more. The solid one, learnt from whole paths,
# has a second step that pays; what a fourth adds is within the bars. **How far from the end of the path is the answer of $f$ for real
# pictures, and how far is the guess of its teacher's denoiser?** Three of the times below are on the grid of eight
# on which $f$ has learnt; one lies between the first two of them.

# %%
real_pictures, kinds = (d[:30].to(device) for d in data.fashion_mnist("test"))


def far_off(level):
    """Root mean square distance of both answers from the path's end, for noisy real pictures at that time."""
    noise = torch.randn(real_pictures.shape, generator=seeded(17)).to(device)
    x = schedule.alpha(level) * real_pictures + schedule.sigma(level) * noise
    end = final(teacher, x, torch.linspace(level, 0, 9), midpoint, cond=kinds).x
    with torch.no_grad():
        return [(model(x, level, kinds) - end).square().mean().sqrt().item() for model in (consistency, teacher)]


for name, part in (("pure noise", 1), ("between the grid's", 15 / 16), ("half way", 1 / 2), ("nearly clean", 1 / 8)):
    print("t = {:.3f}, {:18} f is {:.3f} off, the denoiser {:.3f}".format(
        schedule.t_max * part, name + ":", *far_off(schedule.t_max * part)))

# %% [markdown]
# At these three times of its grid $f$ is the better answer, by far at high noise and still near the data, where further
# steps end. Between the first two times of the grid it is worse than at pure noise: there it was never asked. Who wants $f$ at any time must draw the grid afresh for every path; ours needs its eight times only. The
# halved students do without: each was made for its own steps, and adds no noise in between.

# %% [markdown]
# ## 9 · Closing task: learn a map with no derivative at all
#
# Three identities describe a flow map. Each is a way to learn one:
#
# | | says | taught by |
# |---|---|---|
# | by the start | $\frac{d}{dt}X_{t\to r}(z_t)=0$ along the path | consistency, MeanFlow: (8.9) and (8.12) |
# | by the destination | $\frac{\partial}{\partial r}X_{t\to r}(z)=v(X_{t\to r}(z), r)$ | Lagrangian distillation |
# | by a stop on the way | $X_{m\to r}\big(X_{t\to m}(z)\big)=X_{t\to r}(z)$ | progressive distillation, shortcut models |
#
# The last one needs neither a derivative nor an integral: two short journeys are one long one. If a model is right on
# short journeys, it can *teach itself* the long ones.
#
# **Exercise 8.6 · ●●● · 15 min · eq. (8.11)**
#
# Write `my_average(u, z, t, m, r)`: the average velocity from $t$ to $r$, put together from two calls, and no more, of
# `u(z, t, r)`: one for the leg from $t$ to a stop at $m$, with $t>m>r$, and one for the leg from $m$ to $r$. First,
# on paper: where does the second leg start? How long is each leg, and what is an average velocity of a journey with
# legs of unequal length? The times have one value per row; `per_row(t - m, z)` multiplies `z`.

# %% exercise="8.6"
def my_average(u, z, t, m, r):                                  # function; (B, ...); (B,) three times -> (B, ...)
    ### BEGIN SOLUTION four lines: both durations, both velocities, their weighted mean
    first, second = per_row(t - m, z), per_row(m - r, z)
    v = u(z, t, m)
    w = u(z - first * v, m, r)
    return (first * v + second * w) / (first + second)
    ### END SOLUTION


# %% check="8.6"
# NBVAL_CHECK_OUTPUT
my_average = exercise("8.6", my_average)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *Right only if m is the middle*: then both legs last equally long. In general they do not.
# * *Shapes do not match*: `t - m` is `(B,)`; `per_row(t - m, z)` has the shape to multiply `z`.
#
# </details>
#
# **All three identities on the Gaussian's exact map**, and your average as a judge of the network of section 7: how
# far is what it says of a long journey from what its two halves say?

# %%
m = r + 0.3 * (t - r)
assert (my_average(u, z_t, t, m, r) - u(z_t, t, r)).abs().max() < 1e-12                         # by a stop on the way
there = lambda r: z_t - per_row(t - r, z_t) * u(z_t, t, r)      # noqa: E731
by_r = torch.func.jvp(there, (r,), (torch.ones_like(r),))[1]
exact_v = velocity(GaussianMixture([[0.0, 0.0]], 0.5).denoiser(flow), there(r), r)
assert (by_r - exact_v).abs().max() < 1e-8                      # by the destination

told_r = lambda z, t, r: flow_map.predict(z, t, None, r[:, None])                               # noqa: E731
ones = torch.ones(N)
with torch.no_grad():
    for far in (0.1, 0.3, 0.6, 1.0):
        whole = told_r(start, ones, (1 - far) * ones)
        halves = my_average(told_r, start, ones, (1 - far / 2) * ones, (1 - far) * ones)
        print(f"journey from 1 to {1 - far:.1f}: whole and halves differ by {(whole - halves).norm(dim=1).mean():.3f}, "
              f"mean length of u {whole.norm(dim=1).mean():.2f}")

# %% [markdown]
# No truth was needed for that table: a flow map can be examined, and trained, by its own consistency. With the two
# halves as the target, held still, you have the loss of *shortcut models* (Frans et al., 2024). With a teacher's two
# DDIM steps in their place you have chapter 07. It was all one object.

# %% [markdown]
# ## The ledger

# %%
def live(method, dataset, nfe, batch, seconds, metric, value, floor, weights, train_seconds=None):
    return ledger.Row(f"{method} (live)", dataset, nfe, nfe, batch, seconds, "this machine", metric, value, floor, batch, 1,
                      weights=weights, train_seconds=train_seconds)


rows = []
for name, key, f, spent in (("consistency distillation", "distilled", distilled, distilled_seconds),
                            ("consistency training", "without a teacher", untaught, untaught_seconds)):
    for n in (1, 4):
        begin = time.perf_counter()
        with torch.no_grad():
            my_sampler(f, x_T.float(), torch.linspace(schedule.t_max, 0, n + 1), z[:n])
        rows.append(live(name, "ring", n, N, time.perf_counter() - begin, "sliced_w2 (folded)", quality[key][STEPS.index(n)],
                         floor, "live", spent))
begin = time.perf_counter()
x = final(flow_map, start, torch.linspace(1, 0, 2), flow_map_step).x
rows.append(live("mean flow", "ring", 1, N, time.perf_counter() - begin, "sliced_w2 (folded)",
                 sliced_wasserstein(fold(x.double()), real), floor, "live", map_seconds))
few = [r for r in shipped if r.method in ("consistency", "progressive", "guided_student_ddim") and r.nfe <= 4]
rows += sorted(few, key=lambda r: (r.nfe, r.value))
ledger.table(rows, "method data NFE seconds batch metric value floor n status").show()

# %% [markdown]
# The live rows are one seed each, on this machine; the shipped rows are on pictures, so the two kinds of numbers are not
# to be compared. `guided_student_ddim` is what one gets without this chapter and the last one.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | consistency function | $f(x_t,t)=x_0$: one value along a path, and the identity at $t=0$ |
# | of a Gaussian | $f=m+\frac{c}{w_t}(x-\alpha_tm)$, $w_t^2=\alpha_t^2c^2+\sigma_t^2$ |
# | boundary | $c_{\text{skip}}(0)=1$, $c_{\text{out}}(0)=0$: built in, not learnt |
# | distillation | $d(f(x_t,t),f^-(x_r,r))/(t-r)$, $x_r$ by a teacher's step; no gradient through $f^-$ |
# | training | $x_r=\alpha_rx_0+\sigma_r\varepsilon$ with the *same* noise; its mean is the DDIM step |
# | what it learns | on a Gaussian, DDIM in $n$ steps: $\prod\cos\Delta\theta$; $n=1$ is the denoiser |
# | zero gap | $\partial_tf+J_fv=0$, one Jacobian-vector product |
# | several steps | $x_s=\alpha_sf(x_t,t)+\sigma_sz$, the last time is 0 |
# | flow map | $X_{t\to r}(z)=z-(t-r)u$; $u=v-(t-r)\frac{du}{dt}$; two legs make one |
#
# * The denoiser answers "what is the mean?", the consistency function "where does this path end?".
# * One step is a hard function, steep at the borders. A second step may mend much; where $f$ errs at low noise,
#   further steps pile up errors.
#
# **Limits.** The law (8.8) is for Gaussians and the squared error; the loss we train with is pseudo-Huber, whose
# minimiser is not quite the mean. The live students learnt a 2-D density, one seed each, in seconds, one of them from
# an *exact* teacher; their order says little about long trainings on pictures. The tuned and the continuous-time
# students were trained for longer than the live ones, as printed. The 2 % errors are artificial: a trained network's errors are of neither kind. A student
# of a flow inherits the errors of its teacher's flow; it can hardly be better than its teacher, and chapter 09 shows
# how one can. The students of pictures were trained as long as section 8 prints; where that is a small part of the
# recipe, more would change them.
#
# **What is still open.** A student is held against its teacher, never against real pictures. What would make it as
# sharp as *those*?

# %% [markdown]
# ## Further reading
#
# * Y. Song, P. Dhariwal, M. Chen, I. Sutskever, *Consistency models*, 2023, arXiv:2303.01469: distillation, training,
#   several steps.
# * Y. Song, P. Dhariwal, *Improved techniques for training consistency models*, 2024, arXiv:2310.14189: no slow copy,
#   pseudo-Huber, log-normal noise levels.
# * Z. Geng, A. Pokle, W. Luo, J. Lin, J. Z. Kolter, *Consistency models made easy*, 2024, arXiv:2406.14548: tuning a
#   diffusion model, the gap closing.
# * C. Lu, Y. Song, *Simplifying, stabilizing and scaling continuous-time consistency models*, 2024, arXiv:2410.11081.
# * N. Boffi, M. Albergo, E. Vanden-Eijnden, *Flow map matching*, 2024, arXiv:2406.07507: the three identities.
# * K. Frans, D. Hafner, S. Levine, P. Abbeel, *One step diffusion via shortcut models*, 2024, arXiv:2410.12557.
# * Z. Geng, M. Deng, X. Bai, J. Z. Kolter, K. He, *Mean flows for one-step generative modeling*, 2025,
#   arXiv:2505.13447.
