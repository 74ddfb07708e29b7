# ---
# course:
#   title: Start here
#   minutes: 30
#   needs: []
#   shows: the whole course in one figure, and how its exercises work
# ---

# %% [markdown]
# # 00 · Start here
#
# A diffusion model draws a picture by removing noise, a little at a time. The five pictures below take it **one thousand**
# evaluations of a neural network, one after the other. This course is about getting the same pictures from thirty, then from
# four, then from one. You will build every method on the way with your own hands, and prove each one right against an answer
# that is known exactly.
#
# After this chapter you can
#
# * **say** what a denoiser and a time grid are, and **predict** what fewer steps do to a picture (two predictions),
# * **complete** one step of a sampler, and have it checked (exercise 0.1),
# * **measure** what a sampler costs: network evaluations, seconds, and the distance between its samples and the truth.
#
# Run the cells in order, with Shift+Enter. Everything here works without a network connection, on a laptop's processor.

# %%
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import levels
from course_lib.fast_samplers import ddim
from course_lib.metrics import sliced_wasserstein
from course_lib.sampling import final, prior
from course_lib.schedules import LinearVP, uniform
from course_lib.targets import ring
from course_lib.training import default_device

plotting.style()
device = default_device()

# %% [markdown]
# ## The problem, in one number
#
# `fashion_teacher` is a small network, trained on 30,000 photographs of clothes from Fashion-MNIST. We ask it for five
# pictures, trousers, a dress, a sandal, a bag and a boot, starting from pure noise, in 1000 steps. This cell takes about
# a quarter of a minute on two processor cores; watch how long that is.

# %%
D = recipes.load("fashion_teacher", device)
generator = torch.Generator().manual_seed(2)
noise = prior(D, (5, 1, 28, 28), generator).to(device)                                        # (5, 1, 28, 28)
label = torch.tensor([1, 3, 5, 8, 9], device=device)                                          # see data.CLASSES


def draw(n):
    """Five pictures in n steps from the same noise, and the seconds that took."""
    start = time.perf_counter()
    result = final(D, noise, uniform(n, D.schedule), ddim, cond=label)
    return result.x.cpu(), time.perf_counter() - start


slow, slow_seconds = draw(1000)
print(f"{slow_seconds:.1f} seconds, 1000 network evaluations, one after the other")

# %%
plotting.image_grid(slow, columns=5, title="1000 steps")
plt.show()

# %% [markdown]
# *Five small grey pictures in a row: trousers, a dress, a sandal, a bag and an ankle boot, each recognisable.*
#
# They are decent pictures, at a price that no one can wait for: a film of such stamps would show a few frames a minute. A
# faster computer helps little, because each evaluation needs the result of the one before it.
#
# ## Fewer steps
#
# Let us simply take fewer, larger steps along the same path from the same noise. First say what you expect.
#
# **Prediction 0.1.** We take 30 steps in place of 1000. The pictures will be
#
# * **a**: other pictures altogether, since 970 steps are missing,
# * **b**: almost the same pictures,
# * **c**: the same pictures, but clearly blurred.
#
# Write your letter in place of the question mark, and run the cell. No one sees it but you.

# %% predict="0.1"
predict("0.1", "b")

# %%
fast, fast_seconds = draw(30)
plotting.image_rows([slow, fast], ["1000", "30"], "steps from the same noise")
plt.show()
print(f"{slow_seconds / fast_seconds:.0f} times faster; pictures differ by {(slow - fast).abs().mean():.3f} of a range of 2")

# %%
reveal("0.1")

# %% [markdown]
# *Two rows of five pictures; each picture of the lower row is hard to tell from the one above it.*
#
# That was nearly free. **Prediction 0.2.** We go all the way, to a single step from pure noise. For the class *Trouser* this
# gives
#
# * **a**: sharp trousers, not the same for every starting noise,
# * **b**: noise, since one step can't remove all of it,
# * **c**: a blurred mixture of all trousers, nearly the same for every starting noise.

# %% predict="0.2"
predict("0.2", "c")

# %%
rows = {n: draw(n)[0] for n in (4, 1)}
plotting.image_rows([slow, fast, rows[4], rows[1]], ["1000", "30", "4", "1"], "steps from the same noise")
plt.show()

# %%
reveal("0.2")

