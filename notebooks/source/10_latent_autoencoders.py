# ---
# course:
#   title: Latent autoencoders
#   minutes: 95
#   needs: [4]
#   shows: one more encoder and decoder make diffusion cheap, and the latents need not be Gaussian
# ---

# %% [markdown]
# # 10 · Latent autoencoders: one more encoder and decoder
#
# All the chapters so far made *steps* fewer. This one makes each step cheaper. A picture has far more numbers than it
# has content: neighbouring pixels agree, edges are edges. So put an **encoder** in front of the diffusion model and a
# **decoder** behind it, and let diffusion work on the few numbers in between, the **latents**. That is what Stable
# Diffusion does, and it is what makes diffusion possible for colour pictures on your CPU (chapter 11) and for data that
# are not continuous at all, such as sentences (chapter 12).
#
# Autoencoders are older than diffusion, and an old habit comes with them: "the latents should be Gaussian, so that one
# can sample from them". The claim of this chapter is that this habit may go. **Reconstruction is what matters; a diffusion
# model learns whatever distribution the latents have.**
#
# After this chapter you can
#
# * **implement** the loss of a variational autoencoder (exercise 10.1), and **derive** and **implement** what its weight
#   $\beta$ keeps of the data (exercise 10.2),
# * **measure** rate, reconstruction and samples for several $\beta$, and **predict** which one is best for a fixed prior
#   and which for a learnt one (prediction 10.1),
# * **implement** the latents' scale (exercise 10.3), and **predict** which way it is worse to forget it (prediction 10.2),
# * **implement** a codebook with gradients that pass through the rounding (exercise 10.4),
# * **derive** the least loss that any denoiser can have, and **predict** with it what happens when encoder and diffusion
#   model are trained together (exercise 10.5, prediction 10.3),
# * **transfer** all this to words (exercise 10.6).
#
# Allow an hour and a half: 60 minutes for the exercises, the rest for reading. The end of section 3 is a good place for a
# break.

# %%
import math
import os
import re
import time

import matplotlib.pyplot as plt
import torch
from torch import nn

from course_lib import data, ledger, plotting, recipes
from course_lib.autoencoders import (
    Autoencoder,
    KLAutoencoder,
    LinearAutoencoder,
    VQAutoencoder,
    encode_all,
    fit_scale,
    kl_loss,
    ppca,
    vq_loss,
)
from course_lib.classroom import exercise, predict, reveal
from course_lib.denoiser import Preconditioned, V
from course_lib.fast_samplers import ddim, dpm_solver_pp
from course_lib.metrics import features, fold, frechet, sliced_wasserstein
from course_lib.networks import MLP, DiT
from course_lib.recipes import diffusion_loss, reconstruction
from course_lib.sampling import final, last, prior
from course_lib.schedules import CosineVP, log_snr_uniform, uniform
from course_lib.targets import ring
from course_lib.training import train
from course_lib.widgets import flipbook

plotting.style()
full = os.environ.get("COURSE_SCALE", "full" if torch.cuda.is_available() else "quick") == "full"
device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
schedule = CosineVP()


def seeded(seed, device="cpu"):
    """A generator of its own for every experiment, so that cells can be run again in any order."""
    return torch.Generator(device).manual_seed(seed)


# %% [markdown]
# ## The failing case
#
# Emoji, 64 by 64 pixels in three colours. A transformer looks at a picture in patches of 2 by 2, so it sees 32 times 32
# of them at once, and each looks at every other. **What does one evaluation cost, for one picture of 64 × 64 × 3 numbers
# and for a latent of 16 × 16 × 4?** The two networks are alike in width, depth and patch. There are 12 times fewer numbers:
# guess first whether the step gets 12 times faster, less or more.

# %%
def seconds_a_picture(channels, size, B=2):
    D = Preconditioned(DiT(channels, size, patch=2, width=96, depth=2), schedule, V())
    x, spent = torch.randn(B, channels, size, size, generator=seeded(0)), []
    with torch.no_grad():
        for _ in range(4):                                      # the first is a rehearsal
            begin = time.perf_counter()
            D(x, 0.5)
            spent.append((time.perf_counter() - begin) / B)
    return min(spent[1:])


pixels, latents = seconds_a_picture(3, 64), seconds_a_picture(4, 16)
print(f"numbers:          {3 * 64**2:6,} pixels   {4 * 16**2:6,} latents   {3 * 64**2 / (4 * 16**2):5.1f} times fewer")
print(f"one evaluation:   {1000 * pixels:6.1f} ms       {1000 * latents:6.1f} ms        {pixels / latents:5.1f} times faster")

# %% [markdown]
# By more than 12: there are 16 times fewer patches, 64 for 1,024, and 256 times fewer pairs that look at each other.
# Training, sampling, every distillation of the last chapters: all become cheaper by such a factor, if a picture can be
# had back from its latent. Can it? The course ships an autoencoder for emoji; `course train emoji_autoencoder` trains it
# anew. **Here are emoji that it has never seen (in none of the four drawing styles), and what comes back from a twelfth
# of the numbers.** The quality is measured as PSNR, $10\log_{10}(2^2/\text{mean squared error})$ decibels for pixels in
# $[-1, 1]$: every 10 dB are a tenth of the squared error.

# %%
emoji, held_out = recipes.load("emoji_autoencoder", device), data.emoji("test")
some = torch.randperm(len(held_out.images), generator=seeded(2))[:64]
originals = held_out.images[some]
z_emoji = encode_all(emoji, originals)                          # (64, 4, 16, 16)
with torch.no_grad():
    copies = emoji.decode(z_emoji[:4].to(device)).cpu()
plotting.image_rows([originals[:4], copies], ["original", "round trip"])
plt.show()
print("PSNR in dB, over {} held-out emoji: all pixels {psnr:.1f}, pixels that are not white {psnr_drawn:.1f}".format(
    len(originals), **reconstruction(emoji, originals)))

# %% [markdown]
# *Two rows of four emoji: above the originals, below what the decoder makes of their latents. Shapes and flat colours come
# back; small things suffer: the penguin's eyes, the star above the door, the belts of the swimsuit.*
#
# Look at the second number. A large part of every emoji is white paper, which is easy to copy, and an average over all
# pixels flatters. Whatever is lost here is lost for good: **no diffusion model on these latents can draw better than this
# decoder.** So the first question to an autoencoder is how well it reconstructs. What else should be asked of it?

