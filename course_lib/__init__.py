"""Fast sampling of score-based diffusion models: the library that the notebooks build up, chapter by chapter.

One currency. Every model, exact or learned, is a *denoiser* `D(x, t, cond=None) -> x0_hat`; score, noise and ODE slope
are functions of it. A *step* is a pure function `step(D, x, t, s, z=None, cond=None) -> x_s` from time t to s < t.
A *sampler* is an iterator of states over a decreasing time grid. Data sits at t = 0, noise at t = 1:

    x_t = alpha(t) x_0 + sigma(t) eps,     eps ~ N(0, I)

The map. A module imports only from modules above it here, a package after all that it holds; tests/test_structure.py reads
this, and holds every import against it.

Tools, which know nothing of diffusion:
    files              check sums, atomic writes and locks
    arguments          what functions accept: one check a kind, each with the ValueError that says what came
    training           the loop: EMA, atomic checkpoints, exact resume (on a CPU) or why it is refused, data-parallel
    data               Fashion-MNIST, emoji, sentences and words, each checked by its sum
    ledger             the table of what every method costs and gives
    plotting           the figures
    metrics            two-sample distances
    networks           MLP, U-Net, DiT; the networks that judge samples

Small latents:
    autoencoders       pictures to small latents and back: KL, VQ, and the linear case with its closed form
    text               captions as word numbers; sentences to small latents and back

The currency:
    schedules          alpha(t), sigma(t), all that follows from them, and time grids
    denoiser           score, eps, velocity; parameterisations; guidance
    targets            Gaussian mixtures, whose denoiser is known in closed form

Samplers:
    sampling           the driver: turns a step into a sampler and counts evaluations
    score_matching     implicit, sliced and denoising losses; Langevin dynamics
    sde_samplers       Euler-Maruyama, ancestral (DDPM), predictor-corrector
    ode_samplers       Euler, Heun, adaptive RK45; encoding and likelihood
    fast_samplers      DDIM, DPM-Solver++, optimised time grids
    parallel           Picard and parareal: many steps of a trajectory at once, on one device or many
    speculation        guesses several steps ahead, and a test that keeps the sequential law
    diffusers_bridge   the course's denoisers and the schedulers of diffusers

Distillation:
    progressive        of guidance into one evaluation, and of two steps into one
    consistency        consistency functions, learnt in pairs of times or in continuous time; flow maps

What is made of all that, each a package with a map of its own in its docstring:
    recipes            the trained models that the course ships, and images from them
    measure            what fills the tables of data/, run by `course measure`
    widgets            sliders around pure functions, the only module that imports ipywidgets
    classroom          exercises with known mistakes (banks), their checks, the `course` command; no module above imports it
"""
