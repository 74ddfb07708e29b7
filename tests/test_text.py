"""Captions: any string gets one and, where it helps, a message. Sentences: to latents and back, and how good they are."""

import random
import time

import pytest
import torch

from course_lib import data, text
from course_lib.autoencoders import fit_scale
from course_lib.networks import DiT
from course_lib.training import train

WORDS = ("red", "apple", "maple", "cat", "pony", "run", "bake", "happy", "big", "dog", "3d", "don't", "bus")


def read(typed: str) -> tuple[list[str], str | None]:
    numbers, message = text.caption(typed, WORDS)
    return [WORDS[number] for number in numbers if number >= 0], message


# --- words ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("typed", "words"), [
    ("Don't panic, e-mail 3D!", ["don't", "panic", "e", "mail", "3d"]),
    ("DON’T", ["don't"]),
    ("'quoted' dogs' rock'n'roll", ["quoted", "dogs", "rock'n'roll"]),
    ("piñata Straße İstanbul", ["pinata", "strasse", "istanbul"]),
    ("ｗｉｄｅ ½ ﬁne", ["wide", "1", "2", "fine"]),
    ("красное 🍎 \x00\ud800", []),
])
def test_split(typed, words):
    assert text.split(typed) == words


@pytest.mark.parametrize(("form", "word"), [
    ("cats", "cat"), ("cat's", "cat"), ("ponies", "pony"), ("buses", "bus"), ("runs", "run"), ("running", "run"),
    ("runner", "run"), ("baked", "bake"), ("baking", "bake"), ("baker", "bake"), ("happier", "happy"), ("happily", "happy"),
    ("happiest", "happy"), ("bigger", "big"), ("biggest", "big"), ("doggy", "dog"), ("apples", "apple"),
])
def test_an_inflected_form_falls_back_to_its_stem(form, word):
    assert text.known(form, WORDS) == WORDS.index(word)


def test_a_form_that_is_a_word_itself_stays():
    assert text.known("cats", (*WORDS, "cats")) == len(WORDS)


@pytest.mark.parametrize("strange", ["xyz", "s", "'s", "as", "red1", "ing", ""])
def test_an_unknown_word_has_no_number(strange):
    assert text.known(strange, WORDS) == -1


# --- captions -------------------------------------------------------------------------------------------------------

def test_a_caption_is_a_row_of_twelve_numbers():
    numbers, message = text.caption("a red Apple, 3D", (*WORDS, "a"))
    assert numbers.dtype == torch.int64 and numbers.tolist() == [13, 0, 1, 10] + [-1] * 8 and message is None


def test_the_course_s_own_words_are_the_default():
    numbers, message = text.caption("red apple 3d")
    assert [data.words().words[number] for number in numbers[:3]] == ["red", "apple", "3d"] and message is None


@pytest.mark.parametrize("typed", ["", " \n\t", "?!", "<br>"])
def test_nothing_typed_is_the_empty_caption_with_a_hint(typed):
    assert read(typed) == ([], "Type a few words, such as: red apple 3d.")


def test_an_unknown_word_is_left_out_and_near_spellings_are_suggested():
    assert read("red aple") == (["red"], 'I do not know "aple"; did you mean "apple"?')
    assert read("red xylophone") == (["red"], 'I do not know "xylophone".')


def test_only_the_first_of_many_unknown_words_are_named():
    found, message = read("red qqa qqb qqc qqd qqe qqa")
    assert found == ["red"] and message.endswith('"qqc". Nor 2 more.') and "qqd" not in message


def test_a_long_caption_is_cut():
    assert read("red cat " * 7) == (["red", "cat"] * 6, "I use the first 12 words.")


@pytest.mark.parametrize("typed", ["red яблоко", "red 🍎", "red 苹果", "red تفاحة", "red ①٣"])
def test_another_script_is_told_apart(typed):
    found, message = read(typed)
    assert found == ["red"] and "I can only read words in the letters a to z." in message