# %% [markdown]
# ## 1 · Two terms of one loss
#
# We want a code $z$ of few numbers. Think of the decoder as a guess with an error: given $z$, each pixel is Gaussian
# around the decoded picture $\hat x(z)$ with variance $\sigma_x^2$. And give $z$ a **prior**, $p(z)=\mathcal N(0, I)$: "that
# is how codes look before I have seen a picture". Then a picture has the probability $p(x)=\int p(x|z)\,p(z)\,dz$, which
# we would like to be large. The integral is hopeless, since hardly any $z$ fits a given $x$. So we let an encoder say where
# to look: $q(z|x)$, a Gaussian around $\mu(x)$ with a variance $\tau_i^2(x)$ for each latent. Multiply and divide by
# it, and use that the logarithm of a mean is at least the mean of the logarithms (Jensen):
#
# $$\log p(x) = \log\,\mathbb E_{z\sim q}\Big[p(x|z)\,\frac{p(z)}{q(z|x)}\Big]
#   \;\ge\; \mathbb E_{z\sim q}\big[\log p(x|z)\big] - \mathrm{KL}\big(q(z|x)\,\|\,p(z)\big) .$$
#
# Two terms. The first is the reconstruction: up to a constant, it is minus the squared error over $2\sigma_x^2$. The second
# is the number of nats that the code tells beyond the prior: its *rate*. The loss is their negative, with a weight $\beta$
# for the rate (Higgins et al., 2017):
#
# $$\text{loss} = \mathbb E_{z\sim q}\Big[\frac{\lVert x-\hat x(z)\rVert^2}{2\sigma_x^2}\Big] + \beta\,\mathrm{KL} ,\tag{10.1}$$
#
# $$\mathrm{KL} = \tfrac12\sum_i\big(\mu_i^2 + \tau_i^2 - 1 - \ln\tau_i^2\big) . \tag{10.2}$$
#
# The sum in (10.2) follows from the definition $\mathrm{KL}=\mathbb E_q[\log q-\log p]$ for one number, with
# $\mathbb E_q[z^2]=\mu^2+\tau^2$ and $\mathbb E_q[(z-\mu)^2]=\tau^2$; independent numbers add. It is 0 exactly when $\mu=0$
# and $\tau=1$: then the code says nothing. To say something, $\mu$ must depend on $x$, and $\tau$ must be small enough that
# the difference can be seen.
#
# **Exercise 10.1 · ●○○ · 8 min · eqs. (10.1) and (10.2)**
#
# Write `my_loss`. The encoder gives the logarithm of the variance, `log_var` $=\ln\tau^2$, because a logarithm may have any
# sign. The line of the reconstruction is done; yours are the KL, for each picture, and the mean over the batch of (10.1).
# Mind that a picture's error is *summed* over its pixels.

# %% exercise="10.1"
def my_loss(x0, x_hat, mean, log_var, sigma2, beta):            # (B, ...) twice; (B, ...) twice; two numbers -> ()
    error = (x0 - x_hat).square().flatten(1).sum(1) / (2 * sigma2)                              # (B,)
    ### BEGIN SOLUTION two lines: kl (B,), and the mean of the two terms
    kl = (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1) / 2
    return (error + beta * kl).mean()
    ### END SOLUTION


# %% check="10.1"
# NBVAL_CHECK_OUTPUT
my_loss = exercise("10.1", my_loss)

# %% [markdown]
# **Is the formula the KL?** We draw from $q$ and average $\log q - \log p$. And: what does `mean` in place of `sum` do, the
# commonest slip with this loss? With a mean over pixels and a sum over latents, or the other way round, the balance moves
# by a factor of hundreds, and $\beta$ no longer means what the formula says.

# %%
mean, log_var = torch.tensor([[0.7, -0.3]]), torch.tensor([[-1.0, 0.4]])
q = torch.distributions.Normal(mean, (log_var / 2).exp())
draws = q.sample((200_000,))
counted = (q.log_prob(draws) - torch.distributions.Normal(0.0, 1.0).log_prob(draws)).sum(-1).mean()
nothing = torch.zeros(1, 5)                                     # no reconstruction error
formula = my_loss(nothing, nothing, mean, log_var, 1.0, 1.0)
print(f"KL counted from samples: {counted:.3f} nats, by (10.2): {formula:.3f} nats")
assert abs(counted - formula) < 0.02                                                            # eq. (10.2)

# %% [markdown]
# ## 2 · What $\beta$ keeps: the linear case, exactly
#
# What does the balance of (10.1) decide? Take the simplest autoencoder, with one number $x\sim\mathcal N(0,\lambda)$, one
# latent $z\sim\mathcal N(vx, \tau^2)$ and a linear decoder $\hat x=wz$. Write $e=\beta\sigma_x^2$, and multiply the loss by
# $2\sigma_x^2$:
#
# $$\lambda(1-wv)^2 + w^2\tau^2 + e\,(v^2\lambda+\tau^2-1-\ln\tau^2) .$$
#
# Let $m=w^2+e$. The derivative by $\tau^2$ vanishes at $\tau^2=e/m$, the one by $v$ at $v=w/m$. (Try it. It is the posterior
# of $x=wz+\text{noise}$ with noise of the variance $e$.) Put both in. The three terms with $\lambda$ or $w$,
# $\lambda\frac{e^2}{m^2}$, $\frac{w^2e}m$ and $\lambda\frac{ew^2}{m^2}$, make $\frac{\lambda e}m+\frac{w^2e}m$; the next two,
# $\frac{e^2}m-e$, are $-\frac{w^2e}m$. What is left is
#
# $$\text{loss}\cdot2\sigma_x^2 = e\Big(\frac{\lambda}{m} + \ln\frac me\Big), \qquad m = w^2+e\ \ge\ e . \tag{10.3}$$
#
# Its derivative by $m$ vanishes at $m=\lambda$. But $m$ cannot be less than $e$: where $\lambda<e$, the best that is
# allowed is $m=e$, which means $w=0$. The latent is **shut off**. So
#
# $$m = \max(\lambda, e), \qquad w^2 = m - e, \qquad \tau^2 = \frac em, \qquad \mathrm{KL} = \tfrac12\ln\frac me . \tag{10.4}$$
#
# With many numbers the same happens along each principal axis of the data, with its variance $\lambda_i$ (Lucas et al.,
# 2019). Engineers call it *water filling*: $e=\beta\sigma_x^2$ is a water level; what is below it is given up, and what is
# above is kept and shrunk a little. **$\beta$ is a threshold on the variance of what is worth saying.**
#
# **Exercise 10.2 · ●●○ · 8 min · eq. (10.4)**
#
# Write `my_filling(values, sigma2, beta)`: $w_i^2$ and $\tau_i^2$ for the variances $\lambda_i=$ `values` along the axes. First
# on paper: what are both when $\lambda_i<e$, and what do they tend to for $e\to0$?

# %% exercise="10.2"
def my_filling(values, sigma2, beta):                           # (k,), two numbers -> w^2 (k,), tau^2 (k,)
    ### BEGIN SOLUTION two or three lines: the level, m, and both results
    e = beta * sigma2
    m = values.clamp(min=e)
    return m - e, e / m
    ### END SOLUTION


# %% check="10.2"
# NBVAL_CHECK_OUTPUT
my_filling = exercise("10.2", my_filling)

# %% [markdown]
# (On paper: where $\lambda_i<e$ they are 0 and 1, the prior; for $e\to0$ they tend to $\lambda_i$ and 0, a copy without
# noise.)
#
# **Does training find this?** Fashion-MNIST, shrunk to 7 × 7 pixels, is 49 numbers a picture; its covariance $C$ has 49
# variances. We train a linear autoencoder with eight latents from a random start. For a linear one the average over all
# the noise is a formula in $V$, $W$, $\tau^2$ and $C$, so nothing is random. That formula is (10.1), with the constant that
# makes the first term a log-probability; the library's `kl_loss` estimates it from draws, and `ppca` knows its minimum
# exactly. (L-BFGS, an optimizer for losses without noise, calls `closure` as often as it likes within one `step`.)

# %%
images, labels = data.fashion_mnist("train")
rows = nn.functional.avg_pool2d(images, 4).flatten(1).double()
rows = rows - rows.mean(0)
C = rows.T @ rows / len(rows)                                   # (49, 49)
sigma2, k = 0.05, 8


def expected_loss(model, beta):                                 # in nats a picture
    V_, W, tau2 = model.latent.weight, model.reconstruct.weight, model.log_var.exp()
    left = torch.eye(49) - W @ V_                               # what one round trip loses
    error = (left @ C @ left.T).trace() + (W.square() * tau2).sum()
    kl = ((V_ @ C @ V_.T).trace() + tau2.sum() - k - model.log_var.sum()) / 2
    return (49 * math.log(2 * math.pi * sigma2) + error / sigma2) / 2 + beta * kl


