"""The built-in tumour patches as a folder of PNG files, as a user's own images would lie there.

``patches/CLASS/NAME.png``, 1,914 of 32x32 pixels, under CC0; ``znorm compare --data patches``
learns from them.
"""

from pathlib import Path

from PIL import Image

from znorm.lab import tasks
from znorm.lab.spec import resolve

spec = resolve({"task": "pcam_mini"})
dataset = tasks.load(spec.task, spec.data)
home = Path("patches")
for split in (dataset.train, dataset.validation, dataset.test):
    for image, label, name in zip(split.images, split.targets, split.names, strict=True):
        path = home / dataset.classes[int(label)] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
for folder in sorted(home.iterdir()):
    print(f"{folder}: {len(list(folder.iterdir())):,} images")
