import csv

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.config.continual_learn import OF_OTHERS, ContinualConfig
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.run import unopened
from effvl_cli.data import load
from effvl_cli.data.transforms import Preprocess
from effvl_cli.engines.continual.coarse import CIFAR100
from effvl_cli.engines.continual.task_images import HeldImages, Joined, TaskReader, held_out
from effvl_cli.engines.continual.tasks import Task, read_tasks, refuse_changed, refuse_other_classes
from tests.data import layouts

SMALL = Preprocess((8, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
# The fine labels in the order of fine_label_names.txt, as it is in the archive.
CIFAR100_NAMES = sorted(name.replace(" ", "_") for names in CIFAR100.values() for name in names.split(", "))


def config(**options):
    return ContinualConfig(**options)


def reader(config):
    return TaskReader(config, unopened("continual", config), SMALL)


@pytest.fixture
def pictures(tmp_path):
    """Five classes of 10 training, 4 validation and 3 test images; the red of each tells its class and number."""
    for split, count, first in (("train", 10, 0), ("val", 4, 10), ("test", 3, 14)):
        for label, name in enumerate(("ant", "bee", "cat", "dog", "eel")):
            folder = tmp_path / "animals" / split / name
            folder.mkdir(parents=True)
            for number in range(first, first + count):
                Image.new("RGB", (8, 8), (label * 20 + number, 5 * label, 255)).save(folder / f"{number:02d}.png")
    return f"folder:{tmp_path / 'animals'}"


def reds(images):
    return sorted(images.pixels[:, 0, 0, 0].tolist())


def test_classes_in_groups():
    tasks = read_tasks(config())
    assert [task.name for task in tasks] == ["zero-one", "two-three", "four-five", "six-seven", "eight-nine"]
    assert tasks[1] == Task("two-three", "digits", None, ("two", "three"))
    assert [len(task.classes) for task in read_tasks(config(num_classes_per_task=4))] == [4, 4, 2]
    assert [task.name for task in read_tasks(config(num_tasks=1))] == ["zero-one"]
    with pytest.raises(DataError, match="10 classes of digits in tasks of 3 leave one with 1"):
        read_tasks(config(num_classes_per_task=3))
    with pytest.raises(UsageError, match="--num-tasks is 6, and there are 5"):
        read_tasks(config(num_tasks=6))


def labelled(path, coarse_of):
    """A table of one training, validation and test picture a class, whose coarse labels are given by class."""
    Image.new("RGB", (8, 8)).save(path.parent / "x.png")
    with path.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file)
        write.writerow(("path", "label", "split", "coarse"))
        splits = ("train", "val", "test")
        write.writerows(("x.png", name, split, group) for name, group in coarse_of.items() for split in splits)
    return f"csv:{path}"


def names_of(**options):
    return [task.name for task in read_tasks(config(**options))]


def test_tasks_whose_names_would_be_the_same_have_their_numbers_in_front(tmp_path):
    """Names of other alphabets are all the same in letters of ours."""
    cats, dogs = ("\u732b", "\u864e"), ("\u72ac", "\u72fc")
    data = labelled(tmp_path / "a.csv", {name: group[0] for group in (cats, dogs) for name in group})
    assert names_of(data=data, tasks="coarse") == ["001-_", "002-_"]
    assert [len(task.classes) for task in read_tasks(config(data=data, tasks="coarse"))] == [2, 2]
    assert names_of(data=data) == ["001-_-_", "002-_-_"]
    groups = {"a": "A b", "b": "A b", "c": "A+b", "d": "A+b", "e": "a-b", "f": "a-b"}
    assert names_of(data=labelled(tmp_path / "b.csv", groups), tasks="coarse") == ["001-A_b", "002-A_b", "a-b"]
    taken = {"a": "001-A_b", "b": "001-A_b", "c": "A b", "d": "A b", "e": "A+b", "f": "A+b"}
    assert len(set(names_of(data=labelled(tmp_path / "c.csv", taken), tasks="coarse"))) == 3
    assert names_of(tasks="chunk")[0] == "zero-one"  # others stay as they are


def test_shuffled_classes_depend_on_the_seed_alone():
    first, again, other = (
        [task.classes for task in read_tasks(config(class_order="seed", seed=seed))] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(sum(first, ())) == sorted(load("digits", "train").classes)


def test_images_of_a_task_are_its_classes_relabelled(pictures):
    task = Task("some", pictures, None, ("dog", "bee"))  # not in the order of the data set
    found = reader(config(data=pictures)).splits(task)
    assert found.classes == ("dog", "bee")
    assert (len(found.train), len(found.val), len(found.test)) == (20, 8, 6)
    for images in (found.train_images, found.val, found.test):
        # labels by the blue-green of the class: 15 for dogs, 5 for bees
        assert images.labels.tolist() == [{15: 0, 5: 1}[int(green)] for green in images.pixels[:, 1, 0, 0]]
        assert images.source.labels.tolist() == images.labels.tolist()
    assert reds(found.test) == [*range(20 + 14, 20 + 17), *range(60 + 14, 60 + 17)]
    assert isinstance(found.train, HeldImages)
    assert torch.equal(torch.from_numpy(np.array(found.train.image(3))).permute(2, 0, 1), found.train_images.pixels[3])
    assert np.array_equal(found.train.images(np.array([3]))[0], np.asarray(found.train.image(3)))


def test_validation_images(pictures):
    task = Task("some", pictures, None, ("ant", "bee"))
    source = Joined(load(pictures, "train"), load(pictures, "val"))
    assert [np.asarray(source.image(k))[0, 0, 0] for k in (0, 49, 50, 69)] == [0, 89, 10, 93]

    def reds_of(**options):
        found = reader(config(data=pictures, **options)).splits(task)
        return reds(found.train_images), reds(found.val), reds(found.test)

    everything = [*range(14), *range(20, 34)]
    learned, decided, tested = reds_of(val_fraction=0.3)  # round(0.3 * 14) = 4 of each class
    assert sorted(learned + decided) == everything
    assert [sum(red < 20 for red in part) for part in (learned, decided)] == [10, 4]
    assert [len(learned), len(decided)] == [20, 8]
    assert (learned, decided, tested) != reds_of(val_fraction=0.3, seed=1)
    assert reds_of(select_on="test") == (everything, tested, tested)
    few = reds_of(shots=3)
    assert [sum(red < 20 for red in few[0]), len(few[0])] == [3, 6]
    assert few[1:] == reds_of()[1:]
    assert set(few[0]) <= set(reds_of(shots=4)[0])
    with pytest.raises(UsageError, match=r"--val-fraction 0.99 leaves none of the 14 training images of 'ant'"):
        held_out(source, ("ant",), 0.99, 0)


def test_the_share_held_out_of_a_class_does_not_depend_on_other_classes(pictures):
    source = load(pictures, "train")
    one, two = (held_out(source, names, 0.3, 0) for names in (("bee",), ("ant", "bee")))
    assert set(one) <= set(two)
    assert len(one) == 3
    assert len(two) == 6


def test_statistics_of_a_task(pictures):
    task = Task("some", pictures, None, ("ant", "bee"))
    with pytest.raises(DataError, match="a channel of the training images is the same everywhere"):  # blue
        reader(config(data=pictures, normalise="per-task")).splits(task)
    digits = config(normalise="per-task")
    found = reader(digits).splits(read_tasks(digits)[0])
    pixels = found.train_images.pixels.double() / 255
    assert found.preprocess.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert found.preprocess.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), rel=1e-9)
    assert found.test.preprocess == found.val.preprocess == found.train_images.preprocess == found.preprocess