def trained_linear(beta):
    torch.manual_seed(0)
    model = LinearAutoencoder(49, k, sigma2).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=170, history_size=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(model, beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


# %%
eigenvalues = torch.linalg.eigvalsh(C).flip(0)[:k]
found = {}
for beta in (6.0, 12.0, 30.0):
    model = trained_linear(beta)
    _, variance, elbo = ppca(C, k, sigma2, beta)
    w2, tau2 = my_filling(eigenvalues, sigma2, beta)
    found[beta] = model.reconstruct.weight.detach().square().sum(0).sort(descending=True).values
    loss, sampled = expected_loss(model, beta).item(), 49 * kl_loss(beta)(model, rows, seeded(3)).item()
    print(f"beta {beta:4}: loss {loss:8.4f}, exact {-elbo:8.4f}, from draws {sampled:8.2f}   "
          f"{int((w2 > 0).sum())} of {k} latents in use, {-tau2.log().sum() / 2:5.2f} nats")
    assert abs(loss + elbo) < 1e-3 and torch.allclose(found[beta], w2, atol=0.01)               # eq. (10.4)
    assert torch.allclose(variance, tau2)

# %% [markdown]
# Now the water. **How much does each of the eight axes keep, for the three levels?**

# %%
figure, ax = plt.subplots(figsize=(8, 3.2))
number = torch.arange(1, k + 1)
ax.bar(number, eigenvalues, color=plotting.TRUTH, alpha=0.5, label=r"variance $\lambda_i$ of the data")
for (beta, w2), color, mark, size in zip(found.items(), (plotting.THIRD, plotting.ESTIMATE, plotting.SECOND), "^os", (10, 7, 4)):
    e = beta * sigma2
    ax.axhline(e, color=color, lw=0.8, ls=":")
    ax.plot(number, w2 + e, mark, ms=size, color=color, label=rf"$w_i^2+e$ learnt, $\beta={beta:g}$")
ax.set(yscale="log", xlabel="axis", ylabel="variance", ylim=(0.15, 6))
ax.set_yticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
ax.set_yticks([], minor=True)
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Grey bars fall from left to right, the variances of the data. Each colour has a dotted water level; its dots sit on top
# of the bars while these rise above the level, and on the level where they do not. On the tallest bars the three dots
# coincide.*
#
# (The columns of $W$ may come in any order and sign: the loss does not mind. Their lengths are what we compare.) Three
# things to keep. A strong KL *deletes* axes, the least varied first, and in pictures these are the fine details. A weak KL
# keeps all, and costs only nats, which nobody has to pay. And at this optimum every latent that is in use has variance
# $v^2\lambda+\tau^2=1$: linear autoencoders make Gaussian latents of Gaussian data whatever $\beta>0$ is. Real data is
# another matter.

# %% [markdown]
# ## 3 · Two priors
#
# Garments are not Gaussian: there are ten kinds. Let us look at what a *nonlinear* autoencoder makes of them, with two
# latents, so that they can be drawn, and a very weak KL. A network with two layers for each half:

# %%
class Dense(Autoencoder):
    """Fashion-MNIST to a few numbers and back."""

    def __init__(self, latent, sigma2=0.05, width=144):
        super().__init__(latent, 0, sigma2)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.SiLU(), nn.Linear(width, 64), nn.SiLU(),
                                     nn.Linear(64, 2 * latent))
        self.reconstruct = nn.Sequential(nn.Linear(latent, 64), nn.SiLU(), nn.Linear(64, width), nn.SiLU(),
                                         nn.Linear(width, 784), nn.Unflatten(1, (1, 28, 28)))

    def posterior(self, x):                                     # mean and log-variance (B, latent)
        mean, log_var = self.encoder(x).chunk(2, 1)
        return mean, log_var.clamp(-20, 10)

    def latent(self, x):
        return self.posterior(x)[0]


# %%
def fit(latent, beta):
    torch.manual_seed(0)
    return train(kl_loss(beta), Dense(latent), [images], steps=1500 if full else 220, batch=80, lr=4e-3, warmup=20,
                 ema=0.98, clip=1e9, device=device).model.cpu()


def learn_prior(z):
    """A diffusion model of these latents, live."""
    torch.manual_seed(0)
    D = Preconditioned(MLP(z.shape[1], width=64, fastest=8.0), schedule, V())
    return train(diffusion_loss, D, [z], steps=2000 if full else 260, batch=192, lr=6e-3, warmup=30, ema=0.98,
                 device=device).model.cpu()


def draw(D, n, latent):                                         # -> (n, latent)
    start = prior(D, (n, latent), seeded(4))
    return last(dpm_solver_pp, D, start, log_snr_uniform(20, schedule)).x


# %%
test_images = data.fashion_mnist("test")[0]
flat = fit(2, beta=0.01)
raw = encode_all(flat, images[:6000])                           # the scale is still 1, so these are raw
spread = raw.std(0)
fit_scale(flat, images[:6000])                                  # from now on mean 0 and variance 1, see section 4
z_flat = encode_all(flat, images)
D_flat = learn_prior(z_flat)
learnt = draw(D_flat, 2000, 2)

left, middle, right = plotting.panels(3, size=3)
frame = 1.02 * raw[:2000].abs().max().item()
colours = [plotting.CLASSES[k] for k in labels[:250].tolist()]
plotting.scatter(raw[:250], left, frame, "latents, by class: 0 to 9", color=colours, size=4)
beside = {2: "right", 4: "left"}                                # pullovers and coats lie together
for k in range(10):
    left.text(*raw[labels[:len(raw)] == k].median(0).values, k, ha=beside.get(k, "center"), va="center",
              bbox={"fc": "white", "ec": "none", "pad": 1})
plotting.scatter(torch.randn(250, 2, generator=seeded(5)), middle, frame, "the VAE's prior N(0, I)", size=4)
plotting.scatter(learnt[:250] * flat.scale + flat.shift, right, frame, "a diffusion prior", size=4)
for ax in (middle, right):
    ax.scatter(*raw[:250].T, s=4, color=plotting.TRUTH, alpha=0.25, linewidths=0, zorder=0)
plt.show()
print(f"standard deviations of the latents: {spread[0]:.2f} and {spread[1]:.2f}; the prior's are 1")

# %% [markdown]
# *Left, 250 latents in ten colours, a number on each kind of garment: arms and patches with empty land between them. Middle,
# over the same latents in grey, the prior: a round cloud that covers a small part of them. Right, the samples of the diffusion
# model: they follow the arms, a little more widely than the latents.*
#
# **Two priors.** The first is the one in the loss, $\mathcal N(0,I)$, chosen before any data was seen. The second is the
# distribution that the latents of the data really have, the *aggregate* $\bar q(z)=\mathbb E_x[q(z|x)]$. The KL of (10.1)
# is made of both. Insert $\bar q$ into the logarithm:
#
# $$\mathbb E_x\,\mathrm{KL}\big(q(z|x)\|p\big) =
#   \underbrace{\mathbb E_x\,\mathrm{KL}\big(q(z|x)\|\bar q\big)}_{\text{what }z\text{ tells about }x}
#   + \underbrace{\mathrm{KL}\big(\bar q\,\|\,p\big)}_{\text{misfit of the prior}} . \tag{10.5}$$
#
# The first part is what we *want*: a latent that tells nothing is useless. Only the second one asks the latents to look
# Gaussian, and the loss cannot lower it alone: pressing on their sum, it also lowers the first. Now replace $p$, after
# the encoder is trained, by a prior that is *learnt*: a diffusion model of the latents. The misfit is gone, and we never
# had to pay for it with information. **That is why the KL may be so weak.** It keeps the latents in a reasonable region
# and a little smooth, no more.
#
# (Check of (10.5) in the linear case of section 2: there the aggregate has variance 1, the misfit is 0, and the KL in
# (10.4) is information only.)

