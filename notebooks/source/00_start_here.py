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
# evaluations of a neural network, one after the other. This course is about doing it with far fewer: thirty, four, one. You
# will build every method on the way with your own hands, and prove each one right against an answer that is known exactly.
#
# After this chapter you can
#
# * **predict** what fewer steps do to a picture, and why (predictions 0.1 and 0.2, and a question on paper at the end),
# * **complete** one step of a sampler, and have it checked (exercise 0.1),
# * **read** what a sampler costs and gives: network evaluations, seconds, and a distance to the truth beside its floor
#   (a question below the ledger).
#
# Allow half an hour. You need Python, a little PyTorch and what a Gaussian is, and nothing about diffusion.
#
# Run the cells in order, with Shift+Enter. Everything here works without a network connection, on a laptop's processor.
# If a cell fails, the last cell of this chapter tells whether everything is in place.

# %%
import os
import time
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from course_lib import data, ledger, plotting, recipes
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import levels
from course_lib.fast_samplers import ddim
from course_lib.metrics import sliced_wasserstein
from course_lib.sampling import final, last, prior, sample
from course_lib.schedules import LinearVP, uniform
from course_lib.targets import ring
from course_lib.widgets import flipbook, watched

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")

# %% [markdown]
# ## The problem, in one number
#
# `fashion_teacher` is a small network, trained on 30,000 photographs of clothes from Fashion-MNIST. We ask it for five
# pictures, trousers, a dress, a sandal, a bag and a boot, starting from pure noise, in 1000 steps. This cell takes about
# a quarter of a minute on two processor cores, and twice that on one; watch how long that is.
#
# A few names to read it with. `D` is the network. `prior` draws pure noise. `uniform(n)` gives the **time grid**: $n + 1$ evenly
# spaced times, falling from noise to data. `ddim` is one step from a time to the next; you will write it yourself below.
# `sample` takes the steps in turn, and `last` keeps where they end; later `final` does both. `label` says which of ten kinds of
# clothes we want.

# %%
D = recipes.load("fashion_teacher", device)
generator = torch.Generator().manual_seed(2)
noise = prior(D, (5, 1, 28, 28), generator).to(device)                                        # (5, 1, 28, 28)
label = torch.tensor([1, 3, 5, 8, 9], device=device)                                          # see data.CLASSES


def draw(n, sampler=sample):
    """Five pictures in n steps from the same noise, and the seconds that took."""
    start = time.perf_counter()
    result = last(sampler, D, noise, uniform(n, D.schedule), step=ddim, cond=label)
    return result.x.cpu(), time.perf_counter() - start


slow, slow_seconds = draw(1000, watched(sample))                                              # with a progress bar
print(f"{slow_seconds:.1f} seconds, 1000 network evaluations, one after the other")

# %%
plotting.image_grid(slow, columns=5, title="1000 steps")
plt.show()

# %% [markdown]
# *Five small grey pictures in a row: trousers, a dress, a sandal, a bag and an ankle boot, each recognisable.*
#
# They are decent pictures at a price that no one can wait for: seconds for a stamp, when a film needs 25 pictures a second. More
# processors help little, because each evaluation needs the result of the one before it (chapter 05 finds a way round this).
#
# ## Fewer steps
#
# Let us simply take fewer, larger steps. The starting noise is the same, and no other randomness enters. First say what you
# expect.
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
print(f"{slow_seconds / fast_seconds:.0f} times faster; mean difference of the pixels {(slow - fast).abs().mean():.3f}, of a range of 2")

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
# * **c**: a blur, nearly the same for every starting noise.

# %% predict="0.2"
predict("0.2", "c")

# %%
rows = {n: draw(n)[0] for n in (4, 1)}
plotting.image_rows([slow, fast, rows[4], rows[1]], ["1000", "30", "4", "1"], "steps from the same noise")
plt.show()
print(f"mean difference of the pixels, 1 step against 1000: {(slow - rows[1]).abs().mean():.3f}")

# %% [markdown]
# *Four rows of the same five pictures: 1000 and 30 steps look alike, at 4 the bag and the boot have lost their detail, 1 step
# is a blur.*
#
# And the second half of the question, eight starting noises for the one word *Trouser*:

# %%
many = prior(D, (8, 1, 28, 28), torch.Generator().manual_seed(4)).to(device)
trousers = torch.full((8,), 1, device=device)
eight = [final(D, many, uniform(n, D.schedule), ddim, cond=trousers).x.cpu() for n in (30, 1)]
plotting.image_rows(eight, ["30 steps", "1 step"], "trousers from eight starting noises")
plt.show()

# %%
reveal("0.2")

