"""The ten data sets of the CoOp papers besides ImageNet: builders for the registry.

Folders are those of CoOp's DATASETS.md, then torchvision's; templates are CoOp's, counts those of its appendix A
(arXiv 2109.01134).
"""

from functools import partial

from effvl_cli.data import SPLITS, official
from effvl_cli.data.published import Lists, Published, build

PLAIN = "a photo of a {}."
TESTS_ALONE = ("test",)

caltech101 = partial(
    build,
    Published(
        "caltech101",
        (("caltech-101", "101_ObjectCategories"), ("caltech101", "101_ObjectCategories")),
        PLAIN,
        (4128, 1649, 2465),
        "split_zhou_Caltech101.json",
        (Lists((), official.caltech101),),
    ),
)
oxford_pets = partial(
    build,
    Published(
        "oxford_pets",
        (("oxford_pets", "images"), ("oxford-iiit-pet", "images")),
        "a photo of a {}, a type of pet.",
        (2944, 736, 3669),
        "split_zhou_OxfordPets.json",
        (Lists(("annotations/trainval.txt", "annotations/test.txt"), official.oxford_pets, TESTS_ALONE),),
    ),
)
stanford_cars = partial(
    build,
    Published(
        "stanford_cars",
        (("stanford_cars", ""),),
        PLAIN,
        (6509, 1635, 8041),
        "split_zhou_StanfordCars.json",
        (
            Lists(
                ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
                official.stanford_cars,
                TESTS_ALONE,
            ),
        ),
    ),
)
flowers102 = partial(
    build,
    Published(
        "flowers102",
        (("oxford_flowers", "jpg"), ("flowers-102", "jpg")),
        "a photo of a {}, a type of flower.",
        (4093, 1633, 2463),
        "split_zhou_OxfordFlowers.json",
        (
            Lists(("imagelabels.mat", "setid.mat"), official.flowers102),
            Lists(("imagelabels.mat",), official.flowers102_divided),
        ),
    ),
)
food101 = partial(
    build,
    Published(
        "food101",
        (("food-101", "images"),),
        "a photo of {}, a type of food.",
        (50500, 20200, 30300),
        "split_zhou_Food101.json",
        (Lists(("meta/train.json", "meta/test.json"), official.food101),),
    ),
)
fgvc_aircraft = partial(
    build,
    Published(
        "fgvc_aircraft",
        (("fgvc_aircraft", "images"), ("fgvc-aircraft-2013b/data", "images")),
        "a photo of a {}, a type of aircraft.",
        (3334, 3333, 3333),
        "",
        (
            Lists(
                ("variants.txt", *(f"images_variant_{split}.txt" for split in SPLITS)), official.fgvc_aircraft, SPLITS
            ),
        ),
    ),
)
sun397 = partial(
    build,
    Published(
        "sun397",
        (("sun397", "SUN397"), ("SUN397", "")),
        PLAIN,
        (15880, 3970, 19850),
        "split_zhou_SUN397.json",
        (Lists(("ClassName.txt", "Training_01.txt", "Testing_01.txt"), official.sun397, TESTS_ALONE),),
    ),
)
dtd = partial(
    build,
    Published(
        "dtd",
        (("dtd", "images"), ("dtd/dtd", "images")),
        "{} texture.",
        (2820, 1128, 1692),
        "split_zhou_DescribableTextures.json",
        (Lists(tuple(f"labels/{split}1.txt" for split in SPLITS), official.dtd), Lists((), official.class_folders)),
    ),
)
eurosat = partial(
    build,
    Published(
        "eurosat",
        (("eurosat", "2750"),),
        "a centered satellite photo of {}.",
        (13500, 5400, 8100),
        "split_zhou_EuroSAT.json",
        (Lists((), official.eurosat),),
    ),
)
ucf101 = partial(
    build,
    Published(
        "ucf101",
        (("ucf101", "UCF-101-midframes"),),
        "a photo of a person doing {}.",
        (7639, 1898, 3783),
        "split_zhou_UCF101.json",
        (
            Lists(
                tuple(f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")),
                official.ucf101,
                TESTS_ALONE,
            ),
        ),
        videos="UCF-101",
    ),
)