# %%
e, lam = 0.5, 2.6                                               # one axis of (10.4)
w2, tau2 = (u.item() for u in my_filling(torch.tensor([lam]), e, 1.0))
v2 = w2 / lam**2                                                # v = w/m, and m = lambda where it is kept
kl = (v2 * lam + tau2 - 1 - math.log(tau2)) / 2
width2 = v2 * lam + tau2                                        # variance of the aggregate
information, misfit = math.log(width2 / tau2) / 2, (width2 - 1 - math.log(width2)) / 2
assert abs(kl - information - misfit) < 1e-6 and abs(misfit) < 1e-6                             # eq. (10.5)
print(f"KL {kl:.3f} = information {information:.3f} + misfit {abs(misfit):.3f}")

# %% [markdown]
# Now in earnest, with eight latents and four weights $\beta$. Each autoencoder is trained live; then it is frozen,
# every picture is encoded *once* (to the mean $\mu$; with a weak KL the noise $\tau$ is tiny), and a small diffusion model
# learns these latents. As a judge we take the Fréchet distance of 500 pictures to 500 real ones, in the
# features of the course's classifier.
#
# **Prediction 10.1.** Of the weights 0.01, 1, 10 and 100, which gives the best samples when you draw $z$ from
# $\mathcal N(0,I)$, and which when you draw it from the diffusion model?
#
# * **a**: the weakest in both cases: reconstruction is what matters,
# * **b**: for $\mathcal N(0,I)$ one in between; for the diffusion model the weakest or nearly so,
# * **c**: the strongest in both cases: it makes the latents Gaussian, and Gaussians are easy.

# %% predict="10.1"
predict("10.1", "b")

# %%
classifier, N = recipes.load("fashion_classifier"), 500
real, also_real = (features(classifier.features, test_images[i:i + N]) for i in (0, 2000))


def psnr(a, b):
    return -10 * ((a - b).square().mean() / 4).log10().item()


def distance(pictures):
    return frechet(features(classifier.features, pictures.clamp(-1, 1)), real)


