"""The trained models that the course ships: one function each, one file each, all rebuilt by `course train NAME`.

A recipe is a function (model, steps, device, checkpoint, seed, identity) -> (Trained, metrics) with a `build` that makes the
untrained model and, where it begins with the weights of another recipe, that one's name as `start`. Weights are files
NAME.safetensors, as fp16 or int8; manifest.json beside them says how each came to be, and its check sum is verified before a
file is used. Those that ship lie in data/checkpoints, those that a learner trains in my/weights: no training ever writes over
weights that are there, and of all that a recipe has the best by its figure of merit are used.

A new model is a new function in the file of its data set. A new data set: a script in data/prepare, the file and its sum in
data/checksums.json and the data card, `FILES` and a loader in data.py, a file here with its line in the map and its import
below, `course train NAME --out data/checkpoints` for its weights, tests in test_data and test_recipes.

The map, as in course_lib:

    registry           the table of recipes
    weights            their files: listed, verified, which of several `load` takes, made
    losses             what several recipes share
    fashion            Fashion-MNIST: the judge, the teacher, its students
    ring               eight spots in the plane, whose exact answers are known
    emoji              the autoencoder, text to image, the cascade
    sentences          the autoencoder, and the diffusion model in its latent space
    images             images from the shipped teacher, on one device or under torchrun
"""

from .emoji import captioned_loss, emoji_captions, emoji_latents, reconstruction, small, turned, upscaling_loss
from .fashion import CONSISTENCY_WEIGHT, accuracy
from .losses import diffusion_loss
from .registry import RECIPES, known
from .ring import path_error
from .sentences import words_right
from .weights import best, checkpoints, entries, load, manifest, own, standing, train, verify_all

__all__ = ["CONSISTENCY_WEIGHT", "RECIPES", "accuracy", "best", "captioned_loss", "checkpoints", "diffusion_loss",
           "emoji_captions", "emoji_latents", "entries", "known", "load", "manifest", "own", "path_error", "reconstruction",
           "small", "standing", "train", "turned", "upscaling_loss", "verify_all", "words_right"]
