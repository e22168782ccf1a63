"""Tables of ten images, in several formats."""

import datasets

KINDS = ["cat", "dog", "cat", "eel", "dog", "cat", "eel", "dog", "cat", "eel"]


def lines(*rows, separator=","):
    return "\n".join(separator.join(map(str, row)) for row in rows) + "\n"


def paths():
    return [f"photos/{number}.png" for number in range(10)]


def write(path, text):
    path.write_text(text)
    return str(path)


def table(folder, column, name="table.csv", head="kind"):
    """Write a CSV file with the paths of the ten images and one more column."""
    return write(folder / name, lines(("file", head), *zip(paths(), column, strict=True)))


def as_csv(folder):
    return table(folder, KINDS)


def as_parquet_of_structures(folder):
    content = [{"bytes": (folder / path).read_bytes(), "path": None} for path in paths()]
    datasets.Dataset.from_dict({"file": content, "kind": KINDS}).to_parquet(folder / "table.parquet")
    return str(folder / "table.parquet")


def as_parquet_of_images(folder):
    features = datasets.Features({"file": datasets.Image(), "kind": datasets.Value("string")})
    rows = {"file": [str(folder / path) for path in paths()], "kind": KINDS}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "table.parquet")
    return str(folder / "table.parquet")