# %%
def study(beta, latent=8):
    """Rate, reconstruction and both kinds of samples for one weight."""
    model, some = fit(latent, beta), test_images[4000:4000 + N]
    with torch.no_grad():
        mean, log_var = model.posterior(some)
        kl = (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean().item() / 2
        copies, fixed = model.reconstruct(mean), model.reconstruct(torch.randn(N, latent, generator=seeded(6)))
    fit_scale(model, images[:6000])                             # section 4
    D = learn_prior(encode_all(model, images, batch=1000))
    begin = time.perf_counter()
    with torch.no_grad():
        drawn = model.decode(draw(D, N, latent))
    return {"model": model, "kl": kl, "psnr": psnr(copies, some), "seconds": time.perf_counter() - begin, "fixed": fixed,
            "learnt": drawn, "distances": [distance(pictures) for pictures in (copies, fixed, drawn)]}


# %%
BETAS = (0.01, 1.0, 10.0, 100.0)
floor = frechet(also_real, real)
begin = time.perf_counter()
studies = {beta: study(beta) for beta in BETAS}
print(f"{time.perf_counter() - begin:.0f} s for four autoencoders and four diffusion models\n")
print("   beta    rate, nats    PSNR, dB    distance of: copies    N(0, I) decoded    diffusion decoded")
for beta, s in studies.items():
    print(f"{beta:7}{s['kl']:12.1f}{s['psnr']:13.1f}{s['distances'][0]:22.1f}{s['distances'][1]:19.1f}{s['distances'][2]:20.1f}")
print(f"{'real pictures, the floor':46}{floor:8.1f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.3))
rates = [s["kl"] for s in studies.values()]
left.plot(rates, [s["psnr"] for s in studies.values()], "o-", color=plotting.INK)
left.set(xlabel="rate: KL in nats a picture", ylabel="PSNR of the copies, dB")
for i, (mark, color, name) in enumerate((("^-", plotting.TRUTH, "copies"), ("s--", plotting.SECOND, "prior N(0, I)"),
                                         ("o-", plotting.ESTIMATE, "diffusion prior"))):
    right.plot(BETAS, [s["distances"][i] for s in studies.values()], mark, color=color, label=name)
right.axhline(floor, color=plotting.INK, lw=0.8, ls=":", label="real pictures")
right.set(xscale="log", xlabel=r"weight $\beta$", ylabel="Fréchet distance", ylim=(0, None))
right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %%
reveal("10.1")

# %% [markdown]
# *Left, reconstruction against rate: more nats, better copies, with ever less gain. Right, distance to real pictures
# against β: the copies (grey) and the diffusion prior (orange) lie close together and rise to the right; the fixed prior
# (blue) starts far above them, has its lowest point in between, and meets them only where all are bad.*
#
# A perfect prior would draw latents like those of real pictures, so the grey line is what to expect of it; where the orange
# one falls a little below, that is the luck of 500 pictures.
#
# **What do they look like?**

# %%
weak, middling = studies[0.01], studies[10.0]
plotting.image_rows([weak["fixed"][:5], weak["learnt"][:5], middling["fixed"][:5], middling["learnt"][:5]],
                    ["β 0.01, N(0, I)", "β 0.01, diffusion", "β 10, N(0, I)", "β 10, diffusion"])
plt.show()

# %% [markdown]
# *Four rows of five: with the weak KL the fixed prior decodes to grey blurs and mixtures, because it asks for places where no
# garment lives; the diffusion prior decodes to garments, now and then to a mixture. With the stronger KL the fixed prior's
# row becomes recognisable, often still as mixtures of two garments. The two rows of the diffusion prior hardly differ to
# the eye: that the weaker KL is better is what the distances of 500 pictures say, not these five.*
#
# The folk story is "a VAE needs a strong KL to be a generative model, and pays with blur". Half of it is true: of a model
# that is to be sampled from a *fixed* prior. With a learnt one the trade is off. What is left is a curve with one
# direction: better copies, better samples, down to the grey line, which the decoder sets. (One objection: should one not
# just *scale* the fixed prior to the latents' own mean and spread? That repairs the size and not the shape. We measure it,
# too:)

# %%
with torch.no_grad():
    scaled = distance(weak["model"].decode(torch.randn(N, 8, generator=seeded(6))))
print(f"beta 0.01: N(0, I) {weak['distances'][1]:.1f}, scaled to the latents {scaled:.1f}, diffusion {weak['distances'][2]:.1f}, "
      f"copies {weak['distances'][0]:.1f}")

# %% [markdown]
# Scaling alone takes away most of the distance: the worst thing about the fixed prior is its *size*. What is left between
# it and the copies is shape, and that takes a model. So the size deserves a section of its own.
#
# ## 4 · The scale of the latents
#
# A weak KL leaves the latents' spread to chance: above it was not 1. But the schedule of the diffusion model was made for
# data of the size 1: its noise levels say when such data drown. So after training one *measures* the latents over the data
# set, and gives each channel mean 0 and variance 1:
#
# $$z_c \;\longleftarrow\; \frac{z_c-\operatorname{mean}(z_c)}{\operatorname{std}(z_c)},
# \qquad\text{and back again before decoding.}\tag{10.6}$$
#
# Mean and standard deviation are over all pictures *and* all places of a channel. (Stable Diffusion has one number for
# all channels, 0.18215. Forgetting it is a classic: CompVis/latent-diffusion issue 187, huggingface/diffusers
# issue 437.) The library keeps them inside the autoencoder, so that `encode` and `decode` cannot disagree.
#
# **Exercise 10.3 · ●○○ · 8 min · eq. (10.6)**
#
# Write `my_scaled(z)` for latents of shape `(N, C)` or `(N, C, h, w)`. `torch.std_mean(z, axes, keepdim=True)` gives both
# numbers over a list of axes, in shapes that fit `z`.

# %% exercise="10.3"
def my_scaled(z):                                               # (N, C) or (N, C, h, w) -> the same
    ### BEGIN SOLUTION two lines: standard deviation and mean of every channel, then (10.6)
    std, mean = torch.std_mean(z, [0, *range(2, z.ndim)], keepdim=True)
    return (z - mean) / std
    ### END SOLUTION


# %% check="10.3"
# NBVAL_CHECK_OUTPUT
my_scaled = exercise("10.3", my_scaled)

# %%
assert torch.allclose(my_scaled(raw), encode_all(flat, images[:6000]), atol=1e-3)               # eq. (10.6), by the library
on_new = encode_all(flat, test_images)
print("held-out garments, with the scale of the training set: std", [f"{s:.3f}" for s in on_new.std(0)])
print("held-out emoji, likewise:                               std", [f"{s:.3f}" for s in z_emoji.std((0, 2, 3))])

# %% [markdown]
# (All are near 1. The farthest of the emoji channels is off because only 64 pictures were measured.)
#
# **Prediction 10.2.** You train the diffusion model of the two-dimensional latents again: once on latents that are ten
# times too small, once on latents ten times too large. (Of course you undo it before you compare.) Which is worse?
#
# * **a**: both alike: only the ratio of signal and noise matters,
# * **b**: too small is worse,
# * **c**: too large is worse.

# %% predict="10.2"
predict("10.2", "b")

# %%
target = z_flat[:2000]
print(f"floor, latents against other latents: {sliced_wasserstein(z_flat[2000:4000], target):.3f}")
missized = {}
for factor in (0.1, 1.0, 10.0):
    missized[factor] = learnt if factor == 1 else draw(learn_prior(factor * z_flat), 2000, 2) / factor
    print(f"latents {factor:4} times the right size: distance {sliced_wasserstein(missized[factor], target):.3f}")

# %%
for ax, (factor, samples) in zip(plotting.panels(3, size=2.6), missized.items()):
    plotting.scatter(target[:250], ax, 3, f"{factor:g} times the size", color=plotting.TRUTH, size=4)
    plotting.scatter(samples[:250], ax, 3, size=4)
plt.show()
reveal("10.2")

# %% [markdown]
# *The latents in grey and the samples in orange, three times: too small, the samples fill the gaps between the arms; at the
# right size, and at ten times the size, they keep to the arms.*
#
# With latents of size $c$ everything happens where $\sigma_t/\alpha_t$ is about $c$ or a fraction of it. For $c=0.1$ that
# is the last corner of the schedule, where few training times fall and where sampling is about to stop, with a noise of
# $e^{-5}$ left, which is 7 % of such latents. For $c=10$ it is also off centre, but there is more room. (Each size was
# trained once. The small difference between 1 and 10 may be luck; the large one is not.) Do not rely on it: measure the
# standard deviation, and let the library do (10.6).

# %% [markdown]
# ## 5 · A codebook instead of a Gaussian
#
# There is another way to limit what a latent can say: let it be one of $K$ vectors. A **VQ** autoencoder keeps a codebook;
# at each place the encoder's vector $z$ is replaced by the nearest code $e$, and the decoder sees only codes. A place then
# says at most $\ln K$ nats, whatever the network does: no KL is needed.
#
# But rounding has no useful derivative: move $z$ a little, and $e$ does not move at all. The trick is to lie in the
# backward pass. Let $\mathrm{sg}(\cdot)$ ("stop gradient") be the identity whose derivative is set to zero. The decoder gets
#
# $$\tilde z = z + \mathrm{sg}(e - z), \tag{10.7}$$
#
# whose *value* is $e$ and whose *Jacobian by $z$* is the identity: the decoder's gradient goes straight through to the
# encoder. It tells the encoder in which direction the decoder would like its input to move. Now nobody trains the codes,
# and nothing keeps $z$ near them. A penalty does both:
#
# $$\lVert\mathrm{sg}(z)-e\rVert^2 + \beta\,\lVert z-\mathrm{sg}(e)\rVert^2 . \tag{10.8}$$
#
# The first term moves codes towards the latents that chose them; the second, the *commitment*, moves latents towards their
# codes, more gently: $\beta=0.25$. A well-known implementation had its $\beta$ on the other term for years
# (CompVis/taming-transformers, threads 46 and 57). The values are the same; only the gradients tell.
#
# **Exercise 10.4 · ●●○ · 12 min · eqs. (10.7) and (10.8)**
#
# Write `my_rounding(z, e, beta)` for latents `z` and their nearest codes `e`, both `(B, C)`: what the decoder gets, and the
# penalty, summed over the numbers of a row, and a mean over the rows. `x.detach()` is $\mathrm{sg}(x)$. The check looks at
# the gradients of both.

# %% exercise="10.4"
def my_rounding(z, e, beta):                                    # (B, C), (B, C), number -> (B, C), ()
    ### BEGIN SOLUTION three lines: the decoder's input, the two squares, their weighted sum
    seen = z + (e - z).detach()
    codes, commitment = (z.detach() - e).square(), (z - e.detach()).square()
    return seen, (codes + beta * commitment).sum(1).mean()
    ### END SOLUTION


# %% check="10.4"
# NBVAL_CHECK_OUTPUT
my_rounding = exercise("10.4", my_rounding)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *The values are right and the check complains*: it compares gradients. Ask of each of the four squares and differences:
#   who is to move, `z` or `e`? The other one is detached.
# * *Which term gets beta?* Not the one that trains the codebook.
# * *The penalty is too large or too small by a factor*: `.sum(1).mean()`, in this order.
#
# </details>
#
# **The Jacobian, and the two pulls, on a single pair.** Then both kinds of autoencoder on garments, convolutional, alike in
# everything: 7 × 7 places of four numbers. To compare what their latents can say, we print bits a picture: KL in nats over
# $\ln2$, and for the codebook $49\log_2$ of the *perplexity*, the number of codes that are used in effect (codes that nobody
# chooses die: always look at the usage).

# %%
z, e = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[1.5, 1.0]], requires_grad=True)
jacobian = torch.autograd.functional.jacobian(lambda z: my_rounding(z, e, 0.25)[0].sum(0), z)[:, 0]
pulls = torch.autograd.grad(my_rounding(z, e, 0.25)[1], (z, e))
assert torch.equal(jacobian, torch.eye(2))                                                      # eq. (10.7)
assert torch.allclose(pulls[0], -0.25 * pulls[1])               # eq. (10.8): towards each other, the code four times as fast

# %%
form = {"channels": 1, "latent": 4, "width": 16, "depth": 1, "fold": 4}
pair = {}
for name, make, loss in (("KL", KLAutoencoder, kl_loss(0.1)), ("VQ, 256 codes", VQAutoencoder, vq_loss())):
    torch.manual_seed(0)
    model = make(**form) if name == "KL" else make(codes=256, **form)
    pair[name] = train(loss, model, [images], steps=2000 if full else 120, batch=48, lr=1e-2, warmup=20, ema=0.97,
                       clip=100.0, device=device).model.cpu()


# %%
some_garments = test_images[:300]
with torch.no_grad():
    copied = {name: model.decode(model.encode(some_garments)).clamp(-1, 1) for name, model in pair.items()}
    mean, log_var = pair["KL"].posterior(some_garments)
    used, perplexity = pair["VQ, 256 codes"].usage(some_garments)