@pytest.mark.parametrize("typed", ["“red” – cat…", "red\u00a0cat", "réd cát", "ｒｅｄ cat"])
def test_marks_accents_and_wide_letters_are_no_other_script(typed):
    assert read(typed) == (["red", "cat"], None)


def test_markup_is_no_caption_and_does_not_come_back():
    assert read("<b>red</b> <img src=x onerror=alert(1)> cat") == (["red", "cat"], None)
    _, message = read('<script "red & <zzzz>')
    assert not set("<>&") & set(message)


def test_any_string_gets_a_caption():
    draw = random.Random(0)
    alphabets = [range(0x110000), range(128), range(0x300, 0x370), range(0x1F300, 0x1FAFF), [ord(c) for c in "<>&'’ \0aeé3"]]
    for _ in range(300):
        alphabet = draw.choice(alphabets)
        typed = "".join(map(chr, draw.choices(alphabet, k=draw.randrange(200))))
        numbers, message = text.caption(typed)
        assert numbers.shape == (12,) and -1 <= numbers.min() and numbers.max() < len(data.words().words)
        absent = numbers == -1
        assert torch.equal(absent, absent.sort(stable=True).values), "words first, then places without one"
        assert message is None or (message.encode().decode() and not set("<>&\n\0") & set(message))


@pytest.mark.parametrize("typed", ["x" * 10**6, "<" * 10**6, "red " * 10**5, "\u0301" * 10**6, "ﷺ" * 10**5, "a'" * 10**5])
def test_a_very_long_string_is_quick(typed):
    start = time.perf_counter()
    text.caption(typed)
    assert time.perf_counter() - start < 2


# --- sentences ------------------------------------------------------------------------------------------------------

ROWS = torch.tensor([[0, 3, 5] + [-1] * 13, [7, 7] + [-1] * 14, list(range(16)), [-1] * 16])


@pytest.fixture
def model(generator):
    """An untrained autoencoder of sentences of forty words."""
    vectors = torch.nn.functional.normalize(torch.randn(40, 24, generator=generator), dim=1)
    return text.SentenceAutoencoder(vectors, channels=8, width=32, depth=1)


def random_sentences(n: int, generator: torch.Generator, words: int = 40) -> torch.Tensor:
    lengths = torch.randint(1, 17, (n, 1), generator=generator)
    return torch.where(torch.arange(16) < lengths, torch.randint(words, (n, 16), generator=generator), -1)


def test_tokens_and_sentence_are_inverse():
    sentences = data.sentences("test")
    numbers = text.tokens(sentences)
    assert numbers.shape == (len(sentences), 16) and numbers.dtype == torch.int64
    assert [text.sentence(row) for row in numbers] == sentences
    assert numbers.max() < len(text.vocabulary().words) == len(text.vocabulary().vectors)


def test_a_sentence_is_read_as_it_is_typed():
    assert torch.equal(text.tokens(["The weather improved!"]), text.tokens(["the weather improved"]))
    assert text.tokens([]).shape == (0, 16) and text.sentence(text.tokens([""])[0]) == ""


def test_a_sentence_ends_at_the_first_place_without_a_word():
    the, weather = text.tokens(["the weather"])[0, :2]
    assert text.sentence(torch.tensor([the, -1, weather])) == "the"


@pytest.mark.parametrize(("sentence", "told"), [("the xyzzy improved", "'xyzzy'"), ("the " * 17, "at most 16 words")])
def test_a_sentence_that_has_no_tokens_is_refused(sentence, told):
    with pytest.raises(ValueError, match=f"sentences: expected .*{told}"):
        text.tokens([sentence])


def test_rounding_exact_embeddings_returns_their_tokens(generator):
    vectors = text.vocabulary().vectors
    numbers = torch.randint(len(vectors), (20, 16), generator=generator)
    assert torch.equal(text.rounded(vectors[numbers], vectors), numbers)
    nearest = torch.arange(len(vectors))[::50]
    assert torch.equal(text.rounded(vectors[nearest], vectors), nearest), "no two words may share a vector"


