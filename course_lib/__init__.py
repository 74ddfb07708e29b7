"""Fast sampling of score-based diffusion models: the library that the notebooks build up, chapter by chapter.

One currency. Every model, exact or learned, is a *denoiser* `D(x, t, cond=None) -> x0_hat`; score, noise and ODE slope
are functions of it. A *step* is a pure function `step(D, x, t, s, z=None, cond=None) -> x_s` from time t to s < t.
A *sampler* is an iterator of states over a decreasing time grid. Data sits at t = 0, noise at t = 1:

    x_t = alpha(t) x_0 + sigma(t) eps,     eps ~ N(0, I)

The map. A module imports only from modules above it here; a package is below what it holds. tests/test_structure.py reads this.

Tools, which know nothing of diffusion:
    files              check sums, atomic writes and locks
    arguments          what functions accept: one check a kind, each with the ValueError that says what came
    training           the loop: EMA, atomic checkpoints, exact resume, data-parallel
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

What is made of all that:
    recipes            the trained models that the course ships
      registry         the table of them
      weights          their files: listed, verified, loaded, made
      losses           what several share
      fashion          Fashion-MNIST: the judge, the teacher, its students
      ring             eight spots in the plane, whose exact answers are known
      emoji            the autoencoder, text to image, the cascade
      sentences        the autoencoder, and the diffusion model in its latent space
    measure            what fills the tables of data/, run by `course measure`
      rows             what all rows of the ledger share
      fashion          its rows on Fashion-MNIST, from 1000 steps to one
      ring             its rows on the ring, with the exact score
      emoji            its rows on emoji: what latents keep and save, whether pictures follow their captions
      latents          its rows on latents against pixels
      costs            what parallel sampling will cost on a device whose times were measured
      parallel         parallel.csv and devices.csv: rounds and seconds of parallel sampling
      solvers          solvers.csv: deterministic samplers, ours and those of diffusers, on a known solution
    images             images from the shipped model, alone or under torchrun
    widgets            sliders around pure functions, the only module that imports ipywidgets

The classroom, which no module above imports:
    classroom          exercises and predictions for the notebooks
      notebooks        notebooks as files, and what their cells are called
      exercises        what an author writes: Exercise, Mistake, Prediction
      banks            for each chapter its exercises with their known mistakes, and its predictions
        cases          what the exercises of several chapters are tried on
        chapter_*      one a chapter
      judge            what a chapter calls
        running        an answer run on its cases: counted, timed, on copies of the inputs
        verdicts       where it is decided what is said of an answer
        checks         `exercise`: one line, and a function to go on with
        predictions    `predict` and `reveal`
      learner          what a learner has
        answers        answers found in a notebook, whatever became of its cells
        copies         the folder my/: handed out once, never overwritten
        work           what is in my/: carried over to a new version, counted
        rerun          `course check`: answers run inside the pristine chapter
        lab            `course lab`: JupyterLab on my/
        doctor         `course doctor`: is this machine ready
      author           what an author has
        build          `course build`: notebooks/source to notebooks and solutions
      cli              the `course` command
      __main__         `python -m course_lib.classroom`
"""