# %% [markdown]
# *Four rows: 1000 and 30 steps look alike, 4 steps are soft and washed out, 1 step is a blur, the average of each class.*
#
# **This figure is the course.** Going from the first row to the second takes a good sampler (chapters 01 to 04). Getting the
# first row's exact answer with less waiting takes parallel computation (05). Making the last two rows look like the first
# takes new training: the student learns where the path *ends* (06 to 09). The rest makes it large and colourful: pictures
# from words, in real time (10 to 14).
#
# ### Move the slider
#
# The noise is always the same; only the number of steps changes. At which number could you no longer tell the difference?

# %%
from course_lib.widgets import flipbook


def page(steps):
    ax = plotting.image_grid(draw(steps)[0], columns=5, title=f"{steps} step{'s' * (steps > 1)}")
    return ax.figure


flipbook(page, steps=[1, 2, 3, 4, 6, 8, 12, 16, 30])

# %% [markdown]
# ## What a step does
#
# A picture $x_0$ is made noisy by shrinking it and adding noise,
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I), \tag{0.1} $$
#
# with data at $t = 0$ and almost pure noise near $t = 1$. Everywhere in this course a model is a **denoiser**
# $D(x_t, t) = \hat x_0$: shown a noisy picture, it returns its best guess of the clean one. The guess is the *average* of all
# clean pictures that could hide behind this noise; at $t$ near 1 that is all of them, which is why one step gives a blur.
#
# If $\hat x_0$ is what we believe the picture to be, then (0.1) also tells what noise we believe in:
#
# $$ \hat\varepsilon = \frac{x_t - \alpha_t\, \hat x_0}{\sigma_t}. \tag{0.2} $$
#
# The step now goes from $t$ to an earlier time $s < t$ by mixing the same two things afresh, as (0.1) does, at the noise
# level of $s$. Then it asks the denoiser again. Chapter 04 shows why this is a very good step (its name is DDIM); here you
# finish it.
#
# ## How exercises work
#
# Below is a function with its last line missing. Replace the `raise` line by your own, and run the cell; then run the check
# below it. The check runs your function on random inputs, of several shapes and noise schedules. If it recognises a common
# mistake, it tells you what kind of mistake it is. If it fails twice, it adds a tip. You are never stuck: until the exercise
# is solved the chapter goes on with the course's own function.
#
# * Your copies of the notebooks lie in `my/`. Nothing ever overwrites them. `course reset 0` puts a fresh copy beside yours.
# * `course check 0` in a terminal tests all your answers of chapter 00 in a clean copy; `course progress` lists them.
# * `notebooks/solutions` holds every solution. They help most after an honest attempt.
#
# **Exercise 0.1 · ●○○ · 5 min · eq. (0.1) and (0.2)**
#
# Return the state at time $s$: what (0.1) says, at $s$, with $\hat x_0$ and $\hat\varepsilon$ for what is unknown. Try a
# wrong answer on purpose too, $\alpha_s \hat x_0 + \sigma_t \hat\varepsilon$ for example, to see what the check says.

# %% exercise="0.1"
def my_step(D, x, t, s, z=None, cond=None):                                                   # (B, ...) -> (B, ...)
    alpha_t, sigma_t = levels(D, x, t)
    alpha_s, sigma_s = levels(D, x, s)
    x0 = D(x, t, cond)                                                                        # the guess
    eps = (x - alpha_t * x0) / sigma_t                                                        # eq. (0.2)
    ### BEGIN SOLUTION one line: x0 and eps, mixed at the noise level of s
    return alpha_s * x0 + sigma_s * eps
    ### END SOLUTION

# %% check="0.1"
# NBVAL_CHECK_OUTPUT
my_step = exercise("0.1", my_step)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *"raised NameError"*: the line uses only names that the cell defines: `alpha_s`, `sigma_s`, `x0`, `eps`.
# * *"returned None"*: the line must start with `return`.
# * *"run your own cell again"*: the check replaced an unsolved `my_step` by the course's. Run the cell above it first.
#
# </details>
#
# A sampler is nothing but this step, again and again. Equation (0.1) says that a step to $s = 0$, where $\alpha = 1$ and
# $\sigma = 0$, lands on $\hat x_0$ itself; let us see that it does, then draw a picture with your step.

# %%
x, t, s = noise.cpu()[:2], torch.tensor(0.8), torch.tensor(0.0)
model = recipes.load("fashion_teacher")
assert torch.allclose(my_step(model, x, t, s, cond=label.cpu()[:2]), model(x, t, label.cpu()[:2]), atol=1e-5)  # eq. (0.1)