def test_shapes_fit_a_diffusion_transformer(model, generator):
    z = model.encode(ROWS)
    assert z.shape == (4, 8, 4, 4) and model.decode(z).shape == (4, 16, 41)
    words = model.words(torch.randn(z.shape, generator=generator), batch=3)
    assert words.shape == ROWS.shape and words.dtype == torch.int64 and torch.equal(words, text.ended(words))
    assert DiT(channels=8, size=4, patch=1, width=32, depth=1)(z, torch.zeros(4)).shape == z.shape


def test_what_follows_the_end_makes_no_difference(model):
    junk = ROWS.clone()
    junk[0, 5:] = 9
    assert torch.equal(model.encode(junk), model.encode(ROWS))
    assert torch.allclose(model.encode(ROWS[:1]), model.encode(ROWS)[:1], atol=1e-6), "rows are read one by one"


def test_places_see_one_another(model):
    other = ROWS.clone()
    other[0, 0] = 1
    apart = (model.encode(other) - model.encode(ROWS))[0].abs().amax(0)
    assert (apart > 0).all()


@pytest.mark.parametrize("numbers", [ROWS[:, :15], ROWS[0], ROWS.float(), ROWS + 30, ROWS - 1])
def test_what_is_no_row_of_tokens_is_refused(model, numbers):
    with pytest.raises(ValueError, match="numbers: expected"):
        model.encode(numbers)


def test_latents_have_unit_variance_and_keep_their_sentences(model, generator):
    numbers = random_sentences(200, generator)
    before = model.words(model.encode(numbers))
    fit_scale(model, numbers)
    z = model.encode(numbers)
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(8), atol=1e-3)
    assert (model.words(z) == before).float().mean() > 0.999


def test_stored_weights_leave_the_fixed_vectors_out(model):
    assert "vectors" not in model.state_dict() and "none" in model.state_dict()


def test_training_learns_to_copy_words_that_it_never_saw(model, generator):
    seen = random_sentences(500, generator, words=30)                    # the last ten words are in no sentence
    untrained = text.accuracy(model.words(model.encode(seen)), seen)[0]
    run = train(text.sentence_loss(noise=0.3), model, [seen], steps=50, batch=32, lr=1e-2, warmup=10, ema=0.9,
                device="cpu", progress=False)
    assert sum(run.losses[-10:]) < 0.3 * sum(run.losses[:10]) and untrained < 0.2
    unseen = torch.where(seen >= 0, seen % 10 + 30, -1)
    assert text.accuracy(run.model.words(run.model.encode(unseen)), unseen)[0] > 0.8


def test_a_loss_with_nothing_replaced_and_no_noise_is_plain_cross_entropy(model, generator):
    logits = model.decode(model.encode(ROWS)).log_softmax(2)
    expected = -logits.gather(2, (ROWS % 41)[..., None]).mean()
    assert torch.allclose(text.sentence_loss(0.0, 0.0)(model, ROWS, generator), expected)


# --- how good sentences are -----------------------------------------------------------------------------------------

def test_accuracy_counts_words_at_their_places():
    guesses = ROWS.clone()
    guesses[0, 1], guesses[1, 2] = 4, 0                                  # a wrong word, and one too many
    words, sentences = text.accuracy(guesses, ROWS)
    assert words == pytest.approx(20 / 21) and sentences == pytest.approx(2 / 4)


def test_share_found_is_word_for_word():
    assert text.share_found(["a b", "b a", "a b", "c"], ["a b", "c d"]) == 0.5