bits = {"KL": (mean.square() + log_var.exp() - 1 - log_var).sum().item() / 2 / len(mean) / math.log(2),
        "VQ, 256 codes": 49 * math.log2(perplexity)}
for name, pictures in copied.items():
    print(f"{name:14} PSNR {psnr(pictures, some_garments):.1f} dB, about {bits[name]:5.0f} bits a picture")
print(f"codes in use: {used:.0%}, in effect {perplexity:.0f} of 256")
plotting.image_rows([some_garments[:5], *(pictures[:5] for pictures in copied.values())], ["original", *copied])
plt.show()

# %% [markdown]
# *Three rows of five garments: originals, and the copies of both autoencoders, which look alike: the kinds of garment are
# there, the writing on the pullover is not. So much, or so little, do seconds of training give.*
#
# Two ways to a small latent, and both serve. (That one needs fewer bits here is no verdict: the KL is so weak that it does
# not economise, because nobody has to pay for these bits.) For the diffusion model there is hardly a difference: the
# library, like Rombach et al. (2022), counts the rounding as part of the *decoder*. Diffusion works on the vectors before
# the rounding, and its small errors are rounded away. We go on with the KL form, which has one knob less.

# %% [markdown]
# ## 6 · Frozen, or end to end?
#
# We trained the autoencoder first, froze it, and then trained the diffusion model. Two stages are unfashionable. Why not
# train all in one, and let the diffusion loss shape the latents, too? "Then the encoder will find latents that are easy to
# diffuse." Indeed it will. The trouble is *which* latents are the easiest.
#
# Ask how small the loss can get. Let the latents be $\mathcal N(0,c^2)$, and let the denoiser be perfect. Our networks
# predict $v=\alpha\varepsilon-\sigma z_0$. Given $z_t=\alpha z_0+\sigma\varepsilon$, the clean $z_0$ has the variance
# $1/(1/c^2+\alpha^2/\sigma^2)$, because the precisions of what is known
# beforehand, $1/c^2$, and of what is seen, $\alpha^2/\sigma^2$, add. And under a variance-preserving schedule
# $z_0=\alpha z_t-\sigma v$ (put both definitions in), so an error of $v$ is that of $z_0$, divided by $\sigma$. Hence no
# denoiser at all has a smaller loss than
#
# $$\ell(c^2, t) = \frac{1}{\sigma_t^2}\cdot\frac{1}{1/c^2+\alpha_t^2/\sigma_t^2}
#   = \frac{c^2}{\alpha_t^2c^2+\sigma_t^2}\qquad\text{a latent.} \tag{10.9}$$
#
# **Exercise 10.5 · ●●○ · 10 min · eq. (10.9)**
#
# Write `my_least(variances, alpha, sigma)`: the least loss at each of `T` times, summed over `C` latents with the variances
# $c_i^2$. `alpha` and `sigma` have the shape `(T,)`.

# %% exercise="10.5"
def my_least(variances, alpha, sigma):                          # (C,), (T,), (T,) -> (T,)
    ### BEGIN SOLUTION two lines: shapes (T, 1) that meet (C,), then (10.9)
    alpha, sigma = alpha[:, None], sigma[:, None]
    return (variances / (alpha**2 * variances + sigma**2)).sum(1)
    ### END SOLUTION


# %% check="10.5"
# NBVAL_CHECK_OUTPUT
my_least = exercise("10.5", my_least)

# %% [markdown]
# **How does it depend on the size of the latents?** The curves are your formula; the dots are the loss of the exact
# denoiser on samples.

# %%
t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
alpha, sigma = schedule.alpha(t), schedule.sigma(t)
figure, ax = plt.subplots(figsize=(7, 3))
for c, mark, color in ((1.0, "^", plotting.THIRD), (0.3, "s", plotting.SECOND), (0.1, "o", plotting.ESTIMATE)):
    z0, noise = torch.randn(2, 20_000, 1, generator=seeded(7), dtype=torch.float64) * torch.tensor([c, 1.0]).view(2, 1, 1)
    z_t, v = alpha * z0 + sigma * noise, alpha * noise - sigma * z0                             # (20000, 10)
    v_hat = (alpha * z_t - alpha * c**2 / (alpha**2 * c**2 + sigma**2) * z_t) / sigma           # from the exact denoiser
    least = my_least(torch.tensor([c**2], dtype=torch.float64), alpha, sigma)
    assert torch.allclose((v_hat - v).square().mean(0), least, rtol=0.05)                       # eq. (10.9)
    ax.plot(t, least, color=plotting.TRUTH, lw=3)
    ax.plot(t, (v_hat - v).square().mean(0), mark, color=color, label=f"latents of size {c:g}")
ax.set(xlabel="t", ylabel="least loss of $v$", yscale="log")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# *Marks on grey curves: for latents of size 1 the least loss is 1 at all times. For smaller ones it is lower, and the more so
# the more noise there is: where there is nearly only noise, it is nearly $c^2$, a hundredth for latents of size 0.1.*
#
# The loss that is left is *what the latents say and the noise hides*. So it is smallest for latents that say nothing:
# $c\to0$.
#
# **Prediction 10.3.** The points of the ring, a linear encoder and decoder of two latents, and a diffusion model, all trained
# with the sum of both losses, so that the diffusion loss moves the encoder, too. Compare with a frozen encoder: what
# happens?
#
# * **a**: the diffusion loss is lower and the samples are better,
# * **b**: the diffusion loss is lower and the samples are worse,
# * **c**: the diffusion loss is higher: it works against the encoder.

# %% predict="10.3"
predict("10.3", "b")


# %%
class Joint(nn.Module):
    """Linear encoder and decoder, and a diffusion model of the latents."""

    def __init__(self, between):
        super().__init__()
        self.between = between                                  # what lies between encoder and diffusion model
        self.encode, self.decode = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.encode.weight)
        nn.init.eye_(self.decode.weight)
        self.D = Preconditioned(MLP(2, width=48, depth=2, fastest=8.0), schedule, V())


def joint_loss(model, x0, generator):
    z = model.encode(x0)
    error = (model.decode(z) - x0).square().sum(1).mean() / (2 * 0.01)
    return error + diffusion_loss(model.D, model.between(z), generator)


# %%
points = ring().sample(20_000, seeded(8)).float()
N_ring = 4000 if full else 2000
fresh = fold(ring().sample(N_ring, seeded(9)))
for name, between in (("frozen: stop-gradient", lambda z: z.detach()), ("end to end", lambda z: z),
                      ("end to end, normalised", lambda z: (z - z.mean(0)) / z.std(0))):
    torch.manual_seed(0)
    model = train(joint_loss, Joint(between), [points], steps=1500 if full else 350, batch=160, lr=1e-2, weight_decay=0.0,
                  ema=0.99, clip=1e9, device=device).model.cpu()
    with torch.no_grad():
        z = model.encode(points)
        shown = between(z)
        samples = last(dpm_solver_pp, model.D, prior(model.D, (N_ring, 2), seeded(10)), log_snr_uniform(20, schedule)).x
        if "normalised" in name:
            samples = samples * z.std(0) + z.mean(0)
        made = model.decode(samples)
        error = (model.decode(z) - points).square().mean().sqrt()
    print(f"{name:23} latents' std {shown.std():.2f}   copies off by {error:.4f}   diffusion loss "
          f"{diffusion_loss(model.D, shown, seeded(11)):.3f}   samples off by {sliced_wasserstein(fold(made.double()), fresh):.3f}")

