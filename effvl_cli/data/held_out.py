"""Make a table of the images that a training on a folder did not see: `python -m effvl_cli.data.held_out FOLDER`.

A network that learned the right labels of its training images knows which labels are wrong there, so shots, label noise
and suspects have to come from others. FOLDER.csv, for `--data csv:FOLDER.csv`, divides the validation images of
`folder:FOLDER` into train (four fifths of every class) and val, and keeps its test images.
"""

import sys
from pathlib import Path

from effvl_cli.core.files import write_csv
from effvl_cli.data import SPLITS, load
from effvl_cli.data.listings import held_out


def write_table(folder: Path) -> Path:
    """Write FOLDER.csv beside the folder.

    Raises:
        DataError: no images in one of its splits.
    """
    items = {}
    for split in ("val", "test"):
        source = load(f"folder:{folder}", split)
        names = zip(source.ids, source.labels.tolist(), strict=True)
        items[split] = [(name, label, source.classes[label]) for name, label in names]
    splits = held_out(items["val"], items["test"])
    table = folder.with_name(f"{folder.name}.csv")
    rows = [
        {"path": f"{folder.name}/{name}", "label": readable, "split": split}
        for split in SPLITS
        for name, _, readable in splits[split]
    ]
    write_csv(table, ("path", "label", "split"), rows)
    return table


if __name__ == "__main__":
    print(write_table(Path(sys.argv[1])))