def test_ngrams_agree_with_a_hand_count():
    model = text.NGrams(["a b", "a c"], size=3, order=2, discount=0.5)   # a, b, c and the end: 1/4 each if nothing is known
    # of six words and ends, two are "a"; four kinds: p(a) = (2 - 0.5 + 0.5 * 4 / 4)/6; b and c once: (0.5 + 0.5)/6
    assert model.probability(("a",)) == pytest.approx(2 / 6) and model.probability(("b",)) == pytest.approx(1 / 6)
    assert model.probability(("a", "b")) == pytest.approx((0.5 + 0.5 * 2 / 6) / 2)
    assert model.probability(("", "a")) == pytest.approx((1.5 + 0.5 * 1 * 2 / 6) / 2)
    assert model.probability(("d", "b")) == model.probability(("b",)), "an unknown context says nothing"
    p = (1.5 + 0.5 / 3) / 2 * (0.5 + 0.5 / 3) / 2 * (0.5 + 0.5 / 3)      # the start a, a b, b the end
    assert model.perplexity(["a b"]) == pytest.approx(p ** (-1 / 3))


@pytest.mark.parametrize("context", [(), ("a",), ("", ""), ("a", "b"), ("c", "c")])
def test_ngrams_sum_to_one(context):
    model = text.NGrams(["a b a c", "c a b", "b"], size=4)
    assert sum(model.probability((*context, word)) for word in ("a", "b", "c", "d", "")) == pytest.approx(1)


def test_ngrams_prefer_sentences_to_shuffled_ones():
    model = text.NGrams(data.sentences("test"), len(text.vocabulary().words))
    real = data.sentences("train")[:300]
    shuffled = [" ".join(random.sample(s.split(), len(s.split()))) for s in real]
    assert model.perplexity(real) < 0.7 * model.perplexity(shuffled)


def test_perplexity_alone_is_fooled_by_empty_sentences_and_length_tells():
    model, real = text.NGrams(data.sentences("test"), len(text.vocabulary().words)), data.sentences("train")[:300]
    assert model.perplexity([""] * 300) < model.perplexity(real)
    assert text.mean_length([""] * 300) == 0 and text.mean_length(["a b", "a"]) == 1.5


@pytest.mark.parametrize("measure", [text.mean_length, text.NGrams(["a"], 1).perplexity, lambda s: text.share_found(s, ["a"])])
def test_no_sentences_have_no_figures(measure):
    with pytest.raises(ValueError, match="sentences: expected at least one"):
        measure([])


# --- what is refused ------------------------------------------------------------------------------------------------

ROW = torch.zeros(2, 16, dtype=torch.long)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: text.accuracy(ROW, ROW[:1]), r"guesses: expected shape \(1, 16\), got \(2, 16\)"),
    (lambda: text.accuracy(ROW[:0], ROW[:0]), r"numbers: expected tokens with at least one word, got \(0, 16\) without"),
    (lambda: text.sentence(torch.full((16,), 10**6)), r"numbers: expected numbers in -1..\d+, got 1000000..1000000"),
    (lambda: text.sentence(torch.zeros(16)), "numbers: expected signed whole numbers"),
    (lambda: text.rounded(torch.zeros(3, 5), torch.zeros(9, 6)), r"embeddings: expected shape \(3, 6\), got \(3, 5\)"),
    (lambda: text.NGrams(["a b"], 5, order=0), "order: expected a whole number, at least 1, got 0"),
    (lambda: text.NGrams(["a b"], 5, discount=2.0), "discount: expected a finite number from 0 to 1, got 2.0"),
])
def test_what_is_no_text_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_sentences_have_no_loss(generator):
    model = text.SentenceAutoencoder(torch.randn(9, 6), 4, 8, 1)
    with pytest.raises(ValueError, match="numbers: expected at least one row, got none"):
        text.sentence_loss()(model, ROW[:0], generator)


def test_one_embedding_is_rounded_too():
    assert text.rounded(torch.ones(6), torch.eye(6)[:3] + torch.tensor([[0.0], [1.0], [5.0]])) == 1