# %%
reveal("10.3")

# %% [markdown]
# The decoder simply multiplies by the inverse, so the copies stay good: *nothing* stops the encoder from shrinking. And we
# know from section 4 what small latents do to the samples. **A loss that can be lowered by changing the question is no
# measure of the answer.**
#
# Three ways out:
#
# * **Stop the gradient**, or freeze: the diffusion loss is for the diffusion model. That is Stable Diffusion's way, and ours.
#   It has a second merit: each picture is encoded once, and all later training sees small latents only.
# * **Normalise** between the two: the size is out of reach, and in the table the samples are better than those of end to end
#   alone, if not as good as the frozen encoder's. The *shape* is not: an encoder can still make its channels
#   resemble each other, which is cheaper to predict and says less. Only the reconstruction resists.
# * **Do the whole sum.** (10.5) with a learnt prior is the honest loss: $\mathbb E[\ln q(z|x)]-\mathbb E[\ln p_\theta(z)]$. The
#   diffusion loss, suitably weighted, bounds the second part. The first, the encoder's negative entropy, is
#   $-\frac12\sum\ln\tau_i^2$ up to a constant: when all latents shrink together it grows exactly as much as the second
#   falls. Vahdat et al. (2021) train end to end in this way; Leng et al. (2025) use another anchor.
#
# Frozen is not a law, then. It is the simplest thing that cannot go wrong.

# %% [markdown]
# ## 7 · Emoji: the latent is a small picture
#
# Back to the autoencoder of the first page. Its loss is your `my_loss`, with convolutions for both halves. Its KL weight is
# small, $\beta=0.1$ with $\sigma_x^2=0.01$: next to nothing is below the water level of section 2, here 0.001. **What do
# its four channels look like?**

# %%
figure, axes = plt.subplots(4, 5, figsize=(5.6, 4.6))
for row, picture, z in zip(axes, originals, z_emoji):
    row[0].imshow((picture.permute(1, 2, 0) + 1) / 2)
    for ax, channel in zip(row[1:], z):
        ax.imshow(channel, cmap="Greys", vmin=-3, vmax=3)
for ax, title in zip(axes[0], ("emoji", *(f"channel {i}" for i in range(1, 5)))):
    ax.set_title(title)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()

# %% [markdown]
# *Four emoji, each with its four channels as grey pictures of 16 × 16. The drawing can be recognised in all of them. The first
# three tell areas apart, each by other colours: the swimsuit's pink is light, dark and white in them. The fourth shows little
# but edges, bright on one side and dark on the other.*
#
# A convolutional encoder looks at neighbourhoods, so its latent keeps the layout: it is a small picture in colours of its
# own. That is why the networks of the earlier chapters work on it unchanged; and it is why the latents are anything but
# independent Gaussians. There is much left for the diffusion model to learn. The autoencoder only takes care of what is fine
# and local.
#
# **Does the way between two latents lead over emoji?** Half-way between two emoji, in pixels and in latents:

# %%
first, second = 0, 1                                            # which two of the held-out emoji


def halfway(share, a=first, b=second):
    """Mixed in pixels, and mixed in latents and decoded."""
    z = (1 - share) * z_emoji[a] + share * z_emoji[b]
    with torch.no_grad():
        return (1 - share) * originals[a] + share * originals[b], emoji.decode(z[None].to(device))[0].cpu()


shares = torch.linspace(0, 1, 5)
plotting.image_rows([torch.stack(row) for row in zip(*(halfway(share) for share in shares))], ["pixels", "latents"])
plt.show()

# %% [markdown]
# *Two rows of five pictures from one emoji to another, hard to tell apart. Both are cross-fades: two drawings on top of each
# other, one fading in while the other fades out.*
#
# No: between two emoji there lies no emoji, in this latent space as little as among pixels. People expect a "semantic"
# space here, and it is worth seeing that there is none. A latent with 12 times fewer numbers is still a picture, and the
# mean of two pictures is none. The distribution of these latents is as complicated as that of emoji, and only a model of the
# distribution knows where they live. By hand, for other pairs:

# %%
def page(share, pair):
    a, b = (int(i) for i in pair.split(" and "))
    in_pixels, in_latents = halfway(share, a, b)
    return plotting.image_rows([torch.stack([originals[a], in_pixels, in_latents, originals[b]])], [""],
                                "one, mixed in pixels, mixed in latents, the other")


flipbook(page, share=[0.0, 0.25, 0.5, 0.75, 1.0], pair=["0 and 1", "2 and 3", "4 and 5"],
         alt="Four pictures: one emoji, the pair mixed in pixels, the pair mixed in latents, the other emoji; at share 0 the first three "
             "are the same emoji.")

# %% [markdown]
# **How many channels, and how strong a KL?** More channels reconstruct better, and leave more for the diffusion model to
# learn. That takes too long to try here, so it was measured beforehand: six autoencoders of emoji, each with a short training
# of its own, and on the latents of each a small diffusion model, all with the same number of steps. The ledger has how well
# pictures come back, and the kernel distance of what both priors draw:

# %%
shipped, sweep = ledger.read(data.ROOT / "data" / "ledger.csv"), {}
for r in shipped:
    if found := re.fullmatch(r"autoencoder, (\d+) channels, beta ([^,]+)(?:, (.+))?", r.method):
        sweep.setdefault((int(found[1]), float(found[2])), {})[found[3] or "round trip"] = r.value
print("channels    beta    PSNR   prior N(0, I)   diffusion prior")
for (channels, beta), row in sorted(sweep.items()):
    print(f"{channels:8} {beta:7g} {row['round trip']:7.1f} {row['prior N(0, I)']:15.2f} {row['diffusion prior']:17.2f}")

# %%
left, right = plt.subplots(1, 2, figsize=(9, 3.6))[1]
for ax, name, of in ((left, "channels", {c: row for (c, b), row in sorted(sweep.items()) if b == 0.1}),
                     (right, "beta", {b: row for (c, b), row in sorted(sweep.items()) if c == 4})):
    for prior_name, look in plotting.looks(["diffusion prior", "prior N(0, I)"]).items():
        ax.plot([row["round trip"] for row in of.values()], [row[prior_name] for row in of.values()], **look, label=prior_name)
    for i, (value, row) in enumerate(of.items()):               # above and below in turn, since points may be near
        ax.annotate(f"{value:g}", (row["round trip"], row["diffusion prior"]), (0, (5, -13)[i % 2]), ha="center", fontsize=9,
                    textcoords="offset points")
    ax.set(title=f"numbers: {name}", xlabel="PSNR of the round trip (dB)", ylabel="kernel distance of samples", ylim=(2, 4))
left.legend()
plt.show()

# %% [markdown]
# *Two panels, kernel distance of samples (lower is better) against PSNR of the round trip (right is better): for three numbers
# of channels, and for four KL weights.*
#
# Read the orange lines. *Channels*: with one, copies are poor, and no sample can be better than the decoder. From four to sixteen the
# copies gain little in so short a training, but there is four times as much to be learnt, and the samples get worse. The
# best is in the middle. *KL*: from $10^{-3}$ to 10 little changes; at 100 the KL eats what the decoder needs, and learnt
# samples suffer with the copies. The blue line is the lecture's point once more: only there, where the KL is strong enough to
# ruin the copies, do samples of $\mathcal N(0,I)$ get a little better, and at each weight the learnt prior is far ahead.

