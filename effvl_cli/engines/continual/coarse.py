"""Coarse labels: groups of classes that make a task each."""

from collections.abc import Mapping

from effvl_cli.core.errors import DataError
from effvl_cli.data.source import ImageSource

CIFAR100: Mapping[str, str] = {
    "aquatic mammals": "beaver, dolphin, otter, seal, whale",
    "fish": "aquarium fish, flatfish, ray, shark, trout",
    "flowers": "orchid, poppy, rose, sunflower, tulip",
    "food containers": "bottle, bowl, can, cup, plate",
    "fruit and vegetables": "apple, mushroom, orange, pear, sweet pepper",
    "household electrical devices": "clock, keyboard, lamp, telephone, television",
    "household furniture": "bed, chair, couch, table, wardrobe",
    "insects": "bee, beetle, butterfly, caterpillar, cockroach",
    "large carnivores": "bear, leopard, lion, tiger, wolf",
    "large man-made outdoor things": "bridge, castle, house, road, skyscraper",
    "large natural outdoor scenes": "cloud, forest, mountain, plain, sea",
    "large omnivores and herbivores": "camel, cattle, chimpanzee, elephant, kangaroo",
    "medium mammals": "fox, porcupine, possum, raccoon, skunk",
    "non-insect invertebrates": "crab, lobster, snail, spider, worm",
    "people": "baby, boy, girl, man, woman",
    "reptiles": "crocodile, dinosaur, lizard, snake, turtle",
    "small mammals": "hamster, mouse, rabbit, shrew, squirrel",
    "trees": "maple tree, oak tree, palm tree, pine tree, willow tree",
    "vehicles 1": "bicycle, bus, motorcycle, pickup truck, train",
    "vehicles 2": "lawn mower, rocket, streetcar, tank, tractor",
}
"""The 20 coarse labels of CIFAR-100 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""


def coarse_of(source: ImageSource) -> dict[str, tuple[str, ...]]:
    """Classes of each coarse label, labels in alphabetical order, classes in the order of their numbers.

    They are those of a table's column `coarse`, or CIFAR-100's, by the names of its classes.

    Raises:
        DataError: the data set has none, or classes without one.
    """
    table: Mapping[str, str] | None = getattr(source, "coarse", None)
    of_cifar100 = {fine: coarse for coarse, names in CIFAR100.items() for fine in names.split(", ")}
    if table is None and source.classes and set(source.classes) <= set(of_cifar100):
        table = of_cifar100
    if table is None:
        raise DataError(
            f"{source.name} has no coarse labels",
            "They are known of cifar100, and of csv:FILE with a column `coarse`; --tasks chunk needs none",
        )
    groups = sorted({table[name] for name in source.classes})
    return {group: tuple(name for name in source.classes if table[name] == group) for group in groups}