# %%
ts = uniform(12, D.schedule)                                                                  # (13,) falling times
x, guesses = noise[4:], []
for t, s in pairwise(ts):
    guesses.append(D(x, t, label[4:]))
    x = my_step(D, x, t, s, cond=label[4:])
plotting.image_rows([torch.cat(guesses)], ["guess at each step"], "what the denoiser believes, from noise to picture")
plt.show()

# %% [markdown]
# *Twelve pictures of one boot: from an average of all boots, soft and grey, to one boot with its own outline.*
#
# Deciding takes steps: each one settles a little more of which boot this is to be.
#
# ## Is it the network's fault?
#
# No. Here is a distribution so simple that the best possible denoiser is known as a formula: eight round clouds on a ring.
# No network, no training error; only the number of steps changes. Truth is grey, samples are orange.

# %%
target, schedule = ring(), LinearVP()
exact = target.denoiser(schedule)                                                             # E[x_0 | x_t], closed form
start = prior(exact, (2000, 2), torch.Generator().manual_seed(0))
truth = target.sample(2000, torch.Generator().manual_seed(1)).float()
again = target.sample(2000, torch.Generator().manual_seed(2)).float()
floor = sliced_wasserstein(truth, again)

axes = plotting.panels(4, size=2.2)
for ax, n in zip(axes, (1000, 30, 4, 1)):
    y = final(exact, start, uniform(n, schedule), ddim).x
    plotting.density(target.log_prob, ax=ax)
    plotting.scatter(y, ax, title=f"{n} step{'s' * (n > 1)}: {sliced_wasserstein(y, truth):.2f}")
plt.show()
print(f"distance between two sets of true samples: {floor:.2f}")

# %% [markdown]
# *Four panels: with 1000 and with 30 steps the orange dots fill the eight grey clouds, with 4 they fill
# a disc between the clouds, with 1 step they all sit in the middle of the ring, where there is no data at all.*
#
# The number above each panel is a distance between the samples and true samples (sliced Wasserstein, chapter 02). It can't be
# expected to fall below the distance between two sets of *true* samples, printed under the figure: the **floor**. A distance
# without its floor says little, so we always show both.
#
# One step from pure noise lands on the mean of the data. For a ring that is its empty middle. For clothes it is a blur.

# %% [markdown]
# ## The ledger
#
# Every method of the course adds a row to one table: how many network evaluations a sample takes (NFE), how many of them had
# to wait for another (depth), the seconds, and the quality beside its floor. Your machine's row comes first; those below it
# were measured at full scale and ship with the course. *Provisional* rows come from too few samples to be quoted.

# %%
result = final(exact, start, uniform(30, schedule), ddim)
row = ledger.Row(method="ddim (yours)", dataset="ring", nfe=result.nfe, depth=result.depth, batch=2000, seconds=fast_seconds,
                 device=str(device), metric="sliced_w2", value=sliced_wasserstein(result.x, truth), floor=floor,
                 samples=2000, seeds=1, weights="exact")
shipped = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv") if r.dataset == "fashion_mnist"]
print(ledger.table([row, *shipped]))

# %% [markdown]
# ## Is everything in place?
#
# The same report as `course doctor`: your Python, your device, and the check sums of all data and weights.

# %%
from course_lib.classroom.doctor import examine

for name, well, message in examine():
    print("✓" if well else "✗", f"{name:20s}", message)

# %% [markdown]
# ## Summary
#
# * A model is a denoiser, $D(x_t, t) = \hat x_0$, the average of the clean pictures that may hide in $x_t$.
# * A sampler walks down a grid of times from noise to data and asks the denoiser at each; its cost is the number of
#   evaluations, and they wait for one another.
# * Thirty good steps give nearly the pictures of a thousand. Four do not, and one gives the average.
#
# **Limits.** The pictures are small and the network is tiny, so that all this runs on a laptop; chapters 10 to 13 go to
# colour. "Nearly the same picture" was judged by eye and on five pictures; from chapter 02 on we measure it on thousands.
#
# **Next**: chapter 01 asks where the denoiser comes from. It turns out that a network which only ever learns to remove noise
# has learnt the slope of the data's log-density.
#
# **Further reading.** Ho, Jain & Abbeel 2020, *Denoising diffusion probabilistic models*, arXiv:2006.11239. Song, Meng &
# Ermon 2021, *Denoising diffusion implicit models*, arXiv:2010.02502. Xiao, Rasul & Vollgraf 2017, *Fashion-MNIST*,
# arXiv:1708.07747.
