"""What do the committed checkpoints reach on their test split, in float and in int8?"""

from __future__ import annotations

from tinyml_edu import data, mcu, train, zoo
from tinyml_edu.quantization import quantize

CALIBRATION_IMAGES = 512


def figures() -> dict[str, tuple[float, str]]:
    """Evaluate every checkpoint whose data set is here; prints a table."""
    results: dict[str, tuple[float, str]] = {}
    print(f"{'checkpoint':22} {'float':>7} {'int8':>7}")
    for name in zoo.names():
        network, card = zoo.load(name)
        source = card["data"]["name"]
        if not data.is_available(source):
            print(f"{name:22} skipped: {source} is not here (tinyml data get {source})")
            continue
        test = data.load(source, "test")
        images = data.load(source, "train").x[:CALIBRATION_IMAGES]
        graph = mcu.capture(network, data.to_tensor(images[:1]))
        accuracy = train.evaluate(network, test)
        int8 = quantize(graph, calibration=images).evaluate(test.x, test.y)
        print(f"{name:22} {accuracy:7.4f} {int8:7.4f}")
        results |= {
            f"zoo.{name}.accuracy": (accuracy, "fraction"),
            f"quantization.{name}.w8a8.drop": (accuracy - int8, "fraction"),
        }
    return results
