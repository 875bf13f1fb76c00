"""defectcls <verb> …, or python -m defectcls <verb> …; without a verb: what there is."""

import sys
from pathlib import Path

from defectcls.config import verbs


def main() -> None:
    """Do a verb as `python -m defectcls.<verb>` does, or list them."""
    typed = sys.argv[1:]
    if not typed or typed[0] in ("-h", "--help"):
        print("From a folder of photos to a trained, measured defect classifier.\n")
        for verb, (purpose, command) in verbs().items():
            print(f"{verb:<10} {purpose}\n{'':<10} {command}")
        print("\nEach verb answers to --help. Every default lies in conf/; give another one as key=value.")
    else:
        from defectcls.training.command import run_verb

        sys.path.insert(0, str(Path.cwd()))  # parts of one's own, as `python -m` finds them
        run_verb(typed[0], typed[1:])


if __name__ == "__main__":
    main()
