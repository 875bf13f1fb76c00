"""python -m defectcls: what there is."""

import sys
from pathlib import Path

from defectcls.config import CONF_DIR

if __name__ == "__main__":
    if sys.argv[1:]:
        print(f"error: a verb is a module of its own: python -m defectcls.{sys.argv[1]}", file=sys.stderr)
        sys.exit(2)
    print("From a folder of photos to a trained, measured defect classifier.\n")
    for preset in sorted(CONF_DIR.glob("*.yaml")):
        if Path(__file__).with_name(f"{preset.stem}.py").is_file():
            purpose, _, command = preset.read_text(encoding="utf-8").splitlines()[0].lstrip("# ").partition(": ")
            print(f"{preset.stem:<10} {purpose}\n{'':<10} {command}")
    print("\nEach verb answers to --help. Every default lies in conf/; give another one as key=value.")