# %% [markdown]
# ## 8 · Closing task: latents of words
#
# Nothing in this chapter needs pictures. Let the "autoencoder" be a table: each word of a vocabulary has a vector, its
# code; the encoder looks it up, and the decoder returns the word of the *nearest* code. Reconstruction is perfect. A
# diffusion model of such latents meets a distribution that is nothing but points, the opposite of a Gaussian. Its exact
# denoiser can be written down.
#
# **Exercise 10.6 · ●●● · 15 min**
#
# Write `my_rounder(x, codes, alpha, sigma)`: the exact denoiser $\mathbb E[x_0\,|\,x_t=x]$ where $x_0$ is one of $K$ codes
# $e_k$, all equally likely, and $x_t=\alpha x_0+\sigma\varepsilon$. `alpha` and `sigma` are numbers. On paper first: how
# likely does the code $e_k$ make $x$? What makes probabilities out of $K$ such likelihoods? (`softmax(1)`, and
# `torch.cdist(a, b)`, the distances of all rows of `a` from all rows of `b`, are all you need.) And what does it become for
# $\sigma\to0$?

# %% exercise="10.6"
def my_rounder(x, codes, alpha, sigma):                         # (B, d), (K, d), (), () -> (B, d)
    ### BEGIN SOLUTION two lines: the probabilities (B, K) of the codes, and their mean
    squared = torch.cdist(x, alpha * codes).square()
    return (-squared / (2 * sigma**2)).softmax(1) @ codes
    ### END SOLUTION


# %% check="10.6"
# NBVAL_CHECK_OUTPUT
my_rounder = exercise("10.6", my_rounder)

# %% [markdown]
# <details><summary>If it does not work</summary>
#
# * *NaN*: do not exponentiate by hand; all the likelihoods underflow to 0. `softmax` subtracts the largest exponent first.
# * *Shapes do not match*: probabilities `(B, K)` times codes `(K, d)` is the mean `(B, d)`.
#
# </details>
#
# (For $\sigma\to0$ all probability goes to the nearest code: the denoiser becomes the decoder.)
#
# **Two thousand words, and your denoiser**: how much noise does rounding survive? Below, `share` is how many single words
# come back from noisy latents; a sentence of eight words is right if all eight are.

# %%
words, vectors = (part[:2000] for part in data.words())
codes = vectors * math.sqrt(vectors.shape[1])                   # size 1 for every number, on the average


class Vocabulary:
    """The exact denoiser of a data set of words."""

    schedule = schedule

    def __call__(self, x, t, cond=None):
        return my_rounder(x, codes, schedule.alpha(t).to(x), schedule.sigma(t).to(x))


D_words, said = Vocabulary(), torch.randint(2000, (400,), generator=seeded(12))
for t in (0.5, 0.6, 0.65, 0.7, 0.75, 0.8):
    noisy = schedule.alpha(t) * codes[said] + schedule.sigma(t) * torch.randn(400, 128, generator=seeded(13))
    share = (torch.cdist(noisy.float(), schedule.alpha(t).float() * codes).argmin(1) == said).float().mean().item()
    print(f"t = {t:4}: {share:6.1%} of the words come back, so {share**8:6.1%} of sentences of eight words")

# %%
drawn = final(D_words, prior(D_words, (12, 128), seeded(14)), uniform(30, schedule), ddim).x
apart, which = torch.cdist(drawn, codes).min(1)
print("twelve samples:\n   ", ", ".join(words[i] for i in which))
print(f"each within {apart.max():.2f} of its word's code; the nearest pair of codes is {torch.pdist(codes).min():.2f} apart")

# %% [markdown]
# Thirty steps of DDIM, unchanged since chapter 04, and noise has become words. The first table has the lesson for
# chapter 12: errors of single words multiply, so "nearly all words" is far from "all sentences". **Text works only as well as
# the autoencoder reconstructs**, and a decoder that forgives small errors of the latents is worth a lot.

# %% [markdown]
# ## The ledger

# %%
rows = [ledger.Row(f"{name}, beta {beta:g} (live)", "fashion_mnist", nfe, nfe, N, s["seconds"] if nfe else 0.0, "this machine",
                   "frechet", s["distances"][i], floor, N, 1, weights="live")
        for beta, s in ((0.01, weak), (10.0, middling)) for i, nfe, name in ((1, 0, "VAE prior"), (2, 20, "diffusion prior"))]
rows += [r for r in shipped if r.dataset == "fashion_mnist" and r.metric == "frechet" and r.method == "dpm_solver_pp_2"]
ledger.table(rows, "method data NFE seconds batch metric value floor n status").show()

# %% [markdown]
# The live rows are of tiny networks with eight latents, trained for seconds, one seed each, and their distances are of few
# samples, so they may be compared with one another only. The shipped rows, `dpm_solver_pp_2`, are of a U-Net on pixels:
# for *quality* it is far ahead. What the latents bring is in the column of seconds.

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | loss | $\lVert x-\hat x\rVert^2/2\sigma_x^2+\beta\,\mathrm{KL}$, both *summed* over a picture |
# | KL | $\frac12\sum(\mu^2+\tau^2-1-\ln\tau^2)$ |
# | what $\beta$ keeps | $m=\max(\lambda,\beta\sigma_x^2)$, $w^2=m-\beta\sigma_x^2$, $\tau^2=\beta\sigma_x^2/m$, rate $\frac12\ln(m/\beta\sigma_x^2)$ |
# | two priors | $\mathbb E\,\mathrm{KL}=$ information + misfit; a learnt prior makes the misfit free |
# | scale | mean 0 and variance 1 in each channel, measured after training |
# | VQ | decoder sees $z+\mathrm{sg}(e-z)$; $\lVert\mathrm{sg}(z)-e\rVert^2+\beta\lVert z-\mathrm{sg}(e)\rVert^2$ |
# | end to end | least loss $c^2/(\alpha^2c^2+\sigma^2)$ falls with the latents' size: stop the gradient |
# | codes | exact denoiser: softmax over $-\lVert x-\alpha e_k\rVert^2/2\sigma^2$ |
#
# * No sample is better than the decoder. First reconstruct, then diffuse.
# * The KL is a leash for the latents, and no model of them.
#
# **Limits.** The closed form is for linear autoencoders. The sweeps have one seed, and trainings of seconds or minutes: the first's
# blur is that of small dense networks, and the Fréchet distance of 500 pictures in the features of a small classifier sees
# blur and variety together; on latents of two or four numbers it may even prefer wrong mixtures to blurry copies. What a
# strong KL destroys here was trained from the start; gentler schedules of $\beta$ exist. Squared error is a poor judge of
# pictures: larger autoencoders add perceptual and adversarial losses, and then PSNR falls while pictures get better. That
# too few training steps, not the KL, may set the quality of the copies was not tested. The end-to-end experiment is linear
# and short; given more time the latents shrink further.
#
# ## Further reading
#
# * D. Kingma, M. Welling, *Auto-encoding variational Bayes*, 2013, arXiv:1312.6114.
# * I. Higgins et al., *beta-VAE*, ICLR 2017. M. Hoffman, M. Johnson, *ELBO surgery*, 2016: the split (10.5).
# * J. Lucas, G. Tucker, R. Grosse, M. Norouzi, *Don't blame the ELBO!*, 2019, arXiv:1911.02469: the linear case.
# * A. van den Oord, O. Vinyals, K. Kavukcuoglu, *Neural discrete representation learning*, 2017, arXiv:1711.00937: VQ.
# * R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer, *High-resolution image synthesis with latent diffusion models*,
#   2022, arXiv:2112.10752.
# * A. Vahdat, K. Kreis, J. Kautz, *Score-based generative modeling in latent space*, 2021, arXiv:2106.05931: end to end.
# * X. Leng et al., *REPA-E: unlocking VAE for end-to-end tuning with latent diffusion transformers*, 2025, arXiv:2504.10483.
