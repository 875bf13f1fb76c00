"""defectcls <verb> …, or python -m defectcls <verb> …; without a verb: what there is."""

import sys
from importlib import import_module
from pathlib import Path

from defectcls.config import verbs
from defectcls.errors import did_you_mean


def main() -> None:
    """Do a verb as `python -m defectcls.<verb>` does, or list them."""
    known, typed = verbs(), sys.argv[1:]
    if not typed or typed[0] in ("-h", "--help"):
        print("From a folder of photos to a trained, measured defect classifier.\n")
        for verb, (purpose, command) in known.items():
            print(f"{verb:<10} {purpose}\n{'':<10} {command}")
        print("\nEach verb answers to --help. Every default lies in conf/; give another one as key=value.")
    elif typed[0] in known:
        from defectcls.training.command import run_verb

        sys.path.insert(0, str(Path.cwd()))  # parts of one's own, as `python -m` finds them
        run_verb(typed[0], getattr(import_module(f"defectcls.{typed[0]}"), typed[0]), typed[1:])
    else:
        near = did_you_mean(typed[0], known) or ","
        print(f"error: there is no verb '{typed[0]}'{near} there are {', '.join(known)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
