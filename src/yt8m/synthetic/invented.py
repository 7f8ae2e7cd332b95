"""Generated sources: video-level features with learnable classes, for trying the system without any data.

Each source has one to three classes of one topic. Its mean vector is the sum of the topic's and the classes' directions in
a few latent dimensions, mapped to the 1,152 features, and of a larger part of its own; all is scaled to the standard
deviation of real features. So classes can be separated, but not from a few noisy frames, and classes of a topic are easily
confused: the context of a segment helps.
"""

import numpy as np

from yt8m.features import YOUTUBE8M
from yt8m.synthetic.splice import Sources
from yt8m.vocabulary import Vocabulary

TOPICS = {
    "Sport": ("Surfing", "Football", "Tennis", "Skiing", "Boxing", "Swimming"),
    "Music": ("Guitar", "Piano", "Drums", "Choir", "Violin", "Concert"),
    "Kitchen": ("Bread", "Pizza", "Cake", "Soup", "Coffee", "Salad"),
    "Vehicles": ("Train", "Tractor", "Bicycle", "Airplane", "Motorcycle", "Boat"),
    "Animals": ("Cat", "Horse", "Parrot", "Fish", "Dog", "Cow"),
    "Home": ("Sewing", "Painting", "Gardening", "Furniture", "Knitting", "Lamp"),
    "Games": ("Chess", "Arcade game", "Racing game", "Cards", "Puzzle", "Strategy game"),
    "Outdoors": ("Mountain", "River", "Forest", "Beach", "Snow", "Volcano"),
}
"""Topics and their classes; the features behind the names are generated."""

LATENT_SIZE = 48
"""Dimensions in which classes differ."""

TOPIC_STRENGTH = 0.7
CLASS_STRENGTH = 0.8
OWN_STRENGTH = 0.5
"""Scale of the topic's, the class's and the source's own part in each latent dimension."""

LATENT_STD = 0.12
"""Standard deviation of the features that comes from the latent dimensions."""

FEATURE_STD = 0.48
"""Standard deviation of each source's own part of the features; together about that of real videos."""

BACKGROUND_LABEL = 3000
"""A label outside the segment classes, which some sources have, as real ones do."""


def invented_vocabulary(seed: int = 0) -> Vocabulary:
    """The classes of `TOPICS`, with ids out of order, as in the real file."""
    names = [name for classes in TOPICS.values() for name in classes]
    label_ids = np.random.default_rng([seed, 3]).choice(2000, len(names), replace=False)
    return Vocabulary(label_ids.astype(np.int64), tuple(names))


def invented_sources(num_sources: int, vocabulary: Vocabulary, seed: int = 0) -> Sources:
    """Generate sources.

    Args:
        num_sources: N.
        vocabulary: The vocabulary of `invented_vocabulary`.
        seed: Seed of directions, labels and vectors.
    """
    rng = np.random.default_rng([seed, 4])
    topics = list(TOPICS.values())
    of_topic = np.split(np.arange(len(vocabulary)), np.cumsum([len(classes) for classes in topics])[:-1])
    topic_directions = rng.standard_normal((len(topics), LATENT_SIZE))
    class_directions = rng.standard_normal((len(vocabulary), LATENT_SIZE))
    mapping = rng.standard_normal((LATENT_SIZE, YOUTUBE8M.size)) / np.sqrt(LATENT_SIZE)
    latent = OWN_STRENGTH * rng.standard_normal((num_sources, LATENT_SIZE))
    labels = []
    for source in range(num_sources):
        topic = int(rng.integers(len(topics)))
        # Class frequencies follow Zipf's law.
        shares = 1 / np.arange(1, len(of_topic[topic]) + 1)
        count = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
        classes = rng.choice(of_topic[topic], count, replace=False, p=shares / shares.sum())
        latent[source] += TOPIC_STRENGTH * topic_directions[topic] + CLASS_STRENGTH * class_directions[classes].sum(
            axis=0
        )
        background = [BACKGROUND_LABEL] if rng.random() < 0.3 else []
        labels.append(np.array([*vocabulary.label_ids[classes].tolist(), *background], np.int64))
    means = latent @ mapping
    means *= LATENT_STD / means.std()
    means += FEATURE_STD * rng.standard_normal(means.shape)
    return Sources(means.astype(np.float32), tuple(labels))