def test_a_class_without_images(pictures, tmp_path):
    for image in (tmp_path / "animals" / "test" / "bee").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="task 'some': folder:animals has no test image of class 'bee'"):
        reader(config(data=pictures)).splits(Task("some", pictures, None, ("ant", "bee")))
    with pytest.raises(DataError, match="task 'some': folder:animals test has no class 'bird'"):
        reader(config(data=pictures)).test(Task("some", pictures, None, ("ant", "bird")))


def test_a_class_without_validation_images(pictures, tmp_path):
    task = Task("some", pictures, None, ("ant", "bee"))
    for image in (tmp_path / "animals" / "val" / "bee").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"has no val image of class 'bee'\. Give --val-fraction, e\.g\. 0\.1"):
        reader(config(data=pictures)).counts(task)
    assert reader(config(data=pictures, val_fraction=0.2)).counts(task)["val"] == 3 + 2  # of 14 ants and 10 bees


def test_data_without_validation_images(tmp_path):
    lines = [f"{split}/{name}.png,{split},{name}\n" for name in "ab" for split in ("train", "test")]
    (tmp_path / "t.csv").write_text("path,split,label\n" + "".join(lines))
    data = f"csv:{tmp_path / 't.csv'}"
    with pytest.raises(DataError, match="Give --val-fraction"):
        reader(config(data=data)).counts(Task("some", data, None, ("a", "b")))