# %% [markdown]
# *Two rows of eight trousers: at 30 steps eight different pairs, at 1 step the same grey pair eight times.*
#
# (The fine grain on the blur is the network's own error at the highest noise level. The exact average would be smooth: the last
# figure of this chapter needs no network, and there one step lands on the average.)
#
# **The figure with four rows is the course.** The step used here, DDIM, is a good one already: chapters 01 to 04 build it
# up from simpler ones, measure what each loses with fewer steps, and improve on it. Getting the first row's exact answer with
# less waiting takes parallel computation (05). Making the last two rows look like the first takes new training: the student
# learns where the path *ends* (06 to 09). The rest makes it large and colourful: pictures from words, in real time (10 to 14).
#
# ### Move the slider
#
# The noise is always the same; only the number of steps changes. At which number could you no longer tell the difference?

# %%
def page(steps):
    return plotting.image_rows([slow, draw(steps)[0]], ["1000", str(steps)], "steps from the same noise")


flipbook(page, steps=[1, 2, 3, 4, 6, 8, 12, 16, 30])

# %% [markdown]
# *Two rows of five pictures: above the five from 1000 steps, below the same five from as few as the slider says.*
#
# Trousers and dress settle within a few steps; pictures with more detail, like the boot, need more. There is nothing special
# about thirty: it is where the eye gives up.
#
# ## What a step does
#
# A picture $x_0$ is made noisy by shrinking it and adding noise,
#
# $$ x_t = \alpha_t\, x_0 + \sigma_t\, \varepsilon, \qquad \varepsilon \sim \mathcal N(0, I), \tag{0.1} $$
#
# with data at $t = 0$ and almost pure noise near $t = 1$: here $\alpha_t$ falls from 1 to nearly 0 while $\sigma_t$ rises from 0
# to 1, and $\alpha_t^2 + \sigma_t^2 = 1$. Everywhere in this course a model is a **denoiser** $D(x_t, t) = \hat x_0$: shown a
# noisy picture, it returns its best guess of the clean one, best in squared error. Such a guess is an *average*. (If the answer
# is $-1$ or $+1$, equally likely, the guess with the smallest expected squared error is 0.) Here it is the average of the clean
# pictures that could hide behind this noise, each weighted by how likely it is. Near $t = 1$ all pictures of the class are
# about equally likely, which is why one step gives a blur.
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
# mistake, it tells you what kind of mistake it is. If it fails twice, it adds a tip. It also counts how often the network is
# asked, for that is what sampling costs: right values at a higher price than needed are not accepted yet. You are never stuck:
# until the exercise is solved the chapter goes on with the course's own function. (The line `# NBVAL_CHECK_OUTPUT` is a mark for the automatic
# check; ignore it.)
#
# * Your copies of the notebooks lie in `my/`. Nothing ever overwrites them. `course reset 0`, typed in a terminal (*File → New →
#   Terminal*), gives you a fresh copy of chapter 00 and keeps yours beside it under another name.
# * `course check 0` tests all your answers of chapter 00 in a clean copy; `course progress` lists them.
# * When you come back another day, click on the cell where you want to go on and choose *Run → Run All Above Selected Cell*: a
#   new kernel knows nothing of what ran before, not even `exercise`.
# * `notebooks/solutions` holds every solution. They help most after an honest attempt.
#
# **Exercise 0.1 · ●○○ · 5 min · eq. (0.1) and (0.2)**
#
# Return the state at time $s$: what (0.1) says, at $s$, with $\hat x_0$ and $\hat\varepsilon$ for what is unknown. `levels(D, x,
# t)` gives $\alpha_t$ and $\sigma_t$, ready to multiply `x`; `cond` is the label, and `z` is for steps that draw fresh noise, as
# ours does not. Try a wrong answer on purpose too, `return x0` for example, to see what the check says.

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
# Click a cell's number to see which line failed, then look here:
#
# * *"raised NameError"*: the line uses only names that the cell defines: `alpha_s`, `sigma_s`, `x0`, `eps`.
# * *"returned None"*: the line must start with `return`.
# * *"run your own cell again"*: the check replaced an unsolved `my_step` by the course's. Run the cell above it first.
#
# </details>
#
# A sampler is nothing but this step, again and again. Two checks of our own first. Equations (0.1) and (0.2) must undo each
# other: guess and noise, mixed at $t$ itself, give back $x_t$. And a step to $s = 0$, where $\alpha = 1$ and $\sigma = 0$, lands on
# $\hat x_0$.

# %%
x, t, c = noise[:2], torch.tensor(0.8), label[:2]
assert torch.allclose(my_step(D, x, t, t, cond=c), x, atol=1e-5)                              # eq. (0.1) and (0.2)
assert torch.allclose(my_step(D, x, t, torch.tensor(0.0), cond=c), D(x, t, c), atol=1e-5)     # eq. (0.1) at s = 0

# %% [markdown]
# Now draw a boot with your step, and keep both the state $x_t$ and the guess at each time. (For the picture we ask the
# denoiser a second time at each step; the sampler needs it only once.) Grids stop just short of $t = 0$, where (0.2) would
# divide by zero; the noise that is left there, under 1 %, can't be seen.