def test_long_names_are_cut_in_messages(pictures):
    long = "x" * 250
    with pytest.raises(DataError) as caught:
        reader(config(data=pictures)).test(Task("some", pictures, None, ("ant", long)))
    assert long[:37] + "..." in str(caught.value) and long[:38] not in str(caught.value)
    with pytest.raises(DataError) as caught:
        refuse_other_classes("a", [f"c{k}" for k in range(100)], [long])
    assert len(str(caught.value)) < 500 and "missing: c0, c1" in str(caught.value)


def test_endless_images_need_a_number():
    options = config(data="shape-captions", tasks="chunk")
    task = Task("two", "shape-captions", None, ("red circle", "blue ring"))
    with pytest.raises(DataError, match=r"shape-captions has no end. Say how many images of each class with --shots"):
        reader(options).counts(task)
    counts = reader(config(data="shape-captions", shots=3)).counts(task)
    assert counts["train"] == 6


# --- files -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_file(pictures, tmp_path):
    listed = tmp_path / "tasks.yaml"
    listed.write_text(
        f"- {{name: a, data: '{pictures}', classes: [ant, dog], goal: value, goal-value: 0.93, epochs: 60}}\n"
        f"- {{name: b, data: '{pictures}', classes: '1,2', prune_ratios: [0.5, 0.9]}}\n"
        "- {name: c}\n"
    )
    options = config(tasks=str(listed))
    first, second, third = read_tasks(options)
    assert first.classes == ("ant", "dog")
    assert second.classes == ("bee", "cat")
    assert third == Task("c", "digits", None, load("digits", "train").classes, {}, third.origin)
    assert (first.options(options).goal, first.options(options).goal_value) == ("value", 0.93)
    assert first.options(options).epochs == 60
    assert second.options(options).prune_ratios == (0.5, 0.9)
    # what comes from the defaults of the data is that of the task's data; what was given stays
    assert second.options(options).epochs == OF_OTHERS["epochs"]
    assert third.options(options).epochs == options.epochs == 10
    assert second.options(config(tasks=str(listed), epochs=7)).epochs == 7
    assert Task.from_dict(first.to_dict()).to_dict() == first.to_dict()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a", "is not a list of tasks"),
        ("[]", "is not a list of tasks"),
        ("- {data: digits}", "name is None in row 1 of tasks.yaml"),
        ("- {name: 'a b'}", "name is 'a b' in row 1 of tasks.yaml. Give 1 to 64 letters"),
        (f"- {{name: {'a' * 65}}}", "Give 1 to 64 letters"),
        ("- {name: a}\n- {name: a}", "tasks.yaml has two tasks named 'a'"),
        ("- {name: a, epoch: 3}", "unknown key 'epoch' in row 1 of tasks.yaml, task 'a'. Did you mean 'epochs'?"),
        ("- {name: a, model: smallcnn}", "unknown key 'model' in row 1 of tasks.yaml, task 'a'"),
        ("- {name: a, epochs: zero}", "epochs is zero in row 1 of tasks.yaml, task 'a'. It must be a whole number"),
        ("- {name: a, prune-ratios: '0.5,0.3'}", "Give rising numbers between 0 and 1"),
        ("- {name: a, prune-ratios: [0.5, 0.3]}", "row 1 of tasks.yaml, task 'a': --prune-ratios is '0.5,0.3'"),
        (
            "- {name: a, goal: value}",
            "task 'a': --goal is value without --goal-value. Give one, e.g. --goal-value 0.93",
        ),
        ("- {name: a, goal-value: 0.9}", "task 'a': --goal-value is 0.9 and --goal individual. Give --goal value"),
        ("- {name: a}\n- {name: b, data: nothing}", "row 2 of tasks.yaml, task 'b': unknown data set 'nothing'"),
        ("- {name: a, goal: value, goal-value: 93}", "Percent are divided by 100: 0.93"),
        ("- {name: a, epochs: {x: 1}}", "Rows are flat"),
        ("- {name: a}\n- {name: !!python/name:os.system b}", "tasks.yaml line 2 has the tag !!python/name:os.system"),
        ("- {name: a, data: nothing}", "unknown data set 'nothing'"),
        ("- {name: a, classes: [zero, one], coarse: fish}", "has both classes and coarse"),
    ],
)
def test_rows_that_are_refused(workdir, text, message):
    (workdir / "tasks.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        read_tasks(config(tasks="tasks.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {name: a, classes: [zero]}", "task 'a' of digits has fewer than two classes: zero (row 1 of tasks.yaml"),
        ("- {name: a, classes: [zero, zero]}", "task 'a' has class 'zero' twice"),
        (
            "- {name: a, classes: [zero, ten]}",
            "digits has no class 'ten' (row 1 of tasks.yaml, task 'a'). It has zero,",
        ),
        ("- {name: a, classes: [0, 10]}", "digits has no class '10'"),
        ("- {name: a, coarse: fish}", "digits has no coarse labels"),
    ],
)
def test_classes_that_are_refused(workdir, text, message):
    (workdir / "tasks.yaml").write_text(text)
    with pytest.raises(DataError) as caught:
        read_tasks(config(tasks="tasks.yaml"))
    assert message in str(caught.value)


def test_no_such_file():
    with pytest.raises(UsageError, match=r"--tasks is chunks, where no file is. Give chunk, coarse or a YAML list"):
        read_tasks(config(tasks="chunks"))


# --- coarse labels ---------------------------------------------------------------------------------------------------


def test_coarse_labels_of_cifar100(tmp_path):
    assert len(CIFAR100) == 20
    assert len(CIFAR100_NAMES) == len(set(CIFAR100_NAMES)) == 100
    assert {len(names.split(", ")) for names in CIFAR100.values()} == {5}
    layouts.cifar(
        tmp_path / "cifar-100-binary",
        {"train.bin": 2000, "test.bin": 200},
        "fine_label_names.txt",
        CIFAR100_NAMES,
        2,
    )
    options = config(data="cifar100", data_root=str(tmp_path), tasks="coarse", select_on="test")
    tasks = read_tasks(options)
    assert len(tasks) == 20
    assert [tasks[0].name, tasks[-1].name] == ["aquatic_mammals", "vehicles_2"]
    assert tasks[0].classes == ("beaver", "dolphin", "otter", "seal", "whale")
    found = reader(options).splits(tasks[-1])
    assert found.classes == ("lawn mower", "rocket", "streetcar", "tank", "tractor")
    assert (len(found.train), len(found.test)) == (100, 10)  # 20 and 2 of each class
    fine = load("cifar100", "test", root=tmp_path)
    assert {fine.classes[fine.labels[list(fine.ids).index(name)]] for name in found.test.ids} == set(found.classes)


def test_one_row_of_a_coarse_label(tmp_path):
    layouts.cifar(
        tmp_path / "cifar-100-binary",
        {"train.bin": 200, "test.bin": 100},
        "fine_label_names.txt",
        CIFAR100_NAMES,
        2,
    )
    (tmp_path / "tasks.yaml").write_text("- {name: a, data: cifar100, coarse: vehicles_1}\n")
    options = config(tasks=str(tmp_path / "tasks.yaml"), data_root=str(tmp_path))
    [task] = read_tasks(options)
    assert task.classes == ("bicycle", "bus", "motorcycle", "pickup truck", "train")
    (tmp_path / "tasks.yaml").write_text("- {name: a, data: cifar100, coarse: cars}\n")
    with pytest.raises(DataError, match="cifar100 has no coarse label 'cars'"):
        read_tasks(options)