# %%
ts = uniform(12, D.schedule)                                                                  # (13,) falling times
x, states, guesses = noise[4:], [], []
for t, s in pairwise(ts):
    states.append(x)
    guesses.append(D(x, t, label[4:]))
    x = my_step(D, x, t, s, cond=label[4:])
plotting.image_rows([torch.cat(states), torch.cat(guesses)], ["state $x_t$", "guess $D(x_t, t)$"], "from noise to picture")
plt.show()

# %% [markdown]
# *Two rows of twelve: above, the state, snow at first, from which a boot emerges late; below, the guess, a boot from the start,
# at first the grainy average of all boots, then one boot with its own outline.*
#
# Deciding takes steps: each one settles a little more of which boot this is to be.
#
# ## Is it the network's fault?
#
# No. Here is a distribution so simple that the best possible denoiser is known as a formula: eight round clouds on a ring.
# No network, no training error; only the number of steps changes. Truth is grey, samples are orange. Before you run the cell:
# where will the 2000 dots land with one step?

# %%
target, schedule = ring(), LinearVP()
exact = target.denoiser(schedule)                                                             # E[x_0 | x_t], closed form
start = prior(exact, (2000, 2), torch.Generator().manual_seed(0))
truth = target.sample(2000, torch.Generator().manual_seed(1)).float()
again = target.sample(2000, torch.Generator().manual_seed(2)).float()
floor = sliced_wasserstein(truth, again)

axes = plotting.panels(4, size=2.3)
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
# without its floor says little, so we always show both. With 2000 samples either number wanders by a few hundredths from one
# seed to the next. So 1000 and 30 steps can't be told apart here, and both are near the floor; 4 steps and 1 step are far.
#
# One step from pure noise lands on the mean of the data. For a ring that is its empty middle. For clothes it is a blur.

# %% [markdown]
# ## The ledger
#
# Every method of the course adds a row to one table: how many network evaluations a sample takes (NFE), how many of them
# must run one after the other (depth), the seconds, and the quality beside its floor. Your row comes first, with your step;
# those below it ship with the course. *Provisional* rows come from too few samples to be quoted. Now think,
# then try: if you change `30` to `8` in the cell, which columns change, and which one can't?

# %%
begin = time.perf_counter()
result = final(exact, start, uniform(30, schedule), my_step)
row = ledger.Row(method="my_step", dataset="ring", nfe=result.nfe, depth=result.depth, batch=2000,
                 seconds=time.perf_counter() - begin, device="cpu", metric="sliced_w2",
                 value=sliced_wasserstein(result.x, truth), floor=floor, samples=2000, seeds=1, weights="exact")
shipped = [r for r in ledger.read(data.ROOT / "data" / "ledger.csv")
           if r.dataset == "fashion_mnist" and r.method in ("ddim", "ancestral")]               # later chapters show the others
ledger.table([row, *shipped], "method data NFE depth seconds batch metric value floor status").show()

# %% [markdown]
# <details><summary>With 8 in place of 30</summary>
#
# NFE and depth become 8, the seconds shrink with them, and `value` grows, to about twice the floor. The floor can't change: it
# compares the truth with itself and knows of no sampler.
#
# </details>
#
# The rows below yours have other measures. `class_agreement` is the share of pictures in which a classifier sees the class that
# was asked for: more is better, and its floor is really a ceiling, what the same classifier scores on real pictures. `frechet`
# is a distance between features of drawn and of real pictures: less is better. `ancestral` is the step of chapter 02, which adds
# fresh noise. Which step is ahead at 30, by which measure? As long as the rows are provisional, that is a question to keep
# and not a result.
#
# ## Is everything in place?
#
# The same report as `course doctor`: your Python, your device, and the checksums of all data and weights.

# %%
from course_lib.classroom.learner.doctor import examine

for name, well, message in examine():
    print("✓" if well else "✗", f"{name:20s}", message)

# %% [markdown]
# ## Summary
#
# * A model is a denoiser, $D(x_t, t) = \hat x_0$, the average of the clean pictures that may hide in $x_t$.
# * A sampler walks down a grid of times from noise to data and asks the denoiser at each; its cost is the number of
#   evaluations, and they wait for one another.
# * Thirty good steps give nearly the pictures of a thousand. Four steps do not, and one gives the average.
#
# **One more, on paper.** The data are two pictures, all black and all white, equally likely. What does one step from pure noise
# give? What do 1000 steps give, from two different noises?
#
# <details><summary>Answer</summary>
#
# One step gives grey, the average, whatever the noise; a picture that is not in the data. 1000 steps give black or white, as the
# starting noise decides: the ring above, with two clouds in place of eight.
#
# </details>
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