def table(folder, rows):
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "wnid", "fine", "fine_id", "coarse", "coarse_id"])
        for place, (fine, coarse) in enumerate(rows):
            for split in ("train", "val"):
                writer.writerow([f"{split}/{fine}/{place}.JPEG", split, f"n{place}", fine, place, coarse, 0])
    return f"csv:{folder / 'index.csv'}"


def test_coarse_labels_of_a_table(tmp_path):
    rows = [("tabby_cat", "cats"), ("Persian_cat", "cats"), ("pug", "big_dogs"), ("beagle", "big_dogs")]
    data = table(tmp_path, rows)
    tasks = read_tasks(config(data=data, tasks="coarse"))
    assert [(task.name, task.classes) for task in tasks] == [
        ("big_dogs", ("beagle", "pug")),
        ("cats", ("Persian cat", "tabby cat")),
    ]
    with pytest.raises(DataError, match="task 'fish' of csv:index has fewer than two classes: cod"):
        read_tasks(config(data=table(tmp_path, [*rows, ("cod", "fish")]), tasks="coarse"))
    with pytest.raises(DataError, match="class 'pug' is in 'big dogs' and in 'cats'"):
        read_tasks(config(data=table(tmp_path, [*rows, ("pug", "cats")]), tasks="coarse"))


def test_no_coarse_labels():
    with pytest.raises(DataError, match=r"digits has no coarse labels. They are known of cifar100, and of csv:FILE"):
        read_tasks(config(tasks="coarse"))


# --- changed lists ---------------------------------------------------------------------------------------------------


def test_a_changed_list_is_refused():
    tasks = read_tasks(config())
    refuse_changed(tasks, tasks)
    refuse_changed([Task.from_dict(task.to_dict()) for task in tasks], tasks)
    with pytest.raises(UsageError, match="task 2 of this run folder has name two-three, and the list now says four-fi"):
        refuse_changed(tasks, [tasks[0], tasks[2], tasks[1], *tasks[3:]])
    edited = Task("two-three", "digits", None, ("two", "three"), {"epochs": "3"})
    with pytest.raises(UsageError, match=r"task 2 of this run folder has overrides \{\}, and the list now says"):
        refuse_changed(tasks, [tasks[0], edited, *tasks[2:]])
    with pytest.raises(UsageError, match="Add the others with `effvl continual add-task --task eight-nine`"):
        refuse_changed(tasks[:4], tasks)
    with pytest.raises(UsageError, match="made for 5 tasks, and the list now has 4: 'eight-nine' is missing"):
        refuse_changed(tasks, tasks[:4])


def test_other_classes_are_refused():
    refuse_other_classes("a", ("x", "y"), ("x", "y"))
    with pytest.raises(DataError) as caught:
        refuse_other_classes("a", ("x", "y"), ("y", "z"))
    assert str(caught.value) == (
        "task 'a' was learned with 2 classes (x, y) and the data have 2 (y, z): missing: x; not learned: z. "
        "Give data with the same classes"
    )
    with pytest.raises(DataError, match="another order"):
        refuse_other_classes("a", ("x", "y"), ("y", "x"))


@pytest.mark.parametrize(("of_all", "own"), [("cpg", "finetune"), ("packnet", "individual"), ("individual", "cpg")])
def test_a_row_with_a_method_that_does_not_go_with_that_of_the_run_is_refused(of_all, own, tmp_path):
    (tmp_path / "t.yaml").write_text(f"- {{name: a, data: digits, classes: [zero, one], method: {own}}}\n")
    options = {"tasks": str(tmp_path / "t.yaml")}
    with pytest.raises(UsageError, match=f"method is {own} in row 1 of .*t.yaml, task 'a', and --method is {of_all}"):
        read_tasks(config(**options, method=of_all))
    (tmp_path / "t.yaml").write_text("- {name: a, data: digits, classes: [zero, one], method: packnet}\n")
    assert read_tasks(config(**options, method="pae"))


def test_a_row_can_have_a_file_of_goals_of_its_own(tmp_path):
    row = "- {name: a, data: digits, classes: [zero, one], goal: file, goal-file: g.json}\n"
    (tmp_path / "t.yaml").write_text(row)
    options = config(tasks=str(tmp_path / "t.yaml"))
    [task] = read_tasks(options)
    assert (task.options(options).goal, task.options(options).goal_file) == ("file", "g.json")
